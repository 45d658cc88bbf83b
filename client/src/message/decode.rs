//! Reading what the server sends.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Goodbye, Incoming, Push, Reply, WireHeader};
use crate::{Error, Welcome};

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
        "@pong" => Ok(Incoming::Pong),
        _ => Ok(Incoming::OtherControl),
    }
}

#[derive(Deserialize)]
struct EventIn<'a> {
    #[serde(borrow)]
    header: HeaderIn<'a>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
}

/// A payload that is there may be `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
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
