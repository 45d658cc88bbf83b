//! Writing replies, errors and pushes: header and payload into one buffer of exactly the size needed.

use prost::Message;

use super::EventHeader;
use crate::codes::ErrorCode;
use crate::ids::Sequence;

/// What a reply says about the request that it answers.
#[derive(Debug, Clone, Copy)]
pub struct ReplyHeader<'a> {
    pub namespace: &'a str,
    /// The request's name; the reply's is this with `.Reply` after it.
    pub name: &'a str,
    /// The request's id, if it had one.
    pub reply_to: Option<&'a str>,
    pub seq: Sequence,
}

/// An error in the place of a reply.
#[derive(Debug, Clone, Copy)]
pub struct ErrorReply<'a> {
    /// The request's id, if it had one that could be read.
    pub reply_to: Option<&'a str>,
    pub seq: Sequence,
    pub code: ErrorCode,
    /// One sentence for people, usually [`ErrorCode::message`].
    pub message: &'a str,
}

/// A push's header.
#[derive(Debug, Clone, Copy)]
pub struct PushHeader<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub id: &'a str,
}

/// A reply to a text request. `payload` is JSON; empty means an empty reply, written as `null`.
pub fn render_reply_text(header: &ReplyHeader<'_>, payload: &[u8]) -> Vec<u8> {
    let payload = if payload.is_empty() { b"null" } else { payload };
    let seq = header.seq.to_string();
    let mut parts = vec![
        Part::Raw(br#"{"header":{"namespace":""#),
        Part::Text(header.namespace),
        Part::Raw(br#"","name":""#),
        Part::Text(header.name),
        Part::Raw(br#".Reply","id":"r-"#),
        Part::Raw(seq.as_bytes()),
        Part::Raw(b"\""),
    ];
    push_reply_to(&mut parts, header.reply_to, &seq);
    parts.extend([Part::Raw(br#"},"payload":"#), Part::Raw(payload), Part::Raw(b"}")]);
    join(&parts)
}

/// A reply to a binary request; `payload` is the service's body as it was.
pub fn render_reply_binary(header: &ReplyHeader<'_>, payload: &[u8]) -> Vec<u8> {
    let header = EventHeader {
        namespace: header.namespace.to_owned(),
        name: format!("{}.Reply", header.name),
        id: format!("r-{}", header.seq),
        reply_to: header.reply_to.unwrap_or_default().to_owned(),
        seq: header.seq.0,
        ..EventHeader::default()
    };
    delimited(&header, payload)
}

/// An error reply in the form of the request: its payload is JSON in both.
pub fn render_error(binary: bool, error: &ErrorReply<'_>) -> Vec<u8> {
    if binary {
        error_binary(error)
    } else {
        error_text(error)
    }
}

fn error_text(error: &ErrorReply<'_>) -> Vec<u8> {
    let seq = error.seq.to_string();
    let mut parts = vec![Part::Raw(br#"{"header":{"namespace":"System","name":"Error""#)];
    push_reply_to(&mut parts, error.reply_to, &seq);
    parts.push(Part::Raw(br#"},"payload":"#));
    push_error_payload(&mut parts, error);
    parts.push(Part::Raw(b"}"));
    join(&parts)
}

fn error_binary(error: &ErrorReply<'_>) -> Vec<u8> {
    let header = EventHeader {
        namespace: "System".to_owned(),
        name: "Error".to_owned(),
        reply_to: error.reply_to.unwrap_or_default().to_owned(),
        seq: error.seq.0,
        ..EventHeader::default()
    };
    let mut parts = Vec::new();
    push_error_payload(&mut parts, error);
    delimited(&header, &join(&parts))
}

/// A push as a text message; `payload` is JSON and goes in as it is.
pub fn render_push_text(header: &PushHeader<'_>, payload: &[u8]) -> Vec<u8> {
    join(&[
        Part::Raw(br#"{"header":{"namespace":""#),
        Part::Text(header.namespace),
        Part::Raw(br#"","name":""#),
        Part::Text(header.name),
        Part::Raw(br#"","id":""#),
        Part::Text(header.id),
        Part::Raw(br#""},"payload":"#),
        Part::Raw(payload),
        Part::Raw(b"}"),
    ])
}

/// A push as a binary message; `payload` is any bytes.
pub fn render_push_binary(header: &PushHeader<'_>, payload: &[u8]) -> Vec<u8> {
    let header = EventHeader {
        namespace: header.namespace.to_owned(),
        name: header.name.to_owned(),
        id: header.id.to_owned(),
        ..EventHeader::default()
    };
    delimited(&header, payload)
}

fn delimited(header: &EventHeader, payload: &[u8]) -> Vec<u8> {
    let length = header.encoded_len();
    let mut out = Vec::with_capacity(prost::length_delimiter_len(length) + length + payload.len());
    header
        .encode_length_delimited(&mut out)
        .expect("a Vec grows as needed");
    out.extend_from_slice(payload);
    out
}

fn push_reply_to<'a>(parts: &mut Vec<Part<'a>>, reply_to: Option<&'a str>, seq: &'a str) {
    if let Some(id) = reply_to {
        parts.extend([Part::Raw(br#","reply_to":""#), Part::Text(id), Part::Raw(b"\"")]);
    }
    parts.extend([Part::Raw(br#","seq":"#), Part::Raw(seq.as_bytes())]);
}

fn push_error_payload<'a>(parts: &mut Vec<Part<'a>>, error: &ErrorReply<'a>) {
    let retryable: &[u8] = if error.code.retryable() {
        b"true}"
    } else {
        b"false}"
    };
    parts.extend([
        Part::Raw(br#"{"code":""#),
        Part::Raw(error.code.label().as_bytes()),
        Part::Raw(br#"","message":""#),
        Part::Text(error.message),
        Part::Raw(br#"","retryable":"#),
        Part::Raw(retryable),
    ]);
}

/// A piece of a JSON text: as it is, or the inside of a string that is still to be escaped (RFC 8259 section 7).
#[derive(Clone, Copy)]
enum Part<'a> {
    Raw(&'a [u8]),
    Text(&'a str),
}

impl Part<'_> {
    fn len(self) -> usize {
        match self {
            Part::Raw(bytes) => bytes.len(),
            Part::Text(text) => text.bytes().map(escape_len).sum(),
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        match self {
            Part::Raw(bytes) => out.extend_from_slice(bytes),
            Part::Text(text) => write_escaped(out, text),
        }
    }
}

fn join(parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len()).sum());
    parts.iter().for_each(|p| p.write(&mut out));
    out
}

const fn escape_len(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

fn write_escaped(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        match escape_len(byte) {
            1 => continue,
            2 => {
                out.extend_from_slice(&bytes[plain_from..i]);
                out.extend_from_slice(&[b'\\', byte]);
            }
            _ => {
                out.extend_from_slice(&bytes[plain_from..i]);
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        plain_from = i + 1;
    }
    out.extend_from_slice(&bytes[plain_from..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::parse_binary;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const HEADER: ReplyHeader<'_> = ReplyHeader {
        namespace: "Weather",
        name: "Query",
        reply_to: Some("req-1"),
        seq: Sequence(9),
    };

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_reply_has_the_documented_form() {
        let reply = render_reply_text(&HEADER, br#"{"temp_c":4}"#);
        let expected = r#"{"header":{"namespace":"Weather","name":"Query.Reply","id":"r-9","reply_to":"req-1","seq":9},"payload":{"temp_c":4}}"#;
        assert_eq!(text(&reply), expected);
        let reply = render_reply_text(
            &ReplyHeader {
                reply_to: None,
                ..HEADER
            },
            b"",
        );
        let expected =
            r#"{"header":{"namespace":"Weather","name":"Query.Reply","id":"r-9","seq":9},"payload":null}"#;
        assert_eq!(text(&reply), expected);
    }

    #[test]
    fn an_error_has_the_documented_form_as_text_and_binary() {
        let code = ErrorCode::UpstreamTimeout;
        let error = ErrorReply {
            reply_to: Some("req-1"),
            seq: Sequence(1),
            code,
            message: code.message(),
        };
        let payload = json!({"code": "upstream_timeout", "message": code.message(), "retryable": true});
        let value: Value = serde_json::from_slice(&render_error(false, &error)).unwrap();
        let header = json!({"namespace": "System", "name": "Error", "reply_to": "req-1", "seq": 1});
        assert_eq!(value, json!({"header": header, "payload": payload}));
        let event = parse_binary(&render_error(true, &error).into()).unwrap();
        assert_eq!(
            (event.header.namespace.as_str(), event.header.name.as_str()),
            ("System", "Error")
        );
        assert_eq!((event.header.reply_to.as_str(), event.header.seq), ("req-1", 1));
        assert_eq!(serde_json::from_slice::<Value>(&event.payload).unwrap(), payload);
    }

    #[test]
    fn binary_replies_and_pushes_round_trip() {
        let event = parse_binary(&render_reply_binary(&HEADER, b"\0\x01").into()).unwrap();
        assert_eq!(
            (event.header.name.as_str(), event.header.id.as_str()),
            ("Query.Reply", "r-9")
        );
        assert_eq!((event.header.reply_to.as_str(), event.header.seq), ("req-1", 9));
        assert_eq!(event.payload, &b"\0\x01"[..]);
        let push = PushHeader {
            namespace: "Alerts",
            name: "Fire",
            id: "m-77",
        };
        let event = parse_binary(&render_push_binary(&push, b"raw").into()).unwrap();
        assert_eq!((event.header.id.as_str(), event.header.seq), ("m-77", 0));
    }

    proptest! {
        #[test]
        fn text_is_valid_json_of_exact_capacity(ns in any::<String>(), name in any::<String>(), id in any::<String>(), seq: u64) {
            let reply_to = Some(id.as_str());
            let out = render_reply_text(&ReplyHeader { namespace: &ns, name: &name, reply_to, seq: Sequence(seq) }, b"[1]");
            prop_assert_eq!(out.capacity(), out.len());
            let header = json!({"namespace": ns, "name": format!("{name}.Reply"), "id": format!("r-{seq}"), "reply_to": id, "seq": seq});
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), json!({"header": header, "payload": [1]}));
            let out = render_push_text(&PushHeader { namespace: &ns, name: &name, id: &id }, b"{}");
            prop_assert_eq!(out.capacity(), out.len());
            let header = json!({"namespace": ns, "name": name, "id": id});
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), json!({"header": header, "payload": {}}));
        }
    }
}
