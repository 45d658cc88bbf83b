//! When a connection is given up, and when not.

use std::time::Duration;

use super::pair::*;
use crate::udp::{End, Event, Side};

const GIVE_UP: Duration = Duration::from_secs(60);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn opened() -> Pair {
    let mut pair = Pair::new(7, FINE);
    pair.device.text(pair.now, "hello");
    pair.run(Duration::from_secs(1));
    pair
}

/// A server whose application takes nothing, so that what is under way is kept.
fn stalled() -> Pair {
    let mut pair = opened();
    pair.server.takes = false;
    pair.device.text(pair.now, "waits");
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
    let now = pair.now;
    pair.server.connection.ping(now);
    pair.settle();
    pair.network.clear();
    pair.server.text(now, "behind it");
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
    let now = pair.now;
    pair.device.connection.ping(now);
    pair.server.connection.ping(now);
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
    pair.server.connection.ping(now);
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
    assert_eq!(pair.server.datagrams_out, pair.device.outcomes.len() + 2);
    assert!(pair.server.connection.poll_timeout().is_some_and(|at| at > later));
}
