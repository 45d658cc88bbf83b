//! Backends that leave.

use std::time::Duration;

use holdfast_proto::link::{Class, Command, Lane, frames};

use super::harness::*;
use crate::exchange::{PeerId, ToHub, ToShard};

fn draining(w: &mut World, b: &mut Backend) {
    b.send(Command::Draining(frames::Draining {}));
    w.carry(&mut [b]);
    let told = w.told();
    assert_eq!(told.len(), 2);
    assert!(
        told.iter()
            .all(|(_, m)| matches!(m, ToShard::PeerDraining { .. }))
    );
}

fn mark(b: &mut Backend) -> Option<u64> {
    b.got().into_iter().find_map(|command| match command {
        Command::DrainMark(mark) => Some(mark.last_frame),
        _ => None,
    })
}

fn done(w: &mut World, b: &mut Backend) {
    let last_frame = b.lane.last_frame() + 1;
    b.send(Command::Done(frames::Done { last_frame }));
    w.carry(&mut [b]);
}

#[test]
fn a_drain_runs_to_its_end() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    draining(&mut w, &mut b);
    w.shard_says(0, ToHub::Drained { peer });
    w.carry(&mut [&mut b]);
    assert_eq!(mark(&mut b), None, "the other shard may still send work");
    // Work that crossed the news.
    w.work(1, peer, 8, request(1));
    w.shard_says(1, ToHub::Drained { peer });
    w.carry(&mut [&mut b]);
    let got = b.got();
    let [Command::TextMessage(_), Command::DrainMark(mark)] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert_eq!(
        mark.last_frame + 1,
        b.lane.last_received_frame(),
        "the work is before the mark"
    );
    b.send(reply(session(1, 1)));
    w.carry(&mut [&mut b]);
    done(&mut w, &mut b);
    let told = w.told();
    assert!(
        matches!(told[0].1, ToShard::Frame { .. }),
        "its last answers come before the news that it is gone"
    );
    let graceful = told[1..]
        .iter()
        .filter(|(_, m)| matches!(m, ToShard::PeerGone { graceful: true, .. }));
    assert_eq!((graceful.count(), told.len()), (2, 3));
    assert!(b.lane.is_acknowledged(), "it may exit");
    assert_eq!(w.hub.status()[0].stage, "done");
    w.hub.handle_disconnected(w.now, &b.identity);
    w.silence(Duration::from_secs(3));
    assert!(w.gone().is_empty() && w.hub.is_alone());
    assert_eq!((w.metrics.drained.get(), w.metrics.fenced.get()), (1, 0));
}

#[test]
fn one_that_has_left_is_forgotten_without_a_loss() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    draining(&mut w, &mut b);
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::Drained { peer });
    }
    w.carry(&mut [&mut b]);
    done(&mut w, &mut b);
    assert_eq!(w.gone().len(), 2);
    w.silence(Duration::from_secs(2));
    assert!(w.gone().is_empty() && w.hub.is_alone());
    assert_eq!(w.metrics.fenced.get(), 0);
}

#[test]
fn the_mark_waits_until_the_last_work_is_out() {
    let mut w = World::new();
    // One that grants a single request.
    let mut tight = Backend::silent(w.now, 6, 1);
    tight.lane = Lane::new(
        lane_config(1),
        tight.lane.local(),
        holdfast_proto::link::UNKNOWN_EPOCH,
        w.now,
    );
    tight.send(Command::Hello(frames::Hello {
        version_min: 1,
        version_max: 1,
        ..Default::default()
    }));
    tight.send(Command::Ready(frames::Ready::default()));
    tight.releases = false;
    w.carry(&mut [&mut tight]);
    w.told();
    let peer = PeerId(1);
    for ticket in 1..=2 {
        w.work(0, peer, ticket, request(0));
    }
    draining(&mut w, &mut tight);
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::Drained { peer });
    }
    w.carry(&mut [&mut tight]);
    let got = tight.got();
    assert_eq!(
        got.iter()
            .filter(|c| matches!(c, Command::TextMessage(_)))
            .count(),
        1
    );
    assert!(!got.iter().any(|c| matches!(c, Command::DrainMark(_))));
    tight.lane.release((Class::Requests, 0));
    w.carry(&mut [&mut tight]);
    let got = tight.got();
    assert!(
        matches!(got.as_slice(), [Command::TextMessage(_), Command::DrainMark(_)]),
        "{got:?}"
    );
}

#[test]
fn done_without_a_mark_is_a_breach_and_what_follows_is_dropped() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    b.send(Command::Done(frames::Done { last_frame: 9 }));
    b.send(reply(session(0, 1)));
    w.carry(&mut [&mut b]);
    let told = w.told();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter()
            .all(|(_, m)| matches!(m, ToShard::PeerGone { graceful: false, .. }))
    );
    assert!(b.was_fenced());
}

#[test]
fn nothing_is_taken_after_done() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    draining(&mut w, &mut b);
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::Drained { peer });
    }
    w.carry(&mut [&mut b]);
    b.send(Command::Done(frames::Done { last_frame: 0 }));
    b.send(push(1, frames::push::Target::All(true)));
    w.carry(&mut [&mut b]);
    assert_eq!(w.told().len(), 2);
    b.send(push(2, frames::push::Target::All(true)));
    w.carry(&mut [&mut b]);
    assert!(w.told().is_empty());
}

#[test]
fn a_crash_while_draining_is_a_crash() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    w.work(0, peer, 4, request(0));
    draining(&mut w, &mut b);
    w.shard_says(0, ToHub::Drained { peer });
    w.hub.handle_disconnected(w.now, &b.identity);
    w.carry(&mut []);
    assert_eq!(w.gone(), [(0, false, 4, 0), (1, false, 0, 0)]);
    w.shard_says(1, ToHub::Drained { peer });
    assert!(w.hub.poll_batch(w.now).is_none());
}

#[test]
fn one_that_leaves_before_it_was_ready_gets_its_mark() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    draining(&mut w, &mut b);
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::Drained { peer: PeerId(1) });
    }
    b.send(Command::Draining(frames::Draining {}));
    w.carry(&mut [&mut b]);
    assert!(mark(&mut b).is_some());
    assert!(w.told().is_empty(), "DRAINING counts once");
}
