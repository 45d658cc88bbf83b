//! Devices that must prove that they hold their key, and those who only say so.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::{Command, frames};
use holdfast_proto::throttle::Throttle;
use holdfast_proto::{ChannelKind, CloseCode};

use super::harness::*;
use crate::session::{MAX_CONTROL_BYTES, MAX_UNFINISHED, Output, SessionKey, SourceLimit};

const SECOND: Duration = Duration::from_secs(1);

fn accept(w: &mut World) -> SessionKey {
    let key = w.try_accept_on(ChannelKind::Ws).unwrap();
    w.upgrade(key);
    key
}

fn challenged(w: &World, key: SessionKey, change: impl FnOnce(&mut frames::Admitted)) -> Command {
    let Command::Bound(mut bound) = admitted(w.id(key), "device-1") else {
        panic!()
    };
    let Some(frames::bound::Result::Admitted(admitted)) = &mut bound.result else {
        panic!()
    };
    admitted.challenge = Some(frames::Challenge {
        message: Bytes::from_static(b"@challenge {}"),
        to_server: Bytes::from_static(&[1; 32]),
        to_device: Bytes::from_static(&[2; 32]),
    });
    change(admitted);
    Command::Bound(bound)
}

/// Up to the challenge sent.
fn waiting(w: &mut World) -> SessionKey {
    let key = accept(w);
    let bound = challenged(w, key, |_| ());
    w.frame(A, bound);
    assert!(matches!(
        w.outputs()[..],
        [Output::Admit {
            challenge: Some(_),
            ..
        }]
    ));
    key
}

fn refused(w: &mut World) -> (u16, String) {
    match w.outputs().pop() {
        Some(Output::Refuse { refusal, .. }) => (refusal.status, refusal.code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hello_proves_the_key_and_login_follows() {
    let mut w = World::attached();
    let key = accept(&mut w);
    let Command::Bind(bind) = w.one(A) else { panic!() };
    assert_eq!(bind.channel(), frames::Channel::Ws);
    let bound = challenged(&w, key, |_| ());
    w.frame(A, bound);
    let outputs = w.outputs();
    let [
        Output::Admit {
            challenge: Some(challenge),
            ..
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(challenge.message, "@challenge {}");
    assert_eq!(challenge.keys.to_device.as_bytes(), &[2; 32]);
    w.pass(3 * SECOND);
    w.text(key, "@hello {}").unwrap();
    let Command::Login(login) = w.one(A) else { panic!() };
    assert_eq!(
        (login.channel(), login.hello.as_ref(), login.admitted_ms_ago),
        (frames::Channel::Ws, &b"@hello {}"[..], 3000)
    );
}

#[test]
fn nothing_else_proves_it() {
    for first in ["{}", "@ping", "@helloo", ""] {
        let mut w = World::attached();
        let key = waiting(&mut w);
        w.text(key, first).unwrap();
        assert_eq!(w.close_code(key), CloseCode::ChallengeFailed, "{first:?}");
        assert!(!w.work().iter().any(|(_, _, c)| matches!(c, Command::Login(_))));
        assert_eq!(w.shard.live(), 0);
    }
}

#[test]
fn silence_proves_nothing() {
    let mut w = World::attached();
    let key = waiting(&mut w);
    w.pass(2 * SECOND);
    assert_eq!(w.outputs(), [], "what TLS takes for a greeting is none here");
    w.pass(9 * SECOND);
    assert_eq!(w.close_code(key), CloseCode::ChallengeFailed);
}

#[test]
fn an_admission_without_a_whole_challenge_is_refused() {
    type Change = fn(&mut frames::Admitted);
    let changes: [Change; 4] = [
        |a| a.challenge = None,
        |a| a.challenge.as_mut().unwrap().to_server.truncate(31),
        |a| a.challenge.as_mut().unwrap().message.clear(),
        |a| a.challenge.as_mut().unwrap().message = vec![b'x'; MAX_CONTROL_BYTES + 1].into(),
    ];
    for change in changes {
        let mut w = World::attached();
        let key = accept(&mut w);
        let bound = challenged(&w, key, change);
        w.frame(A, bound);
        assert_eq!(refused(&mut w), (503, "unavailable".into()));
    }
}

#[test]
fn a_device_has_a_few_unfinished_handshakes_and_no_more() {
    let mut w = World::attached();
    let mut keys: Vec<_> = (0..MAX_UNFINISHED).map(|_| waiting(&mut w)).collect();
    let over = accept(&mut w);
    let bound = challenged(&w, over, |_| ());
    w.frame(A, bound);
    assert_eq!(refused(&mut w), (429, "too_many_attempts".into()));
    let other = accept(&mut w);
    let bound = challenged(&w, other, |a| a.device = "device-2".into());
    w.frame(A, bound);
    assert!(
        matches!(w.outputs()[..], [Output::Admit { .. }]),
        "others are let in"
    );
    // One that proves itself, is closed, or stays silent gives its place back.
    w.text(keys.remove(0), "@hello {}").unwrap();
    waiting(&mut w);
    w.closed(keys.remove(0));
    waiting(&mut w);
    w.pass(11 * SECOND);
    w.outputs();
    for _ in 0..MAX_UNFINISHED {
        waiting(&mut w);
    }
}

#[test]
fn a_source_that_asks_too_often_is_told_to_wait_and_tls_is_left_alone() {
    let limit = SourceLimit::new(Throttle::new(1, 64, 1_000, 2), Instant::now());
    let mut w = World::with(|config| config.sources.ws = Some(limit));
    w.active(A);
    waiting(&mut w);
    waiting(&mut w);
    accept(&mut w);
    assert_eq!(refused(&mut w), (429, "too_many_attempts".into()));
    let tls = w.accept();
    w.upgrade(tls);
    assert!(matches!(w.work().pop(), Some((_, _, Command::Bind(_)))));
    w.pass(SECOND);
    waiting(&mut w);
}
