//! Several backends at once: members, canaries and standbys, and how sessions move between them.

mod api;
mod frontends;
mod load;
mod members;
mod slow;

use std::time::Duration;

use holdfast_tests::device::Device;
use holdfast_tests::gateway::Gateway;
use serde_json::json;

/// A change that was asked for shows within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
const ECHO: (&str, &str) = ("Demo", "Echo");

/// Devices that are online at the first frontend, with names that are always the same.
async fn devices(gateway: &Gateway, count: usize) -> Vec<Device> {
    let names: Vec<String> = (0..count).map(|n| format!("device-{n}")).collect();
    let mut devices = Vec::new();
    for some in names.chunks(50) {
        let dials = some.iter().map(|name| gateway.device(name));
        devices.extend(futures_util::future::join_all(dials).await);
    }
    devices
}

/// Each sends a request and gets its reply.
async fn round(devices: &mut [Device]) {
    for device in &mut *devices {
        device.request(ECHO, "x", &json!({})).await;
    }
    for device in devices {
        device.next_reply().await;
    }
}

/// Waits until a frontend says that the backend has this share. It has told its shards by the time that a request, sent after
/// it says so, reaches them.
async fn wait_for_share(gateway: &Gateway, (frontend, backend): (usize, usize), percent: f64) {
    let wait = async {
        while gateway.status_of(frontend, backend).await["share_percent"] != percent {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "frontend {frontend} does not hear of {percent}%");
}

/// How many requests each backend has answered in the course of `act`.
async fn answered_during(gateway: &Gateway, act: impl Future<Output = ()>) -> Vec<u64> {
    let before = answered(gateway).await;
    act.await;
    let after = answered(gateway).await;
    after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect()
}

async fn answered(gateway: &Gateway) -> Vec<u64> {
    let mut answered = Vec::new();
    for backend in 0..gateway.backends.len() {
        answered.push(gateway.control(backend).answered().await);
    }
    answered
}
