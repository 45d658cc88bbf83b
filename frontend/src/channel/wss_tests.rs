//! A device in memory against the channel: handshakes, messages in any pieces, back-pressure, and each way to end.

use super::*;
use crate::channel::error::PeerFault;
use crate::channel::frame::OpCode;
use crate::channel::frame::write_frame;
use crate::channel::test_client::{Pair, REQUEST, masked};
use crate::channel::{Channel, ChannelEvent, Refusal, StreamChannel};
use crate::channel::{MAX_RECORD_BYTES, READ_BYTES, ScratchLimits};
use bytes::Bytes;
use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};
use rustls::{ConnectionTrafficSecrets, SupportedCipherSuite, SupportedProtocolVersion};
use std::time::Duration;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

fn text(payload: &str) -> ChannelEvent {
    ChannelEvent::Message(MessageKind::Text, Bytes::copy_from_slice(payload.as_bytes()))
}

fn unmasked(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(&mut frame, opcode, payload);
    frame
}

#[test]
fn a_device_gets_in_and_talks_byte_by_byte() {
    for version in VERSIONS {
        let mut pair = Pair::new(version);
        pair.chunk = 1;
        pair.write(REQUEST);
        let events = pair.run().unwrap();
        assert!(
            matches!(&events[..], [ChannelEvent::Upgrade(request)] if request.credential == "abc"),
            "{events:?}"
        );
        assert!(!pair.channel.is_open());
        pair.channel.accept(&mut pair.scratch, None).unwrap();
        pair.flush();
        assert!(
            pair.read()
                .ends_with(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        );
        pair.write(&masked(0x81, b"hello"));
        assert_eq!(pair.run().unwrap(), [text("hello")]);
        pair.channel
            .send(
                &mut pair.scratch,
                MessageKind::Binary,
                &Bytes::from_static(b"welcome"),
            )
            .unwrap();
        pair.flush();
        assert_eq!(pair.read(), unmasked(OpCode::Binary, b"welcome"));
        assert!(!pair.channel.has_parked(), "at a boundary nothing is kept");
        assert_eq!(pair.scratch.budget().used(), 0);
    }
}

#[test]
fn large_messages_cross_records_both_ways() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        let payload: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        pair.client.set_buffer_limit(None);
        pair.write(&masked(0x82, &payload));
        assert_eq!(
            pair.run().unwrap(),
            [ChannelEvent::Message(
                MessageKind::Binary,
                Bytes::from(payload.clone())
            )]
        );
        pair.channel
            .send(
                &mut pair.scratch,
                MessageKind::Binary,
                &Bytes::copy_from_slice(&payload),
            )
            .unwrap();
        pair.flush();
        assert_eq!(pair.read(), unmasked(OpCode::Binary, &payload));
    }
}

#[test]
fn a_pong_goes_before_what_is_said_later() {
    let mut pair = Pair::open(&TLS13);
    pair.write(&[masked(0x89, b"ping"), masked(0x81, b"request")].concat());
    let wire = pair.wire();
    pair.begin(&wire).unwrap();
    assert_eq!(
        pair.channel.poll_event(&mut pair.scratch).unwrap(),
        Some(text("request"))
    );
    pair.channel
        .send(
            &mut pair.scratch,
            MessageKind::Text,
            &Bytes::from_static(b"reply"),
        )
        .unwrap();
    pair.channel.park(&mut pair.scratch).unwrap();
    pair.deliver();
    let expected = [unmasked(OpCode::Pong, b"ping"), unmasked(OpCode::Text, b"reply")];
    assert_eq!(pair.read(), expected.concat());
}

#[test]
fn back_pressure_keeps_the_rest_until_it_is_asked_for() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        // Two messages in one record, a third in its own.
        pair.write(&[masked(0x81, b"one"), masked(0x81, b"two")].concat());
        let mut wire = pair.wire();
        pair.write(&masked(0x81, b"three"));
        wire.extend(pair.wire());
        pair.begin(&wire).unwrap();
        assert_eq!(
            pair.channel.poll_event(&mut pair.scratch).unwrap(),
            Some(text("one"))
        );
        pair.channel.park(&mut pair.scratch).unwrap();
        assert!(pair.channel.has_parked());
        assert!(pair.scratch.budget().used() > 0);
        // While it waits, the gateway can still send.
        pair.channel
            .send(
                &mut pair.scratch,
                MessageKind::Text,
                &Bytes::from_static(b"reply"),
            )
            .unwrap();
        pair.flush();
        assert_eq!(pair.read(), unmasked(OpCode::Text, b"reply"));
        pair.channel.unpark(&mut pair.scratch);
        assert_eq!(
            pair.channel.poll_event(&mut pair.scratch).unwrap(),
            Some(text("two"))
        );
        pair.channel
            .send(
                &mut pair.scratch,
                MessageKind::Text,
                &Bytes::from_static(b"again"),
            )
            .unwrap();
        assert_eq!(
            pair.channel.poll_event(&mut pair.scratch).unwrap(),
            Some(text("three"))
        );
        assert_eq!(pair.channel.poll_event(&mut pair.scratch).unwrap(), None);
        pair.channel.park(&mut pair.scratch).unwrap();
        pair.deliver();
        assert_eq!(pair.read(), unmasked(OpCode::Text, b"again"));
        assert_eq!(pair.scratch.budget().used(), 0);
    }
}

#[test]
fn frames_before_the_answer_belong_to_the_websocket() {
    let mut pair = Pair::new(&TLS13);
    pair.write(&[REQUEST, &masked(0x81, b"early")].concat());
    assert!(matches!(pair.run().unwrap()[..], [ChannelEvent::Upgrade(_)]));
    pair.write(&masked(0x81, b"later"));
    assert_eq!(pair.run().unwrap(), []);
    pair.channel.accept(&mut pair.scratch, None).unwrap();
    pair.channel.unpark(&mut pair.scratch);
    assert_eq!(
        pair.channel.poll_event(&mut pair.scratch).unwrap(),
        Some(text("early"))
    );
    assert_eq!(
        pair.channel.poll_event(&mut pair.scratch).unwrap(),
        Some(text("later"))
    );
}

#[test]
fn what_may_come_before_the_answer_is_bounded() {
    let mut pair = Pair::new(&TLS13);
    pair.write(REQUEST);
    pair.run().unwrap();
    let mut sent = 0;
    let error = loop {
        pair.write(&[0; 8000]);
        match pair.run() {
            Ok(_) => sent += 8000,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, ChannelError::Peer(PeerFault::TooFarAhead)),
        "{error}"
    );
    assert!(sent <= MAX_RECORD_BYTES + READ_BYTES, "{sent}");
    assert_eq!(pair.scratch.budget().used(), 0);
}

#[test]
fn a_bad_request_is_answered_and_the_channel_closed() {
    for version in VERSIONS {
        let mut pair = Pair::new(version);
        pair.write(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n");
        let error = pair.run().unwrap_err();
        assert!(
            matches!(
                error,
                ChannelError::Upgrade {
                    status: 405,
                    code: "bad_upgrade"
                }
            ),
            "{error}"
        );
        pair.channel.close(&mut pair.scratch, 1002, "").unwrap();
        pair.deliver();
        assert!(pair.read().starts_with(b"HTTP/1.1 405 Method Not Allowed\r\n"));
    }
}

#[test]
fn a_refusal_is_an_http_answer() {
    let mut pair = Pair::new(&TLS13);
    pair.write(REQUEST);
    pair.run().unwrap();
    pair.channel
        .refuse(&mut pair.scratch, &Refusal::unavailable(Duration::from_secs(2)))
        .unwrap();
    pair.deliver();
    let answer = String::from_utf8(pair.read()).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: 2\r\n"),
        "{answer}"
    );
    assert!(pair.channel.accept(&mut pair.scratch, None).is_err());
    assert!(
        pair.channel
            .send(&mut pair.scratch, MessageKind::Text, &Bytes::from_static(b"x"))
            .is_err()
    );
}

#[test]
fn each_ping_is_answered_and_before_what_is_said_later() {
    let mut pair = Pair::open(&TLS13);
    pair.write(
        &[
            masked(0x89, b"one"),
            masked(0x81, b"x"),
            masked(0x89, b"two"),
            masked(0x8A, b""),
        ]
        .concat(),
    );
    assert_eq!(pair.run().unwrap(), [text("x"), ChannelEvent::Alive]);
    let pongs = [unmasked(OpCode::Pong, b"one"), unmasked(OpCode::Pong, b"two")].concat();
    assert_eq!(pair.read(), pongs);
    pair.channel.ping(&mut pair.scratch).unwrap();
    pair.flush();
    assert_eq!(pair.read(), unmasked(OpCode::Ping, b""));
}

#[test]
fn a_close_is_echoed() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        pair.write(&[masked(0x88, b"\x03\xE9bye"), masked(0x81, b"ignored")].concat());
        assert_eq!(
            pair.run().unwrap(),
            [ChannelEvent::Closed {
                code: Some(1001),
                authentic: true
            }]
        );
        assert_eq!(pair.read(), unmasked(OpCode::Close, b"\x03\xE9"));
        pair.channel.close(&mut pair.scratch, 1000, "").unwrap();
        assert!(pair.scratch.outbound().is_empty(), "a second close says nothing");
    }
}

#[test]
fn a_faulty_peer_is_told_why() {
    let mut pair = Pair::open(&TLS13);
    pair.write(
        &[
            masked(0x81, b"fine"),
            masked(0xC1, b"x"),
            masked(0x81, b"never read"),
        ]
        .concat(),
    );
    let wire = pair.wire();
    pair.begin(&wire).unwrap();
    assert_eq!(
        pair.channel.poll_event(&mut pair.scratch).unwrap(),
        Some(text("fine"))
    );
    let error = pair.channel.poll_event(&mut pair.scratch).unwrap_err();
    assert_eq!(pair.channel.poll_event(&mut pair.scratch).unwrap(), None);
    pair.channel
        .close(&mut pair.scratch, error.close_code() as u16, "bad frame")
        .unwrap();
    pair.deliver();
    assert_eq!(pair.read(), unmasked(OpCode::Close, b"\x03\xEAbad frame"));
}

#[test]
fn tls_ends_without_a_close_frame_too() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        pair.client.send_close_notify();
        assert_eq!(
            pair.run().unwrap(),
            [ChannelEvent::Closed {
                code: None,
                authentic: true
            }]
        );
    }
}

#[test]
fn what_is_not_tls_gets_an_alert() {
    let mut pair = Pair::new(&TLS13);
    let error = pair.turn(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap_err();
    assert!(matches!(error, ChannelError::Tls(_)), "{error}");
    assert_eq!(pair.scratch.outbound().first(), Some(&21), "an alert record");
    pair.channel.close(&mut pair.scratch, 1002, "").unwrap();
}

#[test]
fn a_broken_record_ends_the_session() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        pair.write(&masked(0x81, b"x"));
        let mut wire = pair.wire();
        *wire.last_mut().unwrap() ^= 1;
        let error = pair.turn(&wire).unwrap_err();
        assert!(matches!(error, ChannelError::Tls(_)), "{error}");
        pair.channel.close(&mut pair.scratch, 1002, "").unwrap();
        assert!(pair.channel.flush(&mut pair.scratch).is_ok());
    }
}

#[test]
fn a_handshake_in_small_records_and_small_pieces_works() {
    for version in VERSIONS {
        for chunk in [1, 7, 100] {
            let mut pair = Pair::with_client(version, |client| client.max_fragment_size = Some(64));
            pair.chunk = chunk;
            let mut pair = pair.opened();
            pair.write(&masked(0x81, &[b'x'; 300]));
            assert_eq!(pair.run().unwrap(), [text(&"x".repeat(300))]);
        }
    }
}

/// A record with `payload` as the client would encrypt it next.
fn forge(pair: Pair, payload: &[u8], kind: rustls::ContentType) -> (WssChannel, Scratch, Vec<u8>) {
    use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
    let Pair {
        channel,
        scratch,
        client,
        ..
    } = pair;
    let Some(SupportedCipherSuite::Tls13(suite)) = client.negotiated_cipher_suite() else {
        panic!("not TLS 1.3")
    };
    let (sequence, secrets) = client.dangerous_extract_secrets().unwrap().tx;
    let (key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } | ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            (key, iv)
        }
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        _ => panic!("unknown cipher"),
    };
    let message = OutboundPlainMessage {
        typ: kind,
        version: rustls::ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(payload),
    };
    let record = suite
        .aead_alg
        .encrypter(key, iv)
        .encrypt(message, sequence)
        .unwrap()
        .encode();
    (channel, scratch, record)
}

/// rustls indexes into the caller's bytes by what it saw there before, also when it only encrypts.
#[test]
fn half_a_handshake_message_does_not_stop_the_output() {
    let pair = Pair::with_client(&TLS13, |client| client.enable_secret_extraction = true).opened();
    let (mut channel, mut scratch, record) = forge(pair, &[24, 0], rustls::ContentType::Handshake);
    scratch.read_target()[..record.len()].copy_from_slice(&record);
    channel.handle_input(&mut scratch, record.len()).unwrap();
    assert_eq!(channel.poll_event(&mut scratch).unwrap(), None);
    for in_turn in [true, false] {
        channel
            .send(&mut scratch, MessageKind::Text, &Bytes::from_static(b"x"))
            .unwrap();
        channel.flush(&mut scratch).unwrap();
        assert!(!scratch.outbound().is_empty());
        scratch.clear_outbound();
        if in_turn {
            channel.park(&mut scratch).unwrap();
        }
    }
    assert!(channel.has_parked());
    scratch.read_target()[..5].copy_from_slice(&[23, 3, 3, 0, 9]);
    channel.handle_input(&mut scratch, 5).unwrap();
    channel
        .send(
            &mut scratch,
            MessageKind::Text,
            &Bytes::from_static(b"before the new bytes were looked at"),
        )
        .unwrap();
    channel.flush(&mut scratch).unwrap();
    channel.close(&mut scratch, 1000, "").unwrap();
}

#[test]
fn one_connections_output_never_reaches_another() {
    let (mut one, mut other) = (Pair::open(&TLS13), Pair::open(&TLS13));
    one.channel
        .send(
            &mut one.scratch,
            MessageKind::Text,
            &Bytes::from_static(b"secret"),
        )
        .unwrap();
    let refused = other
        .channel
        .send(&mut one.scratch, MessageKind::Text, &Bytes::from_static(b"x"));
    assert!(matches!(refused, Err(ChannelError::State(_))));
    one.flush();
    other
        .channel
        .send(&mut one.scratch, MessageKind::Text, &Bytes::from_static(b"x"))
        .unwrap();
    std::mem::swap(&mut one.scratch, &mut other.scratch);
    other.flush();
    assert_eq!(
        (one.read(), other.read()),
        (unmasked(OpCode::Text, b"secret"), unmasked(OpCode::Text, b"x"))
    );
}

#[test]
fn a_pong_is_not_sent_by_whoever_flushes_first() {
    let (mut one, mut other) = (Pair::open(&TLS13), Pair::open(&TLS13));
    one.write(&masked(0x89, b"mine"));
    let wire = one.wire();
    one.begin(&wire).unwrap();
    while one.channel.poll_event(&mut one.scratch).unwrap().is_some() {}
    other.channel.flush(&mut one.scratch).unwrap();
    other.channel.park(&mut one.scratch).unwrap();
    assert!(one.scratch.outbound().is_empty());
    one.channel.park(&mut one.scratch).unwrap();
    one.deliver();
    assert_eq!(one.read(), unmasked(OpCode::Pong, b"mine"));
}

#[test]
fn a_message_on_its_way_is_charged_by_what_arrived() {
    let mut pair = Pair::open(&TLS13);
    let frame = masked(0x82, &[7; 50_000]);
    pair.write(&frame[..10_000]);
    assert_eq!(pair.run().unwrap(), []);
    assert!(
        !pair.channel.has_parked(),
        "the payload went to the message, not to the undecoded bytes"
    );
    let used = pair.scratch.budget().used();
    assert!((9_900..21_000).contains(&used), "{used}");
    pair.write(&frame[10_000..]);
    let expected = ChannelEvent::Message(MessageKind::Binary, Bytes::from(vec![7; 50_000]));
    assert_eq!(pair.run().unwrap(), [expected]);
    assert_eq!(pair.scratch.budget().used(), 0);
}

#[test]
fn what_comes_after_the_end_is_thrown_away() {
    let mut pair = Pair::open(&TLS13);
    pair.channel.close(&mut pair.scratch, 4000, "replaced").unwrap();
    pair.deliver();
    assert_eq!(pair.read(), unmasked(OpCode::Close, b"\x0F\xA0replaced"));
    pair.write(&masked(0x88, b"\x0F\xA0"));
    assert_eq!(pair.run().unwrap(), []);
    assert_eq!(pair.turn(b"not even TLS").unwrap(), []);
    assert!(pair.scratch.outbound().is_empty() && !pair.channel.has_parked());
}

#[test]
fn who_has_not_asked_may_have_little_waiting() {
    let record = |data: &[u8]| [&[22, 3, 1][..], &(data.len() as u16).to_be_bytes(), data].concat();
    // A ClientHello of 60 KiB, of which one record comes, and then two more.
    let mut hello = vec![1, 0, 0xf0, 0];
    hello.resize(16 * 1024, 0);
    let mut pair = Pair::new(&TLS13);
    assert_eq!(pair.turn(&record(&hello)).unwrap(), []);
    assert!(pair.channel.has_parked());
    let mut pair = Pair::new(&TLS13);
    let more = record(&[0; 16 * 1024]);
    let error = pair
        .turn(&[record(&hello), more.clone(), more].concat())
        .unwrap_err();
    assert!(
        matches!(error, ChannelError::Peer(PeerFault::TooFarAhead)),
        "{error}"
    );
    assert!(!pair.channel.has_parked());
    assert_eq!(pair.scratch.strangers.used(), 0);
}

#[test]
fn over_the_budget_nothing_is_parked() {
    let mut pair = Pair::open(&TLS13);
    pair.scratch = Scratch::new(ScratchLimits {
        budget_bytes: 64,
        ..ScratchLimits::default()
    });
    pair.write(&masked(0x81, &[b'x'; 500]));
    let wire = pair.wire();
    let error = pair.turn(&wire[..400]).unwrap_err();
    assert!(matches!(error, ChannelError::Capacity(_)), "{error}");
    pair.channel
        .close(&mut pair.scratch, error.close_code() as u16, "")
        .unwrap();
    pair.deliver();
    assert_eq!(pair.read(), unmasked(OpCode::Close, b"\x03\xF5"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_pieces_give_the_same_messages(
        sizes in prop::collection::vec(0usize..6000, 1..8),
        pieces in prop::collection::vec(1usize..9000, 1..8),
        stop_after in 1usize..4,
        tls13: bool,
    ) {
        let mut pair = Pair::open(if tls13 { &TLS13 } else { &TLS12 });
        let mut expected = Vec::new();
        let mut wire = Vec::new();
        for (n, &size) in sizes.iter().enumerate() {
            let payload = vec![n as u8; size];
            pair.write(&masked(0x82, &payload));
            wire.extend(pair.wire());
            expected.push(ChannelEvent::Message(MessageKind::Binary, payload.into()));
        }
        let (mut seen, mut pieces, mut rest) = (Vec::new(), pieces.into_iter().cycle(), &wire[..]);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(pieces.next().unwrap_or(1).min(rest.len()));
            rest = after;
            pair.begin(piece).unwrap();
            // Stop every few events as a full window does, park, and take it up again.
            loop {
                let mut polled = 0;
                while polled < stop_after && let Some(event) = pair.channel.poll_event(&mut pair.scratch).unwrap() {
                    seen.push(event);
                    polled += 1;
                }
                pair.channel.park(&mut pair.scratch).unwrap();
                if polled < stop_after {
                    break;
                }
                pair.channel.unpark(&mut pair.scratch);
            }
        }
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(pair.scratch.budget().used(), 0);
    }
}

/// What a request of 128 bytes and its like cost on the wire, beside `ws`.
#[test]
fn a_small_message_weighs_so_much_on_the_wire() {
    let mut pair = Pair::open(&TLS13);
    pair.write(&masked(0x82, &[7; 128]));
    assert_eq!(pair.wire().len(), 158);
    pair.channel
        .send(
            &mut pair.scratch,
            MessageKind::Binary,
            &Bytes::from_static(&[7; 128]),
        )
        .unwrap();
    pair.channel.flush(&mut pair.scratch).unwrap();
    assert_eq!(pair.scratch.outbound().len(), 154);
}
