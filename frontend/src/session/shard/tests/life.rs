//! From the connection to the freed slot, and every way that ends earlier.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::link::{Command, frames};
use holdfast_proto::{ChannelKind, CloseCode, MessageKind};

use super::harness::*;
use crate::exchange::{ToHub, ToShard};
use crate::session::{MAX_TO_REFUSE, Output, ReasonLabel, ShardConfig};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_whole_life_and_the_slot_lives_again() {
    let mut w = World::attached();
    let key = w.accept();
    let id = w.id(key);
    w.upgrade(key);
    let Command::Bind(bind) = w.one(A) else { panic!() };
    assert_eq!((bind.credential.as_ref(), bind.attempt), (&b"credential"[..], 0));
    w.frame(A, admitted(id, "device-1"));
    assert_eq!(w.outputs(), [Output::Admit { key, challenge: None }]);
    w.text(key, "@hello {\"instance\":\"i\"}").unwrap();
    let Command::Login(login) = w.one(A) else { panic!() };
    assert_eq!(login.hello, "@hello {\"instance\":\"i\"}");
    let session = login.session.unwrap();
    assert_eq!(
        (session.device.as_ref(), session.principal.as_ref()),
        (&b"device-1"[..], &b"principal"[..])
    );
    w.frame(A, welcomed(id, "@welcome {}"));
    assert_eq!(w.texts(key), ["@welcome {}"]);
    w.written(key, 1);

    w.text(key, "{}").unwrap();
    assert_eq!(w.requests(), [(A, 1, 1, 0)]);
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1"]);
    w.written(key, 1);

    w.closed(key);
    assert!(matches!(w.told().as_slice(), [ToHub::Offline { session, .. }] if *session == id));
    let Command::Logout(logout) = w.one(A) else {
        panic!()
    };
    assert_eq!((logout.reason.as_str(), logout.attempt), ("closed_by_device", 0));
    assert_eq!(
        w.shard.live(),
        1,
        "the slot is not free before the LOGOUT is acknowledged"
    );
    w.frame(A, logged_out(id));
    assert_eq!(w.shard.live(), 0);

    let again = w.accept();
    assert_eq!((again.slot, again.generation), (key.slot, key.generation + 1));
    w.frame(A, logged_out(id));
    w.frame(A, welcomed(id, "@welcome"));
    w.reply_to(id);
    assert_eq!(
        w.metrics.late_frames.get(),
        3,
        "the old generation's frames are late"
    );
    assert!(w.outputs().is_empty());
}

impl World {
    fn reply_to(&mut self, id: holdfast_proto::SessionId) {
        self.frame(A, reply(id, 1, 0, "late"));
    }
}

#[test]
fn a_denied_bind_is_an_http_answer_and_owes_no_logout() {
    for (status, code, expected, hint) in [
        (401, "token_invalid", 401, false),
        (503, "overloaded", 503, true),
        (200, "odd", 503, true),
    ] {
        let mut w = World::attached();
        let key = w.accept();
        w.upgrade(key);
        w.work();
        let id = w.id(key);
        w.frame(A, denied(id, status, code));
        let outputs = w.outputs();
        let [
            Output::Refuse {
                key: refused,
                refusal,
            },
        ] = outputs.as_slice()
        else {
            panic!("{outputs:?}")
        };
        assert_eq!(
            (*refused, refusal.status, refusal.code.as_str()),
            (key, expected, code)
        );
        assert_eq!(refusal.retry_after.is_some(), hint);
        assert_eq!(w.shard.live(), 0);
        assert!(w.work().is_empty());
    }
}

#[test]
fn a_malformed_bound_is_a_503() {
    let long = "d".repeat(200);
    for device in ["", "no spaces", long.as_str()] {
        let mut w = World::attached();
        let key = w.accept();
        w.upgrade(key);
        let id = w.id(key);
        w.frame(A, admitted(id, device));
        assert!(matches!(w.outputs().as_slice(), [Output::Refuse { refusal, .. }] if refusal.status == 503));
        assert_eq!((w.metrics.malformed_frames.get(), w.shard.live()), (1, 0));
    }
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    let id = Some(w.id(key).into());
    w.frame(A, Command::Bound(frames::Bound { id, result: None }));
    assert_eq!(w.shard.live(), 0);
    w.frame(A, Command::Bound(frames::Bound::default()));
    w.frame(A, Command::Bind(frames::Bind::default()));
    assert_eq!(w.metrics.malformed_frames.get(), 3);
}

#[test]
fn a_frame_counts_only_from_the_backend_that_was_asked() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    let id = w.id(key);
    w.frame(B, admitted(id, "d"));
    w.frame(A, welcomed(id, "@welcome"));
    w.frame(A, logged_out(id));
    assert!(w.outputs().is_empty());
    assert_eq!(w.metrics.late_frames.get(), 3);
    w.frame(A, admitted(id, "d"));
    w.frame(A, admitted(id, "d"));
    assert_eq!(
        w.outputs(),
        [Output::Admit { key, challenge: None }],
        "the second answer is late"
    );
    w.text(key, "@hello").unwrap();
    w.frame(B, login_denied(id, "no"));
    assert!(w.outputs().is_empty());
    w.frame(A, welcomed(id, ""));
    w.closed(key);
    w.frame(B, logged_out(id));
    assert_eq!(w.shard.live(), 1);
    w.frame(A, logged_out(id));
    assert_eq!(w.shard.live(), 0);
}

#[test]
fn a_session_of_another_epoch_is_not_ours() {
    let mut w = World::attached();
    let key = w.online("d");
    let mut parts = w.id(key).parts();
    parts.epoch.0 += 1;
    let other = holdfast_proto::SessionId::mint(parts).unwrap();
    w.frame(A, push_to(other, 1, "x"));
    w.hub(ToShard::Close {
        session: other,
        code: CloseCode::Replaced,
    });
    assert!(w.outputs().is_empty());
    assert_eq!(w.metrics.late_frames.get(), 2);
}

#[test]
fn only_so_many_wait() {
    let mut w = World::with(|c| c.max_waiting = 1);
    let (first, second) = (w.accept(), w.accept());
    w.upgrade(first);
    w.upgrade(second);
    let outputs = w.outputs();
    assert!(
        matches!(outputs.as_slice(), [Output::Refuse { key, refusal }] if *key == second && refusal.code == "overloaded")
    );
    w.closed(first);
    let third = w.accept();
    w.upgrade(third);
    assert!(w.outputs().is_empty());
}

#[test]
fn a_full_shard_takes_no_more() {
    let mut w = World::with(|c| c.max_sessions = 1);
    w.active(A);
    let key = w.online("device-1");
    let over: Vec<_> = (0..MAX_TO_REFUSE).map(|_| w.accept()).collect();
    assert!(w.try_accept().is_none(), "not even to be refused");
    for over in over {
        w.upgrade(over);
        let outputs = w.outputs();
        let [Output::Refuse { refusal, .. }] = outputs.as_slice() else {
            panic!("{outputs:?}")
        };
        assert_eq!((refusal.status, refusal.code.as_str()), (503, "overloaded"));
        assert!(refusal.retry_after.is_some());
    }
    assert!(w.work().is_empty(), "no backend is asked about them");
    let full = w.metrics.refused.get_or_create(&ReasonLabel {
        reason: "sessions_full",
    });
    assert_eq!(full.get(), u64::from(MAX_TO_REFUSE) + 1);
    drop(full);
    assert!(
        w.try_accept_on(ChannelKind::Udp).is_none(),
        "datagrams are answered without a session"
    );
    let id = w.id(key);
    w.closed(key);
    w.frame(A, logged_out(id));
    w.work();
    let next = w.accept();
    w.upgrade(next);
    assert!(w.outputs().is_empty());
}

fn closed_by(w: &World, reason: &'static str) -> u64 {
    w.metrics.closed.get_or_create(&ReasonLabel { reason }).get()
}

#[test]
fn metrics_say_what_ended_a_session_that_was_not_online() {
    let mut w = World::attached();
    let silent = w.accept();
    w.pass(ShardConfig::default().accept_timeout + SECOND);
    assert_eq!(w.close_code(silent), CloseCode::Protocol);
    let probe = w.accept();
    w.lost(probe);
    let polite_probe = w.accept();
    w.closed(polite_probe);
    assert_eq!(closed_by(&w, "never_asked"), 3);
    for (status, reason) in [
        (401, "denied"),
        (403, "denied"),
        (429, "too_many_attempts"),
        (503, "unavailable"),
    ] {
        let refused = |w: &World| w.metrics.refused.get_or_create(&ReasonLabel { reason }).get();
        let (before, key) = (refused(&w), w.accept());
        w.upgrade(key);
        let id = w.id(key);
        w.frame(A, denied(id, status, "no"));
        assert_eq!(refused(&w), before + 1, "{status}");
    }
    assert_eq!(closed_by(&w, "refused"), 4);
    let tls = w.accept();
    w.fail(tls, CloseCode::Protocol, "tls");
    assert_eq!(closed_by(&w, "tls"), 1);
    for code in [
        "protocol_error",
        "try_again_later",
        "connection_lost",
        "closed_by_device",
    ] {
        assert_eq!(closed_by(&w, code), 0, "{code}");
    }
}

/// LOGOUT says to services what they know; metrics say more.
#[test]
fn a_logouts_reason_is_the_close_codes_whatever_metrics_say() {
    let mut w = World::attached();
    let key = w.online("device-1");
    w.fail(key, CloseCode::TryAgainLater, "capacity");
    assert!(matches!(w.one(A), Command::Logout(l) if l.reason == "try_again_later"));
    assert_eq!(w.close_code(key), CloseCode::TryAgainLater);
    let key = w.online("device-2");
    w.broken(key, "internal");
    assert!(matches!(w.one(A), Command::Logout(l) if l.reason == "connection_lost"));
    assert_eq!((closed_by(&w, "capacity"), closed_by(&w, "internal")), (1, 1));
}

#[test]
fn a_refused_login_is_told_the_backends_word() {
    let mut w = World::attached();
    let key = w.greeted("d");
    let id = w.id(key);
    w.frame(A, login_denied(id, "banned\"}"));
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
    assert_eq!(*code, CloseCode::LoginFailed);
    assert_eq!(
        goodbye.render(),
        "@goodbye {\"code\":\"banned\",\"retry_after_ms\":70,\"reconnect\":true}"
    );
    assert!(matches!(w.one(A), Command::Logout(_)));
    let key = w.greeted("d");
    let id = w.id(key);
    w.frame(A, login_denied(id, "backend_failed"));
    assert_eq!(w.close_code(key), CloseCode::BackendFailed);
}

#[test]
fn a_first_message_that_is_no_hello_is_a_request_after_the_login() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    w.work();
    let id = w.id(key);
    w.frame(A, admitted(id, "d"));
    w.message(key, MessageKind::Binary, "one").unwrap();
    assert!(matches!(w.one(A), Command::Login(login) if login.hello.is_empty()));
    w.text(key, "@custom").unwrap();
    assert!(w.work().is_empty(), "nothing goes before the login took effect");
    w.frame(A, welcomed(id, ""));
    let work = w.work();
    assert!(
        matches!(&work[..], [(A, _, Command::Control(c)), (A, _, Command::BinaryMessage(r))] if c.text == "@custom" && r.payload == "one")
    );
    assert!(w.text(key, "@helloworld").is_ok());
    assert!(matches!(w.one(A), Command::Control(_)), "a word is a whole word");
}

#[test]
fn a_hello_that_is_too_long_is_refused() {
    let mut w = World::attached();
    let key = w.accept();
    w.upgrade(key);
    let id = w.id(key);
    w.frame(A, admitted(id, "d"));
    w.outputs();
    w.text(key, &format!("@hello {}", "x".repeat(5000))).unwrap();
    assert_eq!(w.close_code(key), CloseCode::TooBig);
    assert_eq!(w.shard.live(), 0);
}

#[test]
fn a_close_that_crosses_the_login_wins() {
    let mut w = World::attached();
    let key = w.greeted("d");
    let id = w.id(key);
    w.hub(ToShard::Close {
        session: id,
        code: CloseCode::ClosedByOperator,
    });
    assert_eq!(w.close_code(key), CloseCode::ClosedByOperator);
    assert!(
        matches!(w.one(A), Command::Logout(_)),
        "its LOGIN may have been seen"
    );
    w.frame(A, welcomed(id, "@welcome"));
    assert!(w.outputs().is_empty());
    assert!(matches!(w.told().as_slice(), [ToHub::Offline { session, .. }] if *session == id));
    w.frame(A, logged_out(id));
    assert_eq!(w.shard.live(), 0);
}

#[test]
fn a_logout_is_repeated_until_it_is_acknowledged() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    w.crashed(A, 0, 2);
    w.closed(key);
    w.pass(3600 * SECOND);
    assert!(
        w.work().is_empty() && w.shard.live() == 1,
        "it waits for a backend"
    );
    w.active(B);
    assert!(matches!(w.one(B), Command::Logout(l) if l.attempt == 0));
    w.crashed(B, 0, 1);
    w.active(A);
    assert!(matches!(w.one(A), Command::Logout(l) if l.attempt == 1 && l.reason == "closed_by_device"));
    w.frame(B, logged_out(id));
    assert_eq!(w.shard.live(), 1);
    w.frame(A, logged_out(id));
    assert_eq!(w.shard.live(), 0);
}

#[test]
fn a_stop_closes_all_and_is_reported_once() {
    let mut w = World::attached();
    let (online, bare, binding) = (w.online("d"), w.accept(), w.accept());
    w.upgrade(binding);
    w.work();
    let id = w.id(online);
    w.hub(ToShard::Stop);
    let outputs = w.outputs();
    let closed = |key| {
        outputs
            .iter()
            .any(|o| matches!(o, Output::Close { key: k, code: CloseCode::GoingAway, .. } if *k == key))
    };
    assert!(closed(online) && closed(bare));
    assert!(
        outputs.iter().any(
            |o| matches!(o, Output::Refuse { key, refusal } if *key == binding && refusal.status == 503)
        )
    );
    assert!(w.try_accept().is_none());
    assert!(matches!(w.told().as_slice(), [ToHub::Offline { .. }]));
    w.frame(A, logged_out(id));
    assert!(matches!(w.told().as_slice(), [ToHub::Stopped]));

    let mut w = World::new();
    w.accept();
    w.hub(ToShard::Stop);
    assert!(matches!(w.told().as_slice(), [ToHub::Stopped]));
    let mut w = World::new();
    w.hub(ToShard::Stop);
    w.hub(ToShard::Stop);
    assert!(matches!(w.told().as_slice(), [ToHub::Stopped]));
}

#[test]
fn a_blob_that_comes_with_the_login_is_kept() {
    let mut w = World::attached();
    let key = w.greeted("d");
    let id = w.id(key);
    let Command::LoggedIn(mut answer) = welcomed(id, "") else {
        panic!()
    };
    if let Some(frames::logged_in::Result::Welcomed(welcomed)) = &mut answer.result {
        welcomed.blob = Some(frames::BlobWrite {
            blob: Bytes::from_static(b"blob"),
            base_version: 0,
        });
    }
    w.frame(A, Command::LoggedIn(answer));
    w.text(key, "{}").unwrap();
    let Command::TextMessage(request) = w.one(A) else {
        panic!()
    };
    let session = request.session.unwrap();
    assert_eq!((session.blob.as_ref(), session.blob_version), (&b"blob"[..], 1));
}
