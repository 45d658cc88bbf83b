//! Attaching, losing, draining.

use super::*;
use crate::dispatch::tests::{event, request};
use holdfast_proto::link::frames::{DrainMark, Fenced, SessionInfo, SyncPage};

#[test]
fn a_backend_is_ready_when_one_frontend_is_attached() {
    let mut world = World::new(2);
    world.frontends[1].reachable = false;
    assert!(!world.core.is_ready());
    world.run(ms(50));
    assert!(world.core.is_ready());
    assert!(matches!(
        world.frontends[0].received[..],
        [Command::Ready(_), Command::Sync(_)]
    ));
    let states: Vec<_> = world
        .core
        .frontends()
        .iter()
        .map(|f| (f.id.map(|id| id.0), f.state))
        .collect();
    assert_eq!(states, [(Some(0), "active"), (None, "connecting")]);
    world.frontends[1].reachable = true;
    world.run(ms(2000));
    assert_eq!(world.core.link_state(LinkIndex::new(1)), LinkState::Attached);
}

#[test]
fn sync_goes_on_page_by_page_and_fills_the_index() {
    let mut world = World::attached(1);
    let sessions = vec![SessionInfo {
        device: "lamp".into(),
        ..Default::default()
    }];
    world.send(
        0,
        Command::SyncPage(SyncPage {
            sessions,
            next_cursor: 9,
        }),
    );
    let Some(Command::Sync(sync)) = world.frontends[0].received.last() else {
        panic!()
    };
    assert_eq!(sync.cursor, 9);
    world.send(
        0,
        Command::SyncPage(SyncPage {
            sessions: vec![],
            next_cursor: 0,
        }),
    );
    assert_eq!(world.frontends[0].received.len(), 1);
    assert!(world.core.lifecycle.was_seen(&"lamp".parse().unwrap()));
}

#[test]
fn a_fenced_backend_cancels_its_work_and_attaches_anew_at_once() {
    let mut world = World::attached(1);
    world.send(0, Command::TextMessage(request(1, event("N", "n"))));
    let call = world.calls[0].0;
    world.frontends[0].notify(Command::Fenced(Fenced {}));
    world.run(ms(3));
    assert_eq!(
        (world.cancelled.clone(), world.metrics.fenced.get()),
        (vec![call], 1)
    );
    assert!(world.core.is_ready(), "attached again");
    world.core.handle_call_done(call, CallOutcome::Empty, world.now);
    world.run(ms(5));
    assert!(
        !world.frontends[0]
            .received
            .iter()
            .any(|c| matches!(c, Command::Reply(_))),
        "nothing late is sent"
    );
}

#[test]
fn a_silent_frontend_is_given_up_and_found_again() {
    let mut world = World::attached(2);
    world.send(0, Command::TextMessage(request(1, event("N", "n"))));
    world.frontends[0].alive = false;
    world.run(ms(1100));
    assert_eq!(world.cancelled.len(), 1);
    assert!(world.core.is_ready(), "the other one is there");
    world.frontends[0].alive = true;
    world.run(ms(3000));
    assert_eq!(world.core.link_state(LinkIndex::new(0)), LinkState::Attached);
}

#[test]
fn a_paused_machine_loses_no_link() {
    let mut world = World::attached(2);
    world.now.instant += Duration::from_secs(30);
    for frontend in &mut world.frontends {
        let lane = frontend.lane.as_mut().unwrap();
        lane.restart_clocks(world.now.instant);
    }
    world.run(ms(500));
    assert!(world.sockets.is_empty() && world.core.is_ready());
}

#[test]
fn draining_finishes_what_is_under_way_and_exits() {
    let mut world = World::attached(2);
    world.send(0, Command::TextMessage(request(1, event("N", "n"))));
    world.core.handle_shutdown(world.now.instant);
    world.run(ms(2));
    assert!(!world.core.is_ready());
    assert!(
        world
            .frontends
            .iter()
            .all(|f| matches!(f.received.last(), Some(Command::Draining(_))))
    );
    // Sent before the frontend heard of it.
    world.send(0, Command::TextMessage(request(2, event("N", "n"))));
    for frontend in &mut world.frontends {
        let last_frame = frontend.lane.as_ref().unwrap().last_frame();
        frontend.send(Command::DrainMark(DrainMark { last_frame }));
    }
    world.run(ms(5));
    assert!(
        matches!(world.frontends[1].received.last(), Some(Command::Done(_))),
        "nothing was under way there"
    );
    assert!(!world.exited && !matches!(world.frontends[0].received.last(), Some(Command::Done(_))));
    for call in [world.calls[1].0, world.calls[0].0] {
        world.core.handle_call_done(call, CallOutcome::Empty, world.now);
    }
    world.run(ms(5));
    let [
        ..,
        Command::Reply(first),
        Command::Reply(second),
        Command::Done(done),
    ] = &world.frontends[0].received[..]
    else {
        panic!("{:?}", world.frontends[0].received)
    };
    assert_eq!((first.sequence, second.sequence), (1, 2));
    assert_eq!(
        done.last_frame,
        world.frontends[0].lane.as_ref().unwrap().last_received_frame()
    );
    assert!(world.exited && world.cancelled.is_empty());
}

#[test]
fn the_grace_bounds_draining() {
    let mut world = World::attached(1);
    world.send(0, Command::TextMessage(request(1, event("N", "n"))));
    world.core.handle_shutdown(world.now.instant);
    world.run(ms(2900));
    assert!(!world.exited);
    world.run(ms(200));
    assert!(world.exited);
}

#[test]
fn a_backend_without_frontends_stops_at_once() {
    let mut world = World::new(1);
    world.frontends[0].reachable = false;
    world.run(ms(500));
    world.core.handle_shutdown(world.now.instant);
    world.run(ms(2));
    assert!(world.exited);
}

#[test]
fn a_link_lost_while_draining_is_finished() {
    let mut world = World::attached(1);
    world.core.handle_shutdown(world.now.instant);
    world.run(ms(2));
    world.core.handle_disconnected(LinkIndex::new(0), world.now);
    world.run(ms(2));
    assert!(world.exited && world.sockets.is_empty());
}
