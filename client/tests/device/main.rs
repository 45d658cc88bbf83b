//! The SDK against a scripted server over real sockets: what is the same on all channels, what only `ws` must withstand
//! (`insecure`), and what only `udp` has (`datagrams`).

#![allow(clippy::unwrap_used)]

mod datagrams;
mod insecure;
mod nat;
mod support;
mod udp_server;

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_client::{Device, Error, Identity, Request, State};
use holdfast_proto::ChannelKind;
use serde_json::json;
use serde_json::value::RawValue;
use support::{Server, device_key, identity};
use tokio_tungstenite::tungstenite::Message;

const NEVER: u64 = 60_000;
/// Far above what any state takes: a test that waits for ever tells nothing.
const PATIENCE: Duration = Duration::from_secs(60);

macro_rules! over_each_channel {
    (web: $($web:ident),*; all: $($test:ident),* $(,)?) => {
        mod wss {
            $(#[tokio::test]
            async fn $web() {
                super::$web(super::ChannelKind::Wss).await;
            })*
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::ChannelKind::Wss).await;
            })*
        }
        mod ws {
            $(#[tokio::test]
            async fn $web() {
                super::$web(super::ChannelKind::Ws).await;
            })*
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::ChannelKind::Ws).await;
            })*
        }
        mod udp {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::ChannelKind::Udp).await;
            })*
        }
    };
}

over_each_channel! {
    web:
    it_pings_when_idle_and_gives_a_silent_server_up,
    it_answers_pings;
    all:
    many_requests_are_matched_to_their_replies_in_any_order,
    errors_and_binary_replies_reach_their_callers,
    crossed_replies_end_the_connection_and_the_caller_hears_why,
    a_second_reply_and_an_early_one_are_violations,
    pushes_go_to_the_handler_and_to_a_bounded_queue,
    a_lost_connection_fails_requests_except_those_with_a_retry_key,
    a_goodbye_says_when_to_come_back,
    some_close_codes_and_goodbyes_are_final,
    the_first_attempt_of_connect_must_succeed,
    requests_in_flight_are_bounded_and_sizes_checked,
    a_caller_that_gives_up_frees_its_place_and_the_late_reply_is_no_violation,
    reading_goes_on_while_the_server_does_not_read,
    closing_says_goodbye_properly,
    dropping_the_last_handle_closes,
}

fn echo() -> Request {
    Request::json("Demo", "Echo", raw("1"))
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

async fn until(device: &Device, what: impl FnMut(&State) -> bool) -> State {
    let mut state = device.watch_state();
    let reached = tokio::time::timeout(PATIENCE, state.wait_for(what)).await;
    reached.expect("the state comes in time").unwrap().clone()
}

async fn is_closed(device: &Device) -> Error {
    match until(device, |state| matches!(state, State::Closed(_))).await {
        State::Closed(error) => error,
        state => unreachable!("{state:?}"),
    }
}

async fn many_requests_are_matched_to_their_replies_in_any_order(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let mut pending: Vec<_> = (0..3).map(|_| device.send(echo()).unwrap()).collect();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(peer.receive_header().await["id"].as_str().unwrap().to_owned());
    }
    for seq in [3u64, 1, 2] {
        peer.reply(seq, &ids[seq as usize - 1], json!({ "n": seq })).await;
    }
    for seq in (1..=3).rev() {
        let reply = pending.pop().unwrap().await.unwrap();
        assert_eq!(
            (reply.seq, &reply.payload[..]),
            (seq, format!("{{\"n\":{seq}}}").as_bytes())
        );
    }
    device.close().await;
    assert_eq!(device.counters().violations(), 0);
}

async fn errors_and_binary_replies_reach_their_callers(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let failing = device.send(echo()).unwrap();
    let id = peer.receive_header().await["id"].clone();
    peer.send(
        &json!({"header": {"namespace": "System", "name": "Error", "reply_to": id, "seq": 1},
        "payload": {"code": "no_route", "message": "none", "retryable": false}})
        .to_string(),
    )
    .await;
    let expected = Error::Service {
        code: "no_route".into(),
        message: "none".into(),
        retryable: false,
    };
    assert_eq!(failing.await, Err(expected));

    let binary = device
        .send(Request::binary("D", "E", Bytes::from_static(b"\xff")).with_id("b1"))
        .unwrap();
    let sent = peer.next().await.unwrap();
    assert_eq!(
        sent,
        Message::binary(&b"\x0a\x0a\x01D\x12\x01E\x1a\x02b1\xff"[..])
    );
    let reply = &b"\x0c\x0a\x01D\x12\x01E\x2a\x02b1\x30\x02\xfe"[..];
    peer.send_message(Message::binary(reply)).await;
    let reply = binary.await.unwrap();
    assert_eq!(
        (reply.seq, reply.binary, &reply.payload[..]),
        (2, true, &b"\xfe"[..])
    );
}

async fn crossed_replies_end_the_connection_and_the_caller_hears_why(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().reconnect(false).connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let first = device.send(echo().with_id("a")).unwrap();
    let second = device.send(echo().with_id("b")).unwrap();
    peer.receive().await;
    peer.receive().await;
    peer.reply(1, "b", json!(1)).await;
    assert!(matches!(first.await, Err(Error::Protocol(_))));
    let Some(Message::Close(Some(frame))) = peer.next().await else {
        panic!("no close frame")
    };
    assert_eq!(u16::from(frame.code), 1002);
    drop(peer);
    assert_eq!(second.await, Err(Error::Disconnected));
    assert!(matches!(is_closed(&device).await, Error::Protocol(_)));
    assert_eq!(device.counters().violations(), 1);
}

async fn a_second_reply_and_an_early_one_are_violations(kind: ChannelKind) {
    for (expect_order, replies) in [(false, [(1, "a"), (1, "a")]), (true, [(2, "b"), (1, "a")])] {
        let server = Server::new(kind).await;
        let (seen, mut seqs) = tokio::sync::mpsc::unbounded_channel();
        let builder = server.builder().reconnect(false).expect_order(expect_order);
        let builder = builder.on_reply(move |seq| seen.send(seq).unwrap());
        let (device, mut peer) = tokio::join!(builder.connect(), server.welcome(NEVER));
        let device = device.unwrap();
        let _pending = [
            device.send(echo().with_id("a")).unwrap(),
            device.send(echo().with_id("b")).unwrap(),
        ];
        peer.receive().await;
        peer.receive().await;
        for (seq, id) in replies {
            peer.reply(seq, id, json!(1)).await;
        }
        peer.next().await;
        drop(peer);
        assert!(matches!(is_closed(&device).await, Error::Protocol(_)));
        for (seq, _) in replies {
            assert_eq!(seqs.recv().await, Some(seq), "also the faulty one is seen");
        }
    }
}

async fn it_pings_when_idle_and_gives_a_silent_server_up(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let started = Instant::now();
    let (device, mut peer) = tokio::join!(server.builder().reconnect(false).connect(), server.welcome(200));
    let device = device.unwrap();
    assert_eq!(peer.receive().await, "@ping");
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(peer.receive().await, "@ping");
    assert_eq!(is_closed(&device).await, Error::HeartbeatTimeout);
    assert!(started.elapsed() >= Duration::from_millis(500));
}

async fn it_answers_pings(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    let _device = device.unwrap();
    // A record has no room for a payload.
    let payload = match kind {
        ChannelKind::Wss => Bytes::from_static(b"x"),
        ChannelKind::Ws | ChannelKind::Udp => Bytes::new(),
    };
    peer.send_message(Message::Ping(payload.clone())).await;
    assert_eq!(peer.next().await, Some(Message::Pong(payload)));
}

async fn pushes_go_to_the_handler_and_to_a_bounded_queue(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (seen_sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let builder = server
        .builder()
        .on_push(move |push| seen_sender.send(push.name).unwrap());
    let (builder, mut queue) = builder.push_queue(1);
    let (device, mut peer) = tokio::join!(builder.connect(), server.welcome(NEVER));
    for name in ["A", "B"] {
        peer.send(
            &json!({"header": {"namespace": "N", "name": name, "id": "m-1"}, "payload": {}}).to_string(),
        )
        .await;
    }
    assert_eq!(
        (seen.recv().await.unwrap(), seen.recv().await.unwrap()),
        ("A".into(), "B".into())
    );
    assert_eq!(queue.recv().await.unwrap().name, "A");
    let device = device.unwrap();
    assert_eq!(
        (device.counters().pushes(), device.counters().pushes_dropped()),
        (2, 1)
    );
}

async fn a_lost_connection_fails_requests_except_those_with_a_retry_key(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let plain = device.send(echo()).unwrap();
    let kept = device.send(echo().with_retry_key("k1").with_id("kept")).unwrap();
    peer.receive().await;
    peer.receive().await;
    drop(peer);
    assert_eq!(plain.await, Err(Error::Disconnected));
    let mut peer = server.welcome(NEVER).await;
    let header = peer.receive_header().await;
    assert_eq!(
        (&header["id"], &header["retry_key"]),
        (&json!("kept"), &json!("k1"))
    );
    peer.reply(1, "kept", json!(2)).await;
    assert_eq!(
        kept.await.unwrap().seq,
        1,
        "numbers start again on each connection"
    );
    assert_eq!((device.counters().connects(), device.counters().resent()), (2, 1));
}

async fn a_goodbye_says_when_to_come_back(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    let device = device.unwrap();
    peer.send(r#"@goodbye {"code":"going_away","retry_after_ms":400,"reconnect":true}"#)
        .await;
    // From before it can be told, so that it waits for as long at least.
    let told = Instant::now();
    peer.close(1001).await;
    let state = until(&device, |state| matches!(state, State::Waiting { .. })).await;
    let State::Waiting { error, delay } = state else {
        unreachable!()
    };
    assert_eq!(
        error,
        Error::ClosedByServer {
            code: 1001,
            reason: "going_away".into()
        }
    );
    assert!(delay >= Duration::from_millis(400), "{delay:?}");
    let _peer = server.welcome(NEVER).await;
    assert!(told.elapsed() >= Duration::from_millis(400));
}

async fn some_close_codes_and_goodbyes_are_final(kind: ChannelKind) {
    for (goodbye, code) in [
        (None, 4000),
        (None, 1000),
        (Some(r#"@goodbye {"code":"x","reconnect":false}"#), 1001),
    ] {
        let server = Server::new(kind).await;
        let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
        let device = device.unwrap();
        if let Some(goodbye) = goodbye {
            peer.send(goodbye).await;
        }
        peer.close(code).await;
        assert!(matches!(is_closed(&device).await, Error::ClosedByServer { code: seen, .. } if seen == code));
        assert!(matches!(
            device.call(echo()).await,
            Err(Error::ClosedByServer { .. })
        ));
    }
}

#[tokio::test]
async fn an_overload_is_tried_again_after_the_hint_and_a_bad_token_is_not() {
    let server = Server::new(ChannelKind::Wss).await;
    let device = server.builder().start().unwrap();
    let body = r#"{"code":"overloaded","title":"busy","retry_after_ms":300}"#;
    let head = format!(
        "HTTP/1.1 503 X\r\nContent-Length: {}\r\nRetry-After: 0\r\n\r\n",
        body.len()
    );
    let refused = Instant::now();
    server.refuse(&format!("{head}{body}")).await;
    server
        .refuse("HTTP/1.1 401 Unauthorized\r\nContent-Length: 42\r\n\r\n{\"code\":\"token_expired\",\"retryable\":false}")
        .await;
    assert!(refused.elapsed() >= Duration::from_millis(300));
    let error = is_closed(&device).await;
    assert!(
        matches!(&error, Error::Refused(refusal) if refusal.status == 401),
        "{error}"
    );
    assert_eq!(error.label(), "token_expired");
}

async fn the_first_attempt_of_connect_must_succeed(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, ()) = tokio::join!(
        server.builder().connect(),
        server.refuse("HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
    );
    assert!(matches!(device.err(), Some(Error::Refused(refusal)) if refusal.code == "http_503"));
}

async fn requests_in_flight_are_bounded_and_sizes_checked(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().max_in_flight(2).connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let first = device.send(echo()).unwrap();
    let _second = device.send(echo()).unwrap();
    assert_eq!(device.send(echo()).err(), Some(Error::Busy));
    let id = peer.receive_header().await["id"].as_str().unwrap().to_owned();
    peer.receive().await;
    peer.reply(1, &id, json!(1)).await;
    first.await.unwrap();
    let long = Request::json("D", "E", raw(&format!("\"{}\"", "x".repeat(5000))));
    assert!(matches!(
        device.send(long).unwrap().await,
        Err(Error::TooLarge { limit: 4096, .. })
    ));
}

async fn a_caller_that_gives_up_frees_its_place_and_the_late_reply_is_no_violation(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let builder = server
        .builder()
        .max_in_flight(1)
        // The one that is answered has no more than that.
        .request_timeout(Duration::from_secs(3));
    let (device, mut peer) = tokio::join!(builder.connect(), server.welcome(NEVER));
    let device = device.unwrap();
    assert_eq!(device.call(echo().with_id("slow")).await, Err(Error::Timeout));
    peer.receive().await;
    let next = device.send(echo().with_id("next")).unwrap();
    peer.receive().await;
    peer.reply(1, "slow", json!(1)).await;
    peer.reply(2, "next", json!(2)).await;
    assert_eq!(next.await.unwrap().seq, 2);
    assert_eq!(device.counters().violations(), 0);
}

async fn reading_goes_on_while_the_server_does_not_read(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let builder = server.builder().max_in_flight(4096);
    let accept = async {
        let mut peer = server.accept().await;
        peer.receive().await;
        peer.send(r#"@welcome {"session":"s","heartbeat_ms":60000,"max_message":1048576,"window":32}"#)
            .await;
        peer
    };
    let (device, mut peer) = tokio::join!(builder.connect(), accept);
    let device = device.unwrap();
    let long = format!("\"{}\"", "x".repeat(100_000));
    let mut pending: Vec<_> = (1..=300)
        .map(|n| {
            device
                .send(Request::json("D", "E", raw(&long)).with_id(format!("i{n}")))
                .unwrap()
        })
        .collect();
    peer.receive().await;
    // 30 MB wait to be written; this reply comes in between.
    peer.reply(1, "i1", json!(long)).await;
    assert_eq!(pending.remove(0).await.unwrap().seq, 1);
}

async fn closing_says_goodbye_properly(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let closing = tokio::spawn({
        let device = device.clone();
        async move { device.close().await }
    });
    let Some(Message::Close(Some(frame))) = peer.next().await else {
        panic!("no close frame")
    };
    assert_eq!(u16::from(frame.code), 1000);
    while peer.next().await.is_some() {}
    drop(peer);
    closing.await.unwrap();
    assert_eq!(device.call(echo()).await, Err(Error::Closed));
}

async fn dropping_the_last_handle_closes(kind: ChannelKind) {
    let server = Server::new(kind).await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(NEVER));
    drop(device);
    assert!(matches!(peer.next().await, Some(Message::Close(_))));
}

#[tokio::test]
async fn unusable_settings_are_said_at_once() {
    let server = Server::new(ChannelKind::Wss).await;
    for url in ["ws://localhost:1", "udp://localhost:1", "http://x", "nonsense"] {
        let device = Device::builder(url, "t").start();
        assert!(matches!(device.err(), Some(Error::Config(_))), "{url}");
    }
    for url in [
        "wss://localhost:1",
        "http://x",
        "nonsense",
        "udp://localhost",
        "udp://:1",
        "udp://localhost:1/path",
        "udp://user@localhost:1",
    ] {
        let device = Device::builder_with_key(url, identity(), device_key()).start();
        assert!(matches!(device.err(), Some(Error::Config(_))), "{url}");
    }
    let nobody = Identity {
        key_id: String::new(),
        ..identity()
    };
    let nobody = Device::builder_with_key("ws://localhost:1", nobody, device_key());
    assert!(matches!(nobody.connect().await.err(), Some(Error::Config(_))));
    let no_trust = Device::builder("wss://localhost:1", "t").start();
    assert!(matches!(no_trust.err(), Some(Error::Config(_))));
    let bad_token = server.builder_with_token("t\n");
    assert!(matches!(bad_token.connect().await.err(), Some(Error::Config(_))));
}
