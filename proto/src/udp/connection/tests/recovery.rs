//! Losses, timers, windows and what outlasts a change of keys.

use std::time::Duration;

use super::exchange::seeds;
use super::pair::*;
use crate::udp::connection::{Opener, Sealer};
use crate::udp::{Config, End, REKEY_SHIFT, Side};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn opened(conditions: Conditions) -> Pair {
    let mut pair = Pair::new(7, FINE);
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    pair.conditions = conditions;
    pair
}

/// When a silent network's probes go out: RFC 9002 section 6.2, then doubled up to 8 s, until 60 s are over.
#[test]
fn probes_back_off_until_it_is_given_up() {
    let mut pair = opened(FINE);
    let probe = pair.device.connection.rtt.probe_timeout(0);
    pair.conditions.loss = 100;
    pair.tape = Some(Vec::new());
    let began = pair.now;
    pair.device.text("anybody?");
    pair.run(Duration::from_secs(100));
    let times: Vec<Duration> = pair
        .tape
        .take()
        .unwrap()
        .iter()
        .map(|d| d.at - began - ms(10))
        .collect();
    let mut expected = vec![Duration::ZERO];
    for expired in 0.. {
        let wait = (probe * (1 << expired.min(10))).min(Duration::from_secs(8));
        let next = *expected.last().unwrap() + wait;
        if next >= Duration::from_secs(60) {
            break;
        }
        expected.extend([next; 2]);
    }
    assert_eq!(times, expected);
    assert_eq!(
        (pair.device.ended(), pair.device.delivered),
        (Some(End::GaveUp), 1)
    );
    assert!(pair.device.connection.is_idle());
}

/// Who has just said that he lives is given the usual time for the rest.
#[test]
fn an_acknowledgement_puts_the_next_probe_off() {
    let mut pair = opened(FINE);
    for text in ["one", "two"] {
        pair.device.text(text);
        pair.settle();
    }
    let (began, before) = (pair.now, pair.device.delivered);
    assert_eq!(pair.network.len(), 2);
    pair.network.truncate(1);
    assert!(pair.run_until(ms(90), |pair| pair.device.delivered > before));
    assert!(pair.now > began);
    let connection = &pair.device.connection;
    assert_eq!(
        connection.probe_at(),
        Some(pair.now + connection.rtt.probe_timeout(0))
    );
}

#[test]
fn a_ping_that_nobody_answers_gives_up_too() {
    for side in [Side::Device, Side::Server] {
        let mut pair = opened(Conditions { loss: 100, ..FINE });
        let now = pair.now;
        pair.peer(side).connection.ping();
        assert!(
            pair.run_until(Duration::from_secs(61), |pair| pair.peer(side).ended()
                == Some(End::GaveUp))
        );
        assert_eq!(pair.now - now, Duration::from_secs(60));
    }
}

/// Acknowledging everything else does not keep a message waiting for ever.
#[test]
fn a_message_that_never_arrives_is_given_up_though_others_are_acknowledged() {
    let mut pair = opened(FINE);
    let now = pair.now;
    pair.server.text(vec![1; 300]);
    for step in 0..14_000 {
        if step % 100 == 0 {
            pair.server.connection.ping();
        }
        pair.settle();
        // Only datagrams that are too short for the message come through.
        pair.network.retain(|datagram| datagram.bytes.len() <= 300);
        pair.run(ms(5));
        if pair.server.ended().is_some() {
            break;
        }
    }
    assert_eq!(
        (pair.server.ended(), pair.server.delivered),
        (Some(End::GaveUp), 0)
    );
    assert!(
        (59..62).contains(&(pair.now - now).as_secs()),
        "{:?}",
        pair.now - now
    );
}

#[test]
fn a_device_keeps_alive_and_not_all_at_the_same_time() {
    let mut pair = opened(FINE);
    pair.tape = Some(Vec::new());
    pair.run(Duration::from_secs(300));
    let tape = pair.tape.take().unwrap();
    let sent: Vec<_> = tape.iter().filter(|d| d.to == pair.server.address).collect();
    assert!((12..=14).contains(&sent.len()), "{}", sent.len());
    assert!(sent.iter().all(|d| d.bytes.len() >= 48));
    let waits: Vec<_> = sent.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(
        waits.iter().all(|wait| (ms(22_500)..=ms(25_000)).contains(wait)),
        "{waits:?}"
    );
    assert!(waits.windows(2).any(|two| two[0] != two[1]));
}

#[test]
fn a_lone_packet_is_acknowledged_within_25_ms_and_a_second_at_once() {
    let mut pair = opened(FINE);
    pair.tape = Some(Vec::new());
    let began = pair.now;
    let answers = |pair: &mut Pair| {
        let tape = pair.tape.replace(Vec::new()).unwrap();
        let to = pair.device.address;
        tape.iter()
            .filter(|d| d.to == to)
            .map(|d| d.at - began)
            .collect::<Vec<_>>()
    };
    pair.device.text("one");
    pair.run(ms(100));
    // Earlier than is allowed, so that a timer that comes late still does.
    assert_eq!(answers(&mut pair), [ms(10 + 20 + 10)]);
    pair.device.text(vec![1; 2_000]);
    pair.run(ms(100));
    assert_eq!(answers(&mut pair), [ms(100 + 10 + 10)]);
}

#[test]
fn the_third_packet_after_a_gap_tells_the_loss_and_halves_the_window() {
    let mut pair = opened(FINE);
    pair.device.text(vec![1; 8_000]);
    pair.settle();
    let sent = pair.device.datagrams_out;
    let before = pair.device.connection.stats().congestion_window;
    pair.network.remove(0);
    let began = pair.now;
    assert!(pair.run_until(ms(500), |pair| pair.device.delivered == 2));
    // One round trip to hear of it, half a one to repair it and half a one to know: no timer was needed.
    assert!(pair.now - began <= ms(66), "{:?}", pair.now - began);
    let after = pair.device.connection.stats();
    assert_eq!(
        (after.lost, after.retransmitted, after.congestion_window),
        (1, 1, before / 2)
    );
    assert!(sent > 3);
}

#[test]
fn a_window_that_is_not_used_does_not_grow_and_one_that_is_does() {
    let mut pair = opened(FINE);
    for _ in 0..50 {
        pair.server.text(vec![1; 3_000]);
        pair.run(ms(100));
    }
    assert_eq!(pair.server.connection.stats().congestion_window, 12_000);
    pair.server.text(vec![1; 60_000]);
    pair.run(ms(500));
    assert!(pair.server.connection.stats().congestion_window > 20_000);
    // After a rest it is what it was at the beginning.
    pair.server.text("x");
    pair.run(ms(500));
    assert_eq!(pair.server.connection.stats().congestion_window, 12_000);
}

#[test]
fn persistent_congestion_leaves_two_datagrams() {
    let mut pair = opened(FINE);
    for _ in 0..8 {
        pair.device.text(vec![1; 5_000]);
        pair.run(ms(100));
    }
    pair.conditions.loss = 100;
    pair.device.text(vec![1; 12_000]);
    // Several probes are lost: three times the probe timeout is over.
    pair.run(Duration::from_secs(3));
    pair.conditions.loss = 0;
    let least = pair.run_until(Duration::from_secs(9), |pair| {
        pair.device.connection.stats().congestion_window == 2 * 1_200
    });
    assert!(least, "{:?}", pair.device.connection.stats());
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.device.delivered, pair.device.sent);
}

#[test]
fn no_more_is_in_flight_than_the_window_allows() {
    let mut pair = opened(FINE);
    pair.server.config.send_bytes = 1 << 20;
    pair.device.config.receive_bytes = 1 << 20;
    for _ in 0..10 {
        pair.server.text(vec![1; 40_000]);
    }
    pair.run_until(Duration::from_secs(10), |pair| {
        let connection = &pair.server.connection;
        let in_flight = connection.busy.as_ref().map_or(0, |busy| busy.sent.in_flight());
        assert!(in_flight <= connection.stats().congestion_window);
        pair.server.delivered == 10
    });
    assert_eq!(pair.server.delivered, 10);
}

/// Both directions cross a change of keys, on a network that reorders.
#[test]
fn keys_change_under_way() {
    const EDGE: u64 = 1 << REKEY_SHIFT;
    seeds(50, |seed| {
        let conditions = Conditions {
            loss: seed % 4 * 5,
            doubled: 5,
            flipped: 2,
            delay: (5, 60),
        };
        let wide = Config {
            receive_messages: 256,
            ..config()
        };
        let mut pair = Pair::with(seed, conditions, wide.clone(), wide);
        let next = EDGE - 5 - seed % 40;
        let keys = keys();
        pair.device.connection.sealer = Sealer::at(keys.to_server.clone(), next);
        pair.server.connection.opener = Opener::at(keys.to_server.clone(), next);
        pair.server.connection.sealer = Sealer::at(keys.to_device.clone(), next);
        pair.device.connection.opener = Opener::at(keys.to_device.clone(), next);
        let count = 200;
        let mut sent = 0;
        let done = pair.run_until(Duration::from_secs(600), |pair| {
            while sent < count && (sent as u64) < 4 + (pair.device.delivered + pair.server.delivered) as u64 {
                pair.device.text(message(Side::Device, sent, 900));
                pair.server.text(message(Side::Server, sent, 900));
                sent += 1;
            }
            pair.device.delivered == count && pair.server.delivered == count
        });
        assert!(done, "{} {}", pair.device.delivered, pair.server.delivered);
        for peer in [&pair.device, &pair.server] {
            assert!(peer.connection.sealer.next_number() > EDGE);
            assert!(
                peer.connection
                    .rare
                    .as_ref()
                    .is_none_or(|rare| rare.previous_key.is_none())
                    || count < 256
            );
        }
    });
}
