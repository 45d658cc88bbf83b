//! Records within WebSocket messages, both directions of one `ws` connection (PROTOCOL.md section 5). Pure.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use holdfast_proto::codes::CloseCode;
use holdfast_proto::secure::{
    Assembler, ControlRecord, Opener, RECORD_OVERHEAD, RecordError, RecordKind, Sealer, TrafficKeys, chunks,
};
use tokio_tungstenite::tungstenite::Message;

use crate::channel::{Fault, Received};
use crate::message::Encoded;
use crate::{Disturbance, Violation};

pub(super) struct Records {
    sealer: Sealer,
    opener: Opener,
    assembler: Assembler,
    owes_pong: bool,
    /// Nothing that comes counts any more: there was a fault, or a close record.
    input_ended: bool,
    /// Our close record was made: nothing follows it.
    output_ended: bool,
}

impl Records {
    /// `max_message` bounds what is put together from chunks, in bytes.
    pub(super) fn new(keys: TrafficKeys, max_message: usize) -> Self {
        Self {
            sealer: Sealer::new(keys.to_server),
            opener: Opener::new(keys.to_device),
            assembler: Assembler::new(max_message),
            owes_pong: false,
            input_ended: false,
            output_ended: false,
        }
    }

    /// Takes a message of the WebSocket that is no close frame.
    pub(super) fn handle(&mut self, message: Message) -> Result<Received, Fault> {
        let received = match message {
            _ if self.input_ended => return Ok(Received::Unproven),
            // Anybody can send them; tungstenite answers the pings.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Close(_) => {
                return Ok(Received::Unproven);
            }
            Message::Text(_) => Err(Fault::Disturbed(Disturbance::ClearText)),
            Message::Binary(record) => self.open(record),
        };
        self.input_ended |= matches!(received, Err(_) | Ok(Received::Closing { .. }));
        received
    }

    /// The records of one message.
    pub(super) fn seal(&mut self, message: &Encoded) -> Result<Vec<Vec<u8>>, Fault> {
        if self.output_ended {
            return Err(Fault::Broken("this end has closed".into()));
        }
        let (kind, bytes) = match message {
            Encoded::Text(text) => (RecordKind::Text, text.as_bytes()),
            Encoded::Binary(bytes) => (RecordKind::Binary, &bytes[..]),
        };
        let mut run = self.sealer.begin();
        let seal = |(more, data): (bool, &[u8])| {
            let mut record = Vec::with_capacity(data.len() + RECORD_OVERHEAD);
            run.seal(kind, more, data, &mut record).map_err(ended)?;
            Ok(record)
        };
        chunks(bytes).map(seal).collect()
    }

    pub(super) fn owes_pong(&self) -> bool {
        self.owes_pong && !self.output_ended
    }

    /// The answer to all pings so far.
    pub(super) fn seal_pong(&mut self) -> Option<Vec<u8>> {
        self.owes_pong = false;
        self.seal_control(&ControlRecord::Pong)
    }

    /// The last record of this direction; `None` when there was one.
    pub(super) fn seal_close(&mut self, code: CloseCode) -> Option<Vec<u8>> {
        let (code, reason) = (code as u16, code.label().to_owned());
        let record = self.seal_control(&ControlRecord::Close { code, reason });
        self.output_ended = true;
        record
    }

    fn seal_control(&mut self, control: &ControlRecord) -> Option<Vec<u8>> {
        if self.output_ended {
            return None;
        }
        let mut record = Vec::new();
        self.sealer
            .seal(RecordKind::Control, false, &control.encode(), &mut record)
            .ok()?;
        Some(record)
    }

    fn open(&mut self, record: Bytes) -> Result<Received, Fault> {
        // It was just read, so it is nobody else's, and no copy is made.
        let mut record = record
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&*shared));
        let opened = self.opener.open(&mut record).map_err(not_opened)?;
        record.truncate(record.len() - (RECORD_OVERHEAD - 1));
        let data = record.freeze().slice(1..);
        let whole = self
            .assembler
            .push(opened, &data)
            .map_err(|error| Fault::Server(error.close_code(), unreadable(error)))?;
        let Some(whole) = whole else {
            return Ok(Received::Alive);
        };
        let message = match whole.data {
            Cow::Borrowed(_) => data.clone(),
            Cow::Owned(data) => Bytes::from(data),
        };
        match whole.kind {
            RecordKind::Control => self.handle_control(&message),
            RecordKind::Binary => Ok(Received::Binary(message)),
            RecordKind::Text if std::str::from_utf8(&message).is_err() => Err(Fault::Server(
                CloseCode::InvalidPayload,
                unreadable("text that is not UTF-8"),
            )),
            RecordKind::Text => Ok(Received::Text(message)),
        }
    }

    fn handle_control(&mut self, data: &[u8]) -> Result<Received, Fault> {
        let control = ControlRecord::decode(data)
            .map_err(|error| Fault::Server(CloseCode::Protocol, unreadable(error)))?;
        Ok(match control {
            ControlRecord::Ping => {
                self.owes_pong = true;
                Received::Alive
            }
            ControlRecord::Pong => Received::Alive,
            ControlRecord::Close { code, reason } => Received::Closing { code, reason },
        })
    }
}

fn unreadable(what: impl std::fmt::Display) -> Violation {
    Violation::Unreadable(what.to_string().into())
}

fn not_opened(error: RecordError) -> Fault {
    match error {
        RecordError::Form => Fault::Server(CloseCode::Protocol, unreadable(error)),
        RecordError::NotAuthentic | RecordError::Ended => Fault::Disturbed(Disturbance::Record),
    }
}

fn ended(error: RecordError) -> Fault {
    Fault::Broken(error.to_string())
}
