//! A backend that wakes after a stop, when what it was doing is over.

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::{Log, Service};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{ECHO, NOTICED};

const FENCED: &str = "holdfast_link_fenced_total";

/// It was leaving when it was stopped: its successor has its work, and it has nothing left to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_backend_that_was_stopped_ends_when_it_wakes() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).link_timeout(NOTICED).start().await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    gateway.add_backend().await;
    gateway.backends[0].signal(Signal::SIGTERM);
    gateway.backends[0].wait_for_status("/ready", 503).await;
    gateway.backends[0].stop();
    gateway.frontends[0].wait_for_metric(FENCED, |n| n >= 1.0).await;
    service.wait_for_calls(2).await;
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
    gateway.backends[0].cont();
    assert_eq!(gateway.backends[0].wait_exit().await.code(), Some(0));
    device.request(ECHO, "next", &json!({})).await;
    assert_eq!(
        device.next_reply().await.reply_to,
        "next",
        "nothing came in between"
    );
    let attempts: Vec<u32> = service.calls().iter().map(|c| c.attempt).collect();
    assert_eq!(attempts, [1, 2, 1]);
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}

/// It wakes, attaches anew, and is stopped again: each epoch ends by itself, and no request is answered twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_stopped_again_and_again_does_no_harm() {
    let service = Service::start().await;
    let builder = Gateway::builder(&service).backends(2).link_timeout(NOTICED);
    let mut gateway = builder.start().await;
    let mut device = gateway.device("d").await;
    for round in 1..=3u64 {
        device
            .request(ECHO, &round.to_string(), &json!({"delay_ms": 100}))
            .await;
        gateway.backends[0].stop();
        gateway.frontends[0]
            .wait_for_metric(FENCED, |n| n >= round as f64)
            .await;
        let reply = device.next_reply().await;
        assert_eq!((reply.seq, reply.reply_to), (round, round.to_string()));
        gateway.backends[0].cont();
        gateway.backends[0].wait_ready().await;
        gateway.frontends[0]
            .wait_for_metric("holdfast_link_backends_active", |n| n == 2.0)
            .await;
    }
    device.request(ECHO, "last", &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, "last");
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}
