//! Kills, hangs and upgrades of backends that are attached through the tunnel.

use holdfast_tests::gateway::Route;
use holdfast_tests::service::{Log, Service};
use holdfast_tests::traffic::{Plan, Traffic};
use serde_json::json;

use super::{ECHO, OPEN, Place};

const FENCED: &str = "holdfast_link_fenced_total";

#[tokio::test(flavor = "multi_thread")]
async fn two_backends_share_the_devices_and_take_over_from_each_other() {
    const DEVICES: usize = 30;
    let (service, place) = (Service::start().await, Place::new());
    let mut gateway = place.gateway(&service, place.listen).backends(2).start().await;
    assert_eq!(gateway.frontends[0].metric(OPEN, &[]).await, 2.0);
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        devices.push(gateway.device(&format!("d{n}")).await);
    }
    for device in &mut devices {
        device.request(ECHO, "held", &json!({"hold": true})).await;
    }
    service.wait_for_calls(DEVICES).await;
    gateway.backends[0].kill9().await;
    service.release();
    for device in &mut devices {
        assert_eq!(device.next_reply().await.reply_to, "held");
    }
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    gateway.backends[0].restart().await;
    gateway.frontends[0].wait_for_metric(OPEN, |n| n == 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_hangs_and_upgrades_under_load_break_no_promise() {
    let plan = Plan {
        devices: 60,
        per_second: 300,
        payload_bytes: 200,
        max_delay_ms: 50,
        pushes_per_second: 10,
    };
    let (service, place) = (Service::start().await, Place::new());
    let mut route = Route::new("Demo", service.url("/demo")).timeout("20s");
    (route.concurrency, route.queue) = (Some(4_096), Some(16_384));
    let mut gateway = place
        .gateway(&service, place.listen)
        .routes(vec![route])
        .backends(2)
        // One is to hang, and that to be noticed.
        .link_timeout("1s")
        .start()
        .await;
    let traffic = Traffic::start(&gateway, plan).await;
    // The first backend's API takes the pushes: it stays.
    gateway.backends[1].kill9().await;
    gateway.backends[1].restart().await;
    traffic.settle().await;

    let before = gateway.frontends[0].metric(FENCED, &[]).await;
    gateway.backends[1].stop();
    gateway.frontends[0].wait_for_metric(FENCED, |n| n > before).await;
    gateway.backends[1].cont();
    gateway.backends[1].wait_ready().await;
    traffic.settle().await;

    gateway.add_backend().await;
    assert_eq!(gateway.backends[1].term().await.code(), Some(0));
    traffic.settle().await;
    gateway.frontends[0].wait_for_metric(OPEN, |n| n == 2.0).await;
    let report = traffic.finish().await;
    assert_eq!((report.violations, report.suppressed), (vec![], 0));
    assert_eq!(report.answered, report.sent);
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}
