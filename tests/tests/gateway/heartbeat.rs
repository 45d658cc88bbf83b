//! Heartbeats end at the frontend: silence is pinged, then closed; life of any kind is not.

use std::time::{Duration, Instant};

use holdfast_tests::device::Incoming;
use holdfast_tests::gateway::{Builder, Gateway, Route};
use holdfast_tests::service::Service;
use holdfast_tests::wire::{CLOSE, PING, TEXT, read_frame, write_frame};
use holdfast_tests::{ChannelKind, Over, over_each_channel};
use serde_json::json;

over_each_channel! {
    a_device_that_only_answers_pings_lives,
    a_stopped_reader_s_clock_stands_still,
}

const PING_AFTER: Duration = Duration::from_secs(1);
/// So long after the ping that a busy machine answers in time.
const CLOSE_AFTER: Duration = Duration::from_secs(6);

fn builder(over: Over, service: &Service) -> Builder<'_> {
    let text = |d: Duration| format!("{}s", d.as_secs());
    Gateway::builder(service)
        .over(over)
        .frontend_set("times.ping_after", text(PING_AFTER))
        .frontend_set("times.close_after", text(CLOSE_AFTER))
}

/// Answers no ping, as a device whose program hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_device_is_pinged_then_closed_with_4003() {
    let service = Service::start().await;
    let gateway = builder(Over::Wss, &service).start().await;
    let mut socket = gateway.dial_as("d").raw().await.unwrap();
    let said = Instant::now();
    write_frame(&mut socket, 0x80 | TEXT, true, b"@hello {}").await;
    let (mut opcodes, mut goodbye) = (Vec::new(), String::new());
    let code = loop {
        let frame = read_frame(&mut socket)
            .await
            .expect("a close frame before the end");
        opcodes.push(frame.opcode);
        match frame.opcode {
            CLOSE => break frame.close_code(),
            TEXT => goodbye = String::from_utf8(frame.payload).unwrap(),
            _ => {}
        }
    };
    let took = said.elapsed();
    assert_eq!(code, Some(4003));
    assert!(opcodes.contains(&PING), "never pinged: {opcodes:?}");
    assert!(
        goodbye.starts_with("@goodbye ") && goodbye.contains("heartbeat_timeout"),
        "{goodbye}"
    );
    assert!(took >= CLOSE_AFTER, "closed after {took:?} of silence");
}

async fn a_device_that_only_answers_pings_lives(over: Over) {
    let service = Service::start().await;
    let gateway = builder(over, &service).start().await;
    let mut device = gateway.device("d").await;
    let begun = Instant::now();
    let mut pings = 0;
    while begun.elapsed() < CLOSE_AFTER * 3 / 2 {
        match device.next_within(CLOSE_AFTER).await {
            Some(Incoming::Ping) => pings += 1,
            // There the transport answers by itself.
            None if over.kind() == ChannelKind::Udp => {}
            other => panic!("after {:?}: {other:?}", begun.elapsed()),
        }
    }
    assert!(
        pings >= 3 || over.kind() == ChannelKind::Udp,
        "{pings} pings in {:?}",
        begun.elapsed()
    );
    device.request(("Demo", "Echo"), "alive", &json!({})).await;
    while device.next().await == Incoming::Ping {}
}

/// While the frontend itself has stopped reading (a full window), the silence is not the device's fault.
async fn a_stopped_reader_s_clock_stands_still(over: Over) {
    let service = Service::start().await;
    let route = Route::new("Demo", service.url("/demo")).timeout("30s");
    let gateway = builder(over, &service).routes(vec![route]).start().await;
    let mut device = gateway.device("d").await;
    for n in 0..40 {
        device
            .request(("Demo", "Echo"), &n.to_string(), &json!({"hold": true}))
            .await;
    }
    service.wait_for_calls(32).await;
    let begun = Instant::now();
    while begun.elapsed() < CLOSE_AFTER * 3 / 2 {
        match device.next_within(CLOSE_AFTER).await {
            None | Some(Incoming::Ping) => {}
            other => panic!("after {:?}: {other:?}", begun.elapsed()),
        }
    }
    service.release();
    let mut replies = 0;
    while replies < 40 {
        match device.next().await {
            Incoming::Reply(_) => replies += 1,
            Incoming::Ping => {}
            other => panic!("{other:?}"),
        }
    }
}
