//! The sockets of the links, over ZeroMQ: one DEALER per frontend, replaced whenever anything goes wrong with it.
//!
//! A task per socket connects and then always receives, since ZeroMQ notices a peer's end only there. Sending never waits:
//! the lanes keep what is outstanding far below the queue of the crate. All of it runs on the link thread's runtime.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Fuse, FusedStream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::debug;
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent as MonitorEvent, SocketOptions,
    SocketRecv, SocketSend, ZmqError,
};

use super::{LinkIndex, SendError, SocketEvent, SocketNews, Sockets};

/// News that wait for the link thread, at most; then the sockets are not read.
pub const NEWS_CAPACITY: usize = 1024;

/// See the module's documentation. Must be used on a tokio runtime.
pub struct ZmqSockets {
    endpoints: Vec<String>,
    connect_timeout: Duration,
    news: mpsc::Sender<SocketNews>,
    links: Vec<Option<Live>>,
}

/// One socket: its receiving half is in the task.
struct Live {
    task: AbortHandle,
    sender: Option<DealerSendHalf>,
    /// Where the sending half comes from once it is connected.
    arriving: oneshot::Receiver<DealerSendHalf>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ZmqSockets {
    /// `endpoints` in the order of the configuration. News of all sockets arrive at the receiver.
    pub fn new(endpoints: Vec<String>, connect_timeout: Duration) -> (Self, mpsc::Receiver<SocketNews>) {
        let (news, receiver) = mpsc::channel(NEWS_CAPACITY);
        let links = endpoints.iter().map(|_| None).collect();
        (
            Self {
                endpoints,
                connect_timeout,
                news,
                links,
            },
            receiver,
        )
    }
}

impl Sockets for ZmqSockets {
    fn open(&mut self, link: LinkIndex, attach: u32, identity: String, at: Instant) {
        let (half, arriving) = oneshot::channel();
        let task = SocketTask {
            link,
            attach,
            identity,
            endpoint: self.endpoints[link.get()].clone(),
            connect_timeout: self.connect_timeout,
            news: self.news.clone(),
        };
        // The old socket goes first: its task is aborted when it is dropped.
        self.links[link.get()] = None;
        let task = tokio::spawn(task.run(at, half)).abort_handle();
        self.links[link.get()] = Some(Live {
            task,
            sender: None,
            arriving,
        });
    }

    fn send(&mut self, link: LinkIndex, batch: Bytes) -> Result<(), SendError> {
        let live = self.links[link.get()].as_mut().ok_or(SendError::Closed)?;
        if live.sender.is_none() {
            live.sender = live.arriving.try_recv().ok();
        }
        let sender = live.sender.as_mut().ok_or(SendError::Closed)?;
        match sender.send(batch.into()).now_or_never() {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(SendError::Failed),
            None => Err(SendError::Full),
        }
    }

    fn close(&mut self, link: LinkIndex) {
        self.links[link.get()] = None;
    }
}

struct SocketTask {
    link: LinkIndex,
    attach: u32,
    identity: String,
    endpoint: String,
    connect_timeout: Duration,
    news: mpsc::Sender<SocketNews>,
}

impl SocketTask {
    async fn run(self, at: Instant, half: oneshot::Sender<DealerSendHalf>) {
        tokio::time::sleep_until(at.into()).await;
        match self.connect().await {
            Ok((socket, monitor)) => {
                let (sender, receiver) = socket.split();
                if half.send(sender).is_ok() {
                    self.tell(SocketEvent::Connected).await;
                    self.receive(receiver, monitor).await;
                }
            }
            Err(error) => debug!(endpoint = self.endpoint, %error, "cannot connect"),
        }
        self.tell(SocketEvent::Disconnected).await;
    }

    async fn connect(&self) -> Result<(DealerSocket, Monitor), ZmqError> {
        let mut options = SocketOptions::default();
        options.peer_identity(PeerIdentity::try_from(self.identity.as_bytes())?);
        options.connect_timeout(self.connect_timeout);
        let mut socket = DealerSocket::with_options(options);
        let monitor = socket.monitor().boxed().fuse();
        // The crate bounds the connection and the greeting, but not everything after it.
        match tokio::time::timeout(self.connect_timeout, socket.connect(&self.endpoint)).await {
            Ok(connected) => connected.map(|()| (socket, monitor)),
            Err(_) => Err(ZmqError::ConnectTimeout(self.connect_timeout)),
        }
    }

    /// Returns when the socket is of no use any more. Any error is the end: some repeat for ever.
    async fn receive(&self, mut receiver: DealerRecvHalf, mut monitor: Monitor) {
        loop {
            tokio::select! {
                message = receiver.recv() => {
                    let mut frames = match message {
                        Ok(message) => message.into_vecdeque(),
                        Err(error) => {
                            debug!(endpoint = self.endpoint, %error, "the socket failed");
                            return;
                        }
                    };
                    // A message is one frame; anything else is not from a frontend.
                    let (Some(batch), None) = (frames.pop_front(), frames.pop_front()) else { return };
                    self.tell(SocketEvent::Batch(batch)).await;
                }
                event = monitor.next(), if !monitor.is_terminated() => {
                    if matches!(event, Some(MonitorEvent::Disconnected(_))) {
                        return;
                    }
                }
            }
        }
    }

    /// The link thread outlives its sockets; should it be gone, there is nobody to tell.
    async fn tell(&self, event: SocketEvent) {
        let _ = self
            .news
            .send(SocketNews {
                link: self.link,
                attach: self.attach,
                event,
            })
            .await;
    }
}

/// Fused, so that the end of the monitor is not polled again.
type Monitor = Fuse<BoxStream<'static, MonitorEvent>>;
