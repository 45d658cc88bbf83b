//! Pushes: to one session, and to all that are online.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::link::frames::{self, PushResult, PushStatus};

use super::Shard;
use super::write::{Fate, own_copy};
use crate::exchange::{BroadcastCounts, PeerId, ToHub};
use crate::session::session::{SessionKey, Written};
use crate::session::state::State;

/// Pushes to all that one shard works on at a time; a further one is dropped and said so.
const MAX_BROADCASTS: usize = 16;
/// Sessions that one turn of a broadcast visits: what a turn may delay everything else.
const SESSIONS_PER_TURN: u32 = 256;
/// How long after the last visit a push to all waits for sockets to take it. Devices that do not read must not keep its
/// place from others: those that had not taken it by then are reported as unconfirmed.
const STRAGGLER_TIME: Duration = Duration::from_secs(1);

/// A push to all, on its way through the slots.
#[derive(Debug)]
pub(super) struct Broadcast {
    peer: PeerId,
    number: u64,
    kind: MessageKind,
    payload: Bytes,
    /// Next slot to visit; `None` when all were.
    cursor: Option<u32>,
    /// When the last was.
    visited: Option<Instant>,
    unwritten: u64,
    counts: BroadcastCounts,
}

impl Shard {
    pub(super) fn on_push(&mut self, peer: PeerId, push: frames::Push) {
        let kind = push.kind();
        match push.target {
            Some(frames::push::Target::Session(id)) => {
                self.push_to(peer, push.number, id, (kind, push.payload));
            }
            Some(frames::push::Target::All(true)) => {
                self.begin_broadcast(peer, push.number, kind, push.payload)
            }
            // The hub resolves devices to sessions.
            Some(frames::push::Target::Device(_) | frames::push::Target::All(false)) | None => {
                self.metrics.malformed_frames.inc();
            }
        }
    }

    fn push_to(
        &mut self,
        peer: PeerId,
        number: u64,
        session: frames::SessionId,
        (kind, payload): (MessageKind, Bytes),
    ) {
        let target = self.find(Some(session));
        let online = target.filter(|key| self.get(*key).is_some_and(|s| matches!(s.state, State::Online)));
        let Some(key) = online else {
            let status = PushStatus::Offline as i32;
            let result = PushResult {
                number,
                status,
                session: Some(session),
                ..Default::default()
            };
            self.to_hub.push(ToHub::PushDone { peer, result });
            return;
        };
        // A slow device must not keep the whole batch's buffer alive.
        let what = Written::Push { peer, number };
        self.send_push(key, kind, own_copy(payload), what);
    }

    fn send_push(&mut self, key: SessionKey, kind: MessageKind, payload: Bytes, what: Written) {
        let limit = self.config.output_pushes;
        let Some(session) = self.get(key) else { return };
        let id = session.id;
        let room = session.active.as_ref().is_none_or(|a| a.pushes < limit);
        if room && self.send(key, kind, payload, what) {
            if let Some(active) = self.get(key).and_then(|s| s.active.as_mut()) {
                active.pushes += 1;
            }
        } else {
            self.report_push(what, id, Fate::Dropped("queue_full"));
        }
    }

    fn begin_broadcast(&mut self, peer: PeerId, number: u64, kind: MessageKind, payload: Bytes) {
        if self.broadcasts.len() >= MAX_BROADCASTS {
            let dropped = u64::from(self.online);
            self.metrics.pushes_dropped("overloaded", dropped);
            let counts = BroadcastCounts {
                dropped,
                ..Default::default()
            };
            self.to_hub.push(ToHub::BroadcastDone { peer, number, counts });
            return;
        }
        let payload = Bytes::copy_from_slice(&payload);
        self.broadcasts.push_back(Broadcast {
            peer,
            number,
            kind,
            payload,
            cursor: Some(0),
            visited: None,
            unwritten: 0,
            counts: BroadcastCounts::default(),
        });
    }

    /// Whether [`Shard::handle_turn`] has something to do.
    pub fn has_turn(&self) -> bool {
        self.broadcasts.iter().any(|b| b.cursor.is_some())
    }

    /// One bounded piece of whatever takes longer than a turn may.
    pub fn handle_turn(&mut self, now: Instant) {
        let Some(index) = self.broadcasts.iter().position(|b| b.cursor.is_some()) else {
            return;
        };
        let broadcast = &self.broadcasts[index];
        let (peer, number, kind) = (broadcast.peer, broadcast.number, broadcast.kind);
        let payload = broadcast.payload.clone();
        let first = broadcast.cursor.unwrap_or(0);
        let last = first
            .saturating_add(SESSIONS_PER_TURN)
            .min(self.slots.len() as u32);
        for slot in first..last {
            let Some(session) = self.slots[slot as usize].session.as_ref() else {
                continue;
            };
            if matches!(session.state, State::Online) {
                let key = session.key();
                if let Some(broadcast) = self.broadcasts.get_mut(index) {
                    broadcast.unwritten += 1;
                }
                self.send_push(key, kind, payload.clone(), Written::Broadcast { peer, number });
            }
        }
        let more = last < self.slots.len() as u32;
        let broadcast = &mut self.broadcasts[index];
        broadcast.cursor = more.then_some(last);
        broadcast.visited = (!more).then_some(now);
        self.finish_broadcasts();
    }

    /// When the first push to all stops waiting for the sockets.
    pub(super) fn straggler_deadline(&self) -> Option<Instant> {
        let visited = self.broadcasts.iter().filter_map(|b| b.visited).min()?;
        Some(visited + STRAGGLER_TIME)
    }

    pub(super) fn give_up_stragglers(&mut self, now: Instant) {
        if self.straggler_deadline().is_none_or(|at| now < at) {
            return;
        }
        for broadcast in &mut self.broadcasts {
            if broadcast.visited.is_some_and(|at| now >= at + STRAGGLER_TIME) {
                let unwritten = std::mem::take(&mut broadcast.unwritten);
                broadcast.counts.unconfirmed += unwritten;
                self.metrics.pushes_unconfirmed.inc_by(unwritten);
            }
        }
        self.finish_broadcasts();
    }

    /// Whether the push to all had still to hear of this session.
    pub(super) fn count_broadcast(&mut self, peer: PeerId, number: u64, fate: Fate) -> bool {
        let mut all = self.broadcasts.iter_mut();
        let Some(broadcast) = all.find(|b| b.peer == peer && b.number == number) else {
            return false;
        };
        broadcast.unwritten -= 1;
        match fate {
            Fate::Written => broadcast.counts.written += 1,
            Fate::Dropped(_) => broadcast.counts.dropped += 1,
            Fate::Unknown => broadcast.counts.unconfirmed += 1,
        }
        // While a turn is under way its end finishes what is done: the list must not change below it.
        if !self.has_turn() {
            self.finish_broadcasts();
        }
        true
    }

    fn finish_broadcasts(&mut self) {
        let is_done = |b: &Broadcast| b.cursor.is_none() && b.unwritten == 0;
        if !self.broadcasts.iter().any(is_done) {
            return;
        }
        let (done, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.broadcasts)
            .into_iter()
            .partition(is_done);
        self.broadcasts = rest;
        for Broadcast {
            peer, number, counts, ..
        } in done
        {
            self.to_hub.push(ToHub::BroadcastDone { peer, number, counts });
        }
    }
}

#[cfg(test)]
impl Broadcast {
    pub(super) fn is(&self, peer: PeerId, number: u64) -> bool {
        (self.peer, self.number) == (peer, number)
    }

    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten
    }
}
