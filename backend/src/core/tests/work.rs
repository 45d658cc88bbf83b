//! Commands and API requests, through the links.

use super::*;
use crate::api::{PresenceState, PushMessage, PushTarget};
use crate::dispatch::tests::{event, id, request, session};
use holdfast_proto::link::frames::{
    self, Bind, Control, Login, Logout, Ping, PushResult, PushStatus as FrameStatus, QueryResult, Ready,
    SessionInfo, Update,
};

fn last(world: &World, link: usize) -> &Command {
    world.frontends[link].received.last().expect("something came")
}

fn push(target: PushTarget) -> ApiRequest {
    ApiRequest::Push {
        target,
        message: PushMessage::Text(Bytes::from_static(b"{}")),
    }
}

fn lamp() -> PushTarget {
    PushTarget::Device("lamp".parse().unwrap())
}

#[test]
fn a_device_is_bound_and_logged_in_and_its_older_sessions_are_closed_elsewhere() {
    let mut world = World::attached(3);
    let bind = Bind {
        id: Some(id(1).into()),
        credential: "token".into(),
        ..Default::default()
    };
    world.send(0, Command::Bind(bind));
    let (bind, credential) = world.binds.remove(0);
    assert_eq!(&credential[..], b"token");
    let grant = Grant {
        device: "device-1".parse().unwrap(),
        principal: Bytes::new(),
        challenge: None,
    };
    world.core.handle_authenticated(bind, Ok(grant));
    world.run(ms(1));
    assert!(matches!(last(&world, 0), Command::Bound(_)));
    let login = Login {
        session: Some(session(1)),
        hello: "@hello {}".into(),
        ..Default::default()
    };
    world.send(0, Command::Login(login));
    let Command::LoggedIn(frames::LoggedIn {
        result: Some(frames::logged_in::Result::Welcomed(welcomed)),
        ..
    }) = last(&world, 0)
    else {
        panic!()
    };
    for link in 1..3 {
        let Command::Close(close) = last(&world, link) else {
            panic!()
        };
        assert_eq!(
            (close.before_ms, close.code, close.except),
            (welcomed.login_ms, 4000, Some(id(1).into()))
        );
    }
}

#[test]
fn every_lifecycle_frame_is_answered_and_its_credit_returns() {
    let mut world = World::attached(1);
    let session = Some(session(1));
    world.send(
        0,
        Command::Logout(Logout {
            session: session.clone(),
            reason: "normal".into(),
            ..Default::default()
        }),
    );
    assert!(matches!(last(&world, 0), Command::LoggedOut(_)));
    world.send(
        0,
        Command::Control(Control {
            session: session.clone(),
            text: "@join".into(),
            ..Default::default()
        }),
    );
    assert!(matches!(last(&world, 0), Command::ControlReply(_)));
    world.send(
        0,
        Command::Update(Update {
            session,
            text: "@update".into(),
            ..Default::default()
        }),
    );
    assert!(matches!(last(&world, 0), Command::Updated(_)));
    world.send(
        0,
        Command::Ping(Ping {
            online: 7,
            ..Default::default()
        }),
    );
    assert_eq!(world.core.frontends()[0].sessions, 7);
    for _ in 0..2000 {
        world.send(
            0,
            Command::Logout(Logout {
                session: Some(crate::dispatch::tests::session(2)),
                ..Default::default()
            }),
        );
    }
    let answers = world.frontends[0]
        .received
        .iter()
        .filter(|c| matches!(c, Command::LoggedOut(_)))
        .count();
    assert_eq!(answers, 2001, "more than the credit in all");
}

#[test]
fn malformed_frames_are_counted_and_the_link_goes_on() {
    let mut world = World::attached(1);
    for command in [
        Command::Bind(Bind::default()),
        Command::Login(Login::default()),
        Command::Logout(Logout::default()),
        Command::Update(Update::default()),
        Command::Control(Control::default()),
        Command::Ready(Ready::default()),
    ] {
        world.send(0, command);
    }
    assert_eq!(world.metrics.malformed.get(), 6);
    world.send(
        0,
        Command::PushResult(PushResult {
            number: 99,
            ..Default::default()
        }),
    );
    world.send(
        0,
        Command::QueryResult(QueryResult {
            number: 99,
            ..Default::default()
        }),
    );
    assert_eq!(world.metrics.unanswered.get(), 2);
    assert!(world.core.is_ready());
}

#[test]
fn replies_travel_in_order() {
    let mut world = World::attached(1);
    for n in 1..=50 {
        world.frontends[0].send(Command::TextMessage(request(n, event("N", "n"))));
    }
    world.run(ms(5));
    for (call, _) in std::mem::take(&mut world.calls).into_iter().rev() {
        world.core.handle_call_done(call, CallOutcome::Empty, world.now);
    }
    world.run(ms(5));
    let sequences: Vec<u64> = world.frontends[0]
        .received
        .iter()
        .filter_map(|c| match c {
            Command::Reply(reply) => Some(reply.sequence),
            _ => None,
        })
        .collect();
    assert_eq!(sequences, (1..=50).collect::<Vec<_>>());
    assert_eq!(world.core.in_flight(), 0);
}

#[test]
fn a_push_reports_what_the_frontends_say() {
    let mut world = World::attached(2);
    world.ask(1, push(lamp()));
    world.frontends[0].answer_push(FrameStatus::Offline);
    world.run(ms(2));
    assert!(world.api.is_empty());
    world.frontends[1].answer_push(FrameStatus::Written);
    world.run(ms(2));
    assert_eq!(world.push_status(1), PushStatus::Written);

    world.ask(2, push(lamp()));
    world
        .frontends
        .iter_mut()
        .for_each(|f| f.answer_push(FrameStatus::Offline));
    world.run(ms(2));
    assert_eq!(world.push_status(2), PushStatus::Unknown, "never seen");
    let mut login = Login {
        session: Some(session(1)),
        ..Default::default()
    };
    login.session.as_mut().unwrap().device = "lamp".into();
    world.send(0, Command::Login(login));
    world.ask(3, push(lamp()));
    world
        .frontends
        .iter_mut()
        .for_each(|f| f.answer_push(FrameStatus::Offline));
    world.run(ms(2));
    assert_eq!(world.push_status(3), PushStatus::Offline);
}

#[test]
fn a_push_to_a_session_goes_to_its_frontend_only() {
    let mut world = World::attached(2);
    world.ask(1, push(PushTarget::Session(id(1))));
    assert!(
        world.frontends[0].received.is_empty(),
        "the uuid names frontend 1"
    );
    world.frontends[1].answer_push(FrameStatus::Written);
    world.run(ms(2));
    assert_eq!(world.push_status(1), PushStatus::Written);
    world.frontends[1].alive = false;
    world.run(ms(1200));
    world.ask(2, push(PushTarget::Session(id(1))));
    assert_eq!(world.push_status(2), PushStatus::Unconfirmed);
    let mut world = World::attached(1);
    world.ask(3, push(PushTarget::Session(id(1))));
    assert_eq!(
        world.push_status(3),
        PushStatus::Unknown,
        "no frontend of ours has this number"
    );
}

#[test]
fn what_is_not_answered_is_unconfirmed() {
    let mut world = World::attached(2);
    world.ask(1, push(lamp()));
    world.frontends[0].answer_push(FrameStatus::Offline);
    world.run(ms(4900));
    assert!(world.api.is_empty());
    world.run(ms(200));
    assert_eq!(world.push_status(1), PushStatus::Unconfirmed);
    world.ask(2, push(lamp()));
    world.frontends[0].answer_push(FrameStatus::Offline);
    world.core.handle_disconnected(LinkIndex::new(1), world.now);
    world.run(ms(2));
    assert_eq!(world.push_status(2), PushStatus::Unconfirmed);
}

#[test]
fn pushes_that_find_no_room_or_no_frontend_are_refused() {
    let mut world = World::new(1);
    world.frontends[0].reachable = false;
    world.ask(1, push(lamp()));
    assert!(matches!(world.answer(1), Err(GatewayError::Unavailable { .. })));
    let mut world = World::attached(1);
    world.frontends[0].alive = false;
    let message = || PushMessage::Text(vec![0; 1 << 20].into());
    for ticket in 0..80 {
        let request = ApiRequest::Push {
            target: lamp(),
            message: message(),
        };
        world.core.handle_api(Ticket(ticket), request, world.now.instant);
    }
    world.act();
    assert!(
        world
            .api
            .iter()
            .all(|a| matches!(a.1, Err(GatewayError::Overloaded { .. })))
            && world.api.len() == 16
    );
}

#[test]
fn presence_is_what_all_frontends_know() {
    let mut world = World::attached(2);
    let ask = |world: &mut World, ticket| world.ask(ticket, ApiRequest::Presence("lamp".parse().unwrap()));
    ask(&mut world, 1);
    world
        .frontends
        .iter_mut()
        .for_each(|f| f.answer_query(QueryResult::default()));
    world.run(ms(2));
    assert_eq!(world.answer(1), Err(GatewayError::UnknownDevice));
    ask(&mut world, 2);
    world.frontends[0].answer_query(QueryResult::default());
    world.run(ms(301));
    let Ok(ApiAnswer::Presence(presence)) = world.answer(2) else {
        panic!()
    };
    assert_eq!(presence.presence, PresenceState::Unknown);
    ask(&mut world, 3);
    let info = SessionInfo {
        id: Some(id(1).into()),
        device: "lamp".into(),
        channel: 1,
        ..Default::default()
    };
    world.frontends[0].answer_query(QueryResult {
        sessions: vec![info],
        ..Default::default()
    });
    world.frontends[1].answer_query(QueryResult::default());
    world.run(ms(2));
    let Ok(ApiAnswer::Presence(presence)) = world.answer(3) else {
        panic!()
    };
    assert_eq!(
        (presence.presence, presence.sessions[0].channel.as_str()),
        (PresenceState::Online, "wss")
    );
    ask(&mut world, 4);
    world
        .frontends
        .iter_mut()
        .for_each(|f| f.answer_query(QueryResult::default()));
    world.run(ms(2));
    let Ok(ApiAnswer::Presence(presence)) = world.answer(4) else {
        panic!()
    };
    assert_eq!(presence.presence, PresenceState::Offline, "it was seen");
}

#[test]
fn closes_count_sessions_and_say_when_they_do_not_know() {
    let mut world = World::attached(2);
    let close = || ApiRequest::Close("lamp".parse().unwrap());
    world.ask(1, close());
    world.frontends[0].answer_query(QueryResult {
        closed: 1,
        ..Default::default()
    });
    world.frontends[1].answer_query(QueryResult::default());
    world.run(ms(2));
    assert_eq!(world.answer(1), Ok(ApiAnswer::Closed(1)));
    world.ask(2, close());
    world.frontends[0].answer_query(QueryResult::default());
    world.run(ms(5100));
    let unconfirmed = |answer| match answer {
        Err(GatewayError::Unconfirmed { closed, .. }) => closed,
        other => panic!("{other:?}"),
    };
    assert_eq!(unconfirmed(world.answer(2)), 0);
    world.ask(3, close());
    world.frontends[1].answer_query(QueryResult {
        closed: 1,
        ..Default::default()
    });
    world.run(ms(5100));
    assert_eq!(
        unconfirmed(world.answer(3)),
        1,
        "one is closed, the rest is not known"
    );
}

/// A device moves from one frontend to the other while the link to the first is down.
#[test]
fn a_frontend_that_was_away_hears_of_replaced_sessions() {
    let closes = |world: &World, link: usize| -> Vec<u64> {
        let close = |command: &Command| match command {
            Command::Close(close) => Some(close.before_ms),
            _ => None,
        };
        world.frontends[link].received.iter().filter_map(close).collect()
    };
    let login = |n| Login {
        session: Some(session(n)),
        ..Default::default()
    };
    let mut world = World::attached(2);
    world.frontends[1].reachable = false;
    world.core.handle_disconnected(LinkIndex::new(1), world.now);
    world.send(0, Command::Login(login(1)));
    world.send(0, Command::Login(login(2)));
    world.send(0, Command::Login(login(1)));
    world.run(ms(2));
    assert_eq!(world.metrics.closes_owed.get(), 2, "one per device");
    world.frontends[1].reachable = true;
    world.run(ms(2000));
    let said = closes(&world, 1);
    assert_eq!((said.len(), world.metrics.closes_repeated.get()), (2, 2));
    assert!(said[0] < said[1]);
    assert_eq!(world.metrics.closes_owed.get(), 0, "it was acknowledged");
    // One that was said but not acknowledged when the link was lost is said again.
    world.frontends[1].alive = false;
    world.send(0, Command::Login(login(3)));
    world.run(ms(1500));
    world.frontends[1].alive = true;
    world.run(ms(3000));
    assert_eq!(closes(&world, 1).len(), 3);
    assert_eq!(
        (
            world.metrics.closes_owed.get(),
            world.metrics.closes_dropped.get()
        ),
        (0, 0)
    );
}
