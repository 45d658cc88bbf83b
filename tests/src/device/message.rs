//! What a device is sent, sorted by kind.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Message;

use crate::wire::BinaryHeader;

/// A message from the gateway, by what it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// An event with `reply_to` or `seq` that is no error.
    Reply(Event),
    /// `System.Error`.
    Error(ErrorReply),
    /// Any other event.
    Push(Event),
    /// `@word {…}`; null without JSON.
    Control {
        word: String,
        body: Value,
    },
    /// A WebSocket ping.
    Ping,
    Closed {
        code: u16,
        reason: String,
    },
    /// Breaks the device protocol.
    Malformed(String),
}

/// An event's header and its payload, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub binary: bool,
    pub namespace: String,
    pub name: String,
    pub id: String,
    pub reply_to: String,
    pub seq: u64,
    pub payload: Bytes,
}

/// What stands in the place of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    pub binary: bool,
    pub reply_to: String,
    pub seq: u64,
    pub code: String,
    pub message: String,
    pub retryable: bool,
}

impl Event {
    /// The payload as JSON; panics when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|e| panic!("{e}: {:?}", self.payload))
    }
}

#[derive(Deserialize)]
struct TextEvent<'a> {
    header: TextHeader,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TextHeader {
    namespace: String,
    name: String,
    id: String,
    reply_to: String,
    seq: u64,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
    retryable: bool,
}

pub(crate) fn classify(message: Message) -> Incoming {
    match message {
        Message::Text(text) if text.starts_with('@') => control(text.as_str()),
        Message::Text(text) => match serde_json::from_str::<TextEvent<'_>>(text.as_str()) {
            Ok(event) => {
                let payload = Bytes::copy_from_slice(event.payload.get().as_bytes());
                let TextHeader {
                    namespace,
                    name,
                    id,
                    reply_to,
                    seq,
                } = event.header;
                sort(Event {
                    binary: false,
                    namespace,
                    name,
                    id,
                    reply_to,
                    seq,
                    payload,
                })
            }
            Err(error) => Incoming::Malformed(format!("{error}: {text}")),
        },
        Message::Binary(bytes) => match BinaryHeader::decode(&bytes) {
            Some((header, payload)) => {
                let BinaryHeader {
                    namespace,
                    name,
                    id,
                    reply_to,
                    seq,
                    ..
                } = header;
                sort(Event {
                    binary: true,
                    namespace,
                    name,
                    id,
                    reply_to,
                    seq,
                    payload,
                })
            }
            None => Incoming::Malformed(format!("binary message {bytes:?}")),
        },
        Message::Ping(_) => Incoming::Ping,
        Message::Close(frame) => {
            let (code, reason) =
                frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
            Incoming::Closed { code, reason }
        }
        other => Incoming::Malformed(format!("{other:?}")),
    }
}

fn control(text: &str) -> Incoming {
    let (word, rest) = text.split_once(' ').unwrap_or((text, "null"));
    match serde_json::from_str(rest) {
        Ok(body) => Incoming::Control {
            word: word.to_owned(),
            body,
        },
        Err(error) => Incoming::Malformed(format!("{error}: {text}")),
    }
}

fn sort(event: Event) -> Incoming {
    if (event.namespace.as_str(), event.name.as_str()) == ("System", "Error") {
        let Event {
            binary,
            reply_to,
            seq,
            payload,
            ..
        } = event;
        match serde_json::from_slice::<ErrorBody>(&payload) {
            Ok(ErrorBody {
                code,
                message,
                retryable,
            }) => Incoming::Error(ErrorReply {
                binary,
                reply_to,
                seq,
                code,
                message,
                retryable,
            }),
            Err(error) => Incoming::Malformed(format!("{error}: {payload:?}")),
        }
    } else if event.seq != 0 || !event.reply_to.is_empty() {
        Incoming::Reply(event)
    } else {
        Incoming::Push(event)
    }
}
