//! A slow member beside a fast one.

use std::time::Duration;

use holdfast_tests::device::{Device, Incoming, event_text};
use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::Service;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{ECHO, devices};

const DEVICES: usize = 60;
const WINDOW: usize = 8;
const TIME: Duration = Duration::from_secs(4);

/// Sends as fast as the gateway takes it; gives the number of replies.
async fn flood(device: Device, until: Instant) -> u64 {
    let (mut outbox, mut inbox) = device.split();
    let sending = tokio::spawn(async move {
        for n in 0.. {
            let text = event_text(ECHO, &n.to_string(), &json!({}));
            let sent = tokio::time::timeout_at(until, outbox.send_text(text)).await;
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        outbox
    });
    let mut replies = 0;
    while let Ok(message) = tokio::time::timeout_at(until, inbox.next()).await {
        match message {
            Incoming::Reply(_) => replies += 1,
            Incoming::Ping => {}
            other => panic!("{other:?}"),
        }
    }
    let _outbox = sending.await.expect("it only sends");
    replies
}

/// P7: what waits for the slow one is bounded by its sessions' windows, and the fast one's sessions do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_gets_less_and_a_bounded_queue_while_a_fast_one_stays_busy() {
    let service = Service::start().await;
    let slow_service = Service::start().await;
    slow_service.slow(Duration::from_millis(400));
    let mut gateway = Gateway::builder(&service)
        .frontend_set("limits.window_requests", WINDOW as i64)
        .backend_set("max_in_flight", 64)
        .start()
        .await;
    let mut route = Route::new("Demo", slow_service.url("/demo")).timeout("60s");
    (route.concurrency, route.queue) = (Some(8), Some(4096));
    let routes = gateway.write_other_routes("slow_routes.toml", &[route]);
    let signed = gateway.write_key("slow.key", slow_service.signing_key());
    let own = [("routes", routes.as_str()), ("signing.key", signed.as_str())];
    let slow = gateway.add_backend_as(&[], &own).await;

    // Who comes over a lossy path may take a second to get in.
    let devices = devices(&gateway, DEVICES).await;
    let until = Instant::now() + TIME;
    let mut floods = JoinSet::new();
    for device in devices {
        floods.spawn(flood(device, until));
    }
    let mut most = 0;
    while Instant::now() < until {
        let waiting = gateway.status_of(0, slow).await["in_flight"].as_u64().unwrap();
        most = most.max(waiting);
        assert!(
            waiting <= (DEVICES * WINDOW) as u64,
            "{waiting} wait for the slow one"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = timeout(Duration::from_secs(30), floods.join_all()).await;
    let replies: u64 = ended.expect("devices stop").iter().sum();
    assert!(most > 64, "the slow one had more than it takes at a time: {most}");
    let (fast, slow) = (
        gateway.control(0).answered().await,
        gateway.control(slow).answered().await,
    );
    assert!(slow > 0 && fast > 10 * slow, "{fast} and {slow}");
    assert!(replies > 10 * slow, "devices got {replies}");
}
