//! The pure part of the frontend's end of the link. See the parent module.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod attach;
mod logins;
mod query;
mod shards;
mod usage;

pub use logins::MAX_ENDED;
pub use usage::{HubUsage, PeerUsage};

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::{Frame, Header};
use holdfast_proto::link::{Command, Gone, Incoming, LaneConfig, decode_batch};
use holdfast_proto::{FrontendEpoch, FrontendId, ShardId};
use rustc_hash::FxHashMap;

use super::index::DeviceIndex;
use super::metrics::LinkMetrics;
use super::peer::{Peer, Stage};
use super::status::{HandOver, HandOvers, PeerStatus};
use crate::exchange::{PeerId, ToShard};

/// What the hub is told at start.
#[derive(Debug, Clone)]
pub struct HubConfig {
    pub frontend: FrontendId,
    pub epoch: FrontendEpoch,
    /// This process's boot uuid.
    pub boot: u128,
    pub shards: u8,
    pub lane: LaneConfig,
    /// Backends attached at a time.
    pub max_backends: usize,
    /// How often backends hear how many sessions are online.
    pub ping_interval: Duration,
    /// Told to backends, which tell devices.
    pub heartbeat: Duration,
    pub max_message_bytes: u32,
    pub window_requests: u32,
}

/// See the parent module. Owners feed it with `handle_*` and then poll until everything is out.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    metrics: LinkMetrics,
    peers: Vec<Peer>,
    by_identity: FxHashMap<Bytes, PeerId>,
    /// Highest attach counter by boot uuid: an older Hello that comes late is not an attachment.
    boots: VecDeque<(u128, u32)>,
    next_peer: u32,
    next_attach: u32,
    index: DeviceIndex,
    /// Sessions that ended while requests waited for credit; theirs are dropped together.
    ended: rustc_hash::FxHashSet<holdfast_proto::SessionId>,
    /// Logins that backends have not answered.
    logins: FxHashMap<holdfast_proto::SessionId, logins::Login>,
    hand_overs: HandOvers,
    to_shards: VecDeque<(ShardId, ToShard)>,
    /// Batches outside any lane.
    notices: VecDeque<(Bytes, Bytes)>,
    /// Which peer the next batch is taken from.
    turn: usize,
    /// Scratch for received frames.
    incoming: Vec<Incoming>,
    /// The last input's time.
    now: Instant,
    due: Instant,
    next_ping: Instant,
    last_notice: Option<Instant>,
    stopped_shards: usize,
    /// Something that [`Hub::status`] shows has changed.
    changed: bool,
}

/// Boots remembered.
const MAX_BOOTS: usize = 256;
/// Notices that wait to go out; more strangers than that are left to find out by themselves.
const MAX_NOTICES: usize = 64;

impl Hub {
    pub fn new(config: HubConfig, metrics: LinkMetrics, now: Instant) -> Self {
        let next_ping = now + config.ping_interval;
        Self {
            metrics,
            peers: Vec::new(),
            by_identity: FxHashMap::default(),
            boots: VecDeque::new(),
            next_peer: 0,
            next_attach: 0,
            index: DeviceIndex::default(),
            ended: Default::default(),
            logins: FxHashMap::default(),
            hand_overs: HandOvers::default(),
            to_shards: VecDeque::new(),
            notices: VecDeque::new(),
            turn: 0,
            incoming: Vec::new(),
            now,
            due: next_ping,
            next_ping,
            last_notice: None,
            stopped_shards: 0,
            changed: true,
            config,
        }
    }

    /// A message from the socket: who sent it, and its one frame.
    pub fn handle_batch(&mut self, now: Instant, identity: &Bytes, batch: Bytes) {
        self.now = now;
        let Ok((header, frames)) = decode_batch(batch) else {
            self.metrics.malformed.inc();
            if let Some(id) = self.by_identity.get(identity).copied() {
                self.fence(id, "malformed");
            }
            return;
        };
        self.metrics.batches_in.inc();
        match self.by_identity.get(identity).copied() {
            Some(id) => self.handle_lane(now, id, (header, frames)),
            None => self.handle_stranger(now, identity, header, frames),
        }
    }

    fn handle_lane(&mut self, now: Instant, id: PeerId, batch: (Header, Vec<(Frame, u32)>)) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        let mut incoming = std::mem::take(&mut self.incoming);
        let taken = peer.lane.handle_batch(now, batch, &mut incoming);
        self.metrics.frames_in.inc_by(incoming.len() as u64);
        match taken {
            Ok(()) => {
                for frame in incoming.drain(..) {
                    // A frame may have ended the attachment: what follows it is dropped.
                    if !self.peers.iter().any(|p| p.id == id && p.stage != Stage::Done) {
                        break;
                    }
                    self.handle_frame(id, frame);
                }
            }
            Err(error) if error.is_fatal() => {
                self.metrics.malformed.inc();
                self.fence(id, "protocol");
            }
            Err(_) => {
                self.metrics.stale_epoch.inc();
            }
        }
        incoming.clear();
        self.incoming = incoming;
    }

    /// One frame of an attached backend: about the link, answered here, or for a shard.
    fn handle_frame(&mut self, id: PeerId, incoming: Incoming) {
        match &incoming.command {
            // It was read when the attachment was made.
            Command::Hello(_) => {}
            Command::Ready(ready) => self.on_ready(id, (*ready).into()),
            Command::Draining(_) => self.on_draining(id),
            Command::Done(_) => self.on_done(id),
            Command::Query(_) | Command::Sync(_) | Command::Push(_) | Command::Close(_) => {
                self.handle_addressed(id, incoming);
            }
            Command::Join(_) | Command::Leave(_) => {
                self.metrics.unsupported.inc();
                self.release(id, incoming.charge);
            }
            command => match session_of(command) {
                Some(Ok(session)) if session.parts().frontend == self.config.frontend => {
                    let superseded = match command {
                        Command::LoggedIn(answer) => self.on_login_answer(id, answer),
                        Command::Reply(reply) => {
                            self.count_reply(id, reply.r#final);
                            None
                        }
                        _ => None,
                    };
                    self.tell_shard_of(session, ToShard::Frame { peer: id, incoming });
                    if let Some(session) = superseded {
                        self.close(session, holdfast_proto::CloseCode::Replaced);
                    }
                }
                _ => {
                    self.metrics.malformed.inc();
                    self.release(id, incoming.charge);
                }
            },
        }
    }

    fn count_reply(&self, id: PeerId, last: bool) {
        if let Some(peer) = self.peers.iter().find(|p| p.id == id && last) {
            peer.work.on_reply();
        }
    }

    fn release(&mut self, id: PeerId, charge: Option<(holdfast_proto::link::Class, u32)>) {
        if let (Some(charge), Some(peer)) = (charge, self.peers.iter_mut().find(|p| p.id == id)) {
            peer.lane.release(charge);
        }
    }

    fn tell_shard_of(&mut self, session: holdfast_proto::SessionId, message: ToShard) {
        let shard = session.parts().shard;
        if shard.0 < self.config.shards {
            self.to_shards.push_back((shard, message));
        } else {
            self.metrics.malformed.inc();
            if let ToShard::Frame { peer, incoming } = message {
                self.release(peer, incoming.charge);
            }
        }
    }

    fn tell_all_shards(&mut self, mut message: impl FnMut(usize) -> ToShard) {
        for shard in 0..self.config.shards {
            self.to_shards
                .push_back((ShardId(shard), message(usize::from(shard))));
        }
    }

    /// The socket of this identity is gone, as far as ZeroMQ tells.
    pub fn handle_disconnected(&mut self, now: Instant, identity: &Bytes) {
        self.now = now;
        if let Some(id) = self.by_identity.get(identity).copied() {
            self.lose(id, "disconnected");
        }
    }

    /// What a shard is to be told next.
    pub fn poll_shard(&mut self) -> Option<(ShardId, ToShard)> {
        self.to_shards.pop_front()
    }

    /// The next batch to send, and to whom. Call until `None`; what the turn received must have been handled.
    pub fn poll_batch(&mut self, now: Instant) -> Option<(Bytes, Bytes)> {
        if let Some(notice) = self.notices.pop_front() {
            return Some(notice);
        }
        self.take_batch(now).or_else(|| {
            if self.mark_all_drained() {
                self.take_batch(now)
            } else {
                None
            }
        })
    }

    fn take_batch(&mut self, now: Instant) -> Option<(Bytes, Bytes)> {
        for offset in 0..self.peers.len() {
            let index = (self.turn + offset) % self.peers.len();
            let peer = &mut self.peers[index];
            let (lane, outgoing) = (&mut peer.lane, &mut peer.outgoing);
            if let Some(batch) = lane.poll_batch(now, 0, |class, origin| outgoing.on_sent(class, origin)) {
                self.turn = index + 1;
                let identity = peer.identity.clone();
                self.count(index);
                return Some((identity, batch));
            }
        }
        None
    }

    /// The next batch of the header alone, once the turn's frames are out.
    pub fn poll_header(&mut self, now: Instant) -> Option<(Bytes, Bytes)> {
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            if let Some(batch) = peer.lane.poll_header(now, 0) {
                let identity = peer.identity.clone();
                self.count(index);
                return Some((identity, batch));
            }
        }
        None
    }

    fn count(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let (stats, counted) = (peer.lane.stats(), peer.counted);
        peer.counted = stats;
        self.metrics
            .batches_out
            .inc_by(stats.batches_sent - counted.batches_sent);
        self.metrics
            .frames_out
            .inc_by(stats.frames_sent - counted.frames_sent);
        self.metrics
            .credit_stalls
            .inc_by(stats.credit_stalls - counted.credit_stalls);
    }

    /// When to call [`Hub::handle_timeout`] at the latest.
    pub fn poll_timeout(&mut self) -> Instant {
        let lanes = self.peers.iter().map(|p| p.lane.poll_timeout()).min();
        self.due = lanes.map_or(self.next_ping, |at| at.min(self.next_ping));
        self.due
    }

    /// Judges the backends. Everything that the socket holds must have been handled before.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if now > self.due + self.config.lane.timeout / 2 {
            // We were paused: what others sent meanwhile is still on its way to us.
            self.metrics.paused.inc();
            for peer in &mut self.peers {
                peer.lane.restart_clocks(now);
                peer.moved.1 = now;
            }
        }
        let limit = self.config.lane.progress_timeout;
        let verdicts = self.peers.iter_mut().filter_map(|p| {
            let clogged = limit.is_some_and(|limit| p.is_clogged(now, limit));
            let gone = p.lane.check(now).or(clogged.then_some(Gone::Stuck))?;
            Some((p.id, p.stage, gone))
        });
        for (id, stage, gone) in verdicts.collect::<Vec<_>>() {
            match (stage, gone) {
                (Stage::Done, _) => self.forget(id),
                (_, Gone::Silent) => self.fence(id, "silent"),
                (_, Gone::Stuck) => self.fence(id, "stuck"),
            }
        }
        if now >= self.next_ping {
            self.next_ping = now + self.config.ping_interval;
            self.ping_all();
        }
        self.due = now + self.config.lane.heartbeat;
    }

    /// The attached backends, for people.
    pub fn status(&self) -> Vec<PeerStatus> {
        self.peers.iter().map(Peer::status).collect()
    }

    /// The last ends of attachments, newest first.
    pub fn hand_overs(&self) -> Vec<HandOver> {
        self.hand_overs.list()
    }

    /// Whether [`Hub::status`] or [`Hub::hand_overs`] have changed since the last call, but for the counts of work.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub fn sessions(&self) -> usize {
        self.index.len()
    }

    /// The frontend stops: shards close their sessions.
    pub fn handle_stop(&mut self) {
        self.tell_all_shards(|_| ToShard::Stop);
    }

    /// Whether every shard has stopped: each LOGOUT was acknowledged.
    pub fn is_stopped(&self) -> bool {
        self.stopped_shards >= usize::from(self.config.shards)
    }

    /// Whether no backend is there to take a LOGOUT.
    pub fn is_alone(&self) -> bool {
        self.peers.is_empty()
    }
}

/// The session that a frame is about.
fn session_of(command: &Command) -> Option<Result<holdfast_proto::SessionId, holdfast_proto::IdError>> {
    let id = match command {
        Command::Bound(f) => f.id,
        Command::LoggedIn(f) => f.id,
        Command::LoggedOut(f) => f.id,
        Command::Updated(f) => f.id,
        Command::ControlReply(f) => f.id,
        Command::Reply(f) => f.id,
        _ => return None,
    };
    Some(holdfast_proto::link::session_id(id))
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
