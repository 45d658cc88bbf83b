//! Devices whose address may be another's, and devices that move.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use holdfast_proto::ChannelKind;
use holdfast_proto::link::Command;
use holdfast_proto::throttle::Throttle;

use super::harness::*;
use crate::exchange::ToHub;
use crate::session::{Output, SourceLimit};

fn there() -> SocketAddr {
    "198.51.100.3:77".parse().unwrap()
}

#[test]
fn what_is_done_in_the_name_of_an_address_is_not_held_against_it() {
    let throttle = || Some(SourceLimit::new(Throttle::new(1, 64, 60_000, 1), Instant::now()));
    let mut w = World::with(|config| {
        config.sources.ws = throttle();
        config.sources.udp = throttle();
    });
    w.active(A);
    for _ in 0..3 {
        let key = w.shard.accept_unproven(w.now, ChannelKind::Udp, there()).unwrap();
        w.upgrade(key);
    }
    let proven = |w: &mut World, kind| {
        let key = w.shard.accept(w.now, kind, there()).unwrap();
        w.upgrade(key);
        w.outputs()
            .pop()
            .is_some_and(|o| matches!(o, Output::Refuse { .. }))
    };
    assert!(!proven(&mut w, ChannelKind::Udp));
    assert!(proven(&mut w, ChannelKind::Udp));
    assert!(!proven(&mut w, ChannelKind::Ws), "each kind has its own");
}

/// Shards do not begin at the same instant, and are not equally far in their turns.
#[test]
fn all_shards_count_a_sources_attempts_by_one_clock() {
    let begin = Instant::now();
    let limit = SourceLimit::new(Throttle::new(1, 64, 1_000, 2), begin);
    let mut shards = [0, 5, 10].map(|late| {
        let limit = limit.clone();
        let mut w = World::born(begin + Duration::from_secs(late), |config| {
            config.sources.ws = Some(limit)
        });
        w.now = begin + Duration::from_secs(20) - Duration::from_millis(3 * late);
        w
    });
    let mut let_in = 0;
    for n in 0..12 {
        let w = &mut shards[n % 3];
        let key = w.shard.accept(w.now, ChannelKind::Ws, there()).unwrap();
        w.upgrade(key);
        let refused = w
            .outputs()
            .pop()
            .is_some_and(|o| matches!(o, Output::Refuse { .. }));
        let_in += usize::from(!refused);
    }
    assert_eq!(let_in, 2);
}

#[test]
fn who_moves_is_known_where_it_is() {
    let mut w = World::attached();
    let key = w.online("device-1");
    let id = w.id(key);
    w.shard.handle_moved(key, there());
    let told = w.shard.take_to_hub(Vec::new());
    assert!(
        matches!(&told[..], [ToHub::Moved { device, session, address }]
            if device.as_bytes() == "device-1".as_bytes() && *session == id && *address == there()),
        "{told:?}"
    );
    assert_eq!(w.metrics.moves.get(), 1);
}

/// Before LOGIN nobody has heard of it: LOGIN says where it is by then.
#[test]
fn who_moves_before_its_login_logs_in_from_there() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    let id = w.id(key);
    w.frame(A, admitted(id, "device-1"));
    w.shard.handle_moved(key, there());
    w.text(key, "@hello {}").unwrap();
    assert!(w.told().is_empty());
    match w.work().pop() {
        Some((_, _, Command::Login(login))) => assert_eq!(login.address, there().to_string()),
        other => panic!("{other:?}"),
    }
    w.shard.handle_moved(key, "192.0.2.7:1".parse().unwrap());
    assert_eq!(w.shard.take_to_hub(Vec::new()).len(), 1);
}
