//! Requests, replies, control messages and the session's blob.

use bytes::Bytes;
use holdfast_proto::link::{Command, frames};
use holdfast_proto::{ChannelKind, CloseCode};

use super::harness::*;
use crate::session::Output;

#[test]
fn early_replies_wait_for_their_predecessor() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..3 {
        w.text(key, "r").unwrap();
    }
    assert_eq!(w.requests(), [(A, 1, 1, 0), (A, 2, 1, 0), (A, 3, 1, 0)]);
    w.reply(A, key, 3, 2);
    w.reply(A, key, 2, 1);
    assert!(w.outputs().is_empty());
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1", "r2", "r3"]);
    w.written(key, 3);
    w.text(key, "r").unwrap();
    assert_eq!(w.requests(), [(A, 4, 4, 0)]);
}

/// A channel that acknowledges keeps it until the device has it.
#[test]
fn what_waits_for_a_device_does_not_keep_its_batch() {
    let mut w = World::attached();
    let key = w.online("d");
    w.set_kind(key, ChannelKind::Udp);
    w.text(key, "r").unwrap();
    let batch = Bytes::from(vec![b'x'; 64 * 1024]);
    let id = Some(w.id(key).into());
    w.frame(
        A,
        Command::Reply(frames::Reply {
            id,
            sequence: 1,
            r#final: true,
            payload: batch.slice(..20),
            ..Default::default()
        }),
    );
    w.frame(
        A,
        Command::Push(frames::Push {
            number: 1,
            target: id.map(frames::push::Target::Session),
            payload: batch.slice(..20),
            ..Default::default()
        }),
    );
    let sent = w.outputs();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(batch.is_unique());
}

#[test]
fn replies_of_other_domains_do_not_wait() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..3 {
        w.text(key, "r").unwrap();
    }
    w.reply(A, key, 3, 0);
    assert_eq!(w.texts(key), ["r3"]);
    w.reply(A, key, 1, 0);
    w.reply(A, key, 2, 1);
    assert_eq!(w.texts(key), ["r1", "r2"]);
}

#[test]
fn what_nobody_asked_for_is_dropped_and_counted() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = w.id(key);
    w.reply(A, key, 1, 0);
    assert_eq!(w.metrics.duplicate_replies.get(), 1, "nothing is under way");
    w.text(key, "r").unwrap();
    w.reply(B, key, 1, 0);
    w.reply(A, key, 2, 0);
    w.reply(A, key, u64::MAX, u64::MAX);
    assert_eq!(w.metrics.late_frames.get(), 3);
    w.reply(A, key, 0, 0);
    assert_eq!(w.metrics.duplicate_replies.get(), 2);
    let Command::Reply(mut interim) = reply(id, 1, 0, "part") else {
        panic!()
    };
    interim.r#final = false;
    w.frame(A, Command::Reply(interim));
    assert_eq!(w.metrics.malformed_frames.get(), 1);
    assert!(w.outputs().is_empty());
    w.reply(A, key, 1, 0);
    w.reply(A, key, 1, 0);
    assert_eq!(w.texts(key), ["r1"]);
    assert_eq!(w.metrics.duplicate_replies.get(), 3);
}

#[test]
fn a_silent_reply_moves_the_window_and_says_nothing() {
    let mut w = World::attached();
    let key = w.online("d");
    for _ in 0..4 {
        w.text(key, "r").unwrap();
    }
    let stalled = w.text(key, "fifth").unwrap_err();
    assert_eq!(stalled.0, "fifth");
    let id = w.id(key);
    let Command::Reply(mut silent) = reply(id, 1, 0, "") else {
        panic!()
    };
    silent.silent = true;
    w.frame(A, Command::Reply(silent));
    assert_eq!(w.outputs(), [Output::Resume { key }]);
    w.text(key, "fifth").unwrap();
}

#[test]
fn a_full_window_stalls_by_number_and_by_bytes() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, &"x".repeat(150)).unwrap();
    assert!(w.text(key, "y").is_err(), "a larger one passes alone");
    w.reply(A, key, 1, 0);
    w.written(key, 1);
    assert_eq!(w.outputs().last(), Some(&Output::Resume { key }));
    for _ in 0..4 {
        w.text(key, "y").unwrap();
    }
    assert!(w.text(key, "z").is_err());
    w.reply(A, key, 2, 0);
    assert_eq!(
        w.texts(key),
        ["r2"],
        "the place is free when the reply was written"
    );
    w.written(key, 1);
    assert_eq!(w.outputs(), [Output::Resume { key }]);
    w.text(key, "z").unwrap();
    assert_eq!(w.metrics.stalls.get(), 2);
}

#[test]
fn controls_are_answered_beside_the_window() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = Some(w.id(key).into());
    for _ in 0..4 {
        w.text(key, "r").unwrap();
    }
    w.work();
    w.text(key, "@ack {}").unwrap();
    let Command::Control(control) = w.one(A) else {
        panic!()
    };
    let answer = |number, reply: &'static str| {
        Command::ControlReply(frames::ControlReply {
            id,
            number,
            reply: Bytes::from_static(reply.as_bytes()),
        })
    };
    w.frame(B, answer(control.number, "@foreign"));
    w.frame(A, answer(control.number + 1, "@wrong"));
    assert!(w.outputs().is_empty());
    w.frame(A, answer(control.number, "@acked"));
    w.frame(A, answer(control.number, "@acked"));
    assert_eq!(w.texts(key), ["@acked"]);
    assert_eq!(w.metrics.late_frames.get(), 3);
    w.text(key, "@two").unwrap();
    let Command::Control(control) = w.one(A) else {
        panic!()
    };
    w.frame(A, answer(control.number, "no control message"));
    assert!(w.outputs().is_empty());
    assert_eq!(w.metrics.malformed_frames.get(), 1);
}

#[test]
fn an_update_on_an_old_blob_is_asked_again() {
    let mut w = World::attached();
    let key = w.online("d");
    let id = Some(w.id(key).into());
    let updated = |number, base_version, blob: &'static [u8]| {
        Command::Updated(frames::Updated {
            id,
            number,
            reply: Bytes::from_static(b"@updated"),
            blob: Some(frames::BlobWrite {
                blob: Bytes::from_static(blob),
                base_version,
            }),
        })
    };
    let version = |command| match command {
        Command::Update(u) => (u.number, u.session.unwrap().blob_version),
        other => panic!("{other:?}"),
    };
    w.text(key, "@update 1").unwrap();
    w.text(key, "@update 2").unwrap();
    let (one, _) = version(w.one(A));
    w.frame(B, updated(one, 0, b"foreign"));
    w.frame(A, updated(99, 0, b"unasked"));
    assert_eq!(w.metrics.late_frames.get(), 2);
    w.frame(A, updated(one, 0, b"first"));
    assert_eq!(w.texts(key), ["@updated"]);
    let (two, base) = version(w.one(A));
    assert_eq!(base, 1, "it builds on the one before it");
    w.frame(A, updated(two, 0, b"second"));
    assert_eq!(version(w.one(A)), (two, 1), "with the blob as it is now");
    assert!(w.outputs().is_empty());
    w.frame(A, updated(two, 1, b"second"));
    assert_eq!(w.texts(key), ["@updated"]);
    assert_eq!(w.metrics.blob_conflicts.get(), 1);

    w.text(key, "@update 3").unwrap();
    let (three, _) = version(w.one(A));
    for _ in 0..3 {
        w.frame(A, updated(three, 0, b"never"));
        assert_eq!(version(w.one(A)), (three, 2));
    }
    w.frame(A, updated(three, 0, b"never"));
    assert_eq!(
        w.texts(key),
        [r#"@error {"control":"update","code":"state_conflict"}"#],
        "a backend that does not learn is not asked for ever, nor believed"
    );
    w.text(key, "@update 4").unwrap();
    let (four, _) = version(w.one(A));
    w.frame(A, updated(four, 2, &[0; 2000]));
    assert_eq!(
        w.metrics.malformed_frames.get(),
        1,
        "a blob over its bound is not kept"
    );
    assert_eq!(
        w.texts(key),
        [r#"@error {"control":"update","code":"state_too_large"}"#]
    );
}

#[test]
fn updates_go_one_after_the_other_and_other_controls_beside_them() {
    let mut w = World::attached();
    let key = w.online("d");
    for text in ["@update 1", "@update 2", "@x"] {
        w.text(key, text).unwrap();
    }
    let given = |w: &mut World| -> Vec<(crate::exchange::PeerId, Bytes)> {
        let texts = w.work().into_iter().map(|(peer, _, command)| match command {
            Command::Update(u) => (peer, u.text),
            Command::Control(c) => (peer, c.text),
            other => panic!("{other:?}"),
        });
        texts.collect()
    };
    assert_eq!(given(&mut w), [(A, "@update 1".into()), (A, "@x".into())]);
    w.active(B);
    w.crashed(A, 0, 9);
    assert_eq!(
        given(&mut w),
        [(B, Bytes::from("@update 1")), (B, "@x".into())],
        "lost ones too"
    );
}

#[test]
fn a_flood_of_controls_is_closed() {
    let mut w = World::with(|c| c.window_total_bytes = 100_000);
    w.active(A);
    let key = w.online("d");
    for _ in 0..64 {
        w.text(key, "@x").unwrap();
    }
    assert!(w.outputs().is_empty());
    w.text(key, "@x").unwrap();
    assert_eq!(w.close_code(key), CloseCode::ControlFlood);
    for (device, long) in [
        ("e", format!("@{}", "x".repeat(4096))),
        ("f", format!("@ping{}", " ".repeat(4096))),
    ] {
        let key = w.online(device);
        w.text(key, &long).unwrap();
        assert_eq!(w.close_code(key), CloseCode::TooBig, "{device}");
    }
}

#[test]
fn a_reply_for_a_session_that_closes_is_dropped() {
    let mut w = World::attached();
    let key = w.online("d");
    w.text(key, "r").unwrap();
    w.work();
    w.closed(key);
    w.reply(A, key, 1, 0);
    w.written(key, 3);
    assert!(w.outputs().is_empty());
    assert!(matches!(w.one(A), Command::Logout(_)));
}
