//! Backends that crash, leave, come and share.

use holdfast_proto::Share;
use holdfast_proto::link::Command;

use super::harness::*;
use crate::session::Output;

#[test]
fn a_crash_replays_in_order_and_counts_only_what_had_gone_out() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..3 {
        w.text(key, "r").unwrap();
    }
    w.requests();
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1"]);
    w.crashed(A, 2, 9);
    assert!(w.work().is_empty());
    w.text(key, "r").unwrap();
    w.active(B);
    assert_eq!(w.requests(), [(B, 2, 2, 1), (B, 3, 2, 0), (B, 4, 2, 0)]);
    assert_eq!(w.metrics.replayed_requests.get(), 1);
    w.reply(A, key, 2, 0);
    assert!(w.outputs().is_empty(), "the lost backend's answer is late");
    for (n, after) in [(2, 0), (3, 2), (4, 3)] {
        w.reply(B, key, n, after);
    }
    assert_eq!(w.texts(key), ["r2", "r3", "r4"]);
}

#[test]
fn an_early_reply_survives_the_crash_and_keeps_its_place() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..3 {
        w.text(key, "r").unwrap();
    }
    w.requests();
    w.reply(A, key, 2, 1);
    w.crashed(A, 9, 9);
    w.active(B);
    assert_eq!(w.requests(), [(B, 1, 1, 1), (B, 3, 1, 1)]);
    w.reply(B, key, 3, 1);
    assert!(w.outputs().is_empty());
    w.reply(B, key, 1, 0);
    assert_eq!(w.texts(key), ["r1", "r2", "r3"]);
}

#[test]
fn every_crash_counts_and_a_graceful_end_does_not() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(A, 1, 1, 0)]);
    w.left(A);
    w.active(B);
    assert_eq!(w.requests(), [(B, 1, 1, 0)]);
    w.crashed(B, 1, 0);
    w.active(A);
    assert_eq!(w.requests(), [(A, 1, 1, 1)]);
    w.crashed(A, 1, 0);
    w.active(B);
    assert_eq!(w.requests(), [(B, 1, 1, 2)], "the third one answers it untouched");
    assert_eq!(w.metrics.replayed_requests.get(), 2);
}

#[test]
fn a_bind_and_a_login_go_to_the_next_backend() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    assert!(matches!(w.one(A), Command::Bind(b) if b.attempt == 0));
    w.crashed(A, 0, 1);
    w.active(B);
    assert!(matches!(w.one(B), Command::Bind(b) if b.attempt == 1));
    let id = w.id(key);
    w.frame(B, admitted(id, "d"));
    w.text(key, "@hello").unwrap();
    assert!(matches!(w.one(B), Command::Login(l) if l.attempt == 0));
    w.crashed(B, 0, 1);
    w.active(A);
    assert!(
        matches!(w.one(A), Command::Login(l) if l.attempt == 0),
        "it had not gone out"
    );
    w.frame(A, welcomed(id, ""));
    assert_eq!(w.outputs(), [Output::Admit { key, challenge: None }]);
}

#[test]
fn controls_are_replayed() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "@update 1").unwrap();
    w.text(key, "@x").unwrap();
    w.work();
    w.crashed(A, 0, 3);
    w.text(key, "@y").unwrap();
    w.active(B);
    let attempts: Vec<u32> = w
        .work()
        .into_iter()
        .map(|(_, _, command)| match command {
            Command::Update(u) => u.attempt,
            Command::Control(c) => c.attempt,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(attempts, [1, 0, 0]);
}

#[test]
fn while_one_drains_what_is_in_flight_stays_and_new_requests_wait_then_move() {
    let mut w = World::attached();
    let (busy, idle) = (w.online("busy"), w.online("idle"));
    w.text(busy, "r").unwrap();
    w.text(busy, "r").unwrap();
    w.requests();
    w.active(B);
    w.text(busy, "r").unwrap();
    assert_eq!(w.requests(), [(A, 3, 1, 0)], "a busy session keeps its backend");
    w.draining(A);
    w.text(busy, "r").unwrap();
    assert!(w.work().is_empty(), "it waits");
    w.text(idle, "r").unwrap();
    assert_eq!(w.requests(), [(B, 1, 1, 0)], "an idle one moves at once");
    w.text(busy, "@x").unwrap();
    assert!(matches!(w.one(B), Command::Control(_)));
    w.reply(A, busy, 1, 0);
    w.reply(A, busy, 2, 1);
    assert!(w.work().is_empty());
    w.reply(A, busy, 3, 2);
    assert_eq!(w.requests(), [(B, 4, 4, 0)]);
    w.reply(B, busy, 4, 0);
    assert_eq!(w.texts(busy), ["r1", "r2", "r3", "r4"]);
    w.left(A);
    assert!(w.work().is_empty());
}

#[test]
fn a_crash_while_draining_is_a_crash() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "r").unwrap();
    w.requests();
    w.draining(A);
    w.text(key, "r").unwrap();
    w.active(B);
    assert!(w.work().is_empty());
    w.crashed(A, 1, 9);
    assert_eq!(w.requests(), [(B, 1, 1, 1), (B, 2, 1, 0)]);
}

#[test]
fn with_the_only_backend_draining_new_work_waits_for_the_next() {
    let mut w = World::attached();
    let key = w.online("d");
    w.draining(A);
    w.text(key, "r").unwrap();
    w.text(key, "@x").unwrap();
    let other = w.accept();
    w.upgrade(other);
    assert!(w.work().is_empty());
    w.left(A);
    assert!(w.work().is_empty());
    w.active(B);
    let work = w.work();
    assert_eq!(work.len(), 3);
    assert!(work.iter().all(|(peer, _, _)| *peer == B));
}

#[test]
fn sessions_spread_over_the_active_backends() {
    let mut w = World::attached();
    w.active(B);
    let mut shares = [0, 0];
    for n in 0..400 {
        let key = w.accept();
        w.shard
            .handle_upgrade(w.now, key, format!("credential-{n}").into());
        w.alive(key);
        let peer = w.work()[0].0;
        shares[usize::from(peer == B)] += 1;
    }
    assert!(shares.iter().all(|n| *n > 120), "{shares:?}");
}

#[test]
fn a_changed_share_moves_a_session_when_it_has_nothing_out() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(A, 1, 1, 0)]);
    // Next to a canary of everything the full member has no keys left.
    w.member(B, Share::clamped(9_999));
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(A, 2, 1, 0)], "a busy session keeps its backend");
    w.reply(A, key, 1, 0);
    w.reply(A, key, 2, 1);
    assert_eq!(w.texts(key), ["r1", "r2"]);
    w.written(key, 2);
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(B, 3, 3, 0)]);
    w.share(B, Share::clamped(1));
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(B, 4, 3, 0)]);
    w.reply(B, key, 3, 0);
    w.reply(B, key, 4, 3);
    assert_eq!(w.texts(key), ["r3", "r4"]);
    w.written(key, 2);
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(A, 5, 5, 0)]);
    w.crashed(B, 9, 9);
    assert!(w.work().is_empty(), "it has nothing left to lose");
}

#[test]
fn a_member_without_a_share_finishes_what_it_has_and_gets_nothing_more() {
    let mut w = World::attached();
    let (busy, idle) = (w.online("busy"), w.online("idle"));
    w.text(busy, "r").unwrap();
    w.requests();
    w.active(B);
    w.share(A, Share::NONE);
    w.text(busy, "r").unwrap();
    assert!(w.work().is_empty(), "it waits for the first one's answer");
    w.text(idle, "r").unwrap();
    assert_eq!(w.requests(), [(B, 1, 1, 0)]);
    w.text(busy, "@x").unwrap();
    assert!(matches!(w.one(B), Command::Control(_)));
    w.reply(A, busy, 1, 0);
    assert_eq!(w.requests(), [(B, 2, 2, 0)]);
    assert_eq!(w.texts(busy), ["r1"]);
}

#[test]
fn what_waits_for_a_member_without_a_share_goes_on_when_it_gets_one_again() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "r").unwrap();
    w.requests();
    w.active(B);
    w.share(A, Share::NONE);
    w.text(key, "r").unwrap();
    assert!(w.work().is_empty());
    w.share(A, Share::clamped(1));
    assert_eq!(w.requests(), [(A, 2, 1, 0)], "its first request is still there");
}

#[test]
fn what_waits_while_nobody_has_a_share_goes_to_the_first_who_gets_one() {
    let mut w = World::new();
    w.member(A, Share::NONE);
    let other = w.accept();
    w.upgrade(other);
    assert!(w.work().is_empty(), "a standby admits nobody");
    w.share(A, Share::clamped(1));
    assert!(matches!(w.one(A), Command::Bind(_)), "alone, a canary takes all");
    let key = w.online("d");
    w.share(A, Share::NONE);
    w.text(key, "r").unwrap();
    w.member(B, Share::NONE);
    assert!(w.work().is_empty());
    w.share(B, Share::FULL);
    assert_eq!(w.requests(), [(B, 1, 1, 0)]);
}

#[test]
fn tickets_go_on_over_a_changed_share() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "r").unwrap();
    w.share(A, Share::clamped(500));
    w.text(key, "r").unwrap();
    w.requests();
    // The first had gone out, the second had not.
    w.crashed(A, 1, 9);
    w.active(B);
    assert_eq!(w.requests(), [(B, 1, 1, 1), (B, 2, 1, 0)]);
}

#[test]
fn news_of_a_backend_that_is_unknown_or_gone_does_no_harm() {
    let mut w = World::new();
    w.crashed(B, 3, 3);
    w.draining(B);
    w.active(A);
    let key = w.online("d");
    w.text(key, "r").unwrap();
    w.crashed(B, 9, 9);
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1"]);
}
