//! Pushes to one session and to all.

use std::time::Duration;

use holdfast_proto::ChannelKind;
use holdfast_proto::link::frames::PushStatus;

use super::harness::*;
use crate::exchange::ToHub;
use crate::session::Output;

impl World {
    /// How pushes to one ended: number, status, reason.
    fn push_results(&mut self) -> Vec<(u64, PushStatus, String)> {
        let read = |message| match message {
            ToHub::PushDone { result, .. } => (result.number, result.status(), result.reason),
            other => panic!("{other:?}"),
        };
        self.told().into_iter().map(read).collect()
    }

    /// How pushes to all ended: number, written, dropped, unconfirmed.
    fn broadcast_results(&mut self) -> Vec<(u64, u64, u64, u64)> {
        let done = |message| match message {
            ToHub::BroadcastDone { number, counts, .. } => {
                Some((number, counts.written, counts.dropped, counts.unconfirmed))
            }
            _ => None,
        };
        self.told().into_iter().filter_map(done).collect()
    }

    fn turns(&mut self) -> usize {
        let mut turns = 0;
        while self.shard.has_turn() {
            self.shard.handle_turn(self.now);
            self.pass(Duration::ZERO);
            turns += 1;
        }
        turns
    }
}

#[test]
fn a_push_is_written_when_the_socket_took_it() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    w.frame(A, push_to(id, 7, "hi"));
    assert_eq!(w.texts(key), ["hi"]);
    assert!(w.told().is_empty());
    w.written(key, 1);
    assert_eq!(w.push_results(), [(7, PushStatus::Written, String::new())]);
    w.written(key, 1);
    assert!(w.told().is_empty());
}

#[test]
fn a_push_to_who_is_not_online_says_so() {
    let mut w = World::attached();
    let key = w.greeted("d");
    let id = w.id(key);
    w.frame(A, push_to(id, 1, "hi"));
    w.frame(A, welcomed(id, ""));
    w.closed(key);
    w.told();
    w.frame(A, push_to(id, 2, "hi"));
    w.frame(A, logged_out(id));
    w.frame(A, push_to(id, 3, "hi"));
    let statuses: Vec<_> = w
        .push_results()
        .into_iter()
        .map(|(_, status, _)| status)
        .collect();
    assert_eq!(statuses, [PushStatus::Offline; 2]);
    assert!(w.outputs().is_empty());
}

#[test]
fn pushes_that_the_device_does_not_read_are_dropped_for_a_reason() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    for number in 1..=4 {
        w.frame(A, push_to(id, number, "hi"));
    }
    assert_eq!(w.push_results(), [(4, PushStatus::Dropped, "queue_full".into())]);
    w.written(key, 1);
    w.frame(A, push_to(id, 5, &"x".repeat(300)));
    let results = w.push_results();
    assert_eq!(results[1], (5, PushStatus::Dropped, "queue_full".into()));
    w.outputs();
    w.lost(key);
    let told = w.told();
    let closed = told
        .iter()
        .filter(|t| matches!(t, ToHub::PushDone { result, .. } if result.reason == "closed"));
    assert_eq!(closed.count(), 2);
}

#[test]
fn a_push_to_all_visits_every_slot_in_turns() {
    let mut w = World::with(|c| {
        c.output_bytes = 1000;
        c.output_total_bytes = 1 << 20;
    });
    w.active(A);
    let keys: Vec<_> = (0..600).map(|n| w.online(&format!("d{n}"))).collect();
    w.frame(A, push_to_all(1));
    assert!(w.shard.has_turn());
    w.shard.handle_turn(w.now);
    w.closed(keys[0]);
    w.closed(keys[599]);
    w.text(keys[300], "@ping").unwrap();
    assert_eq!(w.turns(), 2);
    let sends = w
        .outputs()
        .iter()
        .filter(|o| matches!(o, Output::Send { .. }))
        .count();
    assert_eq!(sends, 600, "599 were there, one of them pinged");
    for key in &keys[1..599] {
        w.written(*key, 2);
    }
    assert_eq!(
        w.broadcast_results(),
        [(1, 598, 0, 1)],
        "the first was gone before its channel could say"
    );
}

/// A stream that breaks takes what its socket did not with it. Where the channel had not been asked yet, where what waits goes out
/// although the session is over, or where the device may have it although it did not say so, nobody knows.
#[test]
fn what_becomes_of_pushes_when_their_session_ends_is_said_only_where_it_is_known() {
    let unknown = (PushStatus::Unconfirmed, String::new());
    let dropped = (PushStatus::Dropped, "closed".to_owned());
    let cases = [
        (ChannelKind::Ws, true, true, dropped.clone()),
        (ChannelKind::Wss, true, true, dropped),
        (ChannelKind::Udp, true, true, unknown.clone()),
        (ChannelKind::Wss, false, true, unknown.clone()),
        (ChannelKind::Udp, false, true, unknown.clone()),
        (ChannelKind::Ws, true, false, unknown.clone()),
        (ChannelKind::Udp, true, false, unknown),
    ];
    for (kind, handed_on, is_lost, (status, reason)) in cases {
        let mut w = World::attached();
        let (key, other) = (w.online("d"), w.online("other"));
        w.set_kind(key, kind);
        let id = w.id(key);
        w.frame(A, push_to(id, 1, "hi"));
        w.frame(A, push_to_all(2));
        w.turns();
        if handed_on {
            w.outputs();
        }
        match is_lost {
            true => w.lost(key),
            false => w.closed(key),
        }
        w.written(other, 1);
        let told = w.told();
        let one = told.iter().find_map(|t| match t {
            ToHub::PushDone { result, .. } => Some((result.status(), result.reason.clone())),
            _ => None,
        });
        assert_eq!(one, Some((status, reason)), "{kind:?}");
        let all = told.iter().find_map(|t| match t {
            ToHub::BroadcastDone { counts, .. } => Some((counts.written, counts.dropped, counts.unconfirmed)),
            _ => None,
        });
        let is_known = status == PushStatus::Dropped;
        assert_eq!(
            all,
            Some((1, u64::from(is_known), u64::from(!is_known))),
            "{kind:?}"
        );
        assert_eq!(w.metrics.pushes_unconfirmed.get(), if is_known { 0 } else { 2 });
    }
}

#[test]
fn a_push_to_all_counts_whose_queue_is_full() {
    let mut w = World::attached();
    let keys = [w.online("a"), w.online("b")];
    let id = w.id(keys[0]);
    for number in 1..=3 {
        w.frame(A, push_to(id, number, "x"));
    }
    w.frame(A, push_to_all(4));
    w.frame(A, push_to_all(5));
    w.turns();
    w.written(keys[1], 2);
    assert_eq!(w.broadcast_results(), [(4, 1, 1, 0), (5, 1, 1, 0)]);
    let mut w = World::attached();
    w.frame(A, push_to_all(1));
    w.turns();
    assert_eq!(w.broadcast_results(), [(1, 0, 0, 0)], "nobody is there");
}

#[test]
fn a_device_that_does_not_read_does_not_keep_pushes_to_all_from_others() {
    let mut w = World::with(|c| c.output_pushes = 100);
    w.active(A);
    let (reads, sleeps) = (w.online("reads"), w.online("sleeps"));
    for number in 1..=17 {
        w.frame(A, push_to_all(number));
    }
    assert_eq!(
        w.broadcast_results(),
        [(17, 0, 2, 0)],
        "16 are worked on at a time"
    );
    assert_eq!(
        w.metrics
            .pushes_dropped
            .get_or_create(&crate::session::metrics::ReasonLabel { reason: "overloaded" })
            .get(),
        2
    );
    w.turns();
    w.written(reads, 16);
    assert!(w.broadcast_results().is_empty());
    w.pass(Duration::from_secs(2));
    let results = w.broadcast_results();
    assert_eq!(results.len(), 16);
    assert!(
        results
            .iter()
            .all(|(_, written, dropped, unconfirmed)| (*written, *dropped, *unconfirmed) == (1, 0, 1))
    );
    assert_eq!(w.metrics.pushes_unconfirmed.get(), 16);
    w.written(sleeps, 16);
    assert!(w.told().is_empty(), "what came too late is not told twice");
    w.frame(A, push_to_all(18));
    w.turns();
    w.written(reads, 1);
    w.written(sleeps, 1);
    assert_eq!(w.broadcast_results(), [(18, 2, 0, 0)]);
}

#[test]
fn a_push_without_a_target_is_malformed() {
    use holdfast_proto::link::{Command, frames};
    let mut w = World::attached();
    w.frame(A, Command::Push(frames::Push::default()));
    assert_eq!(w.metrics.malformed_frames.get(), 1);
}
