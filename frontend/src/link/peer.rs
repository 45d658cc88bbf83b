//! One attachment of one backend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::Share;
use holdfast_proto::link::{Class, Lane, LaneStats, Origin};
use rustc_hash::FxHashMap;

use super::status::{HandOver, HandOverKind, PeerStatus, Work};
use crate::exchange::{BroadcastCounts, PeerId, SentTickets, Ticket};

/// Where an attachment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Hello was exchanged. Next: READY, or gone.
    Greeted,
    /// Takes as much work as its share says. Next: DRAINING, or gone.
    Active,
    /// Wants to leave; this many shards have not stopped giving it work. Next: `Marked`, or gone.
    Draining { shards: usize },
    /// It was told the last frame with work. Next: DONE, or gone.
    Marked,
    /// It has done everything; it is told so by the acknowledgement. Next: gone, without a loss.
    Done,
}

/// What a backend wants to have, and what the shards were told. One change is on its way to them at a time, so that a backend
/// that changes its mind faster than they listen keeps nobody busy but itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShareState {
    /// What it last said.
    pub(super) wanted: Share,
    told: Share,
    /// Shards that have not answered.
    unanswered: usize,
}

impl ShareState {
    pub(super) const NONE: Self = Self::new(Share::NONE);

    /// As the shards are told together with the news that the backend takes work.
    pub(super) const fn new(share: Share) -> Self {
        Self {
            wanted: share,
            told: share,
            unanswered: 0,
        }
    }

    /// A shard has taken the last change.
    pub(super) fn on_taken(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    /// A change that so many shards are to be told now.
    pub(super) fn poll(&mut self, shards: u8) -> Option<Share> {
        if self.unanswered > 0 || self.wanted == self.told {
            return None;
        }
        self.told = self.wanted;
        self.unanswered = usize::from(shards);
        Some(self.told)
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) identity: Bytes,
    pub(super) lane: Lane,
    pub(super) stage: Stage,
    pub(super) share: ShareState,
    pub(super) name: String,
    pub(super) build: String,
    /// When it said Hello.
    pub(super) since: Instant,
    pub(super) work: Arc<Work>,
    /// When it said DRAINING, and the requests that were out.
    pub(super) leaving: Option<(Instant, u64)>,
    pub(super) outgoing: Outgoing,
    /// Pushes to all whose shards have not all reported.
    pub(super) broadcasts: FxHashMap<u64, Broadcast>,
    /// What of the lane's statistics was counted already.
    pub(super) counted: LaneStats,
    /// Lifecycle frames that had gone out when some last did, and when that was.
    pub(super) moved: (u64, Instant),
}

/// What was given to the lane.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// By shard: what had gone out.
    pub(super) sent: Vec<SentTickets>,
    /// Bytes of answers that wait for the backend's credit.
    answers: u64,
    lifecycle_frames: u64,
}

/// Bytes of answers that may wait for a backend's credit. Work is bounded by the sessions' windows; answers are asked for by
/// the backend itself, whose own credit comes back before it takes them.
pub(super) const MAX_ANSWER_BYTES: u64 = 16 * 1024 * 1024;
/// What an answer weighs at most, and what each session that it lists adds, in bytes.
const ANSWER_BYTES: u64 = 256;
const LISTED_BYTES: u64 = 384;
/// The source of answers: no shard has this number.
const ANSWERS: u8 = u8::MAX;

impl Outgoing {
    pub(super) fn new(shards: u8) -> Self {
        Self {
            sent: vec![SentTickets::default(); usize::from(shards)],
            answers: 0,
            lifecycle_frames: 0,
        }
    }

    /// Marks an answer that lists so many sessions; `None` when too much waits already.
    pub(super) fn begin_answer(&mut self, listed: usize) -> Option<Origin> {
        let bytes = ANSWER_BYTES + LISTED_BYTES * listed as u64;
        if self.answers + bytes > MAX_ANSWER_BYTES {
            return None;
        }
        self.answers += bytes;
        Some(Origin {
            source: ANSWERS,
            ticket: bytes,
        })
    }

    pub(super) fn on_sent(&mut self, class: Class, Origin { source, ticket }: Origin) {
        self.lifecycle_frames += u64::from(class == Class::Lifecycle);
        if source == ANSWERS {
            self.answers = self.answers.saturating_sub(ticket);
        } else if let Some(tickets) = self.sent.get_mut(usize::from(source)) {
            tickets.note(class, Ticket(ticket));
        }
    }
}

/// A push to all, as its shards report.
#[derive(Debug, Default)]
pub(super) struct Broadcast {
    pub(super) shards: usize,
    pub(super) counts: BroadcastCounts,
}

impl Peer {
    pub(super) fn takes_work(&self) -> bool {
        self.stage == Stage::Active && !self.share.wanted.is_none()
    }

    pub(super) fn status(&self) -> PeerStatus {
        PeerStatus {
            name: self.name.clone(),
            build: self.build.clone(),
            epoch: self.lane.remote(),
            stage: match self.stage {
                Stage::Active if self.takes_work() => "active",
                Stage::Greeted | Stage::Active => "standby",
                Stage::Draining { .. } | Stage::Marked => "draining",
                Stage::Done => "done",
            },
            share: self.share.wanted,
            since: self.since,
            work: self.work.clone(),
        }
    }

    /// Its end, for the record.
    pub(super) fn hand_over(&self, now: Instant, kind: HandOverKind) -> HandOver {
        let (since, out) = self.leaving.unwrap_or((now, 0));
        HandOver {
            at: now,
            kind,
            backend: self.name.clone(),
            epoch: self.lane.remote(),
            requests: match kind {
                HandOverKind::Graceful => out,
                _ => self.work.in_flight(),
            },
            duration: now.saturating_duration_since(since),
        }
    }

    /// Its part in the rendezvous hash: one value per life of a backend.
    pub(super) fn seed(&self) -> u64 {
        let boot = self.lane.remote().boot;
        (boot >> 64) as u64 ^ boot as u64
    }

    /// Whether lifecycle frames have waited for so long without one of them going out. A backend answers them at once, so one
    /// that takes none does not do its work; and what waits for it here would grow for as long as it does not.
    pub(super) fn is_clogged(&mut self, now: Instant, limit: Duration) -> bool {
        let gone_out = self.outgoing.lifecycle_frames;
        if self.lane.queued(Class::Lifecycle) == 0 || gone_out != self.moved.0 {
            self.moved = (gone_out, now);
        }
        now >= self.moved.1 + limit
    }

    /// No frame that carries work waits to go out.
    pub(super) fn work_is_out(&self) -> bool {
        self.lane.queued(Class::Requests) == 0 && self.lane.queued(Class::Lifecycle) == 0
    }
}
