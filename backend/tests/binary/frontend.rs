//! The frontend's end of the link, over a real ROUTER.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::Hello;
use holdfast_proto::link::{Command, Epoch, FEATURE_SHARE, Lane, LaneConfig, decode_batch};
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::PATIENCE;

/// Answers Hello, gives credit back, keeps the link alive while it is waited on.
pub(crate) struct Frontend {
    router: RouterSocket,
    identity: Bytes,
    pub(crate) lane: Option<Lane>,
    attached: u32,
    /// Of the backend.
    pub(crate) name: &'static str,
    pub(crate) features: Vec<String>,
}

impl Frontend {
    pub(crate) async fn bind(socket: &Path) -> Self {
        let mut router = RouterSocket::new();
        router.bind(&format!("ipc://{}", socket.display())).await.unwrap();
        Self {
            router,
            identity: Bytes::new(),
            lane: None,
            attached: 0,
            name: "backend",
            features: vec![FEATURE_SHARE.to_owned()],
        }
    }

    /// Commands as they come, until `wanted` says that all are there.
    pub(crate) async fn until(&mut self, mut wanted: impl FnMut(&Command) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.flush().await;
            let heartbeat = tokio::time::sleep(Duration::from_millis(50));
            let message = tokio::select! {
                message = self.router.recv() => message.unwrap(),
                () = heartbeat => {
                    assert!(tokio::time::Instant::now() < deadline, "it never came");
                    continue;
                }
            };
            if self.handle(message, &mut wanted) {
                self.flush().await;
                return;
            }
        }
    }

    fn handle(&mut self, message: ZmqMessage, wanted: &mut impl FnMut(&Command) -> bool) -> bool {
        let batch = decode_batch(message.get(1).unwrap().clone()).unwrap();
        let from: Epoch = batch.0.from.unwrap().into();
        if batch.0.to.is_none() {
            self.attached += 1;
            self.identity = message.get(0).unwrap().clone();
            let text = String::from_utf8(self.identity.to_vec()).unwrap();
            assert_eq!(
                text,
                format!("{}/{from}", self.name),
                "the identity names the epoch"
            );
            let local = Epoch {
                boot: 9,
                attach: self.attached,
            };
            let mut lane = Lane::new(LaneConfig::default(), local, from, Instant::now());
            let hello = Hello {
                version_min: 1,
                version_max: 1,
                frontend_id: 1,
                features: self.features.clone(),
                ..Default::default()
            };
            lane.enqueue(Command::Hello(hello), None);
            self.lane = Some(lane);
        }
        let lane = self.lane.as_mut().unwrap();
        let mut incoming = Vec::new();
        lane.handle_batch(Instant::now(), batch, &mut incoming).unwrap();
        let mut found = false;
        for frame in incoming {
            frame.charge.into_iter().for_each(|charge| lane.release(charge));
            found |= wanted(&frame.command);
        }
        found
    }

    pub(crate) async fn send(&mut self, command: Command) {
        self.lane.as_mut().unwrap().enqueue(command, None);
        self.flush().await;
    }

    async fn flush(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        let now = Instant::now();
        while let Some(batch) = lane
            .poll_batch(now, 0, |_, _| {})
            .or_else(|| lane.poll_header(now, 0))
        {
            let message: ZmqMessage = vec![self.identity.clone(), batch].try_into().unwrap();
            // A backend that is just going away is noticed by what it does next.
            let _ = self.router.send(message).await;
        }
    }
}
