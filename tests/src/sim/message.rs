//! What devices write and read: events in both forms.

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::event::{EventHeader, parse_binary};
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::queue::Time;
use super::request::{Aim, Request};
use super::rng::Rng;
use super::service::RouteKind;

/// A request as it is sent, and what the ledger keeps of it.
pub(super) fn draw(rng: &mut Rng, (now, mark): (Time, u64), old_key: Option<String>) -> (Request, Bytes) {
    let aim = match rng.weighted(&[900, 40, 60]) {
        0 => Aim::Route(rng.pick(&RouteKind::ALL)),
        1 => Aim::Nowhere,
        _ => Aim::Malformed,
    };
    let binary = rng.chance(250);
    let padding = if rng.chance(60) {
        rng.below(600)
    } else {
        rng.below(20)
    };
    let id = rng.chance(900).then(|| format!("q{mark}"));
    let retry_key = match old_key {
        Some(key) if rng.chance(100) => Some(key),
        _ => rng.chance(120).then(|| format!("r{mark}")),
    };
    let payload = if binary {
        Bytes::from([&mark.to_be_bytes()[..], &vec![1; padding]].concat())
    } else {
        Bytes::from(format!(
            "{{\"mark\":{mark},\"padding\":\"{}\"}}",
            "y".repeat(padding)
        ))
    };
    let kind = if binary {
        MessageKind::Binary
    } else {
        MessageKind::Text
    };
    let request = Request {
        kind,
        aim,
        id,
        retry_key,
        payload,
        sent: now,
        answered: None,
        given: 0,
        calls: Vec::new(),
    };
    let message = render(rng, &request);
    (request, message)
}

fn render(rng: &mut Rng, request: &Request) -> Bytes {
    let namespace = match request.aim {
        Aim::Route(route) => route.namespace(),
        Aim::Nowhere => "Nowhere",
        Aim::Malformed if request.kind == MessageKind::Binary => {
            return Bytes::from_static(b"\xff\xff\xff\xff");
        }
        Aim::Malformed => {
            let texts: [&'static [u8]; 3] = [b"{\"header\":{", b"[]", b"{\"header\":{\"namespace\":7}}"];
            return Bytes::from_static(rng.pick(&texts));
        }
    };
    let text = |option: &Option<String>| option.clone().unwrap_or_default();
    if request.kind == MessageKind::Binary {
        let header = EventHeader {
            namespace: namespace.into(),
            name: "Do".into(),
            id: text(&request.id),
            retry_key: text(&request.retry_key),
            ..EventHeader::default()
        };
        let mut message = header.encode_length_delimited_to_vec();
        message.extend_from_slice(&request.payload);
        return message.into();
    }
    let payload = std::str::from_utf8(&request.payload).unwrap_or("null");
    let (id, retry_key) = (text(&request.id), text(&request.retry_key));
    format!(
        "{{\"header\":{{\"namespace\":\"{namespace}\",\"name\":\"Do\",\"id\":\"{id}\",\
         \"retry_key\":\"{retry_key}\"}},\"payload\":{payload}}}"
    )
    .into()
}

/// A message from the gateway, as a device understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Control(String),
    Event {
        namespace: String,
        name: String,
        id: String,
        reply_to: String,
        seq: u64,
        payload: Bytes,
    },
    Unreadable,
}

#[derive(Deserialize)]
struct TextMessage<'a> {
    header: TextHeader,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct TextHeader {
    namespace: String,
    name: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    reply_to: String,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct ErrorPayload {
    code: String,
}

pub(super) fn read(kind: MessageKind, message: &Bytes) -> Heard {
    if kind == MessageKind::Binary {
        let Ok(event) = parse_binary(message) else {
            return Heard::Unreadable;
        };
        let EventHeader {
            namespace,
            name,
            id,
            reply_to,
            seq,
            ..
        } = event.header;
        return Heard::Event {
            namespace,
            name,
            id,
            reply_to,
            seq,
            payload: event.payload,
        };
    }
    if message.first() == Some(&b'@') {
        return Heard::Control(String::from_utf8_lossy(message).into_owned());
    }
    let Ok(TextMessage { header, payload }) = serde_json::from_slice(message) else {
        return Heard::Unreadable;
    };
    let payload = message.slice_ref(payload.get().as_bytes());
    let TextHeader {
        namespace,
        name,
        id,
        reply_to,
        seq,
    } = header;
    Heard::Event {
        namespace,
        name,
        id,
        reply_to,
        seq,
        payload,
    }
}

/// The code in an error's payload.
pub(super) fn error_code(payload: &[u8]) -> Option<String> {
    serde_json::from_slice::<ErrorPayload>(payload)
        .ok()
        .map(|error| error.code)
}
