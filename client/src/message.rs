//! Messages as the device protocol writes them: JSON events in text messages, a length-delimited protobuf header and raw
//! bytes in binary ones, control messages that begin with `@`. Pure.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, Welcome};

/// A request to be sent. The payload goes out byte for byte.
#[derive(Debug, Clone)]
pub struct Request {
    pub namespace: String,
    pub name: String,
    /// At most 128 bytes; given by the device when absent.
    pub id: Option<String>,
    /// With a retry key the request is sent again after a reconnect, and services see the same `Idempotency-Key`.
    pub retry_key: Option<String>,
    pub body: Body,
}

/// What a request carries, which also decides the kind of its message.
#[derive(Debug, Clone)]
pub enum Body {
    Json(Box<RawValue>),
    Binary(Bytes),
}

impl Request {
    pub fn json(namespace: impl Into<String>, name: impl Into<String>, payload: Box<RawValue>) -> Self {
        Self::new(namespace.into(), name.into(), Body::Json(payload))
    }

    pub fn binary(namespace: impl Into<String>, name: impl Into<String>, payload: Bytes) -> Self {
        Self::new(namespace.into(), name.into(), Body::Binary(payload))
    }

    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self {
            id: Some(id.into()),
            ..self
        }
    }

    pub fn with_retry_key(self, key: impl Into<String>) -> Self {
        Self {
            retry_key: Some(key.into()),
            ..self
        }
    }

    fn new(namespace: String, name: String, body: Body) -> Self {
        Self {
            namespace,
            name,
            id: None,
            retry_key: None,
            body,
        }
    }
}

/// A service's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub namespace: String,
    /// The request's name and `.Reply`.
    pub name: String,
    pub id: Option<String>,
    pub reply_to: Option<String>,
    /// The request's number on its connection.
    pub seq: u64,
    /// JSON for a text request, else as the service wrote it. Shares the received message's buffer.
    pub payload: Bytes,
    pub binary: bool,
}

/// A message that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    pub namespace: String,
    pub name: String,
    pub id: Option<String>,
    /// Shares the received message's buffer.
    pub payload: Bytes,
    pub binary: bool,
}

/// The server's last words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Goodbye {
    pub(crate) code: String,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) reconnect: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Reply(Reply),
    Failure {
        seq: u64,
        reply_to: Option<String>,
        error: Error,
    },
    Push(Push),
    Welcome(Welcome),
    Goodbye(Goodbye),
    /// `@pong`, and words of later versions.
    OtherControl,
}

/// The first message of a connection.
pub(crate) fn hello(instance: &str) -> String {
    if instance.is_empty() {
        return "@hello {}".to_owned();
    }
    format!("@hello {}", serde_json::json!({ "instance": instance }))
}

pub(crate) const PING: &str = "@ping";

/// An encoded request: text or binary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Encoded {
    Text(String),
    Binary(Bytes),
}

impl Encoded {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// Writes `request` with the id given (its own, or the one that the device made).
pub(crate) fn encode(request: &Request, id: &str) -> Encoded {
    match &request.body {
        Body::Json(payload) => {
            let header = HeaderOut {
                namespace: &request.namespace,
                name: &request.name,
                id,
                retry_key: request.retry_key.as_deref(),
            };
            let text = serde_json::to_string(&EventOut { header, payload })
                .expect("strings and JSON always serialise");
            Encoded::Text(text)
        }
        Body::Binary(payload) => {
            let header = WireHeader {
                namespace: request.namespace.clone(),
                name: request.name.clone(),
                id: id.to_owned(),
                retry_key: request.retry_key.clone().unwrap_or_default(),
                ..WireHeader::default()
            };
            let header = header.encode_length_delimited_to_vec();
            let mut message = BytesMut::with_capacity(header.len() + payload.len());
            message.extend_from_slice(&header);
            message.extend_from_slice(payload);
            Encoded::Binary(message.freeze())
        }
    }
}

/// Reads a text message. The error says what is wrong with it.
pub(crate) fn decode_text(message: Bytes) -> Result<Incoming, String> {
    let text = std::str::from_utf8(&message).map_err(|_| "a text message is not UTF-8".to_owned())?;
    if text.starts_with('@') {
        return decode_control(text);
    }
    let event: EventIn<'_> = serde_json::from_str(text).map_err(|e| format!("an unreadable event: {e}"))?;
    let payload = event
        .payload
        .map_or_else(Bytes::new, |raw| message.slice_ref(raw.get().as_bytes()));
    let HeaderIn {
        namespace,
        name,
        id,
        reply_to,
        seq,
    } = event.header;
    let header = Header {
        namespace: namespace.into_owned(),
        name: name.into_owned(),
        id,
        reply_to,
        seq,
    };
    header.incoming(payload, false)
}

/// Reads a binary message.
pub(crate) fn decode_binary(mut message: Bytes) -> Result<Incoming, String> {
    let header = WireHeader::decode_length_delimited(&mut message)
        .map_err(|e| format!("an unreadable header: {e}"))?;
    let some = |text: String| (!text.is_empty()).then_some(text);
    let header = Header {
        namespace: header.namespace,
        name: header.name,
        id: some(header.id),
        reply_to: some(header.reply_to),
        seq: (header.seq != 0).then_some(header.seq),
    };
    header.incoming(message, true)
}

struct Header {
    namespace: String,
    name: String,
    id: Option<String>,
    reply_to: Option<String>,
    seq: Option<u64>,
}

impl Header {
    fn incoming(self, payload: Bytes, binary: bool) -> Result<Incoming, String> {
        let Self {
            namespace,
            name,
            id,
            reply_to,
            seq,
        } = self;
        let Some(seq) = seq else {
            return Ok(Incoming::Push(Push {
                namespace,
                name,
                id,
                payload,
                binary,
            }));
        };
        if namespace == "System" && name == "Error" {
            let failure: FailureIn<'_> =
                serde_json::from_slice(&payload).map_err(|e| format!("an unreadable error reply: {e}"))?;
            let error = Error::Service {
                code: failure.code.into_owned(),
                message: failure.message.into_owned(),
                retryable: failure.retryable,
            };
            return Ok(Incoming::Failure { seq, reply_to, error });
        }
        Ok(Incoming::Reply(Reply {
            namespace,
            name,
            id,
            reply_to,
            seq,
            payload,
            binary,
        }))
    }
}

fn decode_control(text: &str) -> Result<Incoming, String> {
    let (word, json) = text
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((text, "{}"));
    let json = if json.trim().is_empty() { "{}" } else { json };
    let unreadable = |e: serde_json::Error| format!("an unreadable {word}: {e}");
    match word {
        "@welcome" => {
            let welcome: WelcomeIn = serde_json::from_str(json).map_err(unreadable)?;
            Ok(Incoming::Welcome(Welcome {
                session: welcome.session,
                heartbeat: Duration::from_millis(welcome.heartbeat_ms),
                max_message: usize::try_from(welcome.max_message).unwrap_or(usize::MAX),
                window: welcome.window,
            }))
        }
        "@goodbye" => {
            let goodbye: GoodbyeIn = serde_json::from_str(json).map_err(unreadable)?;
            Ok(Incoming::Goodbye(Goodbye {
                code: goodbye.code,
                retry_after: goodbye.retry_after_ms.map(Duration::from_millis),
                reconnect: goodbye.reconnect,
            }))
        }
        _ => Ok(Incoming::OtherControl),
    }
}

#[derive(Serialize)]
struct EventOut<'a> {
    header: HeaderOut<'a>,
    payload: &'a RawValue,
}

#[derive(Serialize)]
struct HeaderOut<'a> {
    namespace: &'a str,
    name: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_key: Option<&'a str>,
}

#[derive(Deserialize)]
struct EventIn<'a> {
    #[serde(borrow)]
    header: HeaderIn<'a>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct HeaderIn<'a> {
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    id: Option<String>,
    reply_to: Option<String>,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct FailureIn<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(default)]
    retryable: bool,
}

#[derive(Deserialize)]
struct WelcomeIn {
    session: String,
    heartbeat_ms: u64,
    max_message: u64,
    window: u32,
}

#[derive(Deserialize)]
struct GoodbyeIn {
    #[serde(default)]
    code: String,
    retry_after_ms: Option<u64>,
    #[serde(default = "yes")]
    reconnect: bool,
}

fn yes() -> bool {
    true
}

/// The header of a binary message.
#[derive(Clone, PartialEq, prost::Message)]
struct WireHeader {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(string, tag = "4")]
    retry_key: String,
    #[prost(string, tag = "5")]
    reply_to: String,
    #[prost(uint64, tag = "6")]
    seq: u64,
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
