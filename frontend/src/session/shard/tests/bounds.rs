//! What many devices may not do together.

use holdfast_proto::CloseCode;
use holdfast_proto::link::{Command, frames};

use super::harness::*;
use crate::session::{Output, SessionKey};

impl World {
    fn retry_resumed(&mut self, text: &str) -> Vec<SessionKey> {
        let resumed = self.outputs().into_iter().filter_map(|o| match o {
            Output::Resume { key } => Some(key),
            _ => None,
        });
        let resumed: Vec<_> = resumed.collect();
        for key in &resumed {
            let _ = self.text(*key, text);
        }
        resumed
    }
}

#[test]
fn over_the_total_each_session_may_still_hold_one_request() {
    let mut w = World::attached();
    let keys: Vec<_> = (0..6).map(|n| w.online(&format!("d{n}"))).collect();
    let (long, more) = ("x".repeat(90), "y".repeat(10));
    for key in &keys {
        w.text(*key, &long).unwrap();
    }
    for key in &keys {
        assert!(w.text(*key, &more).is_err(), "540 bytes of 300 are taken");
    }
    // Nobody starves for ever: with its own answer each gets its turn.
    for key in &keys {
        w.reply(A, *key, 1, 0);
        w.written(*key, 1);
        let resumed = w.retry_resumed(&more);
        assert!(resumed.contains(key));
    }
    let got = w.requests();
    for key in 0..6 {
        assert_eq!(got.iter().filter(|r| r.1 == 2).count(), 6, "session {key}");
    }
}

#[test]
fn room_in_the_total_goes_to_who_starved_first() {
    let mut w = World::attached();
    let keys: Vec<_> = (0..4).map(|n| w.online(&format!("d{n}"))).collect();
    let long = "x".repeat(90);
    for key in &keys {
        w.text(*key, &long).unwrap();
    }
    assert!(w.text(keys[1], "late").is_err());
    assert!(w.text(keys[2], "later").is_err());
    w.closed(keys[0]);
    assert_eq!(w.retry_resumed("late"), [keys[1]]);
    w.closed(keys[3]);
    assert_eq!(w.retry_resumed("later"), [keys[2]]);
}

#[test]
fn the_queue_of_those_who_starve_stays_small() {
    let mut w = World::attached();
    let hog: Vec<_> = (0..4).map(|n| w.online(&format!("hog{n}"))).collect();
    for key in &hog {
        w.text(*key, &"x".repeat(90)).unwrap();
    }
    // The recount after each step fails when the queue outgrows the sessions.
    for n in 0..200 {
        let key = w.online(&format!("d{n}"));
        let id = w.id(key);
        w.text(key, "r").unwrap();
        assert!(w.text(key, "r").is_err());
        assert!(w.text(key, "r").is_err(), "a second time does not queue it twice");
        w.closed(key);
        w.frame(A, logged_out(id));
        w.work();
        w.told();
        w.outputs();
    }
}

#[test]
fn controls_count_towards_the_total() {
    let mut w = World::attached();
    let keys = [w.online("a"), w.online("b")];
    w.text(keys[0], &format!("@{}", "x".repeat(280))).unwrap();
    w.text(keys[1], "@yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy")
        .unwrap();
    let Command::Control(control) = w.work().pop().unwrap().2 else {
        panic!()
    };
    assert!(
        w.text(keys[1], "@z").is_err(),
        "one may always wait, a second needs room"
    );
    let id = Some(w.id(keys[1]).into());
    w.frame(
        A,
        Command::ControlReply(frames::ControlReply {
            id,
            number: control.number,
            ..Default::default()
        }),
    );
    assert_eq!(w.retry_resumed("@z"), [keys[1]]);
    assert!(matches!(w.one(A), Command::Control(c) if c.text == "@z"));
    w.closed(keys[0]);
    w.closed(keys[1]);
}

#[test]
fn a_device_that_does_not_read_its_replies_is_closed() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    for _ in 0..3 {
        w.text(key, "r").unwrap();
    }
    w.work();
    w.frame(A, reply(id, 1, 0, &"x".repeat(300)));
    assert_eq!(w.texts(key).len(), 1, "one message passes whatever its size");
    w.frame(A, reply(id, 2, 0, &"x".repeat(10)));
    assert_eq!(w.close_code(key), CloseCode::SlowConsumer);
    assert!(matches!(w.one(A), Command::Logout(l) if l.reason == "slow_consumer"));
}

#[test]
fn the_total_of_outputs_bounds_all_sessions_together() {
    let mut w = World::attached();
    let keys: Vec<_> = (0..4).map(|n| w.online(&format!("d{n}"))).collect();
    let text = "x".repeat(150);
    for key in &keys[..3] {
        let id = w.id(*key);
        w.frame(A, push_to(id, 1, &text));
    }
    let id = w.id(keys[2]);
    w.frame(A, push_to(id, 2, &"x".repeat(49)));
    assert!(w.told().is_empty(), "499 bytes of 500");
    w.frame(A, push_to(id, 3, "xx"));
    assert_eq!(w.told().len(), 1);
    w.outputs();
    w.closed(keys[0]);
    w.told();
    w.frame(A, push_to(id, 4, "x"));
    assert!(w.told().is_empty(), "who went made room");
}

#[test]
fn those_who_do_not_read_get_nobody_else_closed() {
    let mut w = World::with(|c| c.output_bytes = 2000);
    w.active(A);
    let (sleeps, reads) = (w.online("sleeps"), w.online("reads"));
    let id = w.id(sleeps);
    w.frame(A, push_to(id, 1, &"x".repeat(600)));
    w.outputs();
    for _ in 0..5 {
        w.text(reads, "@ping").unwrap();
    }
    assert_eq!(w.texts(reads).len(), 5);
    w.text(sleeps, "@ping").unwrap();
    assert_eq!(w.close_code(sleeps), CloseCode::SlowConsumer);
}

#[test]
fn a_device_that_pings_and_does_not_read_is_closed() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..40 {
        w.text(key, "@ping").unwrap();
    }
    assert_eq!(w.texts(key).len(), 40);
    w.text(key, "@ping").unwrap();
    assert_eq!(w.close_code(key), CloseCode::SlowConsumer);
}

#[test]
fn early_replies_are_held_within_a_bound() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    for _ in 0..3 {
        w.text(key, "r").unwrap();
    }
    w.work();
    w.frame(A, reply(id, 2, 1, &"x".repeat(90)));
    w.frame(A, reply(id, 3, 2, &"x".repeat(11)));
    assert_eq!(w.close_code(key), CloseCode::SlowConsumer);
}
