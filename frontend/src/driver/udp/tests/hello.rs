//! Who is asked for what before there is a connection.

use std::time::{Duration, Instant};

use holdfast_proto::throttle::Throttle;
use holdfast_proto::udp::datagram::{data_header, encode_reset};
use holdfast_proto::udp::{ConnectionId, Datagram, ResetKey, parse};

use super::harness::*;
use crate::session::SourceLimit;

fn challenge(answer: &[u8]) -> (u64, ConnectionId) {
    match parse(answer).unwrap() {
        Datagram::Challenge {
            attempt,
            cid,
            message2,
        } => {
            assert_eq!(message2, &[4; 48]);
            (attempt, cid)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hello_is_judged_once_and_answered_as_often_as_it_is_asked() {
    run(async {
        let mut world = World::start().await;
        let device = Stranger::new(&world).await;
        device.hello(7, b"").await;
        let bind = world.bind().await;
        let whole = [&parameters(7).encode()[..], CREDENTIAL].concat();
        assert_eq!(bind.credential, whole);
        assert_eq!(bind.address, device.socket.local_addr().unwrap().to_string());
        device.hello(7, b"").await;
        assert!(device.hears_nothing().await, "nothing while a backend judges it");
        world.frame(admitted(session(bind.id)));
        let answer = device.receive().await;
        let (attempt, cid) = challenge(&answer);
        assert_eq!((attempt, cid.shard(), cid.slot()), (7, 0, 0));
        device.hello(7, b"").await;
        assert_eq!(device.receive().await, answer);
        assert!(world.hears_nothing().await);
        let elsewhere = Stranger::new(&world).await;
        elsewhere.hello(7, b"").await;
        // The answer would let whoever gets it speak for the first address; a cookie makes it an attempt of its own.
        let cookie = elsewhere.cookie().await;
        assert!(world.hears_nothing().await);
        elsewhere.hello(7, &cookie).await;
        let other = world.bind().await;
        assert_ne!(session(other.id), session(bind.id));
        world.frame(admitted(session(other.id)));
        assert_ne!(challenge(&elsewhere.receive().await).1, cid);
        device.hello(7, b"").await;
        assert_eq!(device.receive().await, answer, "each has its own answer");
        device.hello(8, b"").await;
        assert_ne!(
            session(world.bind().await.id),
            session(bind.id),
            "another attempt"
        );
        assert_eq!(world.metrics.unfinished.get(), 3);
    });
}

#[test]
fn a_refusal_is_said_and_kept() {
    run(async {
        let mut world = World::start().await;
        let device = Stranger::new(&world).await;
        device.hello(7, b"").await;
        let bind = world.bind().await;
        world.frame(denied(session(bind.id), 403, "key_unknown"));
        let expected = (403, "key_unknown".to_owned(), 1_500);
        assert_eq!(device.refused().await, expected);
        device.hello(7, b"").await;
        assert_eq!(device.refused().await, expected);
        assert!(world.hears_nothing().await);
        assert_eq!(
            (world.metrics.unfinished.get(), world.metrics.connections.get()),
            (0, 0)
        );
    });
}

#[test]
fn where_it_is_asked_of_each_a_cookie_shows_where_a_device_is() {
    run(async {
        let mut world = World::with(|plan| plan.always = true).await;
        let (device, other) = (Stranger::new(&world).await, Stranger::new(&world).await);
        device.hello(7, b"").await;
        let cookie = device.cookie().await;
        other.hello(7, &cookie).await;
        other.cookie().await;
        device.hello(8, &cookie).await;
        device.cookie().await;
        device.hello(7, &[0; 20]).await;
        device.cookie().await;
        assert!(world.hears_nothing().await, "no backend has heard of any of them");
        device.hello(7, &cookie).await;
        world.bind().await;
        assert_eq!(world.metrics.retries.get(), 4);
    });
}

#[test]
fn under_load_a_cookie_is_asked_for() {
    run(async {
        let mut world = World::with(|plan| plan.above = 2).await;
        let device = Stranger::new(&world).await;
        for attempt in 1..=3 {
            device.hello(attempt, b"").await;
            world.bind().await;
        }
        device.hello(4, b"").await;
        let cookie = device.cookie().await;
        device.hello(4, &cookie).await;
        let bind = world.bind().await;
        // The repetition of an earlier one needs none: it costs an answer at most.
        world.frame(admitted(session(bind.id)));
        challenge(&device.receive().await);
        device.hello(4, b"").await;
        challenge(&device.receive().await);
    });
}

/// Who writes any sender on the envelope gets no more than this, from however many places.
#[test]
fn all_sources_together_ask_so_often_without_a_cookie() {
    run(async {
        let mut world = World::with(|plan| {
            plan.burst = 1;
            plan.unproven_per_second = 3;
        })
        .await;
        let mut strangers = Vec::new();
        for last in 2..10 {
            let stranger = Stranger::at(&world, [127, 0, 0, last]).await;
            stranger.hello(last.into(), b"").await;
            strangers.push(stranger);
        }
        for _ in 0..3 {
            world.bind().await;
        }
        let cookie = strangers[7].cookie().await;
        strangers[7].hello(9, &cookie).await;
        world.bind().await;
        assert_eq!(world.metrics.retries.get(), 5);
    });
}

#[test]
fn a_source_that_asks_too_often_must_show_that_it_is_there_and_then_is_throttled() {
    run(async {
        let mut world = World::with(|plan| {
            plan.burst = 1;
            plan.session.sources.udp =
                Some(SourceLimit::new(Throttle::new(1, 64, 60_000, 1), Instant::now()));
        })
        .await;
        let device = Stranger::new(&world).await;
        device.hello(1, b"").await;
        world.bind().await;
        device.hello(2, b"").await;
        let cookie = device.cookie().await;
        device.hello(2, &cookie).await;
        world.bind().await;
        device.hello(3, b"").await;
        let cookie = device.cookie().await;
        device.hello(3, &cookie).await;
        let (status, code, hint) = device.refused().await;
        assert_eq!((status, code.as_str()), (429, "too_many_attempts"));
        assert!(hint > 50_000, "{hint}");
        assert!(world.hears_nothing().await);
    });
}

#[test]
fn a_full_or_stopping_shard_says_so() {
    run(async {
        let mut world = World::with(|plan| plan.session.max_sessions = 1).await;
        let device = Stranger::new(&world).await;
        device.hello(1, b"").await;
        world.bind().await;
        device.hello(2, b"").await;
        let (status, code, hint) = device.refused().await;
        assert_eq!((status, code.as_str()), (503, "overloaded"));
        assert!((2_000..=4_000).contains(&hint), "{hint}");
    });
}

#[test]
fn a_device_that_proves_nothing_is_forgotten_in_silence() {
    run(async {
        let mut world = World::with(|plan| {
            plan.session.challenge_timeout = Duration::from_millis(60);
        })
        .await;
        let device = Stranger::new(&world).await;
        device.hello(1, b"").await;
        let bind = world.bind().await;
        world.frame(admitted(session(bind.id)));
        let (_, cid) = challenge(&device.receive().await);
        let forged = [&data_header(cid, 0)[..], &[0; 40]].concat();
        device.send(&forged).await;
        world
            .until("it is counted", |w| w.metrics.forged.get() == 1)
            .await;
        world
            .until("it is forgotten", |w| w.metrics.connections.get() == 0)
            .await;
        assert!(device.hears_nothing().await);
        assert_eq!(
            (world.sessions.sessions.get(), world.metrics.unfinished.get()),
            (0, 0)
        );
        device.hello(1, b"").await;
        world.bind().await;
    });
}

#[test]
fn a_source_uses_up_its_own_resets_only() {
    run(async {
        let world = World::with(|plan| plan.reset_burst = 2).await;
        let [noisy, quiet] = [
            Stranger::new(&world).await,
            Stranger::at(&world, [127, 0, 0, 2]).await,
        ];
        let junk = [&data_header(ConnectionId::new(0, 77, 5), 0)[..], &[0; 16]].concat();
        for _ in 0..4 {
            noisy.send(&junk).await;
        }
        quiet.send(&junk).await;
        quiet.receive().await;
        noisy.receive().await;
        noisy.receive().await;
        assert!(noisy.hears_nothing().await);
        assert_eq!(world.metrics.resets.get(), 3);
    });
}

#[test]
fn a_connection_that_is_not_here_is_reset() {
    run(async {
        let world = World::start().await;
        let device = Stranger::new(&world).await;
        let cid = ConnectionId::new(0, 77, 5);
        let datagram = |cid, rest: usize| [&data_header(cid, 0)[..], &vec![0; rest]].concat();
        device.send(&datagram(cid, 16)).await;
        let mut expected = Vec::new();
        let token = ResetKey::from_bytes(RESET_KEY).token(cid);
        encode_reset(cid, &token.0, &mut expected);
        assert_eq!(device.receive().await, expected);
        // A shard that there is not any more, of an earlier life.
        device.send(&datagram(ConnectionId::new(9, 1, 1), 16)).await;
        device.receive().await;
        // A datagram that only lies beside ours: the other shard may know it.
        device.send(&datagram(ConnectionId::new(1, 1, 1), 16)).await;
        device.send(&datagram(cid, 15)).await;
        device.send(&expected).await;
        device.send(b"\x77").await;
        device.send(&[1; 300]).await;
        device.send(&[]).await;
        assert!(device.hears_nothing().await);
        assert_eq!(world.metrics.resets.get(), 2);
        let reasons = ["other_shard", "length", "not_for_us", "type", "value"];
        for reason in reasons {
            let label = crate::session::ReasonLabel { reason };
            let count = world.metrics.dropped.get_or_create(&label).get();
            assert!(count >= 1, "{reason}");
        }
    });
}
