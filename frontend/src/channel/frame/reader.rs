//! The frame reader: bytes in, messages and control frames out.

use std::sync::Arc;

use bytes::Bytes;

use super::header::{Header, MAX_CONTROL, OpCode, unmask};
use super::partial::{Partial, Progress};
use crate::channel::MessageKind;
use crate::channel::budget::Budget;
use crate::channel::error::{ChannelError, PeerFault};

/// Reads a client's frames. Between messages it holds nothing but an empty pointer.
///
/// After an error it must not be used again.
#[derive(Debug, Default)]
pub struct FrameReader {
    partial: Option<Box<Partial>>,
}

/// What bounds a reader; shared by all connections of a shard.
#[derive(Debug, Clone)]
pub struct ReadLimits {
    /// Longest message for the application, in bytes.
    pub max_message_bytes: usize,
    /// Longest WebSocket message in bytes, over all its fragments: the same, or that of a record.
    pub max_frames_bytes: usize,
    /// What the messages that are still arriving may take together.
    pub budget: Arc<Budget>,
}

/// A message or a control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A whole message; text is valid UTF-8.
    Message(MessageKind, Bytes),
    Ping(Control),
    Pong,
    /// The peer's close, with its code if it gave one (a legal one, 7.4).
    Close(Option<u16>),
}

/// The payload of a control frame, at most 125 bytes.
#[derive(Clone, Copy)]
pub struct Control {
    len: u8,
    bytes: [u8; MAX_CONTROL],
}

impl Control {
    fn new(payload: &[u8]) -> Self {
        debug_assert!(
            payload.len() <= MAX_CONTROL,
            "the header's check let a long control frame through"
        );
        let mut bytes = [0; MAX_CONTROL];
        bytes[..payload.len()].copy_from_slice(payload);
        Self {
            len: payload.len() as u8,
            bytes,
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for Control {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Control {}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control({} bytes)", self.len)
    }
}

impl FrameReader {
    /// Reads up to one message or control frame from the front of `input`: how many bytes are done with, and what they
    /// made. `None` means that the rest of `input` is the beginning of a frame.
    ///
    /// That beginning is left where it is unless `absorb` is set, which moves the payload that is there into memory of
    /// its own: the caller sets it when no more bytes can be had for now. What then remains is less than a control frame.
    pub fn decode(
        &mut self,
        input: &mut [u8],
        limits: &ReadLimits,
        absorb: bool,
    ) -> Result<(usize, Option<Frame>), ChannelError> {
        let mut used = 0;
        loop {
            if let Some(partial) = self.partial.as_mut().filter(|partial| partial.in_frame()) {
                let (taken, progress) = partial.absorb(&mut input[used..])?;
                used += taken;
                match progress {
                    Progress::Wanting => return Ok((used, None)),
                    Progress::BetweenFrames => continue,
                    Progress::Complete => return Ok((used, self.complete()?)),
                }
            }
            let rest = &mut input[used..];
            let Some(header) = Header::parse(rest)? else {
                return Ok((used, None));
            };
            self.check(&header, limits.max_frames_bytes)?;
            let payload = &mut rest[header.size..];
            let whole = usize::try_from(header.length)
                .ok()
                .filter(|&length| length <= payload.len());
            match whole {
                Some(length) if header.opcode.is_control() => {
                    let frame = read_control(header, &mut payload[..length])?;
                    return Ok((used + header.size + length, Some(frame)));
                }
                Some(length) if header.fin && self.partial.is_none() => {
                    let frame = read_message(header, &mut payload[..length])?;
                    return Ok((used + header.size + length, Some(frame)));
                }
                None if header.opcode.is_control() || !absorb => return Ok((used, None)),
                _ => self.open(&header, &limits.budget)?,
            }
            used += header.size;
        }
    }

    /// Whether a message has begun and not ended.
    pub fn is_mid_message(&self) -> bool {
        self.partial.is_some()
    }

    /// The rules that need to know what came before (5.4), and the limit.
    fn check(&self, header: &Header, max: usize) -> Result<(), PeerFault> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let before = match (&self.partial, header.opcode) {
            (Some(partial), OpCode::Continuation) => partial.len(),
            (None, OpCode::Continuation) => return Err(PeerFault::UnexpectedContinuation),
            (Some(_), _) => return Err(PeerFault::ExpectedContinuation),
            (None, _) => 0,
        };
        if header.length > max.saturating_sub(before) as u64 {
            return Err(PeerFault::MessageTooBig { max });
        }
        Ok(())
    }

    fn open(&mut self, header: &Header, budget: &Arc<Budget>) -> Result<(), ChannelError> {
        if self.partial.is_none() {
            self.partial = Some(Box::new(Partial::new(kind_of(header.opcode), budget)?));
        }
        if let Some(partial) = &mut self.partial {
            partial.open_frame(header);
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Option<Frame>, PeerFault> {
        let Some(partial) = self.partial.take() else {
            return Ok(None);
        };
        let (kind, bytes) = partial.finish()?;
        Ok(Some(Frame::Message(kind, bytes)))
    }
}

fn kind_of(opcode: OpCode) -> MessageKind {
    match opcode {
        OpCode::Text => MessageKind::Text,
        _ => MessageKind::Binary,
    }
}

fn read_message(header: Header, payload: &mut [u8]) -> Result<Frame, PeerFault> {
    unmask(payload, header.mask);
    let kind = kind_of(header.opcode);
    if kind == MessageKind::Text && std::str::from_utf8(payload).is_err() {
        return Err(PeerFault::InvalidUtf8);
    }
    Ok(Frame::Message(kind, Bytes::copy_from_slice(payload)))
}

fn read_control(header: Header, payload: &mut [u8]) -> Result<Frame, PeerFault> {
    unmask(payload, header.mask);
    match header.opcode {
        OpCode::Ping => Ok(Frame::Ping(Control::new(payload))),
        OpCode::Close => read_close(payload).map(Frame::Close),
        _ => Ok(Frame::Pong),
    }
}

/// Whether a close may carry this code. 7.4: 1004 to 1006 and 1015 never travel, and 1016 to 2999 are not defined; 1012 to 1014
/// are registered.
pub(crate) fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// 5.5.1: empty, or a code and a reason in UTF-8.
fn read_close(payload: &[u8]) -> Result<Option<u16>, PeerFault> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(PeerFault::BadClose)
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_close_code(code) {
        return Err(PeerFault::BadClose);
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(PeerFault::InvalidUtf8),
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
