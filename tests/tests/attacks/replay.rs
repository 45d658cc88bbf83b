//! Who has recorded a session says all of it again.

use holdfast_proto::secure::parse_challenge;
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use holdfast_tests::wire::{BINARY, CLOSE, TEXT, write_frame};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::middle::{Middle, Recording, read_frame, read_head};
use crate::victim::Victim;

const LOGINS: &str = "holdfast_backend_logins_total";
const ADMISSIONS: &str = "holdfast_backend_admissions_total";
const CLOSED: &str = "holdfast_frontend_closed_total";

/// A session of `victim` from its upgrade to its close, as it went over the wire.
async fn record(gateway: &Gateway) -> Recording {
    let middle = Middle::listening(gateway.ws()).await;
    let victim = Victim::start(gateway, "victim", middle.address);
    victim.online().await;
    for _ in 0..3 {
        victim.works().await;
    }
    victim.device.close().await;
    middle.recording(0)
}

/// Shows the recorded credential, which is answered with a challenge.
async fn show_again(gateway: &Gateway, recording: &Recording) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(gateway.ws()).await.unwrap();
    stream.write_all(&recording.request).await.unwrap();
    let answer = read_head(&mut stream).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let challenge = read_frame(&mut stream).await.unwrap();
    assert_eq!(challenge.first, 0x80 | TEXT);
    let text = String::from_utf8(challenge.payload).unwrap();
    (stream, parse_challenge(&text).unwrap())
}

/// Reads until the close frame; nothing but records may come before it.
async fn close_code(stream: &mut TcpStream) -> u16 {
    loop {
        let frame = read_frame(stream).await.expect("a close frame");
        if frame.first & 0x0f == CLOSE {
            return u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
        }
        assert_eq!(frame.first & 0x0f, BINARY);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_session_gets_a_challenge_of_its_own_and_no_further() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    let recording = record(&gateway).await;
    let (frontend, backend) = (&gateway.frontends[0], &gateway.backends[0]);
    let text = String::from_utf8_lossy(&recording.to_device[0].payload).into_owned();
    let first_challenge = parse_challenge(&text).unwrap();
    let (logins, calls) = (backend.metric(LOGINS, &[]).await, service.calls().len());
    assert_eq!((logins, calls), (1.0, 3));
    // From the first record on, and with the first ones left out.
    for skipped in 0..3 {
        let (mut stream, challenge) = show_again(&gateway, &recording).await;
        assert_ne!(challenge, first_challenge);
        for frame in &recording.to_server[skipped..] {
            write_frame(&mut stream, frame.first, true, &frame.payload).await;
        }
        assert_eq!(close_code(&mut stream).await, 4007);
    }
    let rejected = [("reason", "record_rejected")];
    assert_eq!(frontend.metric(CLOSED, &rejected).await, 3.0);
    let admitted = [("channel", "ws"), ("outcome", "admitted")];
    assert_eq!(backend.metric(ADMISSIONS, &admitted).await, 4.0);
    assert_eq!(backend.metric(LOGINS, &[]).await, logins, "no LOGIN took place");
    assert_eq!(service.calls().len(), calls);
    let presence = gateway.api(http::Method::GET, "/v1/devices/victim", None).await;
    assert_eq!(presence.json()["presence"], "offline");
}

/// A challenge that nobody can answer is over after its time, and was not a login either.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_answer_the_challenge_is_closed_with_4009() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Ws)
        // The victim and the talker must be done within it.
        .frontend_set("times.challenge", "5s")
        .start()
        .await;
    let recording = record(&gateway).await;
    let (mut silent, _) = show_again(&gateway, &recording).await;
    assert_eq!(close_code(&mut silent).await, 4009);
    let failed = [("reason", "challenge_failed")];
    assert_eq!(gateway.frontends[0].metric(CLOSED, &failed).await, 1.0);
    let (mut talker, _) = show_again(&gateway, &recording).await;
    write_frame(&mut talker, 0x80 | TEXT, true, b"@hello {}").await;
    assert_eq!(close_code(&mut talker).await, 4008);
    let clear = [("reason", "clear_text")];
    assert_eq!(gateway.frontends[0].metric(CLOSED, &clear).await, 1.0);
    assert_eq!(gateway.backends[0].metric(LOGINS, &[]).await, 1.0);
}

/// Whatever it is told, an eavesdropper finds nothing of what was said in what went by.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_not_on_the_wire() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    let recording = record(&gateway).await;
    let records = recording.to_server.iter().chain(&recording.to_device[1..]);
    for frame in records.filter(|frame| frame.first & 0x0f != CLOSE) {
        assert_eq!(frame.first, 0x80 | BINARY);
        for said in [&b"works"[..], b"Demo", b"@hello", b"@welcome", b"session"] {
            assert!(!frame.payload.windows(said.len()).any(|part| part == said));
        }
    }
}
