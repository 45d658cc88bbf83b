//! Deadlines and heartbeats.

use std::time::Duration;

use holdfast_proto::link::Command;
use holdfast_proto::{ChannelKind, CloseCode};

use super::harness::*;
use crate::session::{Goodbye, Output};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn without_a_backend_an_upgrade_waits_and_is_refused_in_the_end() {
    let mut w = World::new();
    let key = w.accept();
    w.upgrade(key);
    w.pass(Duration::from_millis(4900));
    assert!(w.outputs().is_empty() && w.work().is_empty());
    w.pass(Duration::from_millis(200));
    let outputs = w.outputs();
    let [Output::Refuse { refusal, .. }] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    let hint = refusal.retry_after.unwrap();
    assert_eq!(
        (refusal.status, refusal.code.as_str(), refusal.retryable),
        (503, "unavailable", true)
    );
    assert!(hint >= 2 * SECOND && hint < 4 * SECOND);
    assert_eq!(w.shard.live(), 0);
}

#[test]
fn a_backend_that_comes_in_time_admits_those_who_wait() {
    let mut w = World::new();
    let key = w.accept();
    w.upgrade(key);
    w.pass(4 * SECOND);
    w.active(A);
    assert!(matches!(w.one(A), Command::Bind(_)));
    w.pass(9 * SECOND);
    assert!(
        w.outputs().is_empty() && w.work().is_empty(),
        "the backend has its own time to answer"
    );
    w.pass(2 * SECOND);
    assert!(matches!(w.one(A), Command::Bind(_)), "it is asked again");
    w.pass(10 * SECOND);
    assert!(matches!(w.outputs().as_slice(), [Output::Refuse { .. }]));
    let _ = key;
}

#[test]
fn a_login_without_a_backend_says_goodbye_with_a_hint() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    let id = w.id(key);
    w.frame(A, admitted(id, "d"));
    w.crashed(A, 0, 1);
    w.text(key, "@hello").unwrap();
    w.work();
    w.outputs();
    w.pass(6 * SECOND);
    let outputs = w.outputs();
    let [
        Output::Close {
            code,
            goodbye: Some(goodbye),
            ..
        },
    ] = outputs.as_slice()
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(*code, CloseCode::TryAgainLater);
    assert!(goodbye.reconnect && goodbye.retry_after.is_some());
    assert_eq!(
        w.shard.live(),
        0,
        "no backend has seen its LOGIN: no LOGOUT is owed"
    );
}

#[test]
fn silence_counts_as_an_empty_hello() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    w.work();
    let id = w.id(key);
    w.frame(A, admitted(id, "d"));
    w.pass(Duration::from_millis(990));
    assert!(w.work().is_empty());
    w.pass(Duration::from_millis(40));
    assert!(matches!(w.one(A), Command::Login(login) if login.hello.is_empty()));
    w.frame(A, welcomed(id, ""));
    assert_eq!(
        w.outputs(),
        [Output::Admit { key, challenge: None }],
        "who said no @hello gets no @welcome"
    );
}

#[test]
fn who_never_asks_to_be_let_in_is_closed() {
    let mut w = World::attached();
    let key = w.accept();
    w.pass(11 * SECOND);
    assert_eq!(
        w.outputs(),
        [Output::Close {
            key,
            code: CloseCode::Protocol,
            goodbye: None
        }]
    );
    let key = w.accept();
    w.text(key, "early").unwrap();
    assert_eq!(w.close_code(key), CloseCode::Protocol);
    assert_eq!(w.shard.live(), 0);
}

#[test]
fn a_quiet_device_is_pinged_each_30_s_and_closed_after_75() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..5 {
        w.pass(30 * SECOND);
        w.pass(Duration::from_millis(100));
        assert_eq!(w.outputs(), [Output::Ping { key }]);
        w.alive(key);
    }
    w.pass(30 * SECOND);
    w.pass(Duration::from_millis(100));
    assert_eq!(w.outputs(), [Output::Ping { key }]);
    w.pass(44 * SECOND);
    assert!(w.outputs().is_empty());
    w.pass(2 * SECOND);
    assert_eq!(w.close_code(key), CloseCode::HeartbeatTimeout);
    assert!(matches!(w.one(A), Command::Logout(l) if l.reason == "heartbeat_timeout"));
}

#[test]
fn any_message_is_life() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..10 {
        w.pass(29 * SECOND);
        w.text(key, "@ping").unwrap();
        assert_eq!(w.texts(key), ["@pong"]);
        w.written(key, 1);
    }
}

#[test]
fn the_clock_stands_while_we_do_not_read_or_the_device_does_not() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..4 {
        w.text(key, "r").unwrap();
    }
    assert!(w.text(key, "fifth").is_err());
    w.pass(600 * SECOND);
    assert!(
        w.outputs().is_empty(),
        "a stalled session is neither pinged nor closed"
    );
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1"]);
    w.pass(600 * SECOND);
    assert!(w.outputs().is_empty(), "nor one whose output is not read");
    w.written(key, 1);
    assert_eq!(w.outputs(), [Output::Resume { key }]);
    w.text(key, "fifth").unwrap();
    w.pass(80 * SECOND);
    assert_eq!(
        w.outputs().last(),
        Some(&Output::Close {
            key,
            code: CloseCode::HeartbeatTimeout,
            goodbye: Some(Goodbye {
                code: "heartbeat_timeout".into(),
                retry_after: None,
                reconnect: true
            })
        })
    );
}

/// Where nothing that is unread or untaken keeps us from hearing the device, its silence is judged as any other's.
#[test]
fn a_device_over_datagrams_is_heard_while_it_is_stalled_and_while_its_queue_is_full() {
    let mut w = World::attached();
    let key = w.online("d");
    w.set_kind(key, ChannelKind::Udp);
    for _ in 0..4 {
        w.text(key, "r").unwrap();
    }
    assert!(w.text(key, "fifth").is_err());
    w.pass(31 * SECOND);
    assert_eq!(w.outputs(), [Output::Ping { key }], "stalled");
    w.alive(key);
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1"]);
    w.pass(31 * SECOND);
    assert_eq!(w.outputs(), [Output::Ping { key }], "with its queue full");
    w.pass(43 * SECOND);
    assert!(w.outputs().is_empty());
    w.pass(2 * SECOND);
    assert_eq!(w.close_code(key), CloseCode::HeartbeatTimeout);
}
