//! The `ws` channel: plain TCP, one HTTP upgrade, then WebSocket frames that hold records of ours (PROTOCOL.md).
//!
//! After the upgrade's answer the challenge is the one message in the clear; from then on each WebSocket message is a binary one with
//! one record. Whatever is not in a record says nothing about the device: a clear ping is answered, but is no sign of life, and
//! a clear close may be anybody's.

use bytes::{Bytes, BytesMut};
use holdfast_proto::secure::{
    AssembleError, Assembler, ControlRecord, Opened, Opener, RECORD_OVERHEAD, RecordError, RecordKind,
    Sealer, chunks,
};

use super::budget::{Budget, Charge};
use super::error::{ChannelError, PeerFault};
use super::frame::{OpCode, ReadLimits, write_close, write_frame, write_header};
use super::parked::Parked;
use super::scratch::{Scratch, Token};
use super::websocket::{Content, Layer, Pumped, WebSocket};
use super::{Challenge, ChannelKind, MessageKind};

/// One device's `ws` connection.
pub type WsChannel = WebSocket<RecordLayer>;

impl WsChannel {
    /// A channel for a connection that was just accepted by the shard whose buffers these are.
    pub fn new(scratch: &mut Scratch) -> Self {
        Self::over(RecordLayer {
            token: scratch.next_token(),
            records: None,
        })
    }
}

/// Records within WebSocket messages. Before the challenge there are none.
#[derive(Debug)]
pub struct RecordLayer {
    token: Token,
    records: Option<Box<Records>>,
}

/// Both directions: 112 bytes while idle, with their keys.
#[derive(Debug)]
struct Records {
    sealer: Sealer,
    opener: Opener,
    /// A message of which chunks have come.
    parts: Option<Box<Parts>>,
    owes_pong: bool,
    /// Nothing may follow our close.
    closed: bool,
}

/// An unfinished message, charged to the shard.
#[derive(Debug)]
struct Parts {
    assembler: Assembler,
    charge: Charge,
}

impl Layer for RecordLayer {
    const KIND: ChannelKind = ChannelKind::Ws;

    fn token(&self) -> Token {
        self.token
    }

    fn is_setting_up(&self) -> bool {
        false
    }

    fn readable(scratch: &mut Scratch) -> (&mut [u8], &ReadLimits) {
        (scratch.cipher.bytes(), &scratch.record_limits)
    }

    fn consume(scratch: &mut Scratch, n: usize) {
        scratch.cipher.consume(n);
    }

    /// What the socket gave is readable as it is.
    fn pump(&mut self, _: &mut Scratch) -> Result<Pumped, ChannelError> {
        Ok(Pumped::Drained)
    }

    fn writable(scratch: &mut Scratch) -> &mut Vec<u8> {
        &mut scratch.outbound
    }

    fn seal(&mut self, _: &mut Scratch, _: &mut Option<Box<Parked>>, _: bool) -> Result<(), ChannelError> {
        Ok(())
    }

    fn say_goodbye(
        &mut self,
        _: &mut Scratch,
        _: &mut Option<Box<Parked>>,
        _: bool,
    ) -> Result<(), ChannelError> {
        self.records = None;
        Ok(())
    }

    fn on_accepted(
        &mut self,
        challenge: Option<Box<Challenge>>,
        out: &mut Vec<u8>,
    ) -> Result<(), ChannelError> {
        let Some(challenge) = challenge else {
            return Err(ChannelError::State("a device is let in without a challenge"));
        };
        let Challenge { message, keys } = *challenge;
        write_frame(out, OpCode::Text, &message);
        self.records = Some(Box::new(Records {
            sealer: Sealer::new(keys.to_device),
            opener: Opener::new(keys.to_server),
            parts: None,
            owes_pong: false,
            closed: false,
        }));
        Ok(())
    }

    fn on_message(
        &mut self,
        kind: MessageKind,
        bytes: Bytes,
        limits: &ReadLimits,
    ) -> Result<Content, ChannelError> {
        if kind == MessageKind::Text {
            return Err(PeerFault::ClearText.into());
        }
        let Some(records) = &mut self.records else {
            return Err(ChannelError::State("a record before the challenge"));
        };
        // It was just copied out of the scratch, so it is nobody else's.
        let mut record = bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&*shared));
        let opened = records.opener.open(&mut record).map_err(|error| match error {
            RecordError::Form => PeerFault::RecordContent,
            RecordError::NotAuthentic | RecordError::Ended => PeerFault::Record,
        })?;
        record.truncate(record.len() - (RECORD_OVERHEAD - 1));
        let data = record.freeze().slice(1..);
        match opened.kind {
            RecordKind::Control => records.on_control(&data),
            _ => records.on_data(opened, data, limits),
        }
    }

    fn takes_clear_life(&self) -> bool {
        false
    }

    fn write_message(
        &mut self,
        out: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
    ) -> Result<(), ChannelError> {
        let kind = match kind {
            MessageKind::Text => RecordKind::Text,
            MessageKind::Binary => RecordKind::Binary,
        };
        let records = self.open_records()?;
        let mut run = records.sealer.begin();
        for (more, data) in chunks(payload) {
            write_header(out, OpCode::Binary, data.len() + RECORD_OVERHEAD);
            run.seal(kind, more, data, out).map_err(|_| SEALING)?;
        }
        Ok(())
    }

    fn write_ping(&mut self, out: &mut Vec<u8>) -> Result<(), ChannelError> {
        self.open_records()?.write_control(out, &ControlRecord::Ping)
    }

    fn owes_pong(&self) -> bool {
        self.records.as_ref().is_some_and(|records| records.owes_pong)
    }

    fn write_pongs(&mut self, out: &mut Vec<u8>, clear: &[u8]) -> Result<(), ChannelError> {
        out.extend_from_slice(clear);
        let records = self.open_records()?;
        match std::mem::take(&mut records.owes_pong) {
            true => records.write_control(out, &ControlRecord::Pong),
            false => Ok(()),
        }
    }

    /// Says it in a record, for the device to believe, and in the clear, for whoever is between.
    fn write_close(
        &mut self,
        out: &mut Vec<u8>,
        code: Option<u16>,
        reason: &str,
    ) -> Result<(), ChannelError> {
        if let Some((code, records)) = code.zip(self.records.as_mut().filter(|records| !records.closed)) {
            let reason = reason.to_owned();
            records.closed = true;
            records.write_control(out, &ControlRecord::Close { code, reason })?;
        }
        write_close(out, code, reason);
        Ok(())
    }

    fn is_tellable(&self, _: &ChannelError) -> bool {
        true
    }

    fn forget_input(&mut self) {
        if let Some(records) = &mut self.records {
            records.parts = None;
        }
    }
}

const SEALING: ChannelError = ChannelError::State("a record could not be sealed");

impl RecordLayer {
    fn open_records(&mut self) -> Result<&mut Records, ChannelError> {
        self.records
            .as_deref_mut()
            .filter(|records| !records.closed)
            .ok_or(ChannelError::State("there are no records to write"))
    }
}

impl Records {
    fn on_control(&mut self, data: &[u8]) -> Result<Content, ChannelError> {
        match ControlRecord::decode(data).map_err(|_| PeerFault::RecordContent)? {
            ControlRecord::Ping => self.owes_pong = true,
            ControlRecord::Pong => {}
            ControlRecord::Close { code, .. } => return Ok(Content::Closed { code }),
        }
        Ok(Content::Alive)
    }

    fn on_data(&mut self, opened: Opened, data: Bytes, limits: &ReadLimits) -> Result<Content, ChannelError> {
        let max = limits.max_message_bytes;
        let whole = if let Some(parts) = &mut self.parts {
            match parts.add(opened, &data, max)? {
                Some(whole) => whole,
                None => return Ok(Content::Part),
            }
        } else if opened.more {
            let mut parts = Box::new(Parts::new(max, &limits.budget)?);
            parts.add(opened, &data, max)?;
            self.parts = Some(parts);
            return Ok(Content::Part);
        } else if data.len() > max {
            return Err(PeerFault::MessageTooBig { max }.into());
        } else {
            data
        };
        self.parts = None;
        let kind = match opened.kind {
            RecordKind::Text if std::str::from_utf8(&whole).is_err() => {
                return Err(PeerFault::InvalidUtf8.into());
            }
            RecordKind::Text => MessageKind::Text,
            _ => MessageKind::Binary,
        };
        Ok(Content::Message(kind, whole))
    }

    fn write_control(&mut self, out: &mut Vec<u8>, control: &ControlRecord) -> Result<(), ChannelError> {
        let data = control.encode();
        write_header(out, OpCode::Binary, data.len() + RECORD_OVERHEAD);
        self.sealer
            .seal(RecordKind::Control, false, &data, out)
            .map_err(|_| SEALING)
    }
}

impl Parts {
    fn new(max: usize, budget: &std::sync::Arc<Budget>) -> Result<Self, ChannelError> {
        Ok(Self {
            assembler: Assembler::new(max),
            charge: Charge::new(budget, size_of::<Self>())?,
        })
    }

    fn add(&mut self, opened: Opened, data: &[u8], max: usize) -> Result<Option<Bytes>, ChannelError> {
        let whole = self.assembler.push(opened, data).map_err(|error| match error {
            AssembleError::TooBig => PeerFault::MessageTooBig { max },
            AssembleError::Interleaved | AssembleError::EmptyChunk => PeerFault::RecordContent,
        })?;
        self.charge
            .resize(size_of::<Self>() + self.assembler.held_bytes())?;
        // `Bytes` keeps what a vector has room for, which may be twice what the message has, and what windows count.
        Ok(whole.map(|whole| Bytes::from(whole.data.into_owned().into_boxed_slice())))
    }
}

#[cfg(test)]
#[path = "ws_tests.rs"]
mod tests;
