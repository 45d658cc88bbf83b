//! Frames for shards, and those that the hub answers.

use bytes::Bytes;
use holdfast_proto::link::frames::{self, PushStatus, push::Target};
use holdfast_proto::link::{Class, Command};
use holdfast_proto::{FrontendId, SessionId};

use super::harness::*;
use crate::exchange::{BroadcastCounts, ToHub, ToShard};

fn push_results(b: &mut Backend) -> Vec<(u64, PushStatus, u64, u64)> {
    let read = |command| match command {
        Command::PushResult(r) => Some((r.number, r.status(), r.written, r.dropped)),
        _ => None,
    };
    b.got().into_iter().filter_map(read).collect()
}

fn query(number: u64, device: &str) -> Command {
    Command::Query(frames::Query {
        number,
        device: Bytes::copy_from_slice(device.as_bytes()),
    })
}

fn answers(b: &mut Backend) -> Vec<frames::QueryResult> {
    let read = |command| match command {
        Command::QueryResult(r) => Some(r),
        _ => None,
    };
    b.got().into_iter().filter_map(read).collect()
}

#[test]
fn a_frame_reaches_its_shard_and_its_credit_comes_back_once() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    for n in 0..10 {
        b.send(reply(session(n % 2, 7)));
    }
    w.carry(&mut [&mut b]);
    assert_eq!(
        b.queued(Class::Replies),
        6,
        "four are all that may be outstanding"
    );
    let mut shards = Vec::new();
    for _ in 0..3 {
        shards.extend(w.frames().into_iter().map(|(shard, _)| shard));
        w.carry(&mut [&mut b]);
    }
    assert_eq!(shards, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
    assert_eq!(w.hub.usage().peers.len(), 1);
}

#[test]
fn frames_that_are_for_nobody_here_give_their_credit_back() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    let mut parts = session(0, 1).parts();
    parts.frontend = FrontendId(2);
    let foreign = SessionId::mint(parts).unwrap();
    for _ in 0..5 {
        b.send(reply(foreign));
        b.send(reply(session(200, 1)));
        b.send(Command::Reply(frames::Reply::default()));
        b.send(Command::Join(frames::Join::default()));
        b.send(Command::Bind(frames::Bind::default()));
    }
    w.carry(&mut [&mut b]);
    assert!(w.told().is_empty() && b.lane.is_flushed());
    assert_eq!((w.metrics.malformed.get(), w.metrics.unsupported.get()), (20, 5));
    b.send(reply(session_of_life(8, 0, 1)));
    w.carry(&mut [&mut b]);
    assert_eq!(
        w.frames().len(),
        1,
        "another life's session is the shard's to refuse"
    );
}

#[test]
fn who_was_admitted_last_is_found_and_the_other_one_closed() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    let (old, new, older) = (session(0, 1), session(1, 1), session(0, 2));
    w.login((&mut b, peer), "d", (old, 10));
    assert!(w.closes().is_empty());
    w.login((&mut b, peer), "d", (new, 20));
    assert_eq!(w.closes(), [(0, old, 4000)]);
    // It was admitted before the one that is online, but its `@hello` was held back: the last login, and not the newest session.
    w.late_login((&mut b, peer), "d", (older, 30), 1);
    let told = w.told();
    assert!(
        matches!(told[0].1, ToShard::Frame { .. }),
        "it hears of its login before it is closed"
    );
    assert!(matches!(told[1].1, ToShard::Close { session, .. } if session == older));
    let device: holdfast_proto::DeviceId = "d".parse().unwrap();
    w.shard_says(
        0,
        ToHub::Offline {
            device: device.clone(),
            session: old,
        },
    );
    b.send(query(3, "d"));
    b.send(query(4, "nobody"));
    b.send(query(5, "not a device"));
    w.carry(&mut [&mut b]);
    let found: Vec<_> = answers(&mut b)
        .into_iter()
        .map(|a| (a.number, a.sessions.len()))
        .collect();
    assert_eq!(found, [(3, 1), (4, 0), (5, 0)]);
    w.shard_says(1, ToHub::Offline { device, session: new });
    assert_eq!(w.hub.sessions(), 0);
}

#[test]
fn a_session_that_ends_before_its_login_is_answered_leaves_nothing() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    let id = session(0, 1);
    let login = |id: SessionId| {
        Command::Login(frames::Login {
            session: Some(frames::Session {
                id: Some(id.into()),
                device: Bytes::from_static(b"d"),
                ..Default::default()
            }),
            channel: frames::Channel::Wss as i32,
            address: "192.0.2.1:9".into(),
            ..Default::default()
        })
    };
    let welcomed = Command::LoggedIn(frames::LoggedIn {
        id: Some(id.into()),
        result: Some(frames::logged_in::Result::Welcomed(frames::Welcomed::default())),
    });
    w.work(0, peer, 1, login(id));
    w.shard_says(
        0,
        ToHub::Offline {
            device: "d".parse().unwrap(),
            session: id,
        },
    );
    b.send(welcomed.clone());
    w.carry(&mut [&mut b]);
    assert_eq!((w.hub.sessions(), w.frames().len()), (0, 1));
    // The same when the answer came first: what the shard says last holds.
    w.work(0, peer, 2, login(id));
    b.send(welcomed.clone());
    w.carry(&mut [&mut b]);
    assert_eq!(w.hub.sessions(), 1);
    w.shard_says(
        0,
        ToHub::Offline {
            device: "d".parse().unwrap(),
            session: id,
        },
    );
    assert_eq!(w.hub.sessions(), 0);
    // Only the backend that was asked makes an entry.
    w.work(0, peer, 3, login(id));
    let (mut other, _) = w.active(6);
    other.send(welcomed);
    w.carry(&mut [&mut other, &mut b]);
    assert_eq!(w.hub.sessions(), 0);
}

#[test]
fn closes_spare_the_exception_and_the_newer() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    let id = session(1, 4);
    w.login((&mut b, peer), "d", (id, 50));
    w.told();
    let close = |number, before_ms, except: Option<SessionId>, code| {
        Command::Close(frames::Close {
            number,
            target: Some(frames::close::Target::Device(Bytes::from_static(b"d"))),
            before_ms,
            except: except.map(Into::into),
            code,
        })
    };
    b.send(close(1, 50, None, 4001));
    b.send(close(2, 0, Some(id), 4001));
    w.carry(&mut [&mut b]);
    assert!(w.closes().is_empty());
    b.send(close(3, 51, Some(session(0, 1)), 4000));
    b.send(close(0, 0, None, 77));
    w.carry(&mut [&mut b]);
    assert_eq!(
        w.closes(),
        [(1, id, 4000), (1, id, 4001)],
        "an unknown code is an operator's"
    );
    let closed: Vec<_> = answers(&mut b)
        .into_iter()
        .map(|a| (a.number, a.closed))
        .collect();
    assert_eq!(closed, [(1, 0), (2, 0), (3, 1)], "number 0 wants no answer");
    for target in [session_of_life(8, 0, 1), session(200, 1)] {
        let target = Some(frames::close::Target::Session(target.into()));
        b.send(Command::Close(frames::Close {
            number: 4,
            target,
            ..Default::default()
        }));
    }
    b.send(Command::Close(frames::Close {
        number: 4,
        ..Default::default()
    }));
    w.carry(&mut [&mut b]);
    assert!(answers(&mut b).iter().all(|a| a.closed == 0));
    assert!(w.closes().is_empty());
}

#[test]
fn a_sync_goes_page_by_page() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    for n in 0..300 {
        w.login((&mut b, peer), &format!("d{n}"), (session(0, n), 1));
        w.frames();
    }
    let (mut cursor, mut seen) = (0, 0);
    loop {
        b.send(Command::Sync(frames::Sync { cursor }));
        w.carry(&mut [&mut b]);
        let got = b.got();
        let [Command::SyncPage(page)] = got.as_slice() else {
            panic!("{got:?}")
        };
        seen += page.sessions.len();
        cursor = page.next_cursor;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(seen, 300);
}

#[test]
fn a_push_finds_its_device_or_says_that_it_is_offline() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    let id = session(1, 4);
    w.login((&mut b, peer), "d", (id, 50));
    w.frames();
    b.send(push(1, Target::Device(Bytes::from_static(b"d"))));
    w.carry(&mut [&mut b]);
    let frames = w.frames();
    assert!(matches!(&frames[..], [(1, Command::Push(p))] if p.target == Some(Target::Session(id.into()))));
    b.send(push(2, Target::Device(Bytes::from_static(b"e"))));
    b.send(push(3, Target::Session(session_of_life(8, 0, 1).into())));
    b.send(push(4, Target::Session(session(200, 1).into())));
    b.send(push(5, Target::All(false)));
    w.carry(&mut [&mut b]);
    b.send(push(6, Target::Session(frames::SessionId::default())));
    w.carry(&mut [&mut b]);
    let offline: Vec<_> = push_results(&mut b).into_iter().map(|r| (r.0, r.1)).collect();
    assert_eq!(offline, [2, 3, 4, 5, 6].map(|n| (n, PushStatus::Offline)));
    assert!(b.lane.is_flushed() && w.told().is_empty());
}

#[test]
fn a_push_to_all_is_one_frame_per_shard_and_one_result() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    for number in 1..=18 {
        b.send(push(number, Target::All(true)));
    }
    w.carry(&mut [&mut b]);
    assert!(b.lane.is_flushed(), "the credit comes back at once");
    let frames: Vec<_> = w.told();
    let uncharged = |m: &ToShard| matches!(m, ToShard::Frame { incoming, .. } if incoming.charge.is_none());
    assert_eq!(frames.len(), 32);
    assert!(frames.iter().all(|(_, m)| uncharged(m)));
    assert_eq!(
        push_results(&mut b),
        [17, 18].map(|n| (n, PushStatus::Dropped, 0, 0))
    );
    let done = |written, dropped| ToHub::BroadcastDone {
        peer,
        number: 4,
        counts: BroadcastCounts {
            written,
            dropped,
            unconfirmed: 0,
        },
    };
    w.shard_says(0, done(3, 1));
    w.carry(&mut [&mut b]);
    assert!(push_results(&mut b).is_empty());
    w.shard_says(1, done(5, 0));
    w.shard_says(1, done(5, 0));
    w.carry(&mut [&mut b]);
    assert_eq!(push_results(&mut b), [(4, PushStatus::Unspecified, 8, 1)]);
    b.send(push(19, Target::All(true)));
    w.carry(&mut [&mut b]);
    assert_eq!(w.told().len(), 2);
}

#[test]
fn a_backend_that_does_not_take_its_answers_is_fenced() {
    let mut w = World::new();
    let (mut b, _) = w.active(5);
    b.releases = false;
    let mut sent = 0u32;
    while w.gone().is_empty() {
        for _ in 0..1000 {
            b.send(query(1, "nobody"));
        }
        w.carry(&mut [&mut b]);
        sent += 1000;
        assert!(sent < 200_000, "its answers wait without a bound");
    }
    assert!(b.notices().iter().any(|n| matches!(n, Command::Fenced(_))));

    let (mut b, _) = w.active(6);
    for _ in 0..100 {
        for _ in 0..1000 {
            b.send(query(1, "nobody"));
        }
        w.carry(&mut [&mut b]);
        assert_eq!(b.got().len(), 1000);
    }
    assert!(w.gone().is_empty(), "one that takes them may ask for ever");
}

#[test]
fn backends_hear_how_many_are_online() {
    let mut w = World::new();
    let (mut b, peer) = w.active(5);
    w.login((&mut b, peer), "d", (session(0, 1), 1));
    w.hub.ping_all();
    w.carry(&mut [&mut b]);
    assert!(matches!(b.got().as_slice(), [Command::Ping(p)] if p.online == 1));
}
