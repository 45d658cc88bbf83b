//! Messages on their way to the peer: queued, cut into pieces, sent again when lost, gone when acknowledged whole and in order.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::credit::SendCredit;
use super::ranges::Covered;
use super::types::MESSAGE_COST_BYTES;
use crate::MessageKind;
use crate::udp::packet::{Piece, cut_to_room, piece_len};

/// A message is not begun with a piece smaller than this when it does not fit: each piece costs its receiver some room.
const MIN_PIECE_BYTES: usize = 128;

/// Which part of which message: `length` is that of the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) message: u64,
    pub(super) offset: u32,
    pub(super) length: u32,
}

#[derive(Debug)]
pub(super) struct Outbox {
    /// The number of the first of `messages`.
    base: u64,
    /// Oldest first. At most `Config::send_messages`, of `Config::send_bytes` (or one).
    messages: VecDeque<Outgoing>,
    /// What was lost and is to be sent again. Each byte that was sent is either here, in a packet in flight, or acknowledged.
    resend: VecDeque<Part>,
    bytes: usize,
    /// Acknowledged whole and in order, and not yet reported.
    delivered: usize,
}

#[derive(Debug)]
struct Outgoing {
    payload: Bytes,
    kind: MessageKind,
    /// How many bytes were sent at least once.
    sent: u32,
    acknowledged: Covered,
    /// Since when the peer owes an answer: when it was first sent, last got nearer to its end, or went on after all of it that had
    /// been sent was acknowledged.
    since: Option<Instant>,
}

impl Outgoing {
    fn length(&self) -> u32 {
        self.payload.len() as u32
    }

    /// An empty message counts as one byte, so that it can be acknowledged.
    fn end(&self) -> u32 {
        self.length().max(1)
    }

    fn is_done(&self) -> bool {
        self.acknowledged.prefix() >= self.end()
    }

    /// Whether all that was sent is acknowledged.
    fn is_answered(&self) -> bool {
        self.acknowledged.prefix() >= self.sent.max(1)
    }

    fn is_begun(&self) -> bool {
        self.since.is_some()
    }

    fn piece(&self, message: u64, offset: u32, length: u32) -> Piece<'_> {
        Piece {
            message,
            kind: self.kind,
            length: self.length(),
            offset,
            data: &self.payload[offset as usize..(offset + length) as usize],
        }
    }
}

impl Outbox {
    /// `next`: the number of the first message.
    pub(super) fn new(next: u64) -> Self {
        Self {
            base: next,
            messages: VecDeque::new(),
            resend: VecDeque::new(),
            bytes: 0,
            delivered: 0,
        }
    }

    /// Nothing waits, for the network or for the application.
    pub(super) fn is_quiet(&self) -> bool {
        self.messages.is_empty() && self.delivered == 0
    }

    /// Everything was acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Of payloads, and what they cost beside.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes + self.messages.len() * MESSAGE_COST_BYTES
    }

    /// How many messages there were over the whole connection.
    pub(super) fn total(&self) -> u64 {
        self.base + self.messages.len() as u64
    }

    pub(super) fn push(&mut self, kind: MessageKind, payload: Bytes) {
        self.bytes += payload.len();
        self.messages.push_back(Outgoing {
            payload,
            kind,
            sent: 0,
            acknowledged: Covered::default(),
            since: None,
        });
    }

    pub(super) fn take_delivered(&mut self) -> usize {
        std::mem::take(&mut self.delivered)
    }

    /// Since when the oldest message waits for an acknowledgement. One that waits for credit only does not.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.messages
            .front()
            .filter(|message| !message.is_answered())?
            .since
    }

    /// Drops everything but what is to be reported.
    pub(super) fn clear(&mut self) {
        self.base = self.total();
        self.messages = VecDeque::new();
        self.resend = VecDeque::new();
        self.bytes = 0;
    }

    /// Whether something could be sent now.
    pub(super) fn is_ready(&self, credit: &SendCredit) -> bool {
        !self.resend.is_empty() || self.has_fresh(credit)
    }

    fn has_fresh(&self, credit: &SendCredit) -> bool {
        match self.fresh(credit) {
            Some((_, message)) if message.is_begun() => credit.bytes() > 0,
            Some((_, message)) => credit.has_message() && (credit.bytes() > 0 || message.payload.is_empty()),
            None => false,
        }
    }

    /// The first message with something that was never sent.
    fn fresh(&self, credit: &SendCredit) -> Option<(u64, &Outgoing)> {
        // It is the last one that was begun, or the next.
        let next = credit.next_message();
        let begun = next.checked_sub(1).and_then(|last| self.get(last));
        match begun.filter(|message| message.sent < message.length()) {
            Some(message) => Some((next - 1, message)),
            None => self.get(next).map(|message| (next, message)),
        }
    }

    /// The next part that was lost and is still missing, cut to `room` bytes. It counts as sent: see [`piece`](Self::piece).
    pub(super) fn next_lost(&mut self, room: usize) -> Option<Part> {
        while let Some(part) = self.resend.front().copied() {
            let missing = self.get(part.message).and_then(|message| {
                message
                    .acknowledged
                    .missing(part.offset, part.offset + part.length.max(1))
            });
            let Some((start, end)) = missing else {
                self.resend.pop_front();
                continue;
            };
            let end = end.min(part.offset + part.length);
            let wanted = Part {
                offset: start,
                length: end - start,
                ..part
            };
            let cut = self.cut(wanted, room)?;
            self.resend.pop_front();
            let (done, rest) = (cut.offset + cut.length, part.offset + part.length);
            if done < rest {
                self.resend.push_front(Part {
                    offset: done,
                    length: rest - done,
                    ..part
                });
            }
            return Some(cut);
        }
        None
    }

    /// The next part that was never sent, within credit and cut to `room` bytes. It counts as sent.
    pub(super) fn next_fresh(&mut self, credit: &mut SendCredit, room: usize, now: Instant) -> Option<Part> {
        if !self.has_fresh(credit) {
            return None;
        }
        let (message, outgoing) = self.fresh(credit)?;
        let (begun, offset) = (outgoing.is_begun(), outgoing.sent);
        let wanted = Part {
            message,
            offset,
            length: (outgoing.length() - offset).min(credit.bytes()),
        };
        let part = self.cut(wanted, room)?;
        if !begun {
            credit.begin_message();
        }
        credit.use_bytes(part.length);
        let outgoing = self.get_mut(message)?;
        if !begun || outgoing.is_answered() {
            outgoing.since = Some(now);
        }
        outgoing.sent += part.length;
        Some(part)
    }

    /// A part of this as large as fits; `None` if that is not worth it.
    pub(super) fn cut(&self, part: Part, room: usize) -> Option<Part> {
        let outgoing = self.get(part.message)?;
        let piece = outgoing.piece(part.message, part.offset, part.length);
        if piece_len(&piece) <= room {
            return Some(part);
        }
        let length = cut_to_room(&piece, room);
        (length >= MIN_PIECE_BYTES).then_some(Part {
            length: part.length.min(length as u32),
            ..part
        })
    }

    /// What to write for a part; `None` when its message is acknowledged.
    pub(super) fn piece(&self, part: Part) -> Option<Piece<'_>> {
        let outgoing = self.get(part.message)?;
        Some(outgoing.piece(part.message, part.offset, part.length))
    }

    /// Whether something of a part is not acknowledged.
    pub(super) fn is_missing(&self, part: Part) -> bool {
        self.get(part.message).is_some_and(|message| {
            let end = part.offset + part.length.max(1);
            message.acknowledged.missing(part.offset, end).is_some()
        })
    }

    pub(super) fn on_lost(&mut self, part: Part) {
        if self.is_missing(part) {
            self.resend.push_back(part);
        }
    }

    pub(super) fn on_acknowledged(&mut self, part: Part, now: Instant) {
        let Some(message) = self.get_mut(part.message) else {
            return;
        };
        let end = part.offset + part.length.max(1);
        if message.acknowledged.missing(part.offset, end).is_none() {
            return;
        }
        message.acknowledged.insert(part.offset, end);
        message.since = Some(now);
        while let Some(done) = self.messages.pop_front_if(|message| message.is_done()) {
            self.bytes -= done.payload.len();
            self.base += 1;
            self.delivered += 1;
        }
        if self.messages.is_empty() {
            self.resend.clear();
        }
    }

    fn get(&self, message: u64) -> Option<&Outgoing> {
        let index = message.checked_sub(self.base)?;
        self.messages.get(usize::try_from(index).ok()?)
    }

    fn get_mut(&mut self, message: u64) -> Option<&mut Outgoing> {
        let index = message.checked_sub(self.base)?;
        self.messages.get_mut(usize::try_from(index).ok()?)
    }
}
