use super::*;
use holdfast_proto::link::frames::Session;
use holdfast_proto::secure::{TrafficKey, TrafficKeys};
use holdfast_proto::{FrontendEpoch, FrontendId, Generation, SessionParts, ShardId, Slot};

const LINK: LinkIndex = LinkIndex::new(0);

pub(crate) fn id(slot: u32) -> SessionId {
    SessionId::mint(SessionParts {
        frontend: FrontendId(1),
        epoch: FrontendEpoch(1),
        shard: ShardId(0),
        slot: Slot(slot),
        generation: Generation(0),
    })
    .unwrap()
}

pub(crate) fn session(slot: u32) -> Session {
    Session {
        id: Some(id(slot).into()),
        device: format!("device-{slot}").into(),
        ..Default::default()
    }
}

fn frontend() -> Frontend {
    Frontend {
        id: FrontendId(1),
        epoch: FrontendEpoch(1),
        heartbeat_ms: 30_000,
        max_message_bytes: 1024,
        window_requests: 32,
        build: String::new(),
    }
}

fn lifecycle() -> Lifecycle {
    Lifecycle::new(100, 1)
}

fn bind(slot: u32, attempt: u32) -> Bind {
    Bind {
        id: Some(id(slot).into()),
        channel: Channel::Wss as i32,
        credential: "token".into(),
        attempt,
        ..Default::default()
    }
}

fn login(hello: &str, attempt: u32) -> Login {
    let hello = Bytes::copy_from_slice(hello.as_bytes());
    Login {
        session: Some(session(1)),
        hello,
        attempt,
        ..Default::default()
    }
}

fn denial(command: Command) -> frames::Denied {
    let Command::Bound(Bound {
        result: Some(bound::Result::Denied(denied)),
        ..
    }) = command
    else {
        panic!("{command:?}")
    };
    denied
}

#[test]
fn a_bind_is_authenticated_and_answered() {
    let mut lifecycle = lifecycle();
    let Ok(BindStep::Authenticate { bind, credential, .. }) = lifecycle.handle_bind(LINK, bind(1, 0)) else {
        panic!()
    };
    assert_eq!((&credential[..], lifecycle.binds_of(LINK)), (&b"token"[..], 1));
    let grant = Grant {
        device: "lamp".parse().unwrap(),
        principal: "p".into(),
        challenge: None,
    };
    let bound = lifecycle.handle_authenticated(bind, Ok(grant.clone())).unwrap();
    assert_eq!((bound.channel, bound.code), (Channel::Wss, ADMITTED));
    let admitted = Admitted {
        device: "lamp".into(),
        principal: "p".into(),
        challenge: None,
    };
    assert_eq!(
        (bound.link, bound.answer),
        (LINK, super::bound(id(1), bound::Result::Admitted(admitted)))
    );
    assert!(
        lifecycle.handle_authenticated(bind, Ok(grant)).is_none(),
        "answered once"
    );
}

#[test]
fn refusals_of_the_authenticator_are_passed_on() {
    let mut lifecycle = lifecycle();
    let Ok(BindStep::Authenticate { bind, .. }) = lifecycle.handle_bind(LINK, bind(1, 0)) else {
        panic!()
    };
    let refusal = Denied::new(401, "token_expired", "late");
    let bound = lifecycle.handle_authenticated(bind, Err(refusal)).unwrap();
    assert_eq!(bound.code, "token_expired");
    let denied = denial(bound.answer);
    assert_eq!(
        (denied.status, denied.code.as_str(), denied.retryable),
        (401, "token_expired", false)
    );
    assert_eq!(denied.retry_after_ms, 0);
}

fn bind_on(lifecycle: &mut Lifecycle, channel: Channel) -> BindId {
    let bind = Bind {
        channel: channel as i32,
        ..bind(1, 0)
    };
    match lifecycle.handle_bind(LINK, bind) {
        Ok(BindStep::Authenticate {
            bind, claimant: told, ..
        }) => {
            assert_eq!(told.channel, channel);
            bind
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_challenge_and_its_keys_go_with_the_admission() {
    for channel in [Channel::Ws, Channel::Udp] {
        challenged_on(channel);
    }
}

fn challenged_on(channel: Channel) {
    let mut lifecycle = lifecycle();
    let bind = bind_on(&mut lifecycle, channel);
    let key = |n: u8| TrafficKey::from_bytes(&[n; 32]).unwrap();
    let grant = Grant {
        device: "lamp".parse().unwrap(),
        principal: "p".into(),
        challenge: Some(crate::auth::Challenge {
            message: "@challenge {}".into(),
            keys: TrafficKeys {
                to_server: key(1),
                to_device: key(2),
            },
        }),
    };
    let bound = lifecycle.handle_authenticated(bind, Ok(grant)).unwrap();
    let Command::Bound(Bound {
        result: Some(bound::Result::Admitted(admitted)),
        ..
    }) = bound.answer
    else {
        panic!()
    };
    let challenge = admitted.challenge.unwrap();
    assert_eq!(challenge.message, "@challenge {}");
    assert_eq!(challenge.to_server, [1; 32][..]);
    assert_eq!(challenge.to_device, [2; 32][..]);
    assert_eq!((bound.channel, bound.code), (channel, ADMITTED));
}

#[test]
fn a_refusal_that_knows_when_to_come_back_says_so() {
    let mut lifecycle = lifecycle();
    let bind = bind_on(&mut lifecycle, Channel::Ws);
    let refusal = Denied {
        retry_after_ms: Some(1234),
        ..Denied::new(429, "too_many_attempts", "")
    };
    let bound = lifecycle.handle_authenticated(bind, Err(refusal)).unwrap();
    let denied = denial(bound.answer);
    assert_eq!((denied.retryable, denied.retry_after_ms), (true, 1234));
    let bind = bind_on(&mut lifecycle, Channel::Ws);
    let refusal = Denied::new(503, "unavailable", "");
    let denied = denial(lifecycle.handle_authenticated(bind, Err(refusal)).unwrap().answer);
    assert!(denied.retryable && (2000..=4000).contains(&denied.retry_after_ms));
}

#[test]
fn channels_that_are_not_known_are_refused() {
    for channel in [4, 99] {
        let bind = Bind {
            channel,
            ..bind(1, 0)
        };
        let Ok(BindStep::Refuse { answer, code }) = lifecycle().handle_bind(LINK, bind) else {
            panic!()
        };
        let denied = denial(answer);
        assert_eq!(
            (denied.status, code, denied.retryable),
            (400, "wrong_channel", false)
        );
    }
}

#[test]
fn a_bind_that_broke_two_backends_is_not_tried_again() {
    let Ok(BindStep::Refuse { answer, code }) = lifecycle().handle_bind(LINK, bind(1, 2)) else {
        panic!()
    };
    assert_eq!(code, "backend_failed");
    let denied = denial(answer);
    assert_eq!(
        (denied.status, denied.code.as_str(), denied.retryable),
        (503, "backend_failed", true)
    );
    assert!((2000..=4000).contains(&denied.retry_after_ms));
}

#[test]
fn authentications_are_bounded_and_end_with_their_link() {
    let mut lifecycle = lifecycle();
    for slot in 0..MAX_AUTHENTICATIONS as u32 {
        assert!(matches!(
            lifecycle.handle_bind(LINK, bind(slot, 0)),
            Ok(BindStep::Authenticate { .. })
        ));
    }
    let Ok(BindStep::Refuse { answer, .. }) = lifecycle.handle_bind(LINK, bind(5000, 0)) else {
        panic!()
    };
    assert_eq!(denial(answer).code, "overloaded");
    lifecycle.remove_link(LINK);
    assert_eq!(lifecycle.binds_of(LINK), 0);
    assert!(
        lifecycle
            .handle_authenticated(BindId(1), Err(Denied::new(401, "x", "")))
            .is_none()
    );
}

#[test]
fn only_who_says_hello_is_welcomed_and_earlier_sessions_are_replaced() {
    let mut lifecycle = lifecycle();
    let step = lifecycle
        .handle_login(login("@hello {\"instance\":\"tv\"}", 0), &frontend(), 5000)
        .unwrap();
    let Command::LoggedIn(LoggedIn {
        result: Some(logged_in::Result::Welcomed(welcomed)),
        ..
    }) = step.answer
    else {
        panic!()
    };
    let text = format!(
        "@welcome {{\"session\":\"{}\",\"heartbeat_ms\":30000,\"max_message\":1024,\"window\":32}}",
        id(1)
    );
    assert_eq!(
        (welcomed.login_ms, &welcomed.welcome[..]),
        (5000, text.as_bytes())
    );
    let close = step.replace.unwrap().frame();
    assert_eq!(
        (close.before_ms, close.except, close.code, close.number),
        (5000, Some(id(1).into()), 4000, 0)
    );
    assert!(lifecycle.was_seen(&"device-1".parse().unwrap()));

    // The wall clock went back: the later login still is the newer one.
    let step = lifecycle.handle_login(login("", 0), &frontend(), 4000).unwrap();
    let Command::LoggedIn(LoggedIn {
        result: Some(logged_in::Result::Welcomed(welcomed)),
        ..
    }) = step.answer
    else {
        panic!()
    };
    assert_eq!((welcomed.login_ms, welcomed.welcome.is_empty()), (5001, true));
}

#[test]
fn bad_hellos_and_poisonous_logins_are_denied() {
    let long = format!("@hello {{\"instance\":\"{}\"}}", "x".repeat(65));
    let huge = format!("@hello {{\"ticket\":\"{}\"}}", "x".repeat(5000));
    for (hello, attempt, code, reconnect) in [
        ("@hello {", 0, "bad_hello", false),
        ("@hello []", 0, "bad_hello", false),
        ("hello", 0, "bad_hello", false),
        ("@hello {\"instance\":1}", 0, "bad_hello", false),
        (&long, 0, "bad_hello", false),
        (&huge, 0, "bad_hello", false),
        ("@hello {}", 2, "backend_failed", true),
    ] {
        let step = lifecycle()
            .handle_login(login(hello, attempt), &frontend(), 1)
            .unwrap();
        let Command::LoggedIn(LoggedIn {
            result: Some(logged_in::Result::Denied(denied)),
            ..
        }) = step.answer
        else {
            panic!("{hello}")
        };
        assert_eq!(
            (denied.code.as_str(), denied.reconnect, step.replace),
            (code, reconnect, None)
        );
        assert_eq!(denied.retry_after_ms > 0, reconnect);
    }
    for hello in ["@hello", "@hello{}", "@hello {\"ticket\":null,\"later\":[1]}"] {
        assert!(
            lifecycle()
                .handle_login(login(hello, 1), &frontend(), 1)
                .unwrap()
                .replace
                .is_some(),
            "{hello}"
        );
    }
}

#[test]
fn logouts_are_always_answered_and_reasons_are_bounded() {
    let mut lifecycle = lifecycle();
    for (reason, label) in [
        ("normal", "normal"),
        ("replaced", "replaced"),
        ("closed_by_device", "closed_by_device"),
        ("connection_lost", "connection_lost"),
        ("whatever", "other"),
    ] {
        let logout = Logout {
            session: Some(session(3)),
            reason: reason.into(),
            attempt: 7,
        };
        let (command, got) = lifecycle.handle_logout(logout).unwrap();
        assert_eq!(
            (command, got),
            (
                Command::LoggedOut(LoggedOut {
                    id: Some(id(3).into())
                }),
                label
            )
        );
    }
    assert!(lifecycle.was_seen(&"device-3".parse().unwrap()));
}

#[test]
fn frames_with_bad_ids_are_malformed() {
    let mut lifecycle = lifecycle();
    assert_eq!(lifecycle.handle_bind(LINK, Bind::default()), Err(Malformed));
    assert_eq!(
        lifecycle.handle_login(Login::default(), &frontend(), 1),
        Err(Malformed)
    );
    let mut bad = login("", 0);
    bad.session.as_mut().unwrap().device = "a b".into();
    assert_eq!(lifecycle.handle_login(bad, &frontend(), 1), Err(Malformed));
    assert_eq!(lifecycle.handle_logout(Logout::default()), Err(Malformed));
}
