//! Messages in and out of records, on `ws`; on `wss` they pass as they are.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::SinkExt as _;
use futures_util::stream::SplitSink;
use holdfast_proto::secure::{Assembler, ControlRecord, Opener, RecordKind, Sealer, TrafficKey, chunks};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::dial::Socket;

/// Above every limit of a test gateway.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// What is reported when something on `ws` is not as it must be.
const ABNORMAL: u16 = super::ABNORMAL;

/// The way out.
pub(super) struct Writer {
    sink: SplitSink<WebSocketStream<Socket>, Message>,
    sealer: Option<Sealer>,
    /// Sealed, so in this order or not at all: a caller that went away has not undone them.
    pending: VecDeque<Message>,
}

impl Writer {
    pub(super) fn new(sink: SplitSink<WebSocketStream<Socket>, Message>) -> Self {
        Self {
            sink,
            sealer: None,
            pending: VecDeque::new(),
        }
    }

    pub(super) fn seal_with(&mut self, key: TrafficKey) {
        self.sealer = Some(Sealer::new(key));
    }

    pub(super) async fn send(&mut self, message: Message) -> Result<(), Error> {
        match &mut self.sealer {
            None => self.pending.push_back(message),
            Some(sealer) => self.pending.extend(seal(sealer, &message)),
        }
        while let Some(message) = self.pending.front() {
            self.sink.feed(message.clone()).await?;
            self.pending.pop_front();
        }
        self.sink.flush().await
    }

    /// A close frame, on `ws` after a close record.
    pub(super) async fn close(&mut self) -> Result<(), Error> {
        if self.sealer.is_some() {
            let frame = CloseFrame {
                code: 1000.into(),
                reason: "normal".into(),
            };
            self.send(Message::Close(Some(frame))).await?;
        }
        self.sink.close().await
    }
}

fn seal(sealer: &mut Sealer, message: &Message) -> Vec<Message> {
    let control = |control: ControlRecord| (RecordKind::Control, control.encode());
    let (kind, data) = match message {
        Message::Text(text) => (RecordKind::Text, text.as_bytes().to_vec()),
        Message::Binary(bytes) => (RecordKind::Binary, bytes.to_vec()),
        Message::Ping(_) => control(ControlRecord::Ping),
        Message::Pong(_) => control(ControlRecord::Pong),
        Message::Close(frame) => {
            let (code, reason) = frame
                .as_ref()
                .map_or((1000, String::new()), |f| (f.code.into(), f.reason.to_string()));
            control(ControlRecord::Close { code, reason })
        }
        Message::Frame(_) => return Vec::new(),
    };
    let seal = |(more, data): (bool, &[u8])| {
        let mut record = Vec::new();
        sealer
            .seal(kind, more, data, &mut record)
            .expect("chunks have the form of records");
        Message::binary(record)
    };
    chunks(&data).map(seal).collect()
}

/// The way in.
pub(super) struct Unwrap {
    opener: Opener,
    assembler: Assembler,
}

impl Unwrap {
    pub(super) fn new(key: TrafficKey) -> Self {
        Self {
            opener: Opener::new(key),
            assembler: Assembler::new(MAX_MESSAGE_BYTES),
        }
    }

    /// What a message of the WebSocket means: control records become the WebSocket's own messages, and whatever must not be
    /// an abnormal end.
    pub(super) fn unwrap(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Binary(record) => self.open(&record),
            // Of the WebSocket itself, and so anybody's.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => None,
            Message::Text(text) => Some(abnormal(&format!("a message in the clear: {text}"))),
            Message::Close(frame) => Some(abnormal(&format!("closed in the clear: {frame:?}"))),
        }
    }

    fn open(&mut self, record: &Bytes) -> Option<Message> {
        let mut record = record.to_vec();
        let opened = match self.opener.open(&mut record) {
            Ok(opened) => opened,
            Err(error) => return Some(abnormal(&error.to_string())),
        };
        let data = &record[1..record.len() - 16];
        let whole = match self.assembler.push(opened, data) {
            Ok(whole) => whole?,
            Err(error) => return Some(abnormal(&error.to_string())),
        };
        Some(match whole.kind {
            RecordKind::Binary => Message::binary(whole.data.into_owned()),
            RecordKind::Text => match String::from_utf8(whole.data.into_owned()) {
                Ok(text) => Message::text(text),
                Err(error) => abnormal(&error.to_string()),
            },
            RecordKind::Control => match ControlRecord::decode(&whole.data) {
                Ok(ControlRecord::Ping) => Message::Ping(Bytes::new()),
                Ok(ControlRecord::Pong) => Message::Pong(Bytes::new()),
                Ok(ControlRecord::Close { code, reason }) => close(code, &reason),
                Err(error) => abnormal(&error.to_string()),
            },
        })
    }
}

fn abnormal(what: &str) -> Message {
    close(ABNORMAL, what)
}

fn close(code: u16, reason: &str) -> Message {
    Message::Close(Some(CloseFrame {
        code: code.into(),
        reason: reason.into(),
    }))
}
