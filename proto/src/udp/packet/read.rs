//! Reading a packet.

use super::{MAX_ACK_RUNS, MAX_PIECES, tag};
use crate::MessageKind;
use crate::codes::CloseCode;
use crate::udp::{PeerCredit, RESET_TOKEN_BYTES, ResetToken};

/// A packet, read and checked for its form.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packet<'a> {
    pub ack: Option<Acknowledgement<'a>>,
    pub credit: Option<PeerCredit>,
    pub path_challenge: Option<u64>,
    pub path_response: Option<u64>,
    pub ping: bool,
    pub close: Option<Close<'a>>,
    pub reset_token: Option<ResetToken>,
    pieces: Pieces<'a>,
}

/// Which packets the peer accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement<'a> {
    pub largest: u64,
    pub delay_us: u32,
    /// The packed numbers; checked not to reach below 0.
    runs: &'a [u8],
}

/// A message or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    pub message: u64,
    pub kind: MessageKind,
    /// Of the whole message; as long as `data` when this is all of it.
    pub length: u32,
    pub offset: u32,
    pub data: &'a [u8],
}

/// That the peer closes, and how many messages it sent in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    pub code: u16,
    pub reason: &'a str,
    pub messages: u64,
}

/// What an authentic packet may not be: the peer's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("a field ends beyond its packet")]
    Truncated,
    #[error("a field of another type")]
    WireType,
    #[error("a number over its field's size")]
    Range,
    #[error("a sub-message that comes twice")]
    Repeated,
    #[error("over {MAX_PIECES} pieces")]
    TooManyPieces,
    #[error("an acknowledgement of an impossible form")]
    Acknowledgement,
    #[error("a piece that is not within its message")]
    Piece,
    #[error("a close code over 65535 or a reason that is not UTF-8")]
    Close,
    #[error("a reset token that has not 16 bytes")]
    ResetToken,
}

impl PacketError {
    /// The close code that tells the peer.
    pub fn close_code(self) -> CloseCode {
        CloseCode::Protocol
    }
}

impl<'a> Packet<'a> {
    /// Reads a whole plaintext.
    pub fn decode(plain: &'a [u8]) -> Result<Self, PacketError> {
        let mut packet = Self::default();
        let mut input = Input(plain);
        while !input.0.is_empty() {
            let before = input.0;
            match input.tag()? {
                tag::PIECE => packet.note_piece(input.bytes()?, before)?,
                tag::ACK => once(&mut packet.ack, Acknowledgement::decode(input.bytes()?)?)?,
                tag::CREDIT => once(&mut packet.credit, decode_credit(input.bytes()?)?)?,
                tag::CHALLENGE => packet.path_challenge = input.token()?,
                tag::RESPONSE => packet.path_response = input.token()?,
                tag::PING => packet.ping = input.varint()? != 0,
                tag::CLOSE => once(&mut packet.close, Close::decode(input.bytes()?)?)?,
                tag::RESET_TOKEN => packet.reset_token = decode_reset_token(input.bytes()?)?,
                tag::PADDING => drop(input.bytes()?),
                other if other >> 3 <= 9 => return Err(PacketError::WireType),
                other => input.skip(other)?,
            }
        }
        Ok(packet)
    }

    fn note_piece(&mut self, body: &'a [u8], before: &'a [u8]) -> Result<(), PacketError> {
        let piece = Piece::decode(body)?;
        if self.pieces.left == MAX_PIECES {
            return Err(PacketError::TooManyPieces);
        }
        if self.pieces.left == 0 {
            self.pieces.first = Some(piece);
            // What follows it begins after the key, the length and the body.
            let behind = body.as_ptr() as usize - before.as_ptr() as usize + body.len();
            self.pieces.rest = before.get(behind..).unwrap_or_default();
        }
        self.pieces.left += 1;
        Ok(())
    }

    /// The pieces, in the order of the packet.
    pub fn pieces(&self) -> Pieces<'a> {
        self.pieces
    }

    /// Whether it asks for an acknowledgement.
    pub fn is_eliciting(&self) -> bool {
        self.pieces.left > 0
            || self.ping
            || self.credit.is_some()
            || self.path_challenge.is_some()
            || self.reset_token.is_some()
            || self.close.is_some()
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), PacketError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(PacketError::Repeated),
    }
}

/// Iterates over a packet's pieces. The first was kept when the packet was read; most packets have one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pieces<'a> {
    first: Option<Piece<'a>>,
    left: usize,
    rest: &'a [u8],
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        self.left = self.left.checked_sub(1)?;
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut input = Input(self.rest);
        // The packet was read as a whole before: nothing fails here.
        loop {
            match input.tag().ok()? {
                tag::PIECE => {
                    let piece = Piece::decode(input.bytes().ok()?).ok()?;
                    self.rest = input.0;
                    return Some(piece);
                }
                other => input.skip(other).ok()?,
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Pieces<'_> {}

impl<'a> Piece<'a> {
    fn decode(body: &'a [u8]) -> Result<Self, PacketError> {
        let (mut message, mut kind, mut length, mut offset) = (0, 0, 0, 0);
        let mut data = &[][..];
        let mut input = Input(body);
        while !input.0.is_empty() {
            match input.tag()? {
                t if t == tag::varint(1) => message = input.varint()?,
                t if t == tag::varint(2) => kind = input.varint()?,
                t if t == tag::varint(3) => length = input.varint32()?,
                t if t == tag::varint(4) => offset = input.varint32()?,
                t if t == tag::bytes(5) => data = input.bytes()?,
                other if other >> 3 <= 5 => return Err(PacketError::WireType),
                other => input.skip(other)?,
            }
        }
        let kind = match kind {
            0 => MessageKind::Text,
            1 => MessageKind::Binary,
            _ => return Err(PacketError::Piece),
        };
        let size = u32::try_from(data.len()).map_err(|_| PacketError::Piece)?;
        let within = match length {
            0 => offset == 0,
            _ => size > 0 && offset.checked_add(size).is_some_and(|end| end <= length),
        };
        if !within || message == u64::MAX {
            return Err(PacketError::Piece);
        }
        Ok(Self {
            message,
            kind,
            length: if length == 0 { size } else { length },
            offset,
            data,
        })
    }
}

impl<'a> Acknowledgement<'a> {
    fn decode(body: &'a [u8]) -> Result<Self, PacketError> {
        let (mut largest, mut delay_us) = (0, 0);
        let mut runs: Option<&[u8]> = None;
        let mut input = Input(body);
        while !input.0.is_empty() {
            match input.tag()? {
                t if t == tag::varint(1) => largest = input.varint()?,
                t if t == tag::bytes(2) => once(&mut runs, input.bytes()?)?,
                t if t == tag::varint(3) => delay_us = input.varint32()?,
                other if other >> 3 <= 3 => return Err(PacketError::WireType),
                other => input.skip(other)?,
            }
        }
        let ack = Self {
            largest,
            delay_us,
            runs: runs.unwrap_or_default(),
        };
        ack.check()?;
        Ok(ack)
    }

    fn check(&self) -> Result<(), PacketError> {
        let mut input = Input(self.runs);
        let mut below = Some(self.largest);
        let mut values = 0;
        while !input.0.is_empty() {
            let value = u64::from(input.varint32()?);
            // The first run counts `largest` itself; each later number leads one further down.
            let step = if values == 0 {
                Some(value)
            } else {
                value.checked_add(1)
            };
            below = below.zip(step).and_then(|(below, step)| below.checked_sub(step));
            values += 1;
            if below.is_none() || values >= 2 * MAX_ACK_RUNS {
                return Err(PacketError::Acknowledgement);
            }
        }
        match values == 0 || values % 2 == 1 {
            true => Ok(()),
            false => Err(PacketError::Acknowledgement),
        }
    }

    /// The runs of accepted numbers, both ends included, from `largest` downwards. None counts as one run of one.
    pub fn ranges(&self) -> AckRanges<'a> {
        AckRanges {
            next: Some(self.largest),
            input: Input(self.runs),
        }
    }
}

/// Iterates over an acknowledgement's runs.
#[derive(Debug, Clone)]
pub struct AckRanges<'a> {
    /// The highest number of the next run.
    next: Option<u64>,
    input: Input<'a>,
}

impl Iterator for AckRanges<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let high = self.next.take()?;
        let run = self.input.varint32().unwrap_or(0);
        let low = high.checked_sub(u64::from(run))?;
        if let Ok(gap) = self.input.varint32() {
            self.next = low.checked_sub(u64::from(gap) + 2);
        }
        Some((low, high))
    }
}

impl<'a> Close<'a> {
    fn decode(body: &'a [u8]) -> Result<Self, PacketError> {
        let (mut code, mut messages) = (0, 0);
        let mut reason = "";
        let mut input = Input(body);
        while !input.0.is_empty() {
            match input.tag()? {
                t if t == tag::varint(1) => code = input.varint32()?,
                t if t == tag::bytes(2) => {
                    reason = std::str::from_utf8(input.bytes()?).map_err(|_| PacketError::Close)?;
                }
                t if t == tag::varint(3) => messages = input.varint()?,
                other if other >> 3 <= 3 => return Err(PacketError::WireType),
                other => input.skip(other)?,
            }
        }
        let code = u16::try_from(code).map_err(|_| PacketError::Close)?;
        Ok(Self {
            code,
            reason,
            messages,
        })
    }
}

fn decode_credit(body: &[u8]) -> Result<PeerCredit, PacketError> {
    let mut credit = PeerCredit::default();
    let mut input = Input(body);
    while !input.0.is_empty() {
        match input.tag()? {
            t if t == tag::varint(1) => credit.messages = input.varint()?,
            t if t == tag::varint(2) => credit.bytes = input.varint()?,
            other if other >> 3 <= 2 => return Err(PacketError::WireType),
            other => input.skip(other)?,
        }
    }
    Ok(credit)
}

fn decode_reset_token(bytes: &[u8]) -> Result<Option<ResetToken>, PacketError> {
    match bytes.len() {
        0 => Ok(None),
        RESET_TOKEN_BYTES => Ok(bytes.try_into().ok().map(ResetToken)),
        _ => Err(PacketError::ResetToken),
    }
}

/// What is left to read.
#[derive(Debug, Clone)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// A field's number and wire type.
    fn tag(&mut self) -> Result<u32, PacketError> {
        match self.varint32()? {
            tag if tag >> 3 == 0 => Err(PacketError::WireType),
            tag => Ok(tag),
        }
    }

    fn varint32(&mut self) -> Result<u32, PacketError> {
        self.varint()?.try_into().map_err(|_| PacketError::Range)
    }

    fn varint(&mut self) -> Result<u64, PacketError> {
        if let Some((&first, rest)) = self.0.split_first()
            && first < 0x80
        {
            self.0 = rest;
            return Ok(first.into());
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, PacketError> {
        let mut value = 0;
        for (index, &byte) in self.0.iter().enumerate().take(10) {
            if index == 9 && byte > 1 {
                return Err(PacketError::Range);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(PacketError::Truncated)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PacketError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(PacketError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], PacketError> {
        let length = usize::try_from(self.varint()?).map_err(|_| PacketError::Truncated)?;
        self.take(length)
    }

    /// A path's token; 0 is none.
    fn token(&mut self) -> Result<Option<u64>, PacketError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(PacketError::Truncated)?;
        self.0 = rest;
        Ok(Some(u64::from_le_bytes(*bytes)).filter(|token| *token != 0))
    }

    /// Skips a field that is not known.
    fn skip(&mut self, tag: u32) -> Result<(), PacketError> {
        match tag & 7 {
            tag::VARINT => drop(self.varint()?),
            tag::FIXED64 => drop(self.take(8)?),
            tag::BYTES => drop(self.bytes()?),
            tag::FIXED32 => drop(self.take(4)?),
            _ => return Err(PacketError::WireType),
        }
        Ok(())
    }
}
