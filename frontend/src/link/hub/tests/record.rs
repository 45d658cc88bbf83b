//! What is counted of each backend, and what is remembered of those that went.

use std::time::Duration;

use holdfast_proto::link::{Command, frames};

use super::harness::*;
use crate::exchange::ToHub;
use crate::link::{HandOver, HandOverKind, MAX_ENDED, MAX_HAND_OVERS};

/// Requests, replies, in flight.
fn work(w: &World, index: usize) -> (u64, u64, u64) {
    let work = &w.hub.status()[index].work;
    (work.requests(), work.replies(), work.in_flight())
}

fn kinds(w: &World) -> Vec<(HandOverKind, u64)> {
    w.hub.hand_overs().iter().map(|h| (h.kind, h.requests)).collect()
}

fn drain(w: &mut World, b: &mut Backend, peer: crate::exchange::PeerId) {
    b.send(Command::Draining(frames::Draining {}));
    w.carry(&mut [&mut *b]);
    for shard in 0..SHARDS {
        w.shard_says(shard, ToHub::Drained { peer });
    }
    w.carry(&mut [&mut *b]);
}

#[test]
fn requests_and_final_replies_are_counted_and_nothing_else() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    for ticket in 1..=3 {
        w.work(0, peer, ticket, request(0));
    }
    w.work(0, peer, 1, Command::Logout(frames::Logout::default()));
    w.carry(&mut [&mut b]);
    assert_eq!(work(&w, 0), (3, 0, 3));
    b.send(reply(session(0, 1)));
    let Command::Reply(mut interim) = reply(session(0, 1)) else {
        panic!("it is a reply")
    };
    interim.r#final = false;
    b.send(Command::Reply(interim));
    w.carry(&mut [&mut b]);
    assert_eq!(work(&w, 0), (3, 1, 2));
}

#[test]
fn what_ended_sessions_never_sent_is_not_in_flight() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    b.releases = false;
    for ticket in 1..=70 {
        w.work(0, peer, ticket, request(0));
    }
    w.carry(&mut [&mut b]);
    let waiting = w.hub.usage().peers[0].lane.queued.iter().sum::<usize>() as u64;
    assert!(waiting > 0);
    for slot in 1..=MAX_ENDED as u32 {
        let device = "d".parse().unwrap();
        let session = session(0, slot);
        w.shard_says(0, ToHub::Offline { device, session });
    }
    assert_eq!(work(&w, 0), (70, 0, 70 - waiting));
}

#[test]
fn a_graceful_end_is_told_with_what_was_out_and_how_long_it_took() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    for ticket in 1..=2 {
        w.work(1, peer, ticket, request(1));
    }
    w.carry(&mut [&mut b]);
    drain(&mut w, &mut b, peer);
    w.pass(Duration::from_millis(300), &mut [&mut b]);
    for _ in 0..2 {
        b.send(reply(session(1, 1)));
    }
    let last_frame = b.lane.last_frame() + 1;
    b.send(Command::Done(frames::Done { last_frame }));
    assert!(w.hub.take_changed());
    w.carry(&mut [&mut b]);
    assert!(w.hub.take_changed());
    let expected = HandOver {
        at: w.now,
        kind: HandOverKind::Graceful,
        backend: "b".into(),
        epoch: b.lane.local(),
        requests: 2,
        duration: Duration::from_millis(300),
    };
    assert_eq!(w.hub.hand_overs(), std::slice::from_ref(&expected));
    w.hub.handle_disconnected(w.now, &b.identity);
    assert_eq!(
        w.hub.hand_overs(),
        [expected],
        "its socket's end is no second one"
    );
}

#[test]
fn every_other_end_has_its_kind_and_says_what_others_were_given() {
    let mut w = World::new();
    let (mut b, peer) = w.active(1);
    w.work(0, peer, 1, request(0));
    w.carry(&mut [&mut b]);
    w.hub.handle_disconnected(w.now, &b.identity);
    assert_eq!(kinds(&w), [(HandOverKind::Crash, 1)]);

    let (mut b, peer) = w.active(2);
    w.work(0, peer, 1, request(0));
    drain(&mut w, &mut b, peer);
    w.now += Duration::from_millis(70);
    w.hub.handle_disconnected(w.now, &b.identity);
    assert_eq!(kinds(&w)[0], (HandOverKind::GraceOver, 1));
    assert_eq!(w.hub.hand_overs()[0].duration, Duration::from_millis(70));

    let (b, _) = w.active(3);
    w.hub
        .handle_batch(w.now, &b.identity, bytes::Bytes::from_static(b"\xff"));
    assert_eq!(kinds(&w)[0], (HandOverKind::Fenced, 0));

    w.active(4);
    w.silence(Duration::from_secs(2));
    assert_eq!(kinds(&w)[0], (HandOverKind::Hang, 0));
    assert_eq!(w.hub.hand_overs().len(), 4);
}

#[test]
fn only_the_last_ends_are_remembered() {
    let mut w = World::new();
    for boot in 0..MAX_HAND_OVERS as u128 + 5 {
        let (b, _) = w.active(100 + boot);
        w.hub.handle_disconnected(w.now, &b.identity);
    }
    let ends = w.hub.hand_overs();
    assert_eq!(ends.len(), MAX_HAND_OVERS);
    assert_eq!(
        ends[0].epoch.boot,
        100 + MAX_HAND_OVERS as u128 + 4,
        "the newest is first"
    );
}

#[test]
fn metrics_name_who_is_attached_and_count_ends_by_kind() {
    let mut w = World::new();
    let mut registry = prometheus_client::registry::Registry::with_prefix("holdfast");
    w.metrics.register(&mut registry);
    let text = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let (b, _) = w.active(7);
    let info = format!(
        "holdfast_backend_info{{name=\"b\",version=\"\",epoch=\"{}\"}} 1",
        b.lane.local()
    );
    assert!(text().contains(&info), "{}", text());
    w.hub.handle_disconnected(w.now, &b.identity);
    assert!(
        !text().contains("holdfast_backend_info{"),
        "it goes with the backend"
    );
    assert!(text().contains("holdfast_link_hand_overs_total{kind=\"crash\"} 1"));
}
