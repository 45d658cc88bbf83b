//! A hub, and backends at the other end of its lanes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::{self, logged_in};
use holdfast_proto::link::{
    Class, Command, Epoch, Grant, Grants, Incoming, Lane, LaneConfig, UNKNOWN_EPOCH, decode_batch,
    read_notice,
};
use holdfast_proto::{FrontendEpoch, FrontendId, Generation, SessionId, SessionParts, ShardId, Slot};

use crate::exchange::{PeerId, Ticket, ToHub, ToShard};
use crate::link::{Hub, HubConfig, LinkMetrics};

pub(super) const SHARDS: u8 = 2;

pub(super) struct World {
    pub(super) hub: Hub,
    pub(super) metrics: LinkMetrics,
    pub(super) now: Instant,
    told: Vec<(ShardId, ToShard)>,
}

/// A backend's end. It takes what comes and gives the credit back at once, unless told otherwise.
pub(super) struct Backend {
    pub(super) identity: Bytes,
    pub(super) lane: Lane,
    pub(super) progress: u64,
    pub(super) releases: bool,
    got: Vec<Command>,
    /// What came outside the lane.
    notices: Vec<Command>,
}

pub(super) fn lane_config(messages: u64) -> LaneConfig {
    let grant = Grant {
        messages,
        bytes: 1 << 20,
    };
    LaneConfig {
        progress_timeout: Some(Duration::from_secs(5)),
        grants: Grants([grant; 4]),
        ..LaneConfig::default()
    }
}

impl World {
    pub(super) fn new() -> Self {
        let config = HubConfig {
            frontend: FrontendId(1),
            epoch: FrontendEpoch(9),
            boot: 77,
            shards: SHARDS,
            lane: lane_config(4),
            max_backends: 3,
            ping_interval: Duration::from_secs(3600),
            heartbeat: Duration::from_secs(30),
            max_message_bytes: 1000,
            window_requests: 32,
        };
        let (metrics, now) = (LinkMetrics::default(), Instant::now());
        Self {
            hub: Hub::new(config, metrics.clone(), now),
            metrics,
            now,
            told: Vec::new(),
        }
    }

    /// Moves batches both ways until all is said.
    pub(super) fn carry(&mut self, backends: &mut [&mut Backend]) {
        loop {
            let mut moved = false;
            for backend in backends.iter_mut() {
                while let Some(batch) = backend.poll(self.now) {
                    self.hub.handle_batch(self.now, &backend.identity, batch);
                    moved = true;
                }
            }
            while let Some((to, batch)) = self
                .hub
                .poll_batch(self.now)
                .or_else(|| self.hub.poll_header(self.now))
            {
                moved = true;
                if let Some(backend) = backends.iter_mut().find(|b| b.identity == to) {
                    backend.handle(self.now, batch);
                }
            }
            self.told.extend(std::iter::from_fn(|| self.hub.poll_shard()));
            if !moved {
                return;
            }
        }
    }

    /// Passes time without a word from anyone, calling the hub when it wants to be called.
    pub(super) fn silence(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.hub.poll_timeout();
            if due > end {
                break;
            }
            self.now = self.now.max(due);
            self.hub.handle_timeout(self.now);
            while self.hub.poll_header(self.now).is_some() {}
        }
        self.now = end;
        self.told.extend(std::iter::from_fn(|| self.hub.poll_shard()));
    }

    /// The same with backends that heartbeat.
    pub(super) fn pass(&mut self, time: Duration, backends: &mut [&mut Backend]) {
        for _ in 0..time.as_millis() / 50 {
            self.silence(Duration::from_millis(50));
            self.carry(backends);
        }
    }

    /// A backend that said Hello.
    pub(super) fn attach(&mut self, boot: u128, attach: u32) -> Backend {
        let mut backend = Backend::new(self.now, boot, attach);
        self.carry(&mut [&mut backend]);
        backend
    }

    /// A backend that takes work, and its number.
    pub(super) fn active(&mut self, boot: u128) -> (Backend, PeerId) {
        let mut backend = self.attach(boot, 1);
        backend.send(Command::Ready(frames::Ready::default()));
        self.carry(&mut [&mut backend]);
        backend.got();
        let peer = self.told().into_iter().find_map(|(_, message)| match message {
            ToShard::PeerActive { peer, .. } => Some(peer),
            _ => None,
        });
        (backend, peer.unwrap())
    }

    pub(super) fn told(&mut self) -> Vec<(ShardId, ToShard)> {
        std::mem::take(&mut self.told)
    }

    /// What both shards were told of a backend that is gone: whether it was graceful, and tickets.
    pub(super) fn gone(&mut self) -> Vec<(u8, bool, u64, u64)> {
        let gone = |(shard, message): (ShardId, ToShard)| match message {
            ToShard::PeerGone { sent, graceful, .. } => {
                Some((shard.0, graceful, sent.requests.0, sent.lifecycle.0))
            }
            _ => None,
        };
        self.told().into_iter().filter_map(gone).collect()
    }

    /// Frames that shards were given: whose, which; their credit is given back.
    pub(super) fn frames(&mut self) -> Vec<(u8, Command)> {
        let told = self.told();
        let mut frames = Vec::new();
        for (shard, message) in told {
            let ToShard::Frame { peer, incoming } = message else {
                continue;
            };
            let Incoming { command, charge } = incoming;
            if let Some(charge) = charge {
                self.shard_says(shard.0, ToHub::Release { peer, charge });
            }
            frames.push((shard.0, command));
        }
        frames
    }

    pub(super) fn closes(&mut self) -> Vec<(u8, SessionId, u16)> {
        let close = |(shard, message): (ShardId, ToShard)| match message {
            ToShard::Close { session, code } => Some((shard.0, session, code as u16)),
            _ => None,
        };
        self.told().into_iter().filter_map(close).collect()
    }

    pub(super) fn shard_says(&mut self, shard: u8, message: ToHub) {
        self.hub.handle_shard(self.now, ShardId(shard), message);
        self.told.extend(std::iter::from_fn(|| self.hub.poll_shard()));
    }

    pub(super) fn work(&mut self, shard: u8, peer: PeerId, ticket: u64, command: Command) {
        let ticket = Ticket(ticket);
        self.shard_says(
            shard,
            ToHub::Work {
                peer,
                ticket,
                command,
            },
        );
    }

    /// A whole login of a device through the hub.
    pub(super) fn login(
        &mut self,
        (backend, peer): (&mut Backend, PeerId),
        device: &str,
        login: (SessionId, u64),
    ) {
        self.late_login((backend, peer), device, login, 0);
    }

    /// The same of one that was admitted some milliseconds before.
    pub(super) fn late_login(
        &mut self,
        (backend, peer): (&mut Backend, PeerId),
        device: &str,
        (id, login_ms): (SessionId, u64),
        admitted_ms_ago: u32,
    ) {
        let shard = id.parts().shard.0;
        let session = frames::Session {
            id: Some(id.into()),
            device: Bytes::copy_from_slice(device.as_bytes()),
            ..Default::default()
        };
        let command = Command::Login(frames::Login {
            session: Some(session),
            channel: frames::Channel::Wss as i32,
            address: "192.0.2.1:9".into(),
            admitted_ms_ago,
            ..Default::default()
        });
        self.work(shard, peer, 1, command);
        self.carry(&mut [&mut *backend]);
        let welcomed = frames::Welcomed {
            login_ms,
            ..Default::default()
        };
        backend.send(Command::LoggedIn(frames::LoggedIn {
            id: Some(id.into()),
            result: Some(logged_in::Result::Welcomed(welcomed)),
        }));
        self.carry(&mut [&mut *backend]);
        backend.got();
    }
}

impl Backend {
    pub(super) fn new(now: Instant, boot: u128, attach: u32) -> Self {
        let mut backend = Self::silent(now, boot, attach);
        backend.send(Command::Hello(frames::Hello {
            version_min: 1,
            version_max: 1,
            name: "b".into(),
            ..Default::default()
        }));
        backend
    }

    /// One that has not said Hello.
    pub(super) fn silent(now: Instant, boot: u128, attach: u32) -> Self {
        let epoch = Epoch { boot, attach };
        Self {
            identity: format!("b/{epoch}").into(),
            lane: Lane::new(lane_config(64), epoch, UNKNOWN_EPOCH, now),
            progress: 0,
            releases: true,
            got: Vec::new(),
            notices: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, command: Command) {
        self.lane.enqueue(command, None);
    }

    pub(super) fn poll(&mut self, now: Instant) -> Option<Bytes> {
        self.lane
            .poll_batch(now, self.progress, |_, _| {})
            .or_else(|| self.lane.poll_header(now, self.progress))
    }

    pub(super) fn handle(&mut self, now: Instant, batch: Bytes) {
        let (header, frames) = decode_batch(batch).unwrap();
        if let Some(notice) = read_notice(self.lane.local(), &header, &frames) {
            self.notices.push(notice);
            return;
        }
        if self.lane.remote() == UNKNOWN_EPOCH {
            self.lane.set_remote(header.from.unwrap().into());
        }
        let mut incoming = Vec::new();
        self.lane
            .handle_batch(now, (header, frames), &mut incoming)
            .unwrap();
        for Incoming { command, charge } in incoming {
            if let Some(charge) = charge.filter(|_| self.releases) {
                self.lane.release(charge);
            }
            self.got.push(command);
        }
    }

    pub(super) fn got(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.got)
    }

    pub(super) fn notices(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.notices)
    }

    pub(super) fn was_fenced(&mut self) -> bool {
        matches!(self.notices().as_slice(), [Command::Fenced(_)])
    }

    pub(super) fn queued(&self, class: Class) -> usize {
        self.lane.queued(class)
    }
}

pub(super) fn session(shard: u8, slot: u32) -> SessionId {
    session_of_life(9, shard, slot)
}

pub(super) fn session_of_life(epoch: u64, shard: u8, slot: u32) -> SessionId {
    SessionId::mint(SessionParts {
        frontend: FrontendId(1),
        epoch: FrontendEpoch(epoch),
        shard: ShardId(shard),
        slot: Slot(slot),
        generation: Generation(1),
    })
    .unwrap()
}

pub(super) fn request(shard: u8) -> Command {
    Command::TextMessage(frames::Request {
        session: Some(frames::Session {
            id: Some(session(shard, 1).into()),
            ..Default::default()
        }),
        ..Default::default()
    })
}

pub(super) fn reply(id: SessionId) -> Command {
    Command::Reply(frames::Reply {
        id: Some(id.into()),
        r#final: true,
        ..Default::default()
    })
}

pub(super) fn push(number: u64, target: frames::push::Target) -> Command {
    Command::Push(frames::Push {
        number,
        target: Some(target),
        ..Default::default()
    })
}
