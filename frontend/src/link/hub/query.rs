//! Frames that are answered from the device index, or that it addresses.

use bytes::Bytes;
use holdfast_proto::link::frames::{self, PushResult, PushStatus};
use holdfast_proto::link::{Command, Incoming};
use holdfast_proto::{CloseCode, DeviceId, SessionId, ShardId};

use super::Hub;
use crate::exchange::{PeerId, ToShard};
use crate::link::index::session_info;
use crate::link::peer::Broadcast;

/// Pushes to all of one backend that are under way; a further one is dropped and said so.
const MAX_BROADCASTS: usize = 16;

impl Hub {
    pub(super) fn handle_addressed(&mut self, id: PeerId, incoming: Incoming) {
        let Incoming { command, charge } = incoming;
        match command {
            Command::Push(push) => return self.on_push(id, push, charge),
            Command::Query(query) => {
                let sessions = self.find(&query.device).map(session_info).into_iter().collect();
                let result = frames::QueryResult {
                    number: query.number,
                    sessions,
                    closed: 0,
                };
                self.answer(id, Command::QueryResult(result));
            }
            Command::Sync(sync) => {
                let (sessions, next_cursor) = self.index.page(sync.cursor);
                self.answer(
                    id,
                    Command::SyncPage(frames::SyncPage {
                        sessions,
                        next_cursor,
                    }),
                );
            }
            Command::Close(close) => self.on_close(id, &close),
            _ => {
                self.metrics.malformed.inc();
            }
        }
        self.release(id, charge);
    }

    fn find(&self, device: &Bytes) -> Option<&crate::exchange::Presence> {
        self.index.get(&DeviceId::from_bytes(device.clone()).ok()?)
    }

    /// Whether this life of this frontend minted the session's uuid.
    fn is_of_this_life(&self, session: SessionId) -> bool {
        let parts = session.parts();
        parts.frontend == self.config.frontend
            && parts.epoch == self.config.epoch
            && parts.shard.0 < self.config.shards
    }

    fn on_push(
        &mut self,
        id: PeerId,
        mut push: frames::Push,
        charge: Option<(holdfast_proto::link::Class, u32)>,
    ) {
        use frames::push::Target;
        let session = match &push.target {
            Some(Target::All(true)) => return self.on_push_to_all(id, push, charge),
            Some(Target::Session(session)) => SessionId::try_from(*session).ok(),
            Some(Target::Device(device)) => self.find(device).map(|p| p.session),
            Some(Target::All(false)) | None => None,
        };
        let Some(session) = session.filter(|s| self.is_of_this_life(*s)) else {
            let status = PushStatus::Offline as i32;
            let result = PushResult {
                number: push.number,
                status,
                ..Default::default()
            };
            self.answer(id, Command::PushResult(result));
            return self.release(id, charge);
        };
        push.target = Some(Target::Session(session.into()));
        let incoming = Incoming {
            command: Command::Push(push),
            charge,
        };
        self.tell_shard_of(session, ToShard::Frame { peer: id, incoming });
    }

    fn on_push_to_all(
        &mut self,
        id: PeerId,
        push: frames::Push,
        charge: Option<(holdfast_proto::link::Class, u32)>,
    ) {
        let shards = self.config.shards;
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        if peer.broadcasts.len() >= MAX_BROADCASTS || peer.broadcasts.contains_key(&push.number) {
            let status = PushStatus::Dropped as i32;
            let dropped = self.index.len() as u64;
            let reason = "overloaded".into();
            let result = PushResult {
                number: push.number,
                status,
                dropped,
                reason,
                ..Default::default()
            };
            self.answer(id, Command::PushResult(result));
        } else {
            let broadcast = Broadcast {
                shards: usize::from(shards),
                ..Default::default()
            };
            peer.broadcasts.insert(push.number, broadcast);
            for shard in 0..shards {
                // The payload is shared; the credit is given back once, here.
                let incoming = Incoming {
                    command: Command::Push(push.clone()),
                    charge: None,
                };
                self.to_shards
                    .push_back((ShardId(shard), ToShard::Frame { peer: id, incoming }));
            }
        }
        self.release(id, charge);
    }

    fn on_close(&mut self, id: PeerId, close: &frames::Close) {
        use frames::close::Target;
        let code = u16::try_from(close.code)
            .ok()
            .and_then(CloseCode::from_u16)
            .unwrap_or(CloseCode::ClosedByOperator);
        let except = close.except.and_then(|e| SessionId::try_from(e).ok());
        let target = match &close.target {
            Some(Target::Session(session)) => SessionId::try_from(*session).ok(),
            Some(Target::Device(device)) => self
                .find(device)
                .filter(|p| {
                    Some(p.session) != except && (close.before_ms == 0 || p.since_ms < close.before_ms)
                })
                .map(|p| p.session),
            None => None,
        };
        let here = target.filter(|s| self.is_of_this_life(*s));
        if let Some(session) = here {
            self.close(session, code);
        }
        if close.number != 0 {
            let closed = u32::from(here.is_some());
            let result = frames::QueryResult {
                number: close.number,
                sessions: Vec::new(),
                closed,
            };
            self.answer(id, Command::QueryResult(result));
        }
    }

    /// Tells every backend how many sessions are online.
    pub(super) fn ping_all(&mut self) {
        let online = self.index.len() as u64;
        for peer in self.peers.iter_mut().filter(|p| p.takes_work()) {
            // One outstanding: a backend that does not take it needs no second.
            if peer.lane.queued(holdfast_proto::link::Class::Lifecycle) == 0 {
                peer.lane.enqueue(
                    Command::Ping(frames::Ping {
                        online,
                        sessions: Vec::new(),
                    }),
                    None,
                );
            }
        }
    }
}
