//! A message that has begun and not ended: over several frames, or within a frame whose rest is still to come.

use std::sync::Arc;

use bytes::Bytes;

use super::header::{Header, unmask};
use crate::channel::MessageKind;
use crate::channel::budget::{Budget, Charge};
use crate::channel::error::{ChannelError, PeerFault};

/// What has arrived of a message, unmasked.
///
/// Memory follows the bytes that really arrived, never the length that a header claims, and is charged to the shard.
#[derive(Debug)]
pub(super) struct Partial {
    kind: MessageKind,
    bytes: Vec<u8>,
    /// How many leading bytes are known to be UTF-8 (text only).
    valid: usize,
    /// The frame whose payload is arriving; `None` between frames.
    open: Option<OpenFrame>,
    charge: Charge,
}

#[derive(Debug)]
struct OpenFrame {
    remaining: u64,
    /// Turned so that its first byte belongs to the next byte of payload.
    mask: [u8; 4],
    fin: bool,
}

/// What [`Partial::absorb`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The frame needs more bytes.
    Wanting,
    /// The frame ended, the message did not.
    BetweenFrames,
    /// The message is complete.
    Complete,
}

/// The first allocation of a message whose size is not yet known.
const FIRST_CAPACITY: usize = 256;

impl Partial {
    /// An empty message of `kind`.
    pub(super) fn new(kind: MessageKind, budget: &Arc<Budget>) -> Result<Self, ChannelError> {
        let charge = Charge::new(budget, size_of::<Self>())?;
        Ok(Self {
            kind,
            bytes: Vec::new(),
            valid: 0,
            open: None,
            charge,
        })
    }

    /// Bytes that have arrived and are still to come in the open frame.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn in_frame(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn open_frame(&mut self, header: &Header) {
        self.open = Some(OpenFrame {
            remaining: header.length,
            mask: header.mask,
            fin: header.fin,
        });
    }

    /// Takes what belongs to the open frame from the front of `input`, which it unmasks; says how much that was.
    pub(super) fn absorb(&mut self, input: &mut [u8]) -> Result<(usize, Progress), ChannelError> {
        let Some(mut frame) = self.open.take() else {
            return Ok((0, Progress::BetweenFrames));
        };
        let taken = usize::try_from(frame.remaining).map_or(input.len(), |rest| rest.min(input.len()));
        let chunk = &mut input[..taken];
        unmask(chunk, frame.mask);
        self.reserve(taken, &frame)?;
        self.bytes.extend_from_slice(chunk);
        if self.kind == MessageKind::Text {
            self.check_utf8()?;
        }
        frame.mask.rotate_left(taken % 4);
        frame.remaining -= taken as u64;
        let progress = match (frame.remaining, frame.fin) {
            (0, true) => Progress::Complete,
            (0, false) => Progress::BetweenFrames,
            _ => {
                self.open = Some(frame);
                Progress::Wanting
            }
        };
        Ok((taken, progress))
    }

    /// The whole message, in memory exactly its size.
    pub(super) fn finish(self) -> Result<(MessageKind, Bytes), PeerFault> {
        if self.kind == MessageKind::Text && self.valid != self.bytes.len() {
            return Err(PeerFault::InvalidUtf8);
        }
        Ok((self.kind, Bytes::from(self.bytes.into_boxed_slice())))
    }

    /// Doubles, but not past the end of the message where that is known: a large message then ends without a copy.
    fn reserve(&mut self, more: usize, frame: &OpenFrame) -> Result<(), ChannelError> {
        let needed = self.bytes.len() + more;
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        let mut capacity = needed.max(self.bytes.capacity() * 2).max(FIRST_CAPACITY);
        if frame.fin {
            let end = self
                .bytes
                .len()
                .saturating_add(usize::try_from(frame.remaining).unwrap_or(usize::MAX));
            capacity = capacity.min(end);
        }
        self.charge.resize(size_of::<Self>() + capacity)?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    /// Looks at what is new only; the start of a character at the very end waits for its rest.
    fn check_utf8(&mut self) -> Result<(), PeerFault> {
        match std::str::from_utf8(&self.bytes[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_some() => return Err(PeerFault::InvalidUtf8),
            Err(error) => self.valid += error.valid_up_to(),
        }
        Ok(())
    }
}
