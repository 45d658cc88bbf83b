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
            let ended = pushed(&mut world).await;
            assert_eq!(ended, (number, PushStatus::Unconfirmed, String::new()));
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
        let ended = pushed(&mut world).await;
        assert_eq!(ended, (1, PushStatus::Unconfirmed, String::new()));
        assert_eq!(logout(&mut world).await, "connection_lost");
        world
            .until("it is forgotten", |w| w.metrics.connections.get() == 0)
            .await;
    });
}

/// Who sends most of a long message and leaves it there does not cost those who behave their connections.
#[test]
fn who_holds_most_unfinished_input_goes_and_nobody_else() {
    run(async {
        let mut world = World::with(|plan| plan.max_input_bytes = 8_000).await;
        let mut healthy = Device::online(&mut world, 1).await;
        let mut hog = Device::online(&mut world, 2).await;
        let payload = Bytes::from(vec![b'x'; 60_000]);
        let config = holdfast_proto::udp::Config::default();
        hog.connection.send(&config, MessageKind::Text, payload).unwrap();
        // As much as goes without an acknowledgement, and then nothing.
        hog.transmit().await;
        for n in 1..=3 {
            healthy.send(&format!("request {n}")).await;
            request(&mut world, &mut healthy).await;
            world.frame(push(healthy.session, n, "ring"));
            assert_eq!(healthy.text().await, "ring");
            assert_eq!(healthy.drive(pushed(&mut world)).await.1, PushStatus::Written);
        }
        let pings = async {
            loop {
                healthy.send("@ping").await;
                assert_eq!(healthy.text().await, "@pong");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            gone = logout(&mut world) => assert_eq!(gone, "try_again_later"),
            () = pings => {}
        }
        healthy.send("request 4").await;
        request(&mut world, &mut healthy).await;
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
        device
            .connection
            .send(&config, MessageKind::Text, payload)
            .unwrap();
        assert_eq!(device.drive(logout(&mut world)).await, "invalid_payload");
    });
}

/// The device was told that all of its requests arrived.
#[test]
fn what_a_device_said_before_its_close_is_taken_before_it() {
    run(async {
        let mut world = World::with(|plan| plan.session.window.requests = 1).await;
        let mut device = Device::online(&mut world, 1).await;
        for n in 1..=3 {
            device.send(&format!("request {n}")).await;
        }
        let now = std::time::Instant::now();
        device.connection.close(now, 1000, "bye");
        assert_eq!(device.event().await, Event::Ended(End::ClosedByUs));
        for n in 1..=3 {
            let asked = request(&mut world, &mut device).await;
            assert_eq!(asked.sequence, n);
            world.frame(reply(device.session, n, "nobody hears it"));
        }
        assert_eq!(logout(&mut world).await, "closed_by_device");
    });
}

/// A machine that was paused finds in the socket what devices said meanwhile.
#[test]
fn after_a_pause_devices_are_heard_before_they_are_judged() {
    run(async {
        let mut world = World::with(|plan| plan.config.give_up = Duration::from_millis(400)).await;
        let mut device = Device::online(&mut world, 1).await;
        device.drive(tokio::time::sleep(SILENCE)).await;
        world.frame(push(device.session, 7, "ring"));
        let stranger = Stranger::new(&world).await;
        let mut buffer = [0; 2048];
        let (n, from) = device.stranger.socket.recv_from(&mut buffer).await.unwrap();
        // From here on the shard has no turn: more than it takes at once, then what acknowledges.
        for _ in 0..200 {
            stranger.socket.try_send_to(b"noise", world.address).unwrap();
        }
        let now = std::time::Instant::now();
        let config = holdfast_proto::udp::Config::default();
        device
            .connection
            .handle_datagram(&config, now, from, &mut buffer[..n], 1);
        assert!(matches!(device.poll(), Some(Event::Message(_, text)) if text == "ring"));
        device.connection.ping();
        let mut out = Vec::new();
        device.connection.poll_transmit(&config, now, &mut out).unwrap();
        device.stranger.socket.try_send_to(&out, from).unwrap();
        let before = world.metrics.retransmitted.get();
        std::thread::sleep(Duration::from_millis(1_800));
        let result = pushed(&mut world).await;
        assert_eq!(result, (7, PushStatus::Written, String::new()));
        assert_eq!(world.metrics.retransmitted.get(), before, "no timer came first");
    });
}

/// Whoever forwards an old datagram to another address of ours does not make us write from there.
#[test]
fn only_the_newest_packet_says_where_a_device_writes_to() {
    run(async {
        let mut world = World::with(|plan| plan.any = true).await;
        let mut device = Device::online(&mut world, 1).await;
        device.drive(tokio::time::sleep(SILENCE)).await;
        let now = std::time::Instant::now();
        let config = holdfast_proto::udp::Config::default();
        device.connection.ping();
        let mut old = Vec::new();
        device.connection.poll_transmit(&config, now, &mut old).unwrap();
        device.send("@ping").await;
        assert_eq!(device.text().await, "@pong");
        device.drive(tokio::time::sleep(SILENCE)).await;
        let mut other = world.address;
        other.set_ip([127, 0, 0, 2].into());
        device.stranger.socket.send_to(&old, other).await.unwrap();
        tokio::time::sleep(SILENCE).await;
        world.frame(push(device.session, 7, "ring"));
        // It asserts where it comes from.
        device.stranger.receive().await;
    });
}
