//! A shard with hands: what channels and the hub would do, in single steps.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::{self, bound, logged_in};
use holdfast_proto::link::{Class, Command, Incoming};
use holdfast_proto::{ChannelKind, CloseCode, MessageKind, SessionId, Share};

use crate::exchange::{PeerId, SentTickets, Ticket, ToHub, ToShard};
use crate::session::{Output, SessionKey, Shard, ShardConfig, ShardMetrics, Stalled, WindowLimits};

pub(super) const A: PeerId = PeerId(1);
pub(super) const B: PeerId = PeerId(2);

pub(super) struct World {
    pub(super) shard: Shard,
    pub(super) metrics: ShardMetrics,
    pub(super) now: Instant,
    /// Everything for the hub but work and credits.
    told: Vec<ToHub>,
    work: Vec<(PeerId, Ticket, Command)>,
    releases: usize,
}

/// Small bounds, so that each can be reached.
pub(super) fn config() -> ShardConfig {
    ShardConfig {
        max_sessions: 10_000,
        max_waiting: 10_000,
        window: WindowLimits {
            requests: 4,
            bytes: 100,
            held_bytes: 100,
        },
        window_total_bytes: 300,
        output_bytes: 200,
        output_total_bytes: 500,
        output_pushes: 3,
        ..ShardConfig::default()
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut ShardConfig)) -> Self {
        Self::born(Instant::now(), change)
    }

    pub(super) fn born(now: Instant, change: impl FnOnce(&mut ShardConfig)) -> Self {
        let mut config = config();
        change(&mut config);
        let metrics = ShardMetrics::default();
        Self {
            shard: Shard::new(config, metrics.clone(), now),
            metrics,
            now,
            told: Vec::new(),
            work: Vec::new(),
            releases: 0,
        }
    }

    /// With one active backend.
    pub(super) fn attached() -> Self {
        let mut world = Self::new();
        world.active(A);
        world
    }

    fn step(&mut self) {
        for message in self.shard.take_to_hub(Vec::new()) {
            match message {
                ToHub::Work {
                    peer,
                    ticket,
                    command,
                } => self.work.push((peer, ticket, command)),
                ToHub::Release { .. } => self.releases += 1,
                other => self.told.push(other),
            }
        }
        self.shard.assert_consistent();
    }

    // ---- the channel

    pub(super) fn accept(&mut self) -> SessionKey {
        self.try_accept().unwrap()
    }

    pub(super) fn try_accept(&mut self) -> Option<SessionKey> {
        self.try_accept_on(ChannelKind::Wss)
    }

    pub(super) fn try_accept_on(&mut self, kind: ChannelKind) -> Option<SessionKey> {
        let key = self
            .shard
            .accept(self.now, kind, "192.0.2.7:4000".parse().unwrap());
        self.step();
        key
    }

    /// From now on its channel is of this kind.
    pub(super) fn set_kind(&mut self, key: SessionKey, kind: ChannelKind) {
        self.shard.get(key).unwrap().kind = kind;
    }

    pub(super) fn upgrade(&mut self, key: SessionKey) {
        self.shard
            .handle_upgrade(self.now, key, Bytes::from_static(b"credential"));
        self.step();
    }

    pub(super) fn text(&mut self, key: SessionKey, text: &str) -> Result<(), Stalled> {
        self.message(key, MessageKind::Text, text)
    }

    pub(super) fn message(&mut self, key: SessionKey, kind: MessageKind, text: &str) -> Result<(), Stalled> {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let taken = self.shard.handle_message(self.now, key, kind, payload);
        self.step();
        taken
    }

    pub(super) fn alive(&mut self, key: SessionKey) {
        self.shard.handle_alive(self.now, key);
        self.step();
    }

    pub(super) fn written(&mut self, key: SessionKey, messages: usize) {
        self.shard.handle_written(self.now, key, messages);
        self.step();
    }

    pub(super) fn closed(&mut self, key: SessionKey) {
        self.shard.handle_closed(self.now, key, true);
        self.step();
    }

    pub(super) fn lost(&mut self, key: SessionKey) {
        self.shard.handle_closed(self.now, key, false);
        self.step();
    }

    /// Its channel failed, and the session is closed for that.
    pub(super) fn fail(&mut self, key: SessionKey, code: CloseCode, what: &'static str) {
        self.shard.close_as(self.now, key, code, what);
        self.step();
    }

    /// Its channel failed, and nothing can be said on it.
    pub(super) fn broken(&mut self, key: SessionKey, what: &'static str) {
        self.shard.handle_broken(self.now, key, what);
        self.step();
    }

    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.shard.poll_output()).collect()
    }

    /// The texts handed to `key`'s channel; nothing else may be.
    pub(super) fn texts(&mut self, key: SessionKey) -> Vec<String> {
        let text = |output| match output {
            Output::Send { key: to, payload, .. } if to == key => {
                String::from_utf8(payload.to_vec()).unwrap()
            }
            other => panic!("{other:?}"),
        };
        self.outputs().into_iter().map(text).collect()
    }

    /// The close code of the one output there is.
    pub(super) fn close_code(&mut self, key: SessionKey) -> CloseCode {
        match self.outputs().as_slice() {
            [
                Output::Close {
                    key: closed, code, ..
                },
            ] if *closed == key => *code,
            other => panic!("{other:?}"),
        }
    }

    // ---- the hub

    pub(super) fn hub(&mut self, message: ToShard) {
        self.shard.handle_hub(self.now, message);
        self.step();
    }

    pub(super) fn active(&mut self, peer: PeerId) {
        self.member(peer, Share::FULL);
    }

    pub(super) fn member(&mut self, peer: PeerId, share: Share) {
        let seed = u64::from(peer.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hub(ToShard::PeerActive { peer, seed, share });
    }

    pub(super) fn share(&mut self, peer: PeerId, share: Share) {
        self.hub(ToShard::PeerShare { peer, share });
        assert!(matches!(self.told().as_slice(), [ToHub::ShareTaken { peer: p }] if *p == peer));
    }

    pub(super) fn draining(&mut self, peer: PeerId) {
        self.hub(ToShard::PeerDraining { peer });
        assert!(matches!(self.told().as_slice(), [ToHub::Drained { peer: p }] if *p == peer));
    }

    /// Crashed; its frames up to these tickets had gone out.
    pub(super) fn crashed(&mut self, peer: PeerId, requests: u64, lifecycle: u64) {
        let sent = SentTickets {
            requests: Ticket(requests),
            lifecycle: Ticket(lifecycle),
        };
        self.hub(ToShard::PeerGone {
            peer,
            sent,
            graceful: false,
        });
    }

    pub(super) fn left(&mut self, peer: PeerId) {
        let sent = SentTickets {
            requests: Ticket(u64::MAX),
            lifecycle: Ticket(u64::MAX),
        };
        self.hub(ToShard::PeerGone {
            peer,
            sent,
            graceful: true,
        });
    }

    /// A frame of a backend. Its credit comes back exactly once, whatever it is.
    pub(super) fn frame(&mut self, peer: PeerId, command: Command) {
        let charge = Class::of(&command).map(|class| (class, 1));
        let due = self.releases + usize::from(charge.is_some());
        self.hub(ToShard::Frame {
            peer,
            incoming: Incoming { command, charge },
        });
        assert_eq!(self.releases, due, "a credit is returned once");
    }

    pub(super) fn work(&mut self) -> Vec<(PeerId, Ticket, Command)> {
        std::mem::take(&mut self.work)
    }

    /// The one frame that there is for a backend.
    pub(super) fn one(&mut self, peer: PeerId) -> Command {
        let mut work = self.work();
        assert_eq!(work.len(), 1, "{work:?}");
        let (to, _, command) = work.remove(0);
        assert_eq!(to, peer);
        command
    }

    /// Requests for backends: whose, sequence, floor, attempt.
    pub(super) fn requests(&mut self) -> Vec<(PeerId, u64, u64, u32)> {
        let read = |(peer, _, command)| match command {
            Command::TextMessage(r) | Command::BinaryMessage(r) => (peer, r.sequence, r.floor, r.attempt),
            other => panic!("{other:?}"),
        };
        self.work().into_iter().map(read).collect()
    }

    pub(super) fn told(&mut self) -> Vec<ToHub> {
        std::mem::take(&mut self.told)
    }

    // ---- time

    /// Passes time, calling whenever the shard asked to be called.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.shard.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.shard.handle_timeout(self.now);
            self.step();
        }
        self.now = end;
        self.shard.handle_timeout(end);
        self.step();
    }

    // ---- whole passages

    pub(super) fn id(&self, key: SessionKey) -> SessionId {
        self.shard.session_id(key).unwrap()
    }

    /// Up to `@hello` said and LOGIN out, with backend `A`.
    pub(super) fn greeted(&mut self, device: &str) -> SessionKey {
        let key = self.accept();
        self.upgrade(key);
        let id = self.id(key);
        self.frame(A, admitted(id, device));
        self.text(key, "@hello {}").unwrap();
        assert_eq!(self.outputs(), [Output::Admit { key, challenge: None }]);
        let work = self.work();
        assert!(matches!(work.last().unwrap().2, Command::Login(_)));
        key
    }

    /// A whole login with backend `A`; nothing is under way afterwards.
    pub(super) fn online(&mut self, device: &str) -> SessionKey {
        let key = self.greeted(device);
        let id = self.id(key);
        self.frame(A, welcomed(id, "@welcome {}"));
        assert_eq!(self.texts(key), ["@welcome {}"]);
        self.written(key, 1);
        key
    }

    /// A request's final reply, and what it leads to.
    pub(super) fn reply(&mut self, peer: PeerId, key: SessionKey, sequence: u64, after: u64) {
        let id = self.id(key);
        self.frame(peer, reply(id, sequence, after, &format!("r{sequence}")));
    }
}

pub(super) fn admitted(id: SessionId, device: &str) -> Command {
    let admitted = frames::Admitted {
        device: Bytes::copy_from_slice(device.as_bytes()),
        principal: Bytes::from_static(b"principal"),
        challenge: None,
    };
    Command::Bound(frames::Bound {
        id: Some(id.into()),
        result: Some(bound::Result::Admitted(admitted)),
    })
}

pub(super) fn denied(id: SessionId, status: u32, code: &str) -> Command {
    let denied = frames::Denied {
        status,
        code: code.into(),
        ..Default::default()
    };
    Command::Bound(frames::Bound {
        id: Some(id.into()),
        result: Some(bound::Result::Denied(denied)),
    })
}

pub(super) fn welcomed(id: SessionId, welcome: &str) -> Command {
    let welcomed = frames::Welcomed {
        welcome: Bytes::copy_from_slice(welcome.as_bytes()),
        login_ms: 5,
        blob: None,
    };
    Command::LoggedIn(frames::LoggedIn {
        id: Some(id.into()),
        result: Some(logged_in::Result::Welcomed(welcomed)),
    })
}

pub(super) fn login_denied(id: SessionId, code: &str) -> Command {
    let denied = frames::LoginDenied {
        code: code.into(),
        reconnect: true,
        retry_after_ms: 70,
    };
    Command::LoggedIn(frames::LoggedIn {
        id: Some(id.into()),
        result: Some(logged_in::Result::Denied(denied)),
    })
}

pub(super) fn logged_out(id: SessionId) -> Command {
    Command::LoggedOut(frames::LoggedOut { id: Some(id.into()) })
}

pub(super) fn reply(id: SessionId, sequence: u64, after: u64, text: &str) -> Command {
    Command::Reply(frames::Reply {
        id: Some(id.into()),
        sequence,
        after,
        r#final: true,
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..Default::default()
    })
}

pub(super) fn push_to(id: SessionId, number: u64, text: &str) -> Command {
    Command::Push(frames::Push {
        number,
        target: Some(frames::push::Target::Session(id.into())),
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..Default::default()
    })
}

pub(super) fn push_to_all(number: u64) -> Command {
    Command::Push(frames::Push {
        number,
        target: Some(frames::push::Target::All(true)),
        payload: Bytes::from_static(b"all"),
        ..Default::default()
    })
}
