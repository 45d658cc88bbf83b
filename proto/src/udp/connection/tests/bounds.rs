//! Each bound is exceeded.

use std::time::Duration;

use bytes::Bytes;

use super::pair::*;
use crate::MessageKind;
use crate::udp::packet::generated::{Packet, Piece};
use crate::udp::{Config, MESSAGE_COST_BYTES, Received, SendError, Side};

#[test]
fn a_full_queue_hands_the_message_back() {
    let tight = Config {
        send_bytes: 1_000 + 3 * MESSAGE_COST_BYTES,
        send_messages: 3,
        ..config()
    };
    let mut pair = Pair::with(1, FINE, tight, config());
    let mut send = |length| pair.device.send(MessageKind::Text, Bytes::from(vec![0; length]));
    assert_eq!(send(600), Ok(()));
    assert_eq!(send(529), Err(SendError::Full(vec![0; 529].into())));
    assert_eq!(send(400), Ok(()));
    assert_eq!(send(1), Err(SendError::Full(vec![0; 1].into())));
    assert_eq!(send(0), Ok(()));
    assert_eq!(send(0), Err(SendError::Full(Bytes::new())));
    assert_eq!(pair.device.connection.held_output_bytes(), 1_000 + 3 * 128);
    assert_eq!(pair.device.connection.held_input_bytes(), 0);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.device.delivered, 3);
    // One over the bound is taken when it is the only one.
    assert_eq!(pair.device.send(MessageKind::Text, vec![0; 5_000].into()), Ok(()));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.device.delivered, 4);
}

/// An application that takes nothing is sent its window and no more; when it goes on, everything comes.
#[test]
fn who_does_not_take_is_not_sent_more() {
    for (length, most) in [(10, 16), (3_000, 5), (20_000, 1)] {
        let narrow = Config {
            receive_messages: 16,
            receive_bytes: 16_384,
            ..config()
        };
        let mut pair = Pair::with(1, FINE, config(), narrow);
        pair.device.text("first");
        pair.run(Duration::from_secs(1));
        pair.server.takes = false;
        let count = 40;
        let mut sent = 0;
        let mut push = |pair: &mut Pair| {
            while sent < count {
                let payload = message(Side::Device, sent, length);
                if pair.device.send(MessageKind::Text, payload).is_err() {
                    return;
                }
                sent += 1;
            }
        };
        push(&mut pair);
        pair.run(Duration::from_secs(300));
        assert!(
            pair.device.delivered <= most + 1,
            "{length}: {}",
            pair.device.delivered
        );
        let cost = MESSAGE_COST_BYTES * 17;
        assert!(pair.server.connection.held_input_bytes() <= 16_384 + length + cost);
        assert_eq!(
            pair.server.connection.held_bytes(),
            pair.server.connection.held_input_bytes()
        );
        // Nobody gave up: the server is there, and what it had no room for was never sent.
        assert_eq!((pair.device.ended(), pair.server.ended()), (None, None));
        pair.server.takes = true;
        let done = pair.run_until(Duration::from_secs(60), |pair| {
            push(pair);
            pair.device.delivered == count + 1
        });
        assert!(done, "{length}: {}", pair.device.delivered);
        assert_eq!(pair.server.received.len(), count + 1);
        assert!(!pair.server.outcomes.contains(&Received::Refused));
    }
}

fn piece(message: u64, length: u32, offset: u32, data: &[u8]) -> Packet {
    let piece = Piece {
        message,
        kind: 0,
        length,
        offset,
        data: data.to_vec().into(),
    };
    Packet {
        pieces: vec![piece],
        ..Packet::default()
    }
}

/// Beyond credit but within another window: refused, not acknowledged, and taken when there is room.
#[test]
fn what_is_beyond_credit_is_refused_until_there_is_room() {
    let narrow = Config {
        receive_messages: 8,
        receive_bytes: 16_384,
        ..config()
    };
    let mut pair = Pair::with(1, FINE, config(), narrow);
    pair.server.takes = false;
    let mut number = 0;
    let mut put = |pair: &mut Pair, packet: Packet| {
        number += 1;
        inject(pair, Side::Server, number, packet)
    };
    for message in 0..8 {
        assert_eq!(put(&mut pair, piece(message, 0, 0, b"x")), Received::Taken);
    }
    assert_eq!(put(&mut pair, piece(8, 0, 0, b"x")), Received::Refused);
    assert_eq!(put(&mut pair, piece(15, 0, 0, b"x")), Received::Refused);
    pair.server.takes = true;
    pair.settle();
    assert_eq!(put(&mut pair, piece(8, 0, 0, b"y")), Received::Taken);
    let big = vec![7; 1_000];
    assert_eq!(put(&mut pair, piece(9, 100_000, 16_000, &big)), Received::Refused);
    assert_eq!(put(&mut pair, piece(9, 100_000, 15_000, &big)), Received::Taken);
    assert_eq!(put(&mut pair, piece(10, 0, 0, &big)), Received::Refused);
    assert_eq!(
        put(&mut pair, piece(9, 100_000, 40_000, &big)),
        Received::Malformed
    );
}

/// One byte here, one there: each costs its receiver more than a byte, and that is bounded too.
#[test]
fn crumbs_are_refused_at_some_point() {
    let mut pair = Pair::new(1, FINE);
    let allowed =
        u64::from(pair.server.config.receive_bytes) / 64 + u64::from(pair.server.config.receive_messages);
    let mut taken = 0;
    for crumb in 0..4_000 {
        match inject(
            &mut pair,
            Side::Server,
            crumb,
            piece(0, 16_000, 2 + 2 * crumb as u32, b"x"),
        ) {
            Received::Taken => taken += 1,
            Received::Refused => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((allowed - 3..=allowed).contains(&taken), "{taken} of {allowed}");
    // What fills the gaps is always taken.
    let all = vec![0; 1_400];
    for part in 0..3 {
        let filler = piece(0, 16_000, part * 1_400, &all);
        assert_eq!(
            inject(&mut pair, Side::Server, 5_000 + u64::from(part), filler),
            Received::Taken
        );
    }
    assert_eq!(
        inject(&mut pair, Side::Server, 6_000, piece(0, 16_000, 15_000, b"x")),
        Received::Taken
    );
}

#[test]
fn datagrams_are_full_and_within_both_limits() {
    for (own, peer, expected) in [
        (1_200, 1_472, 1_200),
        (1_472, 1_472, 1_472),
        (600, 1_472, 600),
        (100, 1_472, 512),
    ] {
        let small = Config {
            max_datagram: own,
            ..config()
        };
        let mut pair = Pair::with(1, FINE, config(), small);
        pair.server.config.max_datagram = own.max(512);
        assert_eq!(peer, 1_472);
        pair.tape = Some(Vec::new());
        pair.device.text("hello");
        pair.server.text(vec![1; 30_000]);
        pair.run(Duration::from_secs(2));
        let longest = pair
            .tape
            .unwrap()
            .iter()
            .map(|datagram| datagram.bytes.len())
            .max();
        assert_eq!(longest, Some(expected));
        assert!(pair.server.datagrams_out <= 30_000 / (usize::from(own.max(512)) - 60) + 20);
    }
}

#[test]
fn many_small_messages_share_a_datagram() {
    let wide = Config {
        receive_messages: 512,
        ..config()
    };
    let mut pair = Pair::with(1, FINE, config(), wide);
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    let before = pair.device.datagrams_out;
    for number in 0..128 {
        pair.device.text(message(Side::Device, number, 5));
    }
    pair.settle();
    // 64 pieces each.
    assert_eq!(pair.device.datagrams_out - before, 2);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.device.delivered, 129);
}

/// While all connections hold too much, none holds more than a share: small messages go on, what is longer waits.
#[test]
fn a_share_of_the_input_is_not_exceeded() {
    const SHARE: usize = 4_050;
    let mut pair = Pair::new(1, FINE);
    pair.server.config.input_share = SHARE;
    let mut number = 0;
    let mut put = |pair: &mut Pair, packet: Packet| {
        number += 1;
        inject(pair, Side::Server, number, packet)
    };
    // The next in order is judged by itself, so what lies behind it does not keep it out.
    let kilo = vec![7; 1_000];
    for message in 1..5 {
        assert_eq!(put(&mut pair, piece(message, 0, 0, &kilo)), Received::Taken);
    }
    assert_eq!(put(&mut pair, piece(5, 0, 0, &kilo)), Received::Refused);
    assert_eq!(pair.server.connection.held_input_bytes(), 4 * (1_000 + 128));
    assert_eq!(put(&mut pair, piece(5, 2_000, 1_000, &kilo)), Received::Refused);
    for part in 0..4 {
        let part = piece(0, 9_000, part * 1_000, &kilo);
        assert_eq!(put(&mut pair, part), Received::Taken);
    }
    assert_eq!(put(&mut pair, piece(0, 9_000, 4_000, &kilo)), Received::Refused);
    // When the share grows again so does what is held.
    pair.server.config.input_share = usize::MAX;
    assert_eq!(put(&mut pair, piece(0, 9_000, 4_000, &kilo)), Received::Taken);
    // A gap that is already paid for may be filled.
    assert_eq!(put(&mut pair, piece(0, 9_000, 8_000, &kilo)), Received::Taken);
    pair.server.config.input_share = SHARE;
    for part in 5..8 {
        let part = piece(0, 9_000, part * 1_000, &kilo);
        assert_eq!(put(&mut pair, part), Received::Taken);
    }
    pair.settle();
    assert_eq!(pair.server.received.len(), 5);
}

/// Nobody is lost by it: messages of a share get through, and what waits goes on when the bound is lifted.
#[test]
fn a_device_outlives_a_time_of_small_shares() {
    const SHARE: usize = 16 * 1024;
    let mut pair = Pair::new(1, FINE);
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    pair.server.config.input_share = SHARE;
    let count = 30;
    for number in 0..count {
        pair.device.text(message(Side::Device, number, 1 + number * 250));
        pair.device.text(message(Side::Device, number, SHARE / 40));
    }
    let mut most = 0;
    let done = pair.run_until(Duration::from_secs(60), |pair| {
        most = most.max(pair.server.connection.held_input_bytes());
        pair.device.delivered == 1 + 2 * count
    });
    assert!(done, "{}", pair.device.delivered);
    assert!(most <= 2 * SHARE, "{most}");
    // Of one that is longer than a share no more is sent than there is credit for, as long as this lasts.
    pair.device.text(message(Side::Device, 7, 100_000));
    pair.run(Duration::from_secs(30));
    assert_eq!(pair.device.delivered, 1 + 2 * count);
    assert!(pair.server.connection.held_input_bytes() <= SHARE + MESSAGE_COST_BYTES);
    assert_eq!(pair.device.ended(), None);
    pair.server.config.input_share = usize::MAX;
    let began = pair.now;
    assert!(pair.run_until(Duration::from_secs(20), |pair| {
        pair.device.delivered == 2 + 2 * count
    }));
    assert!(
        pair.now - began < Duration::from_secs(11),
        "{:?}",
        pair.now - began
    );
}

/// Who sends within its credit is not refused, and when the bound is lifted its own probes get it going again.
#[test]
fn credit_that_was_withheld_is_granted_after_a_ping() {
    let silent = Config {
        keep_alive: None,
        ..config()
    };
    let mut pair = Pair::with(1, FINE, silent, config());
    pair.server.config.input_share = 8_192;
    pair.device.text(vec![1; 8_192]);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.device.delivered, 1);
    pair.server.takes = false;
    for _ in 0..12 {
        pair.device.text(vec![1; 1_000]);
    }
    pair.run(Duration::from_secs(40));
    let waiting = pair.device.delivered;
    assert!(waiting < 13 && !pair.server.outcomes.contains(&Received::Refused));
    pair.server.config.input_share = usize::MAX;
    pair.run(Duration::from_secs(10));
    assert_eq!((pair.device.delivered, pair.device.ended()), (13, None));
}
