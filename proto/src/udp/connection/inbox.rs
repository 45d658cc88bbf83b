//! Messages from the peer: put together, in order, until the application takes them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::credit::ReceiveCredit;
use super::ranges::Covered;
use super::types::{Config, MESSAGE_COST_BYTES};
use crate::MessageKind;
use crate::codes::CloseCode;
use crate::udp::packet::Piece;

/// What a piece that cannot be joined to others yet costs beside its bytes.
const PIECE_COST_BYTES: usize = 64;

/// Why a piece was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no room. It may come again.
    NoRoom,
    /// The peer broke the protocol.
    Broken(CloseCode, &'static str),
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// By number. What is bounded: the bytes by credit, the entries and runs by [`Inbox::has_room`].
    messages: VecDeque<Incoming>,
    /// The sum of the highest offsets: what counts against credit.
    bytes: u64,
    /// Runs beyond a gap, over all messages.
    runs: usize,
}

#[derive(Debug)]
struct Incoming {
    number: u64,
    kind: MessageKind,
    /// Of the whole message.
    length: u32,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Whole(Bytes),
    Parts { data: Vec<u8>, there: Covered },
}

impl Incoming {
    /// The highest offset.
    fn end(&self) -> u32 {
        match &self.body {
            Body::Whole(_) => self.length,
            Body::Parts { data, .. } => data.len() as u32,
        }
    }

    fn contiguous(&self) -> u32 {
        match &self.body {
            Body::Whole(_) => self.length,
            Body::Parts { there, .. } => there.prefix(),
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self.body, Body::Whole(_))
    }
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes that are kept, and what they cost beside.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes as usize + self.messages.len() * MESSAGE_COST_BYTES + self.runs * PIECE_COST_BYTES
    }

    /// The next message in order, if it is there whole.
    pub(super) fn take(&mut self, credit: &mut ReceiveCredit) -> Option<(MessageKind, Bytes)> {
        let next = credit.taken();
        let ready = |message: &mut Incoming| message.number == next && message.is_whole();
        let message = self.messages.pop_front_if(ready)?;
        self.bytes -= u64::from(message.length);
        credit.take(message.length);
        match message.body {
            Body::Whole(data) => Some((message.kind, data)),
            Body::Parts { .. } => None,
        }
    }

    /// How many bytes of the next message are there without a gap.
    pub(super) fn contiguous(&self, credit: &ReceiveCredit) -> u32 {
        let front = self.messages.front();
        front
            .filter(|message| message.number == credit.taken())
            .map_or(0, Incoming::contiguous)
    }

    /// Whether all messages below this number were taken or are there whole.
    pub(super) fn is_complete(&self, credit: &ReceiveCredit, total: u64) -> bool {
        let whole = self.messages.iter().zip(credit.taken()..);
        let whole = whole.take_while(|(message, number)| message.number == *number && message.is_whole());
        credit.taken() + whole.count() as u64 >= total
    }

    /// Keeps what of it is new.
    pub(super) fn insert(
        &mut self,
        config: &Config,
        credit: &ReceiveCredit,
        piece: &Piece<'_>,
    ) -> Result<(), Refusal> {
        if piece.message < credit.taken() {
            return Ok(());
        }
        if piece.length as usize > config.max_message_bytes {
            return Err(Refusal::Broken(CloseCode::TooBig, "a message is over the limit"));
        }
        let place = match self.messages.back() {
            Some(last) if last.number >= piece.message => self
                .messages
                .binary_search_by_key(&piece.message, |message| message.number),
            _ => Err(self.messages.len()),
        };
        match place {
            Ok(index) => self.add(config, credit, (index, piece)),
            Err(index) => self.begin(config, credit, (index, piece)),
        }
    }

    /// The first piece of a message.
    fn begin(
        &mut self,
        config: &Config,
        credit: &ReceiveCredit,
        (index, piece): (usize, &Piece<'_>),
    ) -> Result<(), Refusal> {
        check_message_credit(config, credit, piece.message)?;
        let size = piece.data.len() as u32;
        let end = piece.offset + size;
        self.check_byte_credit(config, credit, end)?;
        let runs = usize::from(piece.offset > 0);
        self.check_share(config, credit, piece.message, (end, end))?;
        // The next message in order always finds room.
        if piece.message != credit.taken() && !self.has_room(config, 1 + runs) {
            return Err(Refusal::NoRoom);
        }
        let body = if size == piece.length {
            Body::Whole(Bytes::copy_from_slice(piece.data))
        } else {
            self.runs += runs;
            let mut body = (Vec::new(), Covered::default());
            write(&mut body, piece);
            Body::Parts {
                data: body.0,
                there: body.1,
            }
        };
        self.bytes += u64::from(end);
        let message = Incoming {
            number: piece.message,
            kind: piece.kind,
            length: piece.length,
            body,
        };
        self.messages.insert(index, message);
        Ok(())
    }

    /// One more piece of a message.
    fn add(
        &mut self,
        config: &Config,
        credit: &ReceiveCredit,
        (index, piece): (usize, &Piece<'_>),
    ) -> Result<(), Refusal> {
        let message = &self.messages[index];
        if (message.kind, message.length) != (piece.kind, piece.length) {
            let broken = "pieces of one message say different things about it";
            return Err(Refusal::Broken(CloseCode::Protocol, broken));
        }
        let Body::Parts { there, .. } = &message.body else {
            return Ok(());
        };
        let end = piece.offset + piece.data.len() as u32;
        if there.missing(piece.offset, end).is_none() {
            return Ok(());
        }
        let more = end.saturating_sub(message.end());
        self.check_byte_credit(config, credit, more)?;
        if more > 0 {
            self.check_share(config, credit, piece.message, (end, more))?;
        }
        let adds_run = there.would_add_run(piece.offset, end);
        if adds_run && !self.has_room(config, 1) {
            return Err(Refusal::NoRoom);
        }
        self.write(index, piece);
        self.bytes += u64::from(more);
        Ok(())
    }

    fn write(&mut self, index: usize, piece: &Piece<'_>) {
        let message = &mut self.messages[index];
        let Body::Parts { data, there } = &mut message.body else {
            return;
        };
        let before = there.runs();
        let mut body = (std::mem::take(data), std::mem::take(there));
        write(&mut body, piece);
        self.runs = self.runs + body.1.runs() - before;
        message.body = if body.1.prefix() == message.length {
            Body::Whole(body.0.into())
        } else {
            Body::Parts {
                data: body.0,
                there: body.1,
            }
        };
    }

    /// Whether so many more entries or runs may be kept. One message of each number and a window's worth of pieces: a peer that fills
    /// its datagrams needs no more.
    fn has_room(&self, config: &Config, more: usize) -> bool {
        let kept = self.messages.len() + self.runs + more;
        let pieces = config.receive_bytes as usize / PIECE_COST_BYTES;
        kept <= pieces + usize::from(config.receive_messages)
    }

    /// Whether `more` bytes may be kept, of a message of which there are `end` then. The next message in order is judged by itself: those
    /// behind it must not keep it out. What messages cost beside does not count: who stays within a credit of a share is never refused.
    fn check_share(
        &self,
        config: &Config,
        credit: &ReceiveCredit,
        message: u64,
        (end, more): (u32, u32),
    ) -> Result<(), Refusal> {
        let held = if message == credit.taken() {
            end as usize
        } else {
            self.bytes as usize + self.runs * PIECE_COST_BYTES + more as usize
        };
        if held <= config.input_share {
            Ok(())
        } else {
            Err(Refusal::NoRoom)
        }
    }

    fn check_byte_credit(&self, config: &Config, credit: &ReceiveCredit, more: u32) -> Result<(), Refusal> {
        let beyond = (self.bytes + u64::from(more)).saturating_sub(credit.granted_bytes().into());
        beyond_credit(beyond, config.receive_bytes.into())
    }
}

fn check_message_credit(config: &Config, credit: &ReceiveCredit, number: u64) -> Result<(), Refusal> {
    let granted = u64::from(credit.granted_messages());
    let beyond = (number - credit.taken())
        .saturating_add(1)
        .saturating_sub(granted);
    beyond_credit(beyond, config.receive_messages.into())
}

fn beyond_credit(beyond: u64, window: u64) -> Result<(), Refusal> {
    match beyond {
        0 => Ok(()),
        within if within <= window => Err(Refusal::NoRoom),
        _ => Err(Refusal::Broken(CloseCode::Protocol, "far beyond the credit")),
    }
}

/// Copies a piece to its place. The buffer doubles as it must, and never goes beyond the message's length.
fn write((data, there): &mut (Vec<u8>, Covered), piece: &Piece<'_>) {
    let start = piece.offset as usize;
    let end = start + piece.data.len();
    if end > data.capacity() {
        let wanted = end.max(2 * data.capacity()).min(piece.length as usize);
        data.reserve_exact(wanted - data.len());
    }
    if start == data.len() {
        data.extend_from_slice(piece.data);
    } else {
        if end > data.len() {
            data.resize(end, 0);
        }
        data[start..end].copy_from_slice(piece.data);
    }
    there.insert(piece.offset, end as u32);
}
