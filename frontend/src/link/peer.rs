//! One attachment of one backend.

use bytes::Bytes;
use holdfast_proto::link::{Class, Lane, LaneStats};
use rustc_hash::FxHashMap;

use crate::exchange::{PeerId, SentTickets, Ticket};

/// Where an attachment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Hello was exchanged. Next: READY, or gone.
    Greeted,
    /// Takes work. Next: DRAINING, or gone.
    Active,
    /// Wants to leave; this many shards have not stopped giving it work. Next: `Marked`, or gone.
    Draining { shards: usize },
    /// It was told the last frame with work. Next: DONE, or gone.
    Marked,
    /// It has done everything; it is told so by the acknowledgement. Next: gone, without a loss.
    Done,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) identity: Bytes,
    pub(super) lane: Lane,
    pub(super) stage: Stage,
    pub(super) name: String,
    pub(super) build: String,
    /// By shard: what had gone out.
    pub(super) sent: Vec<SentTickets>,
    /// Pushes to all whose shards have not all reported.
    pub(super) broadcasts: FxHashMap<u64, Broadcast>,
    /// What of the lane's statistics was counted already.
    pub(super) counted: LaneStats,
}

/// A push to all, as its shards report.
#[derive(Debug, Default)]
pub(super) struct Broadcast {
    pub(super) shards: usize,
    pub(super) written: u64,
    pub(super) dropped: u64,
}

impl Peer {
    pub(super) fn takes_work(&self) -> bool {
        self.stage == Stage::Active
    }

    /// Its part in the rendezvous hash: one value per life of a backend.
    pub(super) fn seed(&self) -> u64 {
        let boot = self.lane.remote().boot;
        (boot >> 64) as u64 ^ boot as u64
    }

    pub(super) fn note_sent(sent: &mut [SentTickets], class: Class, source: u8, ticket: u64) {
        if let Some(tickets) = sent.get_mut(usize::from(source)) {
            tickets.note(class, Ticket(ticket));
        }
    }

    /// No frame that carries work waits to go out.
    pub(super) fn work_is_out(&self) -> bool {
        self.lane.queued(Class::Requests) == 0 && self.lane.queued(Class::Lifecycle) == 0
    }
}
