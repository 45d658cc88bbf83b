//! A backend that is there and answers nothing.

use futures_util::future::join_all;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::peer::{Answers, Peer};
use holdfast_tests::service::Service;

use super::TODAY;

const REPEATED: &str = "holdfast_frontend_repeated_frames_total";
const SESSIONS: &str = "holdfast_frontend_sessions";

/// Each device gets in, and is logged out, by the other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_answers_nothing_keeps_nobody_out_or_in() {
    const DEVICES: usize = 24;
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        // Also the other one has no longer than that, for all devices at once.
        .frontend_set("times.backend", "5s")
        .start()
        .await;
    let mut silent = Peer::attach(&gateway.link(), "silent", TODAY, Answers::Test).await;
    silent.attached().await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_link_backends_active", |n| n == 2.0)
        .await;
    let names: Vec<String> = (0..DEVICES).map(|n| format!("d{n}")).collect();
    let devices = join_all(names.iter().map(|name| gateway.device(name))).await;
    let repeated = async |frame| gateway.frontends[0].metric(REPEATED, &[("frame", frame)]).await;
    assert!(repeated("bind").await >= 1.0 && repeated("login").await >= 1.0);
    join_all(devices.into_iter().map(|device| device.close())).await;
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
    assert!(repeated("logout").await >= 1.0);
}
