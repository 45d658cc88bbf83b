//! What only `ws` has to withstand: a server that proves nothing, and whoever sits between.

use futures_util::SinkExt as _;
use holdfast_client::{Builder, Device, Disturbance, Error, Request, State};
use holdfast_proto::ChannelKind;
use holdfast_proto::secure::{
    Credential, DeviceKey, RecordKind, SecureChannel, Verified, chunks, render_challenge,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{Peer, Server, identity, verify};
use crate::{NEVER, PATIENCE, echo, raw, until};

async fn server() -> Server {
    Server::new(ChannelKind::Ws).await
}

/// What a device's connections ended with, none missed however late the test looks.
struct Losses(mpsc::UnboundedReceiver<Error>);

impl Losses {
    fn watch(builder: Builder) -> (Builder, Self) {
        let (tell, losses) = mpsc::unbounded_channel();
        let builder = builder.on_state(move |state| {
            if let State::Waiting { error, .. } | State::Closed(error) = state {
                // After the test nobody listens.
                let _ = tell.send(error.clone());
            }
        });
        (builder, Self(losses))
    }

    async fn next(&mut self) -> Error {
        let next = tokio::time::timeout(PATIENCE, self.0.recv()).await;
        next.expect("the connection ends in time").unwrap()
    }
}

async fn online(server: &Server) -> (Device, Losses, Peer) {
    let (builder, losses) = Losses::watch(server.builder());
    let (device, peer) = tokio::join!(builder.connect(), server.welcome(NEVER));
    (device.unwrap(), losses, peer)
}

/// The device's last words: the code of its close record.
async fn close_code(peer: &mut Peer) -> u16 {
    loop {
        match peer.next().await {
            Some(Message::Close(Some(frame))) => return frame.code.into(),
            Some(_) => {}
            None => panic!("no close record"),
        }
    }
}

#[tokio::test]
async fn each_attempt_has_a_credential_of_its_own() {
    let server = server().await;
    let (builder, mut losses) = Losses::watch(server.builder());
    let _device = builder.start().unwrap();
    let (first, shown) = server.accept_upgrade().await;
    assert!(verify(&shown).timestamp_ms().is_some());
    drop(first);
    let (_second, shown_again) = server.accept_upgrade().await;
    assert_ne!(shown, shown_again);
    assert!(matches!(losses.next().await, Error::Connect(_)));
}

#[tokio::test]
async fn a_device_without_a_clock_tells_no_time() {
    let server = server().await;
    let _device = server.builder().clockless().start().unwrap();
    let (_socket, shown) = server.accept_upgrade().await;
    assert_eq!(verify(&shown).timestamp_ms(), None);
}

#[tokio::test]
async fn a_server_that_cannot_know_the_key_gets_nothing() {
    let server = server().await;
    let (builder, mut losses) = Losses::watch(server.builder());
    let device = builder.start().unwrap();
    for n in 0u8..4 {
        let (mut socket, shown) = server.accept_upgrade().await;
        let first = match n {
            0 => Message::text(render_challenge(&[0; 48])),
            1 => Message::text("@welcome {}"),
            2 => Message::binary(vec![0; 48]),
            _ => {
                // An honest answer to another device.
                let text = shown.strip_prefix("Holdfast ").unwrap();
                let credential = Credential::parse(text.as_bytes()).unwrap();
                let other = DeviceKey::from_bytes(&[8; 32]).unwrap();
                assert!(Verified::verify(SecureChannel::Ws, &credential, &other).is_err());
                let builder = Device::builder_with_key(server.url(), identity(), other);
                let _other = builder.start().unwrap();
                let (_, others) = server.accept_upgrade().await;
                let text = others.strip_prefix("Holdfast ").unwrap();
                let credential = Credential::parse(text.as_bytes()).unwrap();
                let other = DeviceKey::from_bytes(&[8; 32]).unwrap();
                let verified = Verified::verify(SecureChannel::Ws, &credential, &other).unwrap();
                Message::text(render_challenge(&verified.answer().unwrap().0))
            }
        };
        socket.send(first).await.unwrap();
        assert_eq!(
            losses.next().await,
            Error::Disturbed(Disturbance::Challenge),
            "{n}"
        );
    }
    let _peer = server.welcome(NEVER).await;
    device.wait_online().await.unwrap();
    assert_eq!(device.counters().disturbed(), 4);
}

#[tokio::test]
async fn no_refusal_silences_a_device_for_good() {
    let server = server().await;
    let (builder, mut losses) = Losses::watch(server.builder());
    let device = builder.start().unwrap();
    for (status, code) in [
        (401, "handshake_failed"),
        (403, "denied"),
        (400, "wrong_channel"),
        (401, "key_unknown"),
    ] {
        let body = format!(r#"{{"code":"{code}","retryable":false}}"#);
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        server.refuse(&format!("{head}{body}")).await;
        let error = losses.next().await;
        assert_eq!(error.label(), code, "{error}");
    }
    let _peer = server.welcome(NEVER).await;
    device.wait_online().await.unwrap();
}

#[tokio::test]
async fn what_was_done_to_records_is_noticed_and_the_device_comes_back() {
    for n in 0..5 {
        let server = server().await;
        let (device, mut losses, mut peer) = online(&server).await;
        let records = peer.web().records.as_mut().unwrap();
        let mut seal = |text: &str| records.seal(RecordKind::Text, false, text.as_bytes());
        let (first, second) = (seal("@pong"), seal("@pong"));
        let mut changed = first.to_vec();
        changed[0] ^= 1;
        let sent = match n {
            0 => vec![changed.into()],
            1 => vec![first.clone(), first],
            2 => vec![second, first],
            3 => vec![first.slice(..first.len() - 1)],
            _ => vec![first.slice(..3)],
        };
        for record in sent {
            peer.web().send_clear(Message::binary(record)).await;
        }
        assert_eq!(close_code(&mut peer).await, 4007, "{n}");
        drop(peer);
        assert_eq!(losses.next().await, Error::Disturbed(Disturbance::Record), "{n}");
        assert_eq!(device.counters().disturbed(), 1);
        let _peer = server.welcome(NEVER).await;
        device.wait_online().await.unwrap();
    }
}

#[tokio::test]
async fn a_message_in_the_clear_is_no_message() {
    let server = server().await;
    let (device, mut losses, mut peer) = online(&server).await;
    let push = json!({"header": {"namespace": "N", "name": "P"}, "payload": {}}).to_string();
    peer.web().send_clear(Message::text(push)).await;
    assert_eq!(close_code(&mut peer).await, 4008);
    drop(peer);
    assert_eq!(losses.next().await, Error::Disturbed(Disturbance::ClearText));
    assert_eq!(
        (device.counters().pushes(), device.counters().disturbed()),
        (0, 1)
    );
}

#[tokio::test]
async fn a_close_in_the_clear_is_a_lost_connection() {
    let server = server().await;
    let (device, mut losses, mut peer) = online(&server).await;
    let frame = CloseFrame {
        code: 4000.into(),
        reason: "replaced".into(),
    };
    peer.web().socket.close(Some(frame)).await.unwrap();
    assert!(matches!(losses.next().await, Error::Connect(_)));
    let _peer = server.welcome(NEVER).await;
    device.wait_online().await.unwrap();
}

#[tokio::test]
async fn pings_in_the_clear_are_answered_and_are_no_life() {
    let server = server().await;
    let builder = server.builder().reconnect(false);
    let (device, mut peer) = tokio::join!(builder.connect(), server.welcome(100));
    let device = device.unwrap();
    let mut pongs = 0;
    // Without end, if a clear ping were life.
    while let Ok(()) = peer.web().socket.send(Message::Ping(bytes::Bytes::new())).await {
        match peer.next().await {
            Some(Message::Pong(_)) => pongs += 1,
            Some(_) => {}
            None => break,
        }
    }
    assert!(pongs > 0);
    let error = until(&device, |state| matches!(state, State::Closed(_))).await;
    assert_eq!(error, State::Closed(Error::HeartbeatTimeout));
}

#[tokio::test]
async fn long_messages_travel_in_chunks_both_ways() {
    let server = server().await;
    let accept = async {
        let mut peer = server.accept().await;
        peer.receive().await;
        peer.send(r#"@welcome {"session":"s","heartbeat_ms":60000,"max_message":1048576,"window":32}"#)
            .await;
        peer
    };
    let (device, mut peer) = tokio::join!(server.builder().connect(), accept);
    let device = device.unwrap();
    let long = "x".repeat(200_000);
    let request = Request::json("D", "E", raw(&format!("\"{long}\""))).with_id("a");
    let pending = device.send(request).unwrap();
    let sent: serde_json::Value = serde_json::from_str(&peer.receive().await).unwrap();
    assert_eq!(sent["payload"], long.as_str());
    peer.reply(1, "a", json!(long)).await;
    assert_eq!(pending.await.unwrap().payload.len(), long.len() + 2);
}

#[tokio::test]
async fn chunks_without_end_are_not_collected() {
    let server = server().await;
    let builder = server.builder().max_message(100_000).reconnect(false);
    let (device, mut peer) = tokio::join!(builder.connect(), server.welcome(NEVER));
    let device = device.unwrap();
    let pending = device.send(echo()).unwrap();
    let long = vec![b'x'; 200_000];
    for (more, data) in chunks(&long) {
        let record = peer
            .web()
            .records
            .as_mut()
            .unwrap()
            .seal(RecordKind::Text, more, data);
        // The device hangs up before the last one.
        peer.web().socket.send(Message::binary(record)).await.ok();
    }
    assert_eq!(close_code(&mut peer).await, 1009);
    drop(peer);
    assert_eq!(pending.await, Err(Error::Disconnected));
    let state = until(&device, |state| matches!(state, State::Closed(_))).await;
    assert!(matches!(state, State::Closed(Error::Protocol(_))), "{state:?}");
}

#[tokio::test]
async fn a_server_with_the_key_is_believed() {
    let server = server().await;
    let (device, mut losses, mut peer) = online(&server).await;
    peer.close(4000).await;
    let error = losses.next().await;
    assert!(
        matches!(error, Error::ClosedByServer { code: 4000, .. }),
        "{error}"
    );
    until(&device, |state| matches!(state, State::Closed(_))).await;
}
