//! The stand-in for ZeroMQ: one socket pair of a backend and a frontend, reliable and in order until it breaks.
//!
//! When an end goes, what it had sent arrives up to a random batch; what was on its way to it is lost. Whether the other end
//! is told is left to chance: the crate's monitor drops events.

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_proto::link::Grant;

use super::ledger::{Ledger, Parcel};
use super::queue::Time;

/// A socket of this run; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PipeId(pub usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    /// To the frontend.
    Up,
    Down,
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) frontend: usize,
    pub(super) incarnation: u32,
    pub(super) backend: usize,
    pub(super) link: usize,
    pub(super) attach: u32,
    pub(super) identity: Bytes,
    pub(super) up: Way,
    pub(super) down: Way,
    pub(super) ledger: Ledger,
    /// Batches take longer until then.
    pub(super) slow_until: Time,
    /// Both ends live; it has not broken.
    pub(super) open: bool,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) batches: VecDeque<Parcel>,
    /// When the latest batch arrives: none overtakes another.
    pub(super) last: Time,
    /// When a batch last arrived.
    pub(super) heard: Time,
    /// Frames that have arrived, and what they took of the credit of each class.
    pub(super) frames: u64,
    pub(super) charged: [Grant; 4],
}

impl Way {
    /// Gives when the batch arrives.
    pub(super) fn send(&mut self, parcel: Parcel, at: Time) -> Time {
        self.batches.push_back(parcel);
        self.last = self.last.max(at);
        self.last
    }
}

impl Pipe {
    pub(super) fn way(&mut self, direction: Direction) -> &mut Way {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}
