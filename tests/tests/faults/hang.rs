//! SIGSTOP and SIGCONT: a process that hangs, and comes back to a world that went on.

use std::time::Duration;

use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::{Log, Service};
use holdfast_tests::{Over, over_each_channel};
use serde_json::json;
use tokio::time::sleep;

over_each_channel! {
    a_hung_backend_is_fenced_and_its_late_work_is_harmless,
    a_paused_machine_expires_nobody,
    a_hung_frontend_comes_back_with_every_device,
}

const ECHO: (&str, &str) = ("Demo", "Echo");
const FENCED: &str = "holdfast_link_fenced_total";
const STALE: &str = "holdfast_link_stale_epoch_total";
/// The link's timeout where a hang is to be noticed.
const NOTICED: &str = "1s";
/// Longer than that.
const PAUSE: Duration = Duration::from_secs(2);
/// Longer than the link's timeout where no hang is to be noticed (5 s).
const LONG_PAUSE: Duration = Duration::from_secs(7);

async fn a_hung_backend_is_fenced_and_its_late_work_is_harmless(over: Over) {
    const REQUESTS: u64 = 5;
    let service = Service::start().await;
    let builder = Gateway::builder(&service).over(over).link_timeout(NOTICED);
    let mut gateway = builder.start().await;
    let mut device = gateway.device("d").await;
    for n in 1..=REQUESTS {
        device
            .request(ECHO, &format!("q{n}"), &json!({"hold": true}))
            .await;
    }
    service.wait_for_calls(REQUESTS as usize).await;
    gateway.backends[0].stop();
    gateway.frontends[0].wait_for_metric(FENCED, |n| n >= 1.0).await;
    // The service answers the hung backend, which will find the answers when it wakes: under an epoch that is over.
    service.release();
    service.wait_for("its answers", |log| log.open() == 0).await;
    gateway.backends[0].cont();
    for n in 1..=REQUESTS {
        let reply = device.next_reply().await;
        assert_eq!((reply.seq, reply.reply_to), (n, format!("q{n}")));
    }
    gateway.frontends[0].wait_for_metric(STALE, |n| n >= 1.0).await;
    gateway.backends[0].wait_ready().await;
    device.request(ECHO, "next", &json!({})).await;
    assert_eq!(
        device.next_reply().await.reply_to,
        "next",
        "no late answer came in between"
    );
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    service.assert_contract();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_backend_takes_over_from_a_hung_one() {
    const DEVICES: usize = 20;
    let service = Service::start().await;
    let builder = Gateway::builder(&service).backends(2).link_timeout(NOTICED);
    let mut gateway = builder.start().await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        devices.push(gateway.device(&format!("d{n}")).await);
    }
    for device in &mut devices {
        device.request(ECHO, "held", &json!({"hold": true})).await;
    }
    service.wait_for_calls(DEVICES).await;
    gateway.backends[0].stop();
    gateway.frontends[0].wait_for_metric(FENCED, |n| n >= 1.0).await;
    service.release();
    for device in &mut devices {
        assert_eq!(
            device.next_reply().await.reply_to,
            "held",
            "answered while the first one still hangs"
        );
    }
    gateway.backends[0].cont();
    gateway.backends[0].wait_ready().await;
    for device in &mut devices {
        device.request(ECHO, "after", &json!({})).await;
        assert_eq!(device.next_reply().await.reply_to, "after");
    }
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}

/// A machine that sleeps stops both; nobody may be declared gone for it.
async fn a_paused_machine_expires_nobody(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    gateway.backends[0].stop();
    gateway.frontends[0].stop();
    sleep(LONG_PAUSE).await;
    gateway.backends[0].cont();
    gateway.frontends[0].cont();
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
    assert_eq!(gateway.frontends[0].metric(FENCED, &[]).await, 0.0);
    assert_eq!(service.calls().len(), 1, "nothing was replayed");
}

/// A frontend that hung loses its backend's trust for a moment, never a device.
async fn a_hung_frontend_comes_back_with_every_device(over: Over) {
    let service = Service::start().await;
    let builder = Gateway::builder(&service).over(over).link_timeout(NOTICED);
    let mut gateway = builder.start().await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    gateway.frontends[0].stop();
    sleep(PAUSE).await;
    gateway.frontends[0].cont();
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
    gateway.frontends_ready().await;
    device.request(ECHO, "next", &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, "next");
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}

/// More work than credits: a stalled class is counted and goes on when credits return.
#[tokio::test(flavor = "multi_thread")]
async fn credits_bound_what_a_hung_backend_is_sent() {
    const DEVICES: usize = 60;
    let service = Service::start().await;
    let mut route = Route::new("Demo", service.url("/demo"));
    route.queue = Some(DEVICES as u32 * 32);
    let mut gateway = Gateway::builder(&service).routes(vec![route]).start().await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        devices.push(gateway.device(&format!("d{n}")).await);
    }
    gateway.backends[0].stop();
    for device in &mut devices {
        for n in 0..32 {
            device
                .request(ECHO, &n.to_string(), &json!({"padding": "x".repeat(2_000)}))
                .await;
        }
    }
    gateway.frontends[0]
        .wait_for_metric("holdfast_link_credit_stall_total", |n| n >= 1.0)
        .await;
    gateway.backends[0].cont();
    for device in &mut devices {
        for n in 0..32 {
            assert_eq!(device.next_reply().await.reply_to, n.to_string());
        }
    }
    gateway.backends[0].wait_ready().await;
}
