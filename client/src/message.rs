//! Messages as the device protocol writes them: JSON events in text messages, a length-delimited protobuf header and raw
//! bytes in binary ones, control messages that begin with `@`. Pure.

mod decode;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use serde::Serialize;
use serde_json::value::RawValue;

pub(crate) use decode::{decode_binary, decode_text};

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
    Pong,
    /// Words of later versions.
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
mod tests;
