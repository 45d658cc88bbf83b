//! Who is attached, and who is declared gone.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::link::{Class, Command, frames};

use super::harness::*;
use crate::exchange::{ToHub, ToShard};

const SECOND: Duration = Duration::from_secs(1);

fn stage(w: &World) -> Vec<&'static str> {
    w.hub.status().iter().map(|s| s.stage).collect()
}

#[test]
fn a_backend_attaches_and_takes_work_when_it_is_ready() {
    let mut w = World::new();
    let mut b = w.attach(5, 1);
    let got = b.got();
    let [Command::Hello(hello)] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert_eq!(
        (hello.frontend_id, hello.frontend_epoch, hello.heartbeat_ms),
        (1, 9, 30_000)
    );
    assert_eq!((hello.max_message_bytes, hello.window_requests), (1000, 32));
    assert_eq!(stage(&w), ["standby"]);
    assert!(w.told().is_empty() && w.hub.take_changed());
    b.send(Command::Ready(frames::Ready::default()));
    w.carry(&mut [&mut b]);
    let told = w.told();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|(_, m)| matches!(m, ToShard::PeerActive { .. })));
    assert_eq!(
        (stage(&w), w.metrics.active.get(), w.metrics.malformed.get()),
        (vec!["active"], 1, 0)
    );
    b.send(Command::Ready(frames::Ready::default()));
    w.carry(&mut [&mut b]);
    assert!(w.told().is_empty(), "nothing has changed");
}

#[test]
fn a_backend_that_cannot_be_spoken_with_is_told_why() {
    let mut w = World::new();
    let mut b = Backend::silent(w.now, 5, 1);
    b.send(Command::Hello(frames::Hello {
        version_min: 7,
        version_max: 9,
        ..Default::default()
    }));
    w.carry(&mut [&mut b]);
    let notices = b.notices();
    let [Command::Refused(refused)] = notices.as_slice() else {
        panic!("{notices:?}")
    };
    assert_eq!(refused.code, "version");
    assert!(refused.reason.contains("1 to 1") && refused.reason.contains("7 to 9"));
    assert!(w.hub.status().is_empty() && w.hub.is_alone());
}

#[test]
fn only_so_many_attach() {
    let mut w = World::new();
    let mut backends: Vec<_> = (1..=4).map(|boot| w.attach(boot, 1)).collect();
    let notices = backends[3].notices();
    assert!(matches!(notices.as_slice(), [Command::Refused(r)] if r.code == "too_many_backends"));
    assert_eq!(w.hub.status().len(), 3);
    w.hub.handle_disconnected(w.now, &backends[0].identity);
    let mut again = w.attach(4, 1);
    assert!(
        again.notices().is_empty(),
        "the refused attachment may be tried again"
    );
}

#[test]
fn a_hello_that_comes_late_is_not_an_attachment() {
    let mut w = World::new();
    let _newer = w.attach(5, 2);
    let mut older = w.attach(5, 1);
    assert!(matches!(older.notices().as_slice(), [Command::Refused(r)] if r.code == "stale_epoch"));
    assert_eq!(w.hub.status()[0].epoch.attach, 2);
    assert!(w.gone().is_empty());
}

#[test]
fn a_process_that_attaches_anew_has_given_the_older_attachment_up() {
    let mut w = World::new();
    let (_older, peer) = w.active(5);
    w.work(1, peer, 3, request(1));
    let mut newer = w.attach(5, 2);
    assert_eq!(
        w.gone(),
        [(0, false, 0, 0), (1, false, 0, 0)],
        "the request had not gone out"
    );
    assert_eq!((newer.got().len(), w.hub.status().len()), (1, 1));
}

#[test]
fn strangers_are_told_that_their_epoch_is_over_but_not_each_time() {
    let mut w = World::new();
    let mut stranger = Backend::silent(w.now, 5, 1);
    stranger.send(Command::Ready(frames::Ready::default()));
    w.carry(&mut [&mut stranger]);
    assert!(stranger.was_fenced());
    stranger.send(Command::Ready(frames::Ready::default()));
    w.carry(&mut [&mut stranger]);
    assert!(stranger.notices().is_empty());
    w.now += Duration::from_millis(20);
    stranger.send(Command::Ready(frames::Ready::default()));
    w.carry(&mut [&mut stranger]);
    assert!(stranger.was_fenced());
    assert_eq!(w.metrics.stale_epoch.get(), 3);
    w.hub
        .handle_batch(w.now, &stranger.identity, Bytes::from_static(b"\xff\xff"));
    assert_eq!(w.metrics.malformed.get(), 1);
    assert!(w.hub.poll_batch(w.now).is_none());
}

#[test]
fn a_silent_backend_is_fenced() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    w.silence(Duration::from_millis(990));
    assert!(w.gone().is_empty());
    w.silence(Duration::from_millis(20));
    assert_eq!(w.gone(), [(0, false, 0, 0), (1, false, 0, 0)]);
    b.send(reply(session(0, 1)));
    w.carry(&mut [&mut b]);
    assert!(!b.notices().is_empty());
    assert!(w.frames().is_empty(), "what comes from a fenced epoch is dropped");
    assert!(w.hub.status().is_empty());
    assert_eq!((w.metrics.fenced.get(), w.metrics.backends.get()), (1, 0));
}

#[test]
fn heartbeats_of_a_dead_worker_do_not_help() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    for _ in 0..3 {
        w.pass(4 * SECOND, &mut [&mut b]);
        b.progress += 1;
        w.carry(&mut [&mut b]);
    }
    w.pass(Duration::from_millis(300), &mut [&mut b]);
    assert!(w.gone().is_empty() && b.notices().is_empty());
    w.pass(5 * SECOND, &mut [&mut b]);
    assert_eq!(w.gone().len(), 2);
    assert!(matches!(b.notices().first(), Some(Command::Fenced(_))));
}

#[test]
fn a_paused_frontend_takes_nobody_for_gone() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    w.hub.poll_timeout();
    w.now += 100 * SECOND;
    w.hub.poll_timeout();
    w.hub.handle_timeout(w.now);
    assert!(w.gone().is_empty());
    assert_eq!(w.metrics.paused.get(), 1);
    w.carry(&mut [&mut b]);
    w.pass(3 * SECOND, &mut [&mut b]);
    assert!(w.gone().is_empty());
    assert_eq!(w.metrics.paused.get(), 1);
    w.silence(2 * SECOND);
    assert_eq!(w.gone().len(), 2, "who stays silent is gone after all");
}

#[test]
fn a_broken_socket_is_a_crash_at_once() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    w.work(0, peer, 1, request(0));
    w.work(1, peer, 1, request(1));
    w.work(1, peer, 1, Command::Bind(frames::Bind::default()));
    w.carry(&mut [&mut b]);
    w.work(0, peer, 2, request(0));
    w.hub.handle_disconnected(w.now, &b.identity);
    w.hub.handle_disconnected(w.now, &b.identity);
    w.carry(&mut []);
    assert_eq!(
        w.gone(),
        [(0, false, 1, 0), (1, false, 1, 1)],
        "each shard hears what of it had gone out, once"
    );
    w.work(0, peer, 3, request(0));
    w.shard_says(
        0,
        ToHub::Release {
            peer,
            charge: (Class::Replies, 3),
        },
    );
    w.shard_says(0, ToHub::Drained { peer });
    assert!(
        w.hub.poll_batch(w.now).is_none(),
        "what crosses the news is dropped"
    );
}

#[test]
fn a_backend_that_breaks_the_protocol_is_fenced() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    w.hub
        .handle_batch(w.now, &b.identity, Bytes::from_static(b"\x0a\xff"));
    w.carry(&mut [&mut b]);
    assert!(b.was_fenced());
    assert_eq!(w.gone().len(), 2);

    let (mut b, _) = w.active(6);
    // It forgets what it has numbered.
    let mut cheat = Backend::silent(w.now, 6, 1);
    cheat.lane = holdfast_proto::link::Lane::new(lane_config(64), b.lane.local(), b.lane.remote(), w.now);
    cheat.send(Command::Ready(frames::Ready::default()));
    w.carry(&mut [&mut cheat]);
    assert!(matches!(cheat.notices().first(), Some(Command::Fenced(_))));
    assert_eq!((w.gone().len(), w.metrics.fenced.get()), (2, 2));
    b.notices();
}

#[test]
fn batches_of_an_older_lane_are_dropped() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    let mut other = Backend::silent(w.now, 5, 9);
    other.identity = b.identity.clone();
    let batch = other.poll(w.now).unwrap();
    w.hub.handle_batch(w.now, &other.identity, batch);
    assert_eq!(w.metrics.stale_epoch.get(), 1);
    w.carry(&mut [&mut b]);
    assert!(w.gone().is_empty() && b.notices().is_empty());
}

#[test]
fn a_stop_waits_for_every_shard() {
    let mut w = World::new();
    w.hub.handle_stop();
    w.carry(&mut []);
    assert!(matches!(
        w.told().as_slice(),
        [(_, ToShard::Stop), (_, ToShard::Stop)]
    ));
    w.shard_says(1, ToHub::Stopped);
    assert!(!w.hub.is_stopped());
    w.shard_says(0, ToHub::Stopped);
    assert!(w.hub.is_stopped());
}

#[test]
fn a_backend_that_takes_no_lifecycle_frames_is_stuck() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    b.releases = false;
    // The credit is for 64; one waits.
    for ticket in 1..=65 {
        w.work(0, peer, ticket, Command::Logout(frames::Logout::default()));
    }
    b.progress = 1;
    for progress in 2..=94 {
        b.progress = progress;
        w.pass(SECOND / 20, &mut [&mut b]);
    }
    assert!(w.gone().is_empty());
    for progress in 95..=120 {
        b.progress = progress;
        w.pass(SECOND / 20, &mut [&mut b]);
    }
    assert_eq!(w.gone(), [(0, false, 0, 64), (1, false, 0, 0)]);
    assert!(matches!(b.notices().first(), Some(Command::Fenced(_))));
}

#[test]
fn a_slow_backend_that_takes_one_now_and_then_is_not_stuck() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    for ticket in 1..=40 {
        w.work(0, peer, ticket, Command::Logout(frames::Logout::default()));
        b.progress += 1;
        w.pass(SECOND / 2, &mut [&mut b]);
    }
    assert!(w.gone().is_empty());
}
