//! P7: no device makes the gateway grow, stalls others, or gets away with breaking the protocol.

use std::time::Duration;

use holdfast_tests::device::{Incoming, event_text};
use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::Service;
use holdfast_tests::wire::{CLOSE, TEXT, read_frame, write_frame};
use holdfast_tests::{ChannelKind, Over, over_each_channel};
use serde_json::json;

over_each_channel! {
    a_full_window_stops_the_reading_and_loses_nothing,
    at_most_a_window_of_requests_is_in_flight,
    a_message_over_the_limit_is_closed_with_1009_and_the_limit_itself_passes,
    a_reply_may_be_longer_than_any_message_of_a_device_s,
    a_flood_of_control_messages_is_closed,
    a_slow_consumer_delays_nobody,
}

const ECHO: (&str, &str) = ("Demo", "Echo");
const WINDOW: usize = 32;

/// A device sends 500 requests of 100 KB and reads nothing: the frontend stops reading when the window is full, holds no
/// more than it, and in the end every request is answered.
async fn a_full_window_stops_the_reading_and_loses_nothing(over: Over) {
    // In bad weather 50 MB would take minutes; what memory they cost is seen without it.
    let requests: u64 = if over == Over::LossyUdp { 150 } else { 500 };
    // Half of what is sent: the windows of both processes are a fifth of it, and the system gives memory in large pages.
    const MAX_GROWTH_BYTES: u64 = 25 << 20;
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let (mut outbox, mut inbox) = gateway.device("flood").await.split();
    let before = gateway.frontends[0].resident_bytes() + gateway.backends[0].resident_bytes();
    let padding = "x".repeat(100_000);
    let sender = tokio::spawn(async move {
        for n in 0..requests {
            let payload = json!({"n": n, "hold": true, "padding": &padding});
            outbox
                .send_text(event_text(ECHO, &n.to_string(), &payload))
                .await
                .expect("P1");
        }
        outbox
    });
    service.wait_for_calls(1).await;
    // Another device's round trips are the clock by which the flood had every chance to get further.
    let mut clock = gateway.device("clock").await;
    for _ in 0..200 {
        clock.request(ECHO, "tick", &json!({})).await;
        clock.next_reply().await;
    }
    let held = service.log(|log| log.calls.iter().filter(|c| c.is_from("flood")).count());
    assert!(
        (1..=WINDOW).contains(&held),
        "{held} requests of one connection are at the service"
    );
    assert!(
        !sender.is_finished(),
        "{requests} requests went out although nobody took them"
    );
    let after = gateway.frontends[0].resident_bytes() + gateway.backends[0].resident_bytes();
    let growth = after.saturating_sub(before);
    assert!(growth < MAX_GROWTH_BYTES, "both processes grew by {growth} bytes");
    service.release();
    for n in 0..requests {
        match inbox.next().await {
            Incoming::Reply(reply) => assert_eq!(reply.reply_to, n.to_string()),
            other => panic!("reply {n}: {other:?}"),
        }
    }
    drop(sender.await.unwrap());
}

/// The window counts requests too, not only bytes.
async fn at_most_a_window_of_requests_is_in_flight(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    for n in 0..100 {
        device.request(ECHO, &n.to_string(), &json!({"hold": true})).await;
    }
    service.wait_for_calls(WINDOW).await;
    let mut clock = gateway.device("clock").await;
    for _ in 0..100 {
        clock.request(ECHO, "tick", &json!({})).await;
        clock.next_reply().await;
    }
    let held = service.log(|log| log.calls.iter().filter(|c| c.is_from("d")).count());
    assert_eq!(held, WINDOW);
    service.release();
    for n in 0..100 {
        assert_eq!(device.next_reply().await.reply_to, n.to_string());
    }
}

async fn a_message_over_the_limit_is_closed_with_1009_and_the_limit_itself_passes(over: Over) {
    const LIMIT: usize = 1 << 20;
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let frame = event_text(ECHO, "max", &json!("")).len();
    device
        .request(ECHO, "max", &json!("x".repeat(LIMIT - frame)))
        .await;
    assert_eq!(device.next_reply().await.payload.len(), LIMIT - frame + 2);
    device
        .request(ECHO, "max", &json!("x".repeat(LIMIT - frame + 1)))
        .await;
    let (_, code) = device.until_closed().await;
    assert_eq!(code, 1009);
}

/// What devices may send is bounded more closely than what services may answer.
async fn a_reply_may_be_longer_than_any_message_of_a_device_s(over: Over) {
    const LENGTH: usize = 3 << 20;
    let service = Service::start().await;
    let mut route = Route::new("Demo", service.url("/demo"));
    route.max_reply_bytes = Some(LENGTH as u64);
    let gateway = Gateway::builder(&service)
        .over(over)
        .routes(vec![route])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "big", &json!({"big": LENGTH})).await;
    assert_eq!(device.next_reply().await.payload.len(), LENGTH);
    device.request(ECHO, "next", &json!({})).await;
    device.next_reply().await;
}

async fn a_flood_of_control_messages_is_closed(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let (mut outbox, mut inbox) = gateway.device("d").await.split();
    let flood = async {
        // Ends when the gateway has closed.
        while outbox.send_text(r#"@sync {"topic":"t","from":1}"#).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let closed = async {
        loop {
            if let Incoming::Closed { code, .. } = inbox.next().await {
                return code;
            }
        }
    };
    let (code, ()) = tokio::join!(closed, flood);
    // In datagrams the answers wait until the device acknowledges them, and may be too many before the questions are.
    let answers_first = over.kind() == ChannelKind::Udp && code == 4002;
    assert!(code == 4005 || answers_first, "{code}");
    let mut other = gateway.device("e").await;
    other.request(ECHO, "x", &json!({})).await;
    other.next_reply().await;
}

/// RFC 6455: what a client must not send, and the code that it gets for it.
#[tokio::test(flavor = "multi_thread")]
async fn broken_framing_is_closed_with_its_code() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Wss, &service).await;
    let cases: [(&str, u8, bool, &[u8], u16); 6] = [
        ("unmasked (5.1)", 0x81, false, b"{}", 1002),
        ("reserved bit (5.2)", 0xc1, true, b"{}", 1002),
        ("unknown opcode (5.2)", 0x83, true, b"", 1002),
        ("continuation of nothing (5.4)", 0x80, true, b"x", 1002),
        ("fragmented ping (5.5)", 0x09, true, b"", 1002),
        ("not UTF-8 (8.1)", 0x81, true, b"\xff\xfe", 1007),
    ];
    for (what, first, masked, payload, expected) in cases {
        let mut socket = gateway.dial_as("d").raw().await.unwrap();
        write_frame(&mut socket, 0x80 | TEXT, true, b"@hello {}").await;
        assert_eq!(read_frame(&mut socket).await.unwrap().opcode, TEXT, "@welcome");
        write_frame(&mut socket, first, masked, payload).await;
        let code = loop {
            let frame = read_frame(&mut socket)
                .await
                .unwrap_or_else(|| panic!("{what}: no close frame"));
            if frame.opcode == CLOSE {
                break frame.close_code();
            }
        };
        assert_eq!(code, Some(expected), "{what}");
    }
}

/// Fragments, with a ping between them, make one message (RFC 6455 section 5.4).
#[tokio::test(flavor = "multi_thread")]
async fn fragments_make_one_message() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Wss, &service).await;
    let mut socket = gateway.dial_as("d").raw().await.unwrap();
    let text = event_text(ECHO, "pieces", &json!({"é": 1}));
    let (start, end) = text.as_bytes().split_at(text.find('é').unwrap() + 1);
    write_frame(&mut socket, TEXT, true, start).await;
    write_frame(&mut socket, 0x89, true, b"between").await;
    write_frame(&mut socket, 0x80, true, end).await;
    let pong = read_frame(&mut socket).await.unwrap();
    assert_eq!(
        (pong.opcode, pong.payload.as_slice()),
        (holdfast_tests::wire::PONG, &b"between"[..])
    );
    let reply = read_frame(&mut socket).await.unwrap();
    assert!(
        String::from_utf8(reply.payload)
            .unwrap()
            .contains(r#""reply_to":"pieces""#)
    );
}

/// A device that takes no pushes loses pushes or is closed as 4002, is counted, and delays nobody.
async fn a_slow_consumer_delays_nobody(over: Over) {
    const PUSHES: usize = 2_000;
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let dial = gateway.dial_as("slow").receive_buffer(4096);
    let mut slow = dial.connect().await.unwrap();
    slow.hello().await;
    let before = gateway.frontends[0].resident_bytes();
    let padding = "x".repeat(20_000);
    let mut statuses = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..PUSHES {
        let push = gateway.push(json!({"device": "slow"}), json!(&padding));
        // A push that the socket has not taken is `unconfirmed` only after seconds: nobody waits for it here.
        match tokio::time::timeout(Duration::from_millis(100), push).await {
            Ok(answer) => {
                *statuses
                    .entry(answer["results"][0]["status"].to_string())
                    .or_default() += 1;
                if statuses.keys().any(|s| s != "\"written\"") {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let growth = gateway.frontends[0].resident_bytes().saturating_sub(before);
    assert!(
        growth < 16 << 20,
        "the frontend grew by {growth} bytes: {statuses:?}"
    );
    assert!(
        statuses.values().sum::<usize>() < PUSHES,
        "40 MB were `written` to a device that reads nothing"
    );
    let mut other = gateway.device("quick").await;
    gateway.push(json!({"device": "quick"}), json!(1)).await;
    other.next_push().await;
}
