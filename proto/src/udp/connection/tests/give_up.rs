//! When a connection is given up, and when not.

use std::time::Duration;

use super::pair::*;
use crate::udp::{Config, End, Event};

const GIVE_UP: Duration = Duration::from_secs(60);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn opened() -> Pair {
    let mut pair = Pair::new(7, FINE);
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    pair
}

/// A server whose application takes nothing, so that what is under way is kept.
fn stalled() -> Pair {
    let mut pair = opened();
    pair.server.takes = false;
    pair.device.text("waits");
    pair.run(Duration::from_secs(1));
    pair
}

fn nothing_in_flight(pair: &Pair) -> bool {
    let busy = pair.server.connection.busy.as_ref();
    busy.is_some_and(|busy| busy.sent.is_empty())
}

/// The last packet in flight is declared lost by its timer, and nothing of it is to be sent again: nobody owes an answer.
#[test]
fn who_has_nothing_in_flight_waits_for_nobody() {
    let mut pair = stalled();
    pair.server.connection.ping();
    pair.settle();
    pair.network.clear();
    pair.server.text("behind it");
    assert!(pair.run_until(ms(100), |pair| pair.server.connection.stats().lost == 1));
    assert!(nothing_in_flight(&pair));
    pair.run(2 * GIVE_UP);
    assert_eq!((pair.server.ended(), pair.server.delivered), (None, 1));
}

/// The same when it went to an address where the peer no longer is.
#[test]
fn what_went_to_an_old_address_is_not_waited_for() {
    let mut pair = stalled();
    pair.device.address.set_port(6_000);
    pair.device.connection.ping();
    pair.server.connection.ping();
    let moved = |pair: &mut Pair| matches!(pair.server.events[..], [Event::PeerMoved(_)]);
    assert!(pair.run_until(ms(500), moved));
    assert!(nothing_in_flight(&pair));
    pair.run(2 * GIVE_UP);
    assert_eq!(pair.server.ended(), None);
}

/// When a look for losses was due, a probe that is due too goes out in the same turn.
#[test]
fn after_a_turn_nothing_is_overdue() {
    let mut pair = opened();
    let now = pair.now;
    pair.server.connection.ping();
    pair.settle();
    pair.network.clear();
    let (config, probe) = (
        pair.server.config.clone(),
        pair.server.connection.rtt.probe_timeout(0),
    );
    pair.server.connection.busy.as_mut().unwrap().loss_at = Some(now + 2 * probe);
    let later = now + 2 * probe;
    assert_eq!(pair.server.connection.poll_timeout(), Some(later));
    pair.server.connection.handle_timeout(&config, later);
    pair.now = later;
    pair.settle();
    // One was lost; a probe is two.
    assert_eq!(pair.server.datagrams_out, pair.device.outcomes.len() + 3);
    assert!(pair.server.connection.poll_timeout().is_some_and(|at| at > later));
}

/// A server with more for its device than that takes. What the device grants is used up and acknowledged.
fn blocked() -> Pair {
    let narrow = Config {
        receive_bytes: 4_096,
        keep_alive: None,
        ..config()
    };
    let mut pair = Pair::with(7, FINE, narrow, config());
    pair.device.text("hello");
    pair.run(Duration::from_secs(1));
    pair.device.takes = false;
    for _ in 0..3 {
        pair.server.text(vec![1; 5_000]);
    }
    pair.run(ms(200));
    // It may just have asked.
    assert!(pair.run_until(ms(100), |pair| nothing_in_flight(pair)));
    assert!((1..3).contains(&pair.server.delivered));
    assert!(pair.server.connection.poll_timeout().is_some());
    pair
}

#[test]
fn who_grants_nothing_is_asked_less_and_less_often() {
    let mut pair = blocked();
    let probe = pair.server.connection.rtt.probe_timeout(0);
    pair.tape = Some(Vec::new());
    pair.run(10 * GIVE_UP);
    let tape = pair.tape.take().unwrap();
    let asked: Vec<_> = tape.iter().filter(|d| d.to == pair.device.address).collect();
    let waits: Vec<_> = asked.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(waits.iter().all(|wait| *wait >= probe), "{waits:?}");
    assert!(waits.windows(2).all(|two| two[0] <= two[1]), "{waits:?}");
    assert_eq!(waits.last(), Some(&Duration::from_secs(8)));
    // It answers, so it is there, and gets the rest when it takes again.
    assert_eq!(pair.server.ended(), None);
    pair.device.takes = true;
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.server.delivered, 3);
    assert!(pair.server.connection.is_idle());
}

#[test]
fn who_grants_nothing_and_vanished_is_given_up() {
    let mut pair = blocked();
    pair.conditions.loss = 100;
    let began = pair.now;
    assert!(pair.run_until(2 * GIVE_UP, |pair| pair.server.ended() == Some(End::GaveUp)));
    let waited = pair.now - began;
    assert!(
        (GIVE_UP..GIVE_UP + Duration::from_secs(1)).contains(&waited),
        "{waited:?}"
    );
    // Also long after it was last heard.
    let mut pair = blocked();
    pair.run(10 * GIVE_UP);
    pair.conditions.loss = 100;
    assert!(pair.run_until(GIVE_UP + Duration::from_secs(8), |pair| {
        pair.server.ended().is_some()
    }));
}

/// A server that has sent something, and with `probed` sent it again, and an acknowledgement that is on its way to it.
fn answered(probed: bool, give_up: u64) -> Pair {
    let mut pair = opened();
    pair.server.config.give_up = Duration::from_secs(give_up);
    pair.server.text("answered");
    pair.settle();
    if probed {
        pair.network.clear();
    }
    loop {
        pair.settle();
        if pair.network.iter().any(|d| d.to == pair.server.address) {
            assert_eq!(pair.server.delivered, 0);
            return pair;
        }
        assert!(pair.step(pair.now + GIVE_UP));
    }
}

/// The process was stopped: what the peer answered meanwhile is there and was not read.
#[test]
fn who_was_held_up_does_not_blame_the_peer() {
    for (first, probed) in [
        ("the timer", false),
        ("the timer", true),
        ("something to send", false),
        ("something to send", true),
    ] {
        for (give_up, pause) in [(60, 62), (60, 85), (5, 6), (5, 8)] {
            let mut pair = answered(probed, give_up);
            pair.now += Duration::from_secs(pause);
            let (config, now) = (pair.server.config.clone(), pair.now);
            if first == "something to send" {
                pair.server.text("more");
                pair.settle();
            }
            pair.server.connection.handle_timeout(&config, now);
            pair.settle();
            assert_eq!(pair.server.ended(), None, "{first} {probed} {give_up} {pause}");
            pair.run(Duration::from_secs(1));
            assert_eq!(
                pair.server.delivered, pair.server.sent,
                "{first} {give_up} {pause}"
            );
        }
    }
}

/// If nothing comes of that either, it does not take long.
#[test]
fn a_late_turn_gives_the_peer_one_more_chance_only() {
    let mut pair = opened();
    pair.conditions.loss = 100;
    pair.server.text("nobody there");
    pair.run(Duration::from_secs(10));
    pair.now += Duration::from_secs(90);
    let (began, before) = (pair.now, pair.server.datagrams_out);
    assert!(pair.run_until(GIVE_UP, |pair| pair.server.ended() == Some(End::GaveUp)));
    assert_eq!(pair.now - began, Duration::from_secs(8));
    assert!(pair.server.datagrams_out > before);
}

/// On a path that is slower than the patience a probe goes out all the same, and has its time.
#[test]
fn nobody_is_given_up_without_a_probe() {
    for answers in [true, false] {
        let mut pair = opened();
        pair.conditions.delay = (2_000, 2_000);
        for _ in 0..4 {
            pair.server.connection.ping();
            pair.run(Duration::from_secs(10));
        }
        assert_eq!(
            pair.server.connection.rtt.probe_timeout(0),
            Duration::from_secs(8)
        );
        pair.server.config.give_up = Duration::from_secs(5);
        pair.server.connection.ping();
        pair.settle();
        pair.network.clear();
        pair.conditions.loss = if answers { 0 } else { 100 };
        let (began, before) = (pair.now, pair.server.datagrams_out);
        let ended = pair.run_until(GIVE_UP, |pair| pair.server.ended().is_some());
        assert_eq!(ended, !answers);
        assert!(pair.server.datagrams_out > before);
        if ended {
            assert_eq!(pair.now - began, Duration::from_secs(5 + 8));
        }
    }
}
