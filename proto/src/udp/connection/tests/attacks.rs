//! What a peer that holds the keys, or someone on the path who does not, may try.

use std::time::Duration;

use super::pair::*;
use crate::codes::CloseCode;
use crate::udp::packet::generated::{Acknowledgement, Close, Credit, Packet, Piece};
use crate::udp::protect::Sealer;
use crate::udp::{End, Event, MESSAGE_COST_BYTES, Received, Side};

fn pieces(pieces: Vec<Piece>) -> Packet {
    Packet {
        pieces,
        ..Packet::default()
    }
}

fn piece(message: u64, length: u32, offset: u32, data: &[u8]) -> Piece {
    Piece {
        message,
        kind: 0,
        length,
        offset,
        data: data.to_vec().into(),
    }
}

/// The server takes these packets, the last of which breaks the protocol; the device hears why.
fn breaks(packets: Vec<Packet>, code: CloseCode) {
    let mut pair = Pair::new(1, FINE);
    let last = packets.len() - 1;
    for (index, packet) in packets.into_iter().enumerate() {
        let expected = if index == last {
            Received::Malformed
        } else {
            Received::Taken
        };
        let outcome = inject(&mut pair, Side::Server, index as u64, packet.clone());
        assert_eq!(outcome, expected, "{packet:?}");
    }
    // The device has sent none of these itself, but what it hears shall be as if it had.
    pair.device.connection.sealer = Sealer::at(keys().to_server, last as u64 + 1);
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.server.ended(), Some(End::ClosedByUs));
    let closed = |event: &Event| matches!(event, Event::Closed { code: c, .. } if *c == code as u16);
    assert!(pair.device.events.iter().any(closed), "{:?}", pair.device.events);
    assert_eq!(pair.device.ended(), Some(End::ClosedByPeer));
}

#[test]
fn what_breaks_the_protocol_is_told_and_ends_it() {
    let protocol = CloseCode::Protocol;
    let ack = |largest| Packet {
        ack: Some(Acknowledgement {
            largest,
            ranges: vec![0],
            delay_us: 0,
        }),
        ..Packet::default()
    };
    // The server has sent nothing at all.
    breaks(vec![ack(0)], protocol);
    let good = pieces(vec![piece(0, 10, 0, b"01234")]);
    breaks(
        vec![good.clone(), pieces(vec![piece(0, 11, 5, b"56789")])],
        protocol,
    );
    let binary = Piece {
        kind: 1,
        ..piece(0, 10, 5, b"56789")
    };
    breaks(vec![good.clone(), pieces(vec![binary])], protocol);
    breaks(vec![pieces(vec![piece(0, 4, 2, b"234")])], protocol);
    breaks(
        vec![pieces(vec![piece(0, 1 << 20 | 1, 0, b"x")])],
        CloseCode::TooBig,
    );
    breaks(vec![pieces(vec![piece(9_000, 0, 0, b"x")])], protocol);
    breaks(vec![pieces(vec![piece(0, 500_000, 400_000, b"x")])], protocol);
    breaks(vec![pieces(vec![piece(0, 0, 0, b""); 65])], protocol);
    let credit = Credit {
        messages: u64::MAX,
        bytes: 0,
    };
    breaks(
        vec![Packet {
            credit: Some(credit),
            ..Packet::default()
        }],
        protocol,
    );
    let close = Close {
        code: 70_000,
        ..Close::default()
    };
    breaks(
        vec![Packet {
            close: Some(close),
            ..Packet::default()
        }],
        protocol,
    );
}

#[test]
fn pieces_that_overlap_are_joined_once() {
    let mut pair = Pair::new(1, FINE);
    for (number, (offset, data)) in [
        (3, &b"3456"[..]),
        (0, b"01"),
        (5, b"56789"),
        (1, b"1234"),
        (0, b"0123456789"),
    ]
    .into_iter()
    .enumerate()
    {
        let packet = pieces(vec![piece(0, 10, offset, data)]);
        assert_eq!(
            inject(&mut pair, Side::Server, number as u64, packet),
            Received::Taken
        );
    }
    let [(_, data)] = &pair.server.received[..] else {
        panic!()
    };
    assert_eq!(data, "0123456789");
    // The whole, said with its length, is another way to say the same.
    inject(
        &mut pair,
        Side::Server,
        9,
        pieces(vec![piece(1, 2, 0, b"ab"), piece(1, 0, 0, b"ab")]),
    );
    assert_eq!(pair.server.received.len(), 2);
}

#[test]
fn a_message_that_never_ends_keeps_no_more_than_its_bytes() {
    let mut pair = Pair::new(1, FINE);
    for (number, message) in (0..7u64).enumerate() {
        let packet = pieces(vec![piece(message + 1, 1 << 20, 0, b"x")]);
        assert_eq!(
            inject(&mut pair, Side::Server, number as u64, packet),
            Received::Taken
        );
    }
    assert_eq!(pair.server.connection.held_bytes(), 7 * (1 + MESSAGE_COST_BYTES));
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.server.connection.held_bytes(), 7 * (1 + MESSAGE_COST_BYTES));
    assert!(pair.server.received.is_empty());
}

#[test]
fn what_is_replayed_or_changed_changes_nothing() {
    let mut pair = Pair::new(5, FINE);
    pair.tape = Some(Vec::new());
    for number in 0..20 {
        pair.device.text(message(Side::Device, number, 900));
        pair.server.text(message(Side::Server, number, 900));
        pair.run(Duration::from_millis(200));
    }
    pair.run(Duration::from_secs(2));
    let tape = pair.tape.take().unwrap();
    assert!(tape.len() > 60);
    let shown = |pair: &Pair| {
        let ends = [&pair.device, &pair.server];
        ends.map(|peer| {
            (
                peer.received.len(),
                peer.delivered,
                peer.connection.is_idle(),
                peer.datagrams_out,
            )
        })
    };
    let before = shown(&pair);
    for datagram in &tape {
        assert_eq!(pair.deliver(datagram.clone()), Some(Received::Duplicate));
        // Also from somewhere else: it does not make the peer move.
        let elsewhere = Datagram {
            from: address("203.0.113.9:9"),
            ..datagram.clone()
        };
        assert_eq!(pair.deliver(elsewhere), Some(Received::Duplicate));
        for _ in 0..5 {
            let mut changed = datagram.clone();
            let at = pair.random.below(changed.bytes.len() as u64) as usize;
            changed.bytes[at] ^= 1 << pair.random.below(8);
            let outcome = pair.deliver(changed);
            assert!(
                matches!(outcome, Some(Received::Forged | Received::Duplicate)),
                "{outcome:?}"
            );
        }
    }
    pair.settle();
    assert_eq!(shown(&pair), before);
    let stats = pair.server.connection.stats();
    assert!(stats.forged > 0 && stats.duplicates > 50, "{stats:?}");
}

#[test]
fn only_the_announced_token_resets_and_only_a_device() {
    let mut pair = Pair::new(1, FINE);
    assert!(!pair.device.connection.handle_reset(&TOKEN));
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    for bit in 0..128 {
        let mut forged = TOKEN;
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(!pair.device.connection.handle_reset(&forged));
    }
    assert!(!pair.server.connection.handle_reset(&TOKEN));
    pair.device.text("lost");
    assert!(pair.device.connection.handle_reset(&TOKEN));
    pair.run(Duration::from_secs(1));
    assert_eq!(
        (pair.device.ended(), pair.device.delivered),
        (Some(End::Reset), 1)
    );
    assert!(!pair.device.connection.handle_reset(&TOKEN));
    assert!(pair.device.connection.is_idle() && pair.device.connection.poll_timeout().is_none());
}

#[test]
fn too_many_forgeries_end_it() {
    let mut pair = Pair::new(1, FINE);
    pair.server.connection.rare_mut().forged = crate::udp::MAX_FORGERIES - 2;
    let mut datagram = forge(&pair, Side::Server, 0, b"");
    datagram.bytes[20] ^= 1;
    assert_eq!(pair.deliver(datagram.clone()), Some(Received::Forged));
    assert_eq!(pair.server.ended(), None);
    assert_eq!(pair.deliver(datagram.clone()), Some(Received::Forged));
    assert_eq!(pair.server.ended(), Some(End::TooManyForgeries));
    assert_eq!(pair.deliver(datagram), Some(Received::Ended));
}

#[test]
fn a_server_says_nothing_before_it_has_heard_anything() {
    let mut pair = Pair::new(1, FINE);
    pair.server.text("early");
    pair.server.connection.ping();
    let forged = Datagram {
        bytes: vec![0x40; 60],
        ..forge(&pair, Side::Server, 0, b"")
    };
    assert_eq!(pair.deliver(forged), Some(Received::Forged));
    pair.run(Duration::from_secs(20));
    assert_eq!(
        (pair.server.datagrams_out, pair.server.connection.poll_timeout()),
        (0, None)
    );
    // The first that opens comes from elsewhere: that has to be proved first, and the challenge's address need not be.
    let (home, moved) = (pair.device.address, address("203.0.113.9:9"));
    pair.tape = Some(Vec::new());
    pair.device.address = moved;
    pair.device.text("hello");
    pair.run_until(Duration::from_millis(10), |pair| !pair.server.received.is_empty());
    pair.settle();
    let tape = pair.tape.take().unwrap();
    let to = |to| {
        tape.iter()
            .filter(|d| d.to == to)
            .map(|d| d.bytes.len())
            .collect::<Vec<_>>()
    };
    assert_eq!((to(moved), to(home).len()), (vec![38], 1));
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.server.events, [Event::PeerMoved(moved)]);
    assert_eq!((pair.server.delivered, pair.device.received.len()), (1, 1));
}
