//! What only `udp` has: the handshake over datagrams, loss, resets, and silence.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_client::{Builder, Device, Disturbance, Error, Request, State};
use holdfast_proto::ChannelKind;
use holdfast_proto::udp::{ConnectionId, Cookies};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::nat::Nat;
use crate::support::{Peer, Server, device_key, identity};
use crate::{NEVER, PATIENCE, echo, raw, until};

async fn server() -> Server {
    Server::new(ChannelKind::Udp).await
}

/// What a device's connections ended with, none missed however late the test looks.
fn losses(builder: Builder) -> (Builder, mpsc::UnboundedReceiver<Error>) {
    let (tell, losses) = mpsc::unbounded_channel();
    let builder = builder.on_state(move |state| {
        if let State::Waiting { error, .. } | State::Closed(error) = state {
            // After the test nobody listens.
            let _ = tell.send(error.clone());
        }
    });
    (builder, losses)
}

async fn online(builder: Builder, server: &Server) -> (Device, Peer) {
    let (device, peer) = tokio::join!(builder.connect(), server.welcome(NEVER));
    (device.unwrap(), peer)
}

async fn echo_all(peer: &mut Peer, requests: u64) {
    for seq in 1..=requests {
        let header = peer.receive_header().await;
        peer.reply(seq, header["id"].as_str().unwrap(), json!(seq)).await;
    }
}

/// Whoever sent them was told that they are on their way; the server takes them late, but in time.
#[tokio::test]
async fn a_close_comes_behind_what_was_sent_before_it() {
    const MESSAGES: usize = 2_000;
    let server = server().await;
    let (device, mut peer) = online(server.builder(), &server).await;
    // More than the server grants a device that it takes nothing from.
    let text = format!(r#""{}""#, "x".repeat(3_500));
    let request = || Request::json("Log", "Line", raw(&text));
    let mut sent = 0;
    while let Ok(done) =
        tokio::time::timeout(Duration::from_millis(300), device.send_one_way(request())).await
    {
        done.unwrap();
        sent += 1;
        if sent == MESSAGES {
            break;
        }
    }
    let closing = tokio::spawn(async move { device.close().await });
    // The close waits for 3 s.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..sent {
        peer.receive_header().await;
    }
    match peer.next().await {
        Some(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 1000),
        other => panic!("{other:?}"),
    }
    closing.await.unwrap();
}

/// What the server said last waits for what it said before, and until then there is nobody to send to.
#[tokio::test]
async fn a_close_that_waits_for_a_lost_message_is_not_overtaken_by_a_request() {
    let server = server().await;
    let (device, peer) = online(server.builder(), &server).await;
    let Peer::Udp(peer) = peer else { unreachable!() };
    peer.lose_over(300);
    let push = json!({"header": {"namespace": "N", "name": "Long", "id": "m-1"}, "payload": "x".repeat(600)});
    peer.send_message(Message::text(push.to_string()));
    peer.send_message(Message::text(r#"@goodbye {"code":"replaced","reconnect":false}"#));
    peer.start_close(4000);
    // The close is there by then, and waits.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let early = tokio::time::timeout(Duration::from_millis(300), device.call(echo())).await;
    assert!(early.is_err(), "{early:?}");
    peer.lose_over(usize::MAX);
    match until(&device, |s| !matches!(s, State::Online { .. })).await {
        State::Closed(Error::ClosedByServer { code: 4000, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_cookie_is_shown_in_the_same_attempt() {
    let server = server().await;
    let device = server.builder().start().unwrap();
    let first = server.udp.hello().await;
    let cookies = Cookies::new([9; 32]);
    let cookie = cookies.mint(5, first.from, &first.hello());
    server.udp.retry(&first, &cookie).await;
    let second = server.udp.hello().await;
    assert!(cookies.check(6, second.from, &second.hello()));
    assert_eq!(second.parameters, first.parameters);
    assert_eq!(second.credential, first.credential);
    let mut peer = Peer::Udp(server.udp.admit(&second).await);
    assert_eq!(peer.receive().await, "@hello {}");
    peer.send(r#"@welcome {"session":"s1","heartbeat_ms":60000,"max_message":4096,"window":32}"#)
        .await;
    device.wait_online().await.unwrap();
}

#[tokio::test]
async fn a_hello_without_an_answer_is_repeated_and_the_next_attempt_is_another() {
    let server = server().await;
    // Long enough for the first repetition, which is due after a second, to come late.
    let builder = server.builder().connect_timeout(Duration::from_secs(6));
    let (builder, mut losses) = losses(builder);
    let _device = builder.start().unwrap();
    let (first, second) = (server.udp.hello().await, server.udp.hello().await);
    assert_eq!(first, second);
    let error = losses.recv().await.unwrap();
    assert!(
        matches!(&error, Error::Connect(what) if what.contains("does not answer")),
        "{error}"
    );
    let mut next = server.udp.hello().await;
    while next.parameters.attempt == first.parameters.attempt {
        assert_eq!(next, first);
        next = server.udp.hello().await;
    }
    assert_ne!(next.credential, first.credential);
    next.verify();
}

#[tokio::test]
async fn a_refusal_is_a_hint_with_a_time() {
    let server = server().await;
    let (builder, mut losses) = losses(server.builder());
    let device = builder.start().unwrap();
    for (status, code) in [(503, "overloaded"), (401, "handshake_failed"), (403, "denied")] {
        let asked = server.udp.hello().await;
        server.udp.refuse(&asked, status, code, 40).await;
        let error = losses.recv().await.unwrap();
        let Error::Refused(refusal) = &error else {
            panic!("{error}")
        };
        assert_eq!((refusal.status, refusal.code.as_str()), (status, code));
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(40)));
        assert_eq!(refusal.retryable, Some(status == 503));
        let State::Waiting { delay, .. } = until(&device, |s| matches!(s, State::Waiting { .. })).await
        else {
            unreachable!("nobody can silence a device for good")
        };
        assert!(delay >= Duration::from_millis(40));
    }
    let _peer = server.welcome(NEVER).await;
    device.wait_online().await.unwrap();
}

#[tokio::test]
async fn who_does_not_hold_the_key_gets_nothing_and_keeps_nobody_out() {
    let server = server().await;
    let builder = server.builder().connect_timeout(Duration::from_secs(1));
    let (builder, mut losses) = losses(builder);
    let device = builder.start().unwrap();
    let asked = server.udp.hello().await;
    server.udp.challenge(&asked, ConnectionId(1), &[7; 48]).await;
    let error = losses.recv().await.unwrap();
    assert_eq!(error, Error::Disturbed(Disturbance::Challenge));

    let asked = server.udp.hello().await;
    server.udp.challenge(&asked, ConnectionId(1), &[7; 48]).await;
    server.udp.refuse(&asked, 403, "denied", 0).await;
    let mut peer = Peer::Udp(server.udp.admit(&asked).await);
    peer.receive().await;
    peer.send(r#"@welcome {"session":"s1","heartbeat_ms":60000,"max_message":4096,"window":32}"#)
        .await;
    device.wait_online().await.unwrap();
    assert_eq!(device.counters().disturbed(), 1);
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_named() {
    // At an address of its own, and below the ports that the system gives away: nobody binds it meanwhile.
    let [a, b]: [u8; 2] = rand::random();
    let address = SocketAddr::from(([127, 99, a, b.clamp(1, 254)], 9_999));
    let url = format!("udp://{address}");
    let device = Device::builder_with_key(url, identity(), device_key());
    let error = device.connect().await.err().unwrap();
    assert!(
        matches!(&error, Error::Connect(what) if what.contains("no server there") && what.contains(&address.to_string())),
        "{error}"
    );
}

#[tokio::test]
async fn names_are_resolved_and_every_address_is_tried() {
    let server = server().await;
    let url = format!("udp://localhost:{}", server.address.port());
    let builder = Device::builder_with_key(url, identity(), device_key());
    let (device, _peer) = online(builder, &server).await;
    device.close().await;
}

#[tokio::test]
async fn another_address_on_the_way_is_not_noticed() {
    let server = server().await;
    let nat = Nat::before(server.address).await;
    let builder = Device::builder_with_key(format!("udp://{}", nat.address), identity(), device_key());
    let (device, mut peer) = online(builder, &server).await;
    for seq in 1..=5 {
        let reply = device.send(echo()).unwrap();
        let id = peer.receive_header().await["id"].clone();
        // The request came by the old way, the reply must find the new one, which it can only after the device was heard there.
        nat.forget();
        let next = device.send_one_way(echo());
        let (sent, ()) = tokio::join!(next, peer.reply(2 * seq - 1, id.as_str().unwrap(), json!(1)));
        sent.unwrap();
        let reply = tokio::time::timeout(PATIENCE, reply).await.unwrap().unwrap();
        assert_eq!(reply.seq, 2 * seq - 1);
        peer.receive_header().await;
    }
    assert_eq!(device.counters().connects(), 1);
}

#[tokio::test]
async fn with_every_third_datagram_lost_nothing_else_is() {
    let mut server = server().await;
    server.udp.lose_every = Some(3);
    let (device, mut peer) = online(server.builder(), &server).await;
    let pending: Vec<_> = (0..100).map(|_| device.send(echo()).unwrap()).collect();
    let answer = tokio::spawn(async move {
        echo_all(&mut peer, 100).await;
        peer
    });
    for (seq, reply) in (1..).zip(pending) {
        let reply = tokio::time::timeout(PATIENCE, reply).await.unwrap().unwrap();
        assert_eq!(reply.seq, seq);
    }
    let _peer = answer.await.unwrap();
    let counters = device.counters();
    assert_eq!((counters.connects(), counters.violations()), (1, 0));
}

#[tokio::test]
async fn long_messages_go_both_ways() {
    let server = server().await;
    let accept = async {
        let mut peer = server.accept().await;
        peer.receive().await;
        peer.send(r#"@welcome {"session":"s","heartbeat_ms":60000,"max_message":1048576,"window":32}"#)
            .await;
        peer
    };
    let builder = server.builder().max_datagram(1400);
    let (device, mut peer) = tokio::join!(builder.connect(), accept);
    let device = device.unwrap();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let reply = device
        .send(Request::binary("D", "E", bytes.clone().into()))
        .unwrap();
    let Some(Message::Binary(sent)) = peer.next().await else {
        panic!("no binary message")
    };
    assert!(sent.ends_with(&bytes));
    let head = &b"\x0c\x0a\x01D\x12\x01E\x2a\x02c1\x30\x01"[..];
    let answer: Bytes = [head, &bytes].concat().into();
    peer.send_message(Message::binary(answer)).await;
    assert_eq!(reply.await.unwrap().payload, bytes);
}

#[tokio::test]
async fn only_the_servers_reset_ends_a_connection() {
    let server = server().await;
    let (builder, mut losses) = losses(server.builder());
    let (device, mut peer) = online(builder, &server).await;
    peer.udp().reset([0; 16]);
    let reply = device.send(echo()).unwrap();
    echo_all(&mut peer, 1).await;
    reply.await.unwrap();
    assert!(losses.try_recv().is_err());

    let plain = device.send(echo()).unwrap();
    peer.receive().await;
    drop(peer);
    assert_eq!(plain.await, Err(Error::Disconnected));
    let error = losses.recv().await.unwrap();
    assert!(
        matches!(&error, Error::Connect(what) if what.contains("does not know this connection")),
        "{error}"
    );
    let _peer = server.welcome(NEVER).await;
    let online = |state: &State| matches!(state, State::Online(_));
    until(&device, online).await;
    assert_eq!(device.counters().connects(), 2);
}

/// An end that hears nothing waits for 2 s: a busy machine may do so too, but not each time.
#[tokio::test]
async fn whoever_closes_hears_at_once_that_the_other_knows() {
    let mut waits = [Duration::MAX; 2];
    for _ in 0..4 {
        let waited = close_from_both_ends().await;
        println!("{waited:?}");
        waits = [waits[0].min(waited[0]), waits[1].min(waited[1])];
    }
    assert!(waits.iter().all(|wait| *wait < SOON), "{waits:?}");
}

/// How long the server, and the device, waited for the other.
async fn close_from_both_ends() -> [Duration; 2] {
    let server = server().await;
    let (device, mut peer) = online(server.builder().reconnect(false), &server).await;
    let closing = Instant::now();
    peer.close(1001).await;
    let by_server = closing.elapsed();
    let error = crate::is_closed(&device).await;
    assert!(
        matches!(error, Error::ClosedByServer { code: 1001, .. }),
        "{error}"
    );

    let (device, mut peer) = online(server.builder(), &server).await;
    let listen = tokio::spawn(async move {
        let close = peer.next().await;
        assert!(peer.next().await.is_none());
        close
    });
    let closing = Instant::now();
    device.close().await;
    let by_device = closing.elapsed();
    let close = listen.await.unwrap();
    assert!(matches!(close, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1000));
    [by_server, by_device]
}

/// Well under the 2 s for which an end that hears nothing waits.
const SOON: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn acknowledgements_are_the_heartbeat() {
    let server = server().await;
    let (device, mut peer) = tokio::join!(server.builder().connect(), server.welcome(200));
    let device = device.unwrap();
    let said = tokio::time::timeout(Duration::from_secs(2), peer.next()).await;
    assert!(said.is_err(), "nothing is said to keep it alive: {said:?}");
    assert_eq!(device.counters().connects(), 1);
    assert!(matches!(device.state(), State::Online(_)));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up_with_its_requests() {
    let server = server().await;
    let (builder, mut losses) = losses(server.builder());
    let started = Instant::now();
    let (device, mut peer) = tokio::join!(builder.connect(), server.welcome(200));
    let device = device.unwrap();
    peer.udp().vanish();
    let plain = device.send(echo()).unwrap();
    let kept = device.send(echo().with_retry_key("k").with_id("kept")).unwrap();
    assert_eq!(losses.recv().await, Some(Error::HeartbeatTimeout));
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert_eq!(plain.await, Err(Error::Disconnected));
    let mut second = server.welcome(NEVER).await;
    assert_eq!(second.receive_header().await["id"], "kept");
    second.reply(1, "kept", json!(1)).await;
    kept.await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_read_holds_the_device_back() {
    let server = server().await;
    let (device, mut peer) = online(server.builder(), &server).await;
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = || taken.load(std::sync::atomic::Ordering::Relaxed);
    let sending = tokio::spawn({
        let (device, taken) = (device.clone(), taken.clone());
        async move {
            for n in 0..MESSAGES {
                let payload = raw(&format!("\"{}\"", "x".repeat(4000)));
                let request = Request::json("D", "E", payload).with_id(format!("i{n}"));
                device.send_one_way(request).await.unwrap();
                taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let mut before = 0;
    // It stands still once the queues on the way are full.
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        if count() == before && before > 0 {
            break;
        }
        before = count();
    }
    assert!(before < MESSAGES / 2, "{before} messages");
    for n in 0..MESSAGES {
        assert_eq!(peer.receive_header().await["id"], format!("i{n}"));
    }
    sending.await.unwrap();
    assert_eq!(device.counters().connects(), 1);
}

/// Of 4 KB: far more than the queues hold.
const MESSAGES: u32 = 400;

#[tokio::test]
async fn a_message_over_the_devices_limit_ends_the_connection() {
    let server = server().await;
    let (builder, mut losses) = losses(server.builder().max_message(10_000));
    let (_device, mut peer) = online(builder, &server).await;
    peer.send(&"x".repeat(10_001)).await;
    assert!(matches!(losses.recv().await, Some(Error::Protocol(_))));
}

#[tokio::test]
async fn text_that_is_none_ends_the_connection() {
    let server = server().await;
    let (builder, mut losses) = losses(server.builder());
    let (_device, mut peer) = online(builder, &server).await;
    peer.udp().send_text(b"\xff");
    assert!(matches!(losses.recv().await, Some(Error::Protocol(_))));
    let Some(Message::Close(Some(frame))) = peer.next().await else {
        panic!("no close")
    };
    assert_eq!(u16::from(frame.code), 1007);
}
