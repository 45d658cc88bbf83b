//! Backends that take a share of the sessions.

use holdfast_proto::Share;
use holdfast_proto::link::{Command, FEATURE_SHARE, frames, has_feature};

use super::harness::*;
use crate::exchange::{PeerId, ToHub, ToShard};

const PEER: PeerId = PeerId(1);

fn ready(w: &mut World, b: &mut Backend, hundredths: u32) {
    b.send(Command::Ready(Share::clamped(hundredths).into()));
    w.carry(&mut [b]);
}

/// What each shard was told of shares: by shard, whether it was the first word, and the share.
fn shares(w: &mut World) -> Vec<(u8, bool, u16)> {
    let share = |(shard, message): (holdfast_proto::ShardId, ToShard)| match message {
        ToShard::PeerActive { share, .. } => Some((shard.0, true, share.hundredths())),
        ToShard::PeerShare { share, .. } => Some((shard.0, false, share.hundredths())),
        _ => None,
    };
    w.told().into_iter().filter_map(share).collect()
}

fn take(w: &mut World) {
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::ShareTaken { peer: PEER });
    }
}

fn state(w: &World) -> (&'static str, f64, i64) {
    let status = &w.hub.status()[0];
    (status.stage, status.share.percent(), w.metrics.active.get())
}

#[test]
fn backends_learn_that_shares_are_respected() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    let got = b.got();
    let [Command::Hello(hello)] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert!(has_feature(hello, FEATURE_SHARE));
}

#[test]
fn a_backend_is_a_standby_a_canary_and_a_member_in_turn() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    assert_eq!(state(&w), ("standby", 0.0, 0));
    ready(&mut w, &mut b, 550);
    assert_eq!(shares(&mut w), [(0, true, 550), (1, true, 550)]);
    assert_eq!(state(&w), ("active", 5.5, 1));
    ready(&mut w, &mut b, 10_000);
    assert_eq!(shares(&mut w), [(0, false, 10_000), (1, false, 10_000)]);
    take(&mut w);
    assert!(w.hub.take_changed());
    ready(&mut w, &mut b, 0);
    assert_eq!(shares(&mut w), [(0, false, 0), (1, false, 0)]);
    assert_eq!(state(&w), ("standby", 0.0, 0));
    assert_eq!(w.metrics.malformed.get(), 0);
}

#[test]
fn what_an_older_backend_says_means_a_full_member() {
    let mut w = World::new();
    let (_b, _) = w.active(5);
    assert_eq!(state(&w), ("active", 100.0, 1));
}

#[test]
fn one_change_is_on_its_way_to_the_shards_at_a_time_and_the_last_one_arrives() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    ready(&mut w, &mut b, 100);
    w.told();
    for n in 0..1000 {
        ready(&mut w, &mut b, 200 + n);
    }
    assert_eq!(shares(&mut w), [(0, false, 200), (1, false, 200)]);
    w.shard_says(0, ToHub::ShareTaken { peer: PEER });
    assert!(shares(&mut w).is_empty(), "the other shard has not answered");
    w.shard_says(1, ToHub::ShareTaken { peer: PEER });
    assert_eq!(shares(&mut w), [(0, false, 1199), (1, false, 1199)]);
    take(&mut w);
    assert!(shares(&mut w).is_empty());
}

#[test]
fn there_and_back_again_before_the_shards_have_listened_is_no_change() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    for hundredths in [100, 200, 300, 200] {
        ready(&mut w, &mut b, hundredths);
    }
    assert_eq!(shares(&mut w).len(), 4, "the first word and the first change");
    take(&mut w);
    assert!(shares(&mut w).is_empty());
}

#[test]
fn a_share_after_draining_is_counted_and_ignored() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    ready(&mut w, &mut b, 100);
    ready(&mut w, &mut b, 200);
    ready(&mut w, &mut b, 300);
    w.told();
    b.send(Command::Draining(frames::Draining {}));
    ready(&mut w, &mut b, 10_000);
    assert_eq!((state(&w), w.metrics.malformed.get()), (("draining", 3.0, 0), 1));
    assert!(shares(&mut w).is_empty());
    // The answers to the change that was under way find it draining.
    take(&mut w);
    assert!(shares(&mut w).is_empty());
}

#[test]
fn a_standby_leaves_like_any_other() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    b.send(Command::Draining(frames::Draining {}));
    w.carry(&mut [&mut b]);
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::Drained { peer: PEER });
    }
    w.carry(&mut [&mut b]);
    let last_frame = b.lane.last_frame() + 1;
    b.send(Command::Done(frames::Done { last_frame }));
    w.carry(&mut [&mut b]);
    assert_eq!((w.metrics.drained.get(), w.metrics.fenced.get()), (1, 0));
}

#[test]
fn an_answer_about_a_backend_that_is_gone_does_no_harm() {
    let mut w = World::new();
    take(&mut w);
    let mut b = w.attach(5, 1);
    ready(&mut w, &mut b, 100);
    take(&mut w);
    ready(&mut w, &mut b, 200);
    assert_eq!(shares(&mut w).len(), 4);
    w.hub.handle_disconnected(w.now, &b.identity);
    take(&mut w);
    assert!(shares(&mut w).is_empty());
}
