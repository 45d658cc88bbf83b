//! Makes the vectors of what a receiver makes of records one after the other: messages, or a refusal.

use serde_json::{Value, json};

use super::super::*;
use super::generate::{digest, hex, keys, raw};
use super::{label, repeated};
use crate::codes::CloseCode;

const FULL: usize = MAX_CHUNK_BYTES;
const MORE_TEXT: u8 = 0x80;
const MORE_BINARY: u8 = 0x81;
/// 7 bytes, of which a full chunk ends within the first character.
const TEXT: &[u8] = "€€x".as_bytes();
const BYTES: &[u8] = b"\x00\x01\x02\x03\x04";

/// A record and what follows from it.
type Step = (u8, &'static [u8], usize, Outcome);

#[derive(Clone, Copy)]
enum Outcome {
    Part,
    Message,
    Control,
    Refused(&'static str, CloseCode),
}
use Outcome::{Control, Message, Part, Refused};

const FORM: Outcome = Refused("form", CloseCode::Protocol);
const INTERLEAVED: Outcome = Refused("interleaved", CloseCode::Protocol);
const EMPTY_CHUNK: Outcome = Refused("empty_chunk", CloseCode::Protocol);
const TOO_BIG: Outcome = Refused("too_big", CloseCode::TooBig);
const TOO_LONG: Outcome = Refused("too_long", CloseCode::TooBig);
const NOT_UTF8: Outcome = Refused("not_utf8", CloseCode::InvalidPayload);

/// The most that a receiver takes where no limit is what matters, in bytes.
const LIMIT: usize = 3 * FULL;
const FIRST_TEXT: Step = (MORE_TEXT, TEXT, FULL, Part);
const FIRST_BINARY: Step = (MORE_BINARY, BYTES, FULL, Part);

pub(super) fn sequences() -> Vec<Value> {
    [taken(), refused_chunks(), refused_records()].concat()
}

fn taken() -> Vec<Value> {
    vec![
        sequence(
            "text, cut within a character",
            LIMIT,
            &[FIRST_TEXT, (0, &TEXT[1..], 6, Message)],
        ),
        sequence(
            "control records between chunks",
            LIMIT,
            &[
                FIRST_BINARY,
                (2, b"\0", 1, Control),
                FIRST_BINARY,
                (2, b"\x01", 1, Control),
                (1, BYTES, 1, Message),
                (0, b"", 0, Message),
            ],
        ),
        sequence(
            "a message of just the limit",
            FULL + 1,
            &[FIRST_BINARY, (1, BYTES, 1, Message)],
        ),
    ]
}

fn refused_chunks() -> Vec<Value> {
    vec![
        sequence(
            "a message that ends over the limit",
            FULL + 1,
            &[FIRST_BINARY, (1, BYTES, 2, TOO_BIG)],
        ),
        sequence(
            "a message that is over the limit before its end",
            2 * FULL - 1,
            &[FIRST_BINARY, (MORE_BINARY, BYTES, FULL, TOO_BIG)],
        ),
        sequence(
            "a last chunk of another kind",
            LIMIT,
            &[FIRST_TEXT, (1, BYTES, 5, INTERLEAVED)],
        ),
        sequence(
            "a chunk of another kind",
            LIMIT,
            &[FIRST_TEXT, (MORE_BINARY, BYTES, FULL, INTERLEAVED)],
        ),
        sequence(
            "an empty last chunk",
            LIMIT,
            &[FIRST_TEXT, (0, b"", 0, EMPTY_CHUNK)],
        ),
        sequence(
            "a chunk in the middle that is not full",
            LIMIT,
            &[FIRST_BINARY, (MORE_BINARY, BYTES, FULL - 1, FORM)],
        ),
        sequence(
            "text that ends within a character",
            LIMIT,
            &[FIRST_TEXT, (0, &TEXT[1..], 1, NOT_UTF8)],
        ),
    ]
}

fn refused_records() -> Vec<Value> {
    vec![
        sequence(
            "a full control record with more to follow",
            LIMIT,
            &[(0x82, b"\0", FULL, FORM)],
        ),
        sequence(
            "a full record of an unknown kind with more to follow",
            LIMIT,
            &[(0x83, BYTES, FULL, FORM)],
        ),
        sequence(
            "a record of 61,458 bytes, which authenticates",
            LIMIT,
            &[(1, BYTES, FULL + 1, TOO_LONG)],
        ),
    ]
}

fn sequence(about: &str, max_message: usize, steps: &[Step]) -> Value {
    let key = keys().to_server;
    let mut message = Vec::new();
    let mut records = Vec::new();
    for (counter, (kind, unit, length, outcome)) in steps.iter().enumerate() {
        let data = repeated(unit, *length);
        let record = raw(&key, counter as u64, &[&[*kind], &data[..]].concat());
        let mut step = json!({
            "kind": hex(&[*kind]),
            "unit": hex(unit),
            "length": length,
            "record_length": record.len(),
            "record_sha256": digest(&record),
        });
        if !matches!(outcome, Control) {
            message.extend_from_slice(&data);
        }
        step["result"] = match outcome {
            Part => "part".into(),
            Control => "control".into(),
            Message => {
                let kind = if *kind == 0 {
                    RecordKind::Text
                } else {
                    RecordKind::Binary
                };
                let whole = std::mem::take(&mut message);
                step["message"] =
                    json!({ "kind": label(kind), "length": whole.len(), "sha256": digest(&whole) });
                "message".into()
            }
            Refused(reason, close) => {
                step["close"] = (*close as u16).into();
                (*reason).into()
            }
        };
        records.push(step);
    }
    json!({ "about": about, "key": hex(key.as_bytes()), "max_message": max_message, "records": records })
}
