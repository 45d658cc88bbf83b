//! The window of a session's unanswered requests, and the order in which their replies are written.
//!
//! Pure: what to send and what to write comes out as values. A request stays until its final reply was written, so that a
//! crash of the backend at any instant leaves everything needed to ask again.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::{MessageKind, Sequence};

use super::state::Delivery;
use crate::exchange::{PeerId, Ticket, Track};

/// A reply as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub kind: MessageKind,
    /// The window moves; nothing is sent.
    pub silent: bool,
    pub payload: Bytes,
}

#[derive(Debug)]
enum Progress {
    /// Unanswered; `delivery` says who has it.
    Open,
    /// Answered early: waits until the reply to `after` has been handed to the channel.
    Held { after: Sequence, answer: Answer },
    /// Its reply was handed to the channel, which takes messages in order.
    Writing,
    /// Its reply was written.
    Done,
}

#[derive(Debug)]
struct Entry {
    kind: MessageKind,
    payload: Bytes,
    received: Instant,
    delivery: Delivery,
    progress: Progress,
}

/// A final reply as it came from a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalReply {
    pub sequence: Sequence,
    /// The request whose reply must be handed to the channel before this; 0 for none.
    pub after: Sequence,
    pub answer: Answer,
}

/// A request on its way to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    pub sequence: Sequence,
    pub floor: Sequence,
    pub kind: MessageKind,
    pub payload: Bytes,
    pub received: Instant,
    pub attempt: u32,
    pub ticket: Ticket,
}

/// Why a reply was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("the request was answered already")]
    Duplicate,
    #[error("no such request is with this backend")]
    Unasked,
    #[error("the session's output is full")]
    Full,
}

/// Bounds of one session's window.
#[derive(Debug, Clone, Copy)]
pub struct WindowLimits {
    /// Requests not yet answered, or whose answer is not yet written.
    pub requests: usize,
    /// Bytes of unanswered requests; a single larger one passes alone.
    pub bytes: usize,
    /// Bytes of replies held back for order.
    pub held_bytes: usize,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Window {
    entries: VecDeque<Entry>,
    /// Sequence of `entries[0]`, less one.
    before: u64,
    bytes: usize,
    held: usize,
    held_bytes: usize,
    /// Open entries that a backend has.
    out: usize,
    /// Open entries that none has.
    unsent: usize,
}

impl Window {
    /// An empty window whose next request is `next`.
    pub fn begin(&mut self, next: Sequence) {
        debug_assert!(self.entries.is_empty());
        self.before = next.0 - 1;
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Payload bytes held for unanswered requests.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// No backend has any of it and no early reply waits: the session may change its backend.
    pub fn may_move(&self) -> bool {
        self.out == 0 && self.held == 0
    }

    pub fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    pub fn fits(&self, len: usize, limits: &WindowLimits) -> bool {
        self.entries.is_empty() || (self.entries.len() < limits.requests && self.bytes + len <= limits.bytes)
    }

    /// Takes a request that fits; gives its sequence.
    pub fn push(&mut self, now: Instant, kind: MessageKind, payload: Bytes) -> Sequence {
        self.bytes += payload.len();
        self.unsent += 1;
        let entry = Entry {
            kind,
            payload,
            received: now,
            delivery: Delivery::default(),
            progress: Progress::Open,
        };
        self.entries.push_back(entry);
        Sequence(self.before + self.entries.len() as u64)
    }

    fn floor(&self) -> Sequence {
        let open = self
            .entries
            .iter()
            .position(|e| !matches!(e.progress, Progress::Writing | Progress::Done));
        Sequence(self.before + 1 + open.unwrap_or(self.entries.len()) as u64)
    }

    /// The lowest request that no backend has, handed to `peer` with the ticket that `ticket` gives.
    pub fn poll_dispatch(&mut self, peer: PeerId, ticket: impl FnOnce() -> Ticket) -> Option<Dispatch> {
        if self.unsent == 0 {
            return None;
        }
        let floor = self.floor();
        let index = self
            .entries
            .iter()
            .position(|e| matches!(e.progress, Progress::Open) && e.delivery.with.is_none())?;
        let entry = &mut self.entries[index];
        let ticket = ticket();
        entry.delivery.with = Some((peer, ticket));
        self.out += 1;
        self.unsent -= 1;
        Some(Dispatch {
            sequence: Sequence(self.before + 1 + index as u64),
            floor,
            kind: entry.kind,
            payload: entry.payload.clone(),
            received: entry.received,
            attempt: entry.delivery.attempt,
            ticket,
        })
    }

    /// The backend is lost: what it had may be dispatched again, in order. Gives how many it had been sent.
    pub fn on_lost(&mut self, peer: PeerId, mut was_sent: impl FnMut(Track, Ticket) -> bool) -> usize {
        let mut replayed = 0;
        for entry in self
            .entries
            .iter_mut()
            .filter(|e| matches!(e.progress, Progress::Open))
        {
            let attempt = entry.delivery.attempt;
            if entry.delivery.on_lost(peer, &mut was_sent, Track::Requests) {
                self.out -= 1;
                self.unsent += 1;
                replayed += usize::from(entry.delivery.attempt > attempt);
            }
        }
        replayed
    }

    /// Takes a final reply from `peer`. It, and early ones that waited for it, come out of [`Window::poll_answer`].
    pub fn handle_reply(
        &mut self,
        peer: PeerId,
        reply: FinalReply,
        limits: &WindowLimits,
    ) -> Result<(), ReplyError> {
        let FinalReply {
            sequence,
            after,
            mut answer,
        } = reply;
        if sequence.0 <= self.before {
            return Err(ReplyError::Duplicate);
        }
        let predecessor_open = self.is_pending(after) && after < sequence;
        let held_bytes = self.held_bytes + answer.payload.len();
        let index = (sequence.0 - self.before - 1) as usize;
        let entry = self.entries.get_mut(index).ok_or(ReplyError::Unasked)?;
        match entry.progress {
            Progress::Open if entry.delivery.with.is_some_and(|(with, _)| with == peer) => {}
            Progress::Open => return Err(ReplyError::Unasked),
            Progress::Held { .. } | Progress::Writing | Progress::Done => return Err(ReplyError::Duplicate),
        }
        if predecessor_open && held_bytes > limits.held_bytes {
            return Err(ReplyError::Full);
        }
        if predecessor_open {
            // It waits: in a buffer of its own, so that it does not keep the whole batch that it came in.
            answer.payload = Bytes::copy_from_slice(&answer.payload);
        }
        self.bytes -= std::mem::take(&mut entry.payload).len();
        self.out -= 1;
        self.held += 1;
        self.held_bytes = held_bytes;
        entry.progress = Progress::Held { after, answer };
        Ok(())
    }

    /// Whether this request's reply has still to be handed to the channel.
    fn is_pending(&self, sequence: Sequence) -> bool {
        let Some(index) = sequence.0.checked_sub(self.before + 1) else {
            return false;
        };
        self.entries
            .get(index as usize)
            .is_some_and(|e| matches!(e.progress, Progress::Open | Progress::Held { .. }))
    }

    /// The next reply whose predecessor has been handed to the channel. It counts as being written until
    /// [`Window::on_written`].
    pub fn poll_answer(&mut self) -> Option<(Sequence, Answer)> {
        if self.held == 0 {
            return None;
        }
        let index = self
            .entries
            .iter()
            .enumerate()
            .position(|(index, entry)| match &entry.progress {
                Progress::Held { after, .. } => *after >= self.sequence_at(index) || !self.is_pending(*after),
                _ => false,
            })?;
        let sequence = self.sequence_at(index);
        match std::mem::replace(&mut self.entries[index].progress, Progress::Writing) {
            Progress::Held { answer, .. } => {
                self.held -= 1;
                self.held_bytes -= answer.payload.len();
                Some((sequence, answer))
            }
            _ => unreachable!("the position was that of a held reply"),
        }
    }

    fn sequence_at(&self, index: usize) -> Sequence {
        Sequence(self.before + 1 + index as u64)
    }

    /// The channel has written this reply: the request leaves the window.
    pub fn on_written(&mut self, sequence: Sequence) {
        let index = sequence.0.checked_sub(self.before + 1).map(|i| i as usize);
        if let Some(entry) = index.and_then(|i| self.entries.get_mut(i)) {
            debug_assert!(matches!(entry.progress, Progress::Writing));
            entry.progress = Progress::Done;
        }
        while self
            .entries
            .front()
            .is_some_and(|e| matches!(e.progress, Progress::Done))
        {
            self.entries.pop_front();
            self.before += 1;
        }
    }

    /// Forgets everything; gives the payload bytes that were held.
    pub fn clear(&mut self) -> usize {
        let bytes = self.bytes;
        *self = Self {
            entries: std::mem::take(&mut self.entries),
            ..Self::default()
        };
        self.entries.clear();
        bytes
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
