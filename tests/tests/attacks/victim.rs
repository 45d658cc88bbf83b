//! The device that is attacked: the real SDK, and everything that its connections ended with.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_client::{Device, Error, PendingReply, Reply, Request, State};
use holdfast_tests::gateway::Gateway;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Victim {
    pub(crate) device: Device,
    losses: mpsc::UnboundedReceiver<Error>,
}

impl Victim {
    /// A device with the gateway's key for `id`, that connects to `address` and is not waited for.
    pub(crate) fn start(gateway: &Gateway, id: &str, address: SocketAddr) -> Self {
        Self::start_at(gateway, id, format!("ws://{address}"))
    }

    /// The same over whatever the URL says.
    pub(crate) fn start_at(gateway: &Gateway, id: &str, url: String) -> Self {
        let identity = gateway.keys.identity(id);
        let key = gateway.keys.device_key(&identity);
        let (tell, losses) = mpsc::unbounded_channel();
        let builder = Device::builder_with_key(url, identity, key)
            .seed(1)
            .on_state(move |state| {
                if let State::Waiting { error, .. } | State::Closed(error) = state {
                    // After the test nobody listens.
                    let _ = tell.send(error.clone());
                }
            });
        let device = builder.start().expect("good settings");
        Self { device, losses }
    }

    pub(crate) async fn online(&self) {
        let online = timeout(PATIENCE, self.device.wait_online()).await;
        online.expect("the device comes online").expect("nothing ends it");
    }

    /// What its connection ended with.
    pub(crate) async fn loss(&mut self) -> Error {
        let loss = timeout(PATIENCE, self.losses.recv()).await;
        loss.expect("the connection ends").expect("the device lives")
    }

    /// After a loss: whether that was the last word, or it comes online again.
    pub(crate) async fn stays_away(&self) -> bool {
        // The state itself may still be that of before the loss.
        let (counters, mut states) = (self.device.counters(), self.device.watch_state());
        let before = counters.connects();
        let over = |state: &State| matches!(state, State::Closed(_));
        let settled = states.wait_for(|state| over(state) || counters.connects() > before);
        let state = timeout(PATIENCE, settled).await.expect("it comes online or ends");
        over(&state.expect("the device lives"))
    }

    /// Whether no connection of its has ended so far.
    pub(crate) fn undisturbed(&mut self) -> bool {
        self.losses.try_recv().is_err()
    }

    /// Sends requests at once; the results come later.
    pub(crate) fn ask(&self, ids: &[&str]) -> Vec<PendingReply> {
        let send = |id: &&str| self.device.send(request(id)).expect("room for a request");
        ids.iter().map(send).collect()
    }

    /// The same with one of so many bytes.
    pub(crate) fn ask_long(&self, id: &str, bytes: usize) -> PendingReply {
        let payload = to_raw_value(&"x".repeat(bytes)).expect("JSON");
        let request = Request::json("Demo", "Echo", payload).with_id(id);
        self.device.send(request).expect("room for a request")
    }

    /// A request and its reply: everything is as it was.
    pub(crate) async fn works(&self) -> Reply {
        let reply = self.device.call(request("works")).await.expect("a reply");
        assert_eq!(reply.payload, request_payload("works").get());
        reply
    }
}

fn request(id: &str) -> Request {
    Request::json("Demo", "Echo", request_payload(id)).with_id(id)
}

fn request_payload(id: &str) -> Box<RawValue> {
    to_raw_value(&json!({ "id": id })).expect("JSON")
}
