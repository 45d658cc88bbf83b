//! Backends that are there and do not answer.

use std::time::Duration;

use holdfast_proto::CloseCode;
use holdfast_proto::link::{Command, frames};

use super::harness::*;
use crate::exchange::PeerId;
use crate::session::{Output, SessionKey};

const SECOND: Duration = Duration::from_secs(1);

/// With `A` and `B` active, and a device that `A` serves.
fn two_backends() -> (World, SessionKey) {
    let mut w = World::attached();
    let key = w.online("d");
    w.active(B);
    // Whichever serves the device is called `A` here.
    w.text(key, "@who").unwrap();
    let (first, _, _) = w.work().remove(0);
    if first == B {
        w.crashed(B, 0, 0);
        w.active(B);
    }
    (w, key)
}

fn other(peer: PeerId) -> PeerId {
    if peer == A { B } else { A }
}

/// The one frame that there is, and who got it.
fn next(w: &mut World) -> (PeerId, Command) {
    let mut work = w.work();
    assert_eq!(work.len(), 1, "{work:?}");
    let (peer, _, command) = work.remove(0);
    (peer, command)
}

fn repeated(w: &World, frame: &'static str) -> u64 {
    let label = crate::session::metrics::FrameLabel { frame };
    w.metrics.repeated_frames.get_or_create(&label).get()
}

fn late(w: &World) -> u64 {
    w.metrics.late_frames.get()
}

#[test]
fn a_logout_goes_round_until_somebody_answers() {
    let mut w = World::attached();
    w.active(B);
    let key = w.accept();
    w.upgrade(key);
    let id = w.id(key);
    let (first, _) = next(&mut w);
    w.frame(first, admitted(id, "d"));
    w.text(key, "@hello").unwrap();
    let (first, _) = next(&mut w);
    w.frame(first, welcomed(id, ""));
    w.outputs();
    w.closed(key);
    let (mut has, _) = next(&mut w);
    for attempt in 1..=20 {
        let wait = 10 * SECOND * 2u32.pow(attempt - 1).min(32);
        w.pass(wait - 3 * SECOND);
        assert!(w.work().is_empty());
        w.pass(3 * SECOND + SECOND / 10);
        let (peer, command) = next(&mut w);
        assert!(matches!(command, Command::Logout(l) if l.attempt == attempt));
        assert_eq!(peer, other(has), "the other one is asked");
        has = peer;
    }
    w.frame(other(has), logged_out(id));
    assert_eq!(
        (w.shard.live(), late(&w)),
        (1, 1),
        "an answer that is late is none"
    );
    w.frame(has, logged_out(id));
    assert_eq!((w.shard.live(), repeated(&w, "logout")), (0, 20));
    w.pass(600 * SECOND);
    assert!(w.work().is_empty());
}

#[test]
fn a_logout_without_a_backend_is_not_counted_as_unanswered() {
    let mut w = World::attached();
    let key = w.online("d");
    w.crashed(A, 0, 9);
    w.closed(key);
    w.pass(600 * SECOND);
    w.active(B);
    assert!(matches!(w.one(B), Command::Logout(l) if l.attempt == 0));
    assert_eq!(repeated(&w, "logout"), 0);
}

#[test]
fn the_only_backend_is_asked_again() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    w.closed(key);
    w.one(A);
    w.pass(11 * SECOND);
    assert!(matches!(w.one(A), Command::Logout(l) if l.attempt == 1));
    w.frame(A, logged_out(id));
    w.frame(A, logged_out(id));
    assert_eq!((w.shard.live(), late(&w)), (0, 1), "it takes effect once");
}

#[test]
fn a_bind_is_given_to_another_backend_and_refused_in_the_end() {
    let mut w = World::attached();
    w.active(B);
    let key = w.accept();
    w.upgrade(key);
    let id = w.id(key);
    let (first, _) = next(&mut w);
    w.pass(11 * SECOND);
    let (second, command) = next(&mut w);
    assert!(matches!(command, Command::Bind(b) if b.attempt == 1) && second == other(first));
    w.frame(first, admitted(id, "d"));
    assert!(
        w.outputs().is_empty(),
        "of several answers only that of the asked one counts"
    );
    w.frame(second, admitted(id, "d"));
    assert_eq!(w.outputs(), [Output::Admit { key, challenge: None }]);
    w.closed(key);

    let key = w.accept();
    w.upgrade(key);
    w.pass(20 * SECOND + SECOND / 10);
    assert!(matches!(w.outputs().as_slice(), [Output::Refuse { refusal, .. }] if refusal.status == 503));
    assert_eq!((w.shard.live(), repeated(&w, "bind")), (0, 2));
}

#[test]
fn a_login_is_given_to_another_backend_and_given_up_in_the_end() {
    let mut w = World::attached();
    w.active(B);
    let mut login = || {
        let key = w.accept();
        w.upgrade(key);
        let id = w.id(key);
        let (first, _) = next(&mut w);
        w.frame(first, admitted(id, "d"));
        w.text(key, "@hello").unwrap();
        let (first, _) = next(&mut w);
        w.outputs();
        (key, id, first)
    };
    let (key, _, _) = login();
    let (other_key, id, first) = login();
    w.pass(11 * SECOND);
    let work = w.work();
    assert_eq!(work.len(), 2);
    assert!(
        work.iter()
            .all(|(_, _, c)| matches!(c, Command::Login(l) if l.attempt == 1))
    );
    w.frame(first, welcomed(id, "@welcome {}"));
    assert_eq!((w.outputs(), late(&w)), (vec![], 1));
    w.frame(other(first), welcomed(id, "@welcome {}"));
    assert_eq!(w.texts(other_key), ["@welcome {}"]);
    w.pass(10 * SECOND);
    assert_eq!(w.close_code(key), CloseCode::TryAgainLater);
    assert_eq!(repeated(&w, "login"), 2);
}

#[test]
fn an_update_is_given_to_another_backend_and_applied_once() {
    let (mut w, key) = two_backends();
    let id = w.id(key);
    w.work();
    w.text(key, "@update {}").unwrap();
    let (first, _) = next(&mut w);
    w.pass(9 * SECOND);
    assert!(w.work().is_empty());
    w.pass(2 * SECOND);
    let work = w.work();
    let updates = work.iter().filter(|(_, _, c)| matches!(c, Command::Update(_)));
    let (second, number) = updates
        .map(|(peer, _, c)| match c {
            Command::Update(u) => {
                assert_eq!((u.attempt, u.session.as_ref().unwrap().blob_version), (1, 0));
                (*peer, u.number)
            }
            other => panic!("{other:?}"),
        })
        .next()
        .unwrap();
    assert_eq!(second, other(first));
    let updated = |text: &'static str| {
        Command::Updated(frames::Updated {
            id: Some(id.into()),
            number,
            reply: text.into(),
            blob: Some(frames::BlobWrite {
                blob: text.into(),
                base_version: 0,
            }),
        })
    };
    let before = late(&w);
    w.frame(first, updated("@late"));
    assert_eq!(late(&w), before + 1);
    w.frame(second, updated("@updated"));
    assert_eq!(w.texts(key), ["@updated"]);
    w.frame(second, updated("@again"));
    assert_eq!((w.texts(key).len(), late(&w)), (0, before + 2));
}

#[test]
fn a_control_message_that_nobody_answers_fails_and_the_heartbeat_goes_on() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "@join {\"group\":\"a\\\"b\"}").unwrap();
    w.one(A);
    w.pass(11 * SECOND);
    assert!(matches!(w.one(A), Command::Control(c) if c.attempt == 1));
    w.pass(10 * SECOND);
    assert_eq!(
        w.texts(key),
        ["@error {\"control\":\"join\",\"code\":\"backend_failed\"}"]
    );
    assert!(w.work().is_empty());
    w.written(key, 1);
    assert_eq!(repeated(&w, "control"), 2);
    w.pass(11 * SECOND);
    assert_eq!(w.outputs(), [Output::Ping { key }]);
    w.pass(46 * SECOND);
    assert_eq!(w.close_code(key), CloseCode::HeartbeatTimeout);
}

#[test]
fn a_control_message_that_two_backends_were_lost_with_is_not_given_to_a_third() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "@update {}").unwrap();
    w.work();
    w.crashed(A, 0, u64::MAX);
    w.active(B);
    assert!(matches!(w.one(B), Command::Update(u) if u.attempt == 1));
    w.crashed(B, 0, u64::MAX);
    assert_eq!(
        w.texts(key),
        ["@error {\"control\":\"update\",\"code\":\"backend_failed\"}"]
    );
    w.active(A);
    assert!(w.work().is_empty());
}
