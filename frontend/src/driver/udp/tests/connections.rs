//! Devices that are connected.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{self, PushStatus, push::Target};
use holdfast_proto::udp::datagram::data_header;
use holdfast_proto::udp::{Datagram, End, Event, parse};
use holdfast_proto::{CloseCode, MessageKind, SessionId};

use super::harness::*;
use crate::exchange::{ToHub, ToShard};

fn push(session: SessionId, number: u64, text: &str) -> Command {
    Command::Push(frames::Push {
        number,
        target: Some(Target::Session(session.into())),
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..Default::default()
    })
}

fn reply(session: SessionId, sequence: u64, text: &str) -> Command {
    Command::Reply(frames::Reply {
        id: Some(session.into()),
        sequence,
        after: sequence - 1,
        r#final: true,
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..Default::default()
    })
}

async fn request(world: &mut World, device: &mut Device) -> frames::Request {
    match device.drive(world.work()).await {
        Command::TextMessage(request) => request,
        other => panic!("{other:?}"),
    }
}

async fn pushed(world: &mut World) -> (u64, PushStatus, String) {
    match world.told().await {
        ToHub::PushDone { result, .. } => (result.number, result.status(), result.reason),
        other => panic!("{other:?}"),
    }
}

/// The reason of the LOGOUT that is next, behind the word that the device is gone.
async fn logout(world: &mut World) -> String {
    loop {
        match world.told().await {
            ToHub::Offline { .. } | ToHub::PushDone { .. } => {}
            ToHub::Work {
                command: Command::Logout(logout),
                ..
            } => return logout.reason,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn requests_and_replies_go_their_way() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        for n in 1..=3 {
            device.send(&format!("request {n}")).await;
            let asked = request(&mut world, &mut device).await;
            assert_eq!(
                (asked.sequence, &asked.payload[..]),
                (n, format!("request {n}").as_bytes())
            );
            world.frame(reply(device.session, n, &format!("reply {n}")));
            assert_eq!(device.text().await, format!("reply {n}"));
        }
        let long = "x".repeat(300_000);
        device.send("long").await;
        request(&mut world, &mut device).await;
        world.frame(reply(device.session, 4, &long));
        assert_eq!(device.text().await, long);
        assert_eq!(
            (world.metrics.forged.get(), world.metrics.unfinished.get()),
            (0, 0)
        );
    });
}

/// P9: written is what the device has, not what was sent.
#[test]
fn a_push_is_written_when_the_device_has_it() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        device.drive(tokio::time::sleep(SILENCE)).await;
        world.frame(push(device.session, 7, "ring"));
        assert!(world.hears_nothing().await, "nobody has acknowledged anything");
        assert_eq!(device.text().await, "ring");
        let result = device.drive(pushed(&mut world)).await;
        assert_eq!(result, (7, PushStatus::Written, String::new()));
    });
}

#[test]
fn a_device_that_moves_is_known_where_it_is() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        let there = device.move_away().await;
        device.send("@ping").await;
        assert_eq!(device.text().await, "@pong");
        match device.drive(world.told()).await {
            ToHub::Moved {
                device: moved,
                session,
                address,
            } => {
                assert_eq!(
                    (moved.as_bytes(), session),
                    (&Bytes::from_static(b"lamp"), device.session)
                );
                assert_eq!(address, there);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(world.metrics.moves.get(), 1);
    });
}

#[test]
fn a_device_closes() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        let now = std::time::Instant::now();
        device.connection.close(now, 1000, "bye");
        assert_eq!(device.event().await, Event::Ended(End::ClosedByUs));
        assert_eq!(logout(&mut world).await, "closed_by_device");
        world
            .until("it is forgotten", |w| w.metrics.connections.get() == 0)
            .await;
        // Whoever has the slot next has another id.
        let first = device.connection.cid();
        let second = Device::online(&mut world, 2).await;
        let second = second.connection.cid();
        assert_eq!(first.slot(), second.slot());
        assert_ne!(first, second);
        device
            .stranger
            .send(&[&data_header(first, 9)[..], &[0; 32]].concat())
            .await;
        loop {
            let answer = device.stranger.receive().await;
            if let Datagram::Reset { cid, .. } = parse(&answer).unwrap() {
                break assert_eq!(cid, first);
            }
        }
    });
}

#[test]
fn a_session_that_is_closed_says_goodbye() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        world.hub(ToShard::Close {
            session: device.session,
            code: CloseCode::Replaced,
        });
        let goodbye = device.text().await;
        assert_eq!(goodbye, "@goodbye {\"code\":\"replaced\",\"reconnect\":false}");
        match device.event().await {
            Event::Closed { code, reason } => assert_eq!((code, reason.as_str()), (4000, "replaced")),
            other => panic!("{other:?}"),
        }
        assert_eq!(device.event().await, Event::Ended(End::ClosedByPeer));
        assert_eq!(logout(&mut world).await, "replaced");
        device
            .drive(world.until("it is forgotten", |w| w.metrics.connections.get() == 0))
            .await;
    });
}

#[test]
fn a_device_that_vanishes_while_it_is_told_to_go_is_forgotten_after_two_seconds() {
    run(async {
        let mut world = World::start().await;
        let device = Device::online(&mut world, 1).await;
        world.hub(ToShard::Close {
            session: device.session,
            code: CloseCode::GoingAway,
        });
        assert_eq!(logout(&mut world).await, "going_away");
        assert_eq!(world.metrics.connections.get(), 1);
        world
            .until("it is forgotten", |w| w.metrics.connections.get() == 0)
            .await;
        assert_eq!(world.metrics.held_bytes.get(), 0);
    });
}

#[test]
fn a_full_window_slows_the_device_down() {
    run(async {
        let mut world = World::with(|plan| plan.session.window.requests = 1).await;
        let mut device = Device::online(&mut world, 1).await;
        for n in 1..=4 {
            device.send(&format!("request {n}")).await;
        }
        for n in 1..=4 {
            let asked = request(&mut world, &mut device).await;
            assert_eq!(asked.sequence, n);
            let nothing = device.drive(world.hears_nothing()).await;
            assert!(nothing, "one at a time");
            world.frame(reply(device.session, n, "done"));
            assert_eq!(device.text().await, "done");
        }
        assert!(world.sessions.stalls.get() >= 3);
    });
}

#[test]
fn a_device_that_does_not_acknowledge_is_a_slow_consumer() {
    run(async {
        let mut world = World::with(|plan| {
            plan.session.output_pushes = 2;
            plan.config.send_messages = 3;
        })
        .await;
        let mut device = Device::online(&mut world, 1).await;
        device.drive(tokio::time::sleep(SILENCE)).await;
        for number in 1..=3 {
            world.frame(push(device.session, number, "ring"));
        }
        let dropped = pushed(&mut world).await;
        assert_eq!(dropped, (3, PushStatus::Dropped, "queue_full".to_owned()));
        // Pongs have no bound of their own but the transport's.
        for _ in 0..2 {
            device.send("@ping").await;
        }
        for number in [1, 2] {
            let dropped = pushed(&mut world).await;
            assert_eq!(dropped, (number, PushStatus::Dropped, "closed".to_owned()));
        }
        assert_eq!(logout(&mut world).await, "slow_consumer");
    });
}

#[test]
fn a_device_that_is_gone_is_given_up() {
    run(async {
        let mut world = World::with(|plan| plan.config.give_up = Duration::from_millis(400)).await;
        let mut device = Device::online(&mut world, 1).await;
        device.drive(tokio::time::sleep(SILENCE)).await;
        world.frame(push(device.session, 1, "ring"));
        let dropped = pushed(&mut world).await;
        assert_eq!(dropped, (1, PushStatus::Dropped, "closed".to_owned()));
        assert_eq!(logout(&mut world).await, "connection_lost");
        world
            .until("it is forgotten", |w| w.metrics.connections.get() == 0)
            .await;
    });
}

#[test]
fn what_all_hold_is_bounded() {
    run(async {
        let mut world = World::with(|plan| plan.max_held_bytes = 20_000).await;
        let mut device = Device::online(&mut world, 1).await;
        let payload = Bytes::from(vec![b'x'; 60_000]);
        let now = std::time::Instant::now();
        let config = holdfast_proto::udp::Config::default();
        device
            .connection
            .send(&config, now, MessageKind::Text, payload)
            .unwrap();
        device.transmit().await;
        let reason = device.drive(logout(&mut world)).await;
        assert_eq!(reason, "try_again_later");
    });
}

#[test]
fn a_message_that_is_too_long_ends_the_session() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        device.send(&"x".repeat(200_001)).await;
        assert_eq!(device.drive(logout(&mut world)).await, "protocol_error");
    });
}

#[test]
fn text_that_is_none_breaks_the_protocol() {
    run(async {
        let mut world = World::start().await;
        let mut device = Device::online(&mut world, 1).await;
        let config = holdfast_proto::udp::Config::default();
        let payload = Bytes::from_static(b"\xff");
        let now = std::time::Instant::now();
        device
            .connection
            .send(&config, now, MessageKind::Text, payload)
            .unwrap();
        assert_eq!(device.drive(logout(&mut world)).await, "invalid_payload");
    });
}
