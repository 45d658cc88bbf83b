//! Makes the vectors of packets: protobuf, written here by hand so that they say something about what else writes or reads it.

use serde_json::{Value, json};

use super::super::ConnectionId;
use super::generate::{CID, RESET_KEY};
use crate::secure::vectors::generate::hex;
use crate::udp::ResetKey;

/// A packet's fields as JSON say them, and its bytes.
struct Packet {
    about: &'static str,
    fields: Value,
    bytes: Vec<u8>,
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// Absent when 0.
fn number(field: u8, value: u64) -> Vec<u8> {
    match value {
        0 => Vec::new(),
        _ => [vec![field << 3], varint(value)].concat(),
    }
}

fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![field << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Absent when empty.
fn bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() {
        Vec::new()
    } else {
        message(field, bytes)
    }
}

fn fixed(field: u8, value: u64) -> Vec<u8> {
    [vec![field << 3 | 1], value.to_le_bytes().to_vec()].concat()
}

pub(super) fn encode(fields: &Value) -> Vec<u8> {
    let get = |value: &Value, name: &str| value[name].as_u64().unwrap_or(0);
    let mut out = Vec::new();
    if let Some(ack) = fields.get("ack") {
        let ranges = ack["ranges"].as_array().map_or(&[][..], Vec::as_slice);
        let ranges: Vec<u8> = ranges.iter().flat_map(|n| varint(n.as_u64().unwrap())).collect();
        let body = [
            number(1, get(ack, "largest")),
            bytes(2, &ranges),
            number(3, get(ack, "delay_us")),
        ];
        out.extend(message(1, &body.concat()));
    }
    for piece in fields["pieces"].as_array().map_or(&[][..], Vec::as_slice) {
        let body = [
            number(1, get(piece, "message")),
            number(2, get(piece, "kind")),
            number(3, get(piece, "length")),
            number(4, get(piece, "offset")),
            bytes(5, &super::unhex(piece["data"].as_str().unwrap_or_default())),
        ];
        out.extend(message(2, &body.concat()));
    }
    if let Some(credit) = fields.get("credit") {
        let body = [
            number(1, get(credit, "messages")),
            number(2, get(credit, "bytes")),
        ];
        out.extend(message(3, &body.concat()));
    }
    for (field, name) in [(4, "path_challenge"), (5, "path_response")] {
        if let Some(token) = fields[name].as_u64() {
            out.extend(fixed(field, token));
        }
    }
    out.extend(number(6, u64::from(fields["ping"] == true)));
    if let Some(close) = fields.get("close") {
        let body = [
            number(1, get(close, "code")),
            bytes(2, close["reason"].as_str().unwrap_or_default().as_bytes()),
            number(3, get(close, "messages")),
        ];
        out.extend(message(7, &body.concat()));
    }
    out.extend(bytes(
        8,
        &super::unhex(fields["reset_token"].as_str().unwrap_or_default()),
    ));
    if let Some(zeros) = fields["padding"].as_u64() {
        out.extend(message(9, &vec![0; zeros as usize]));
    }
    out
}

fn packets() -> Vec<Packet> {
    let packet = |(about, fields): (&'static str, Value)| Packet {
        about,
        bytes: encode(&fields),
        fields,
    };
    with_messages()
        .into_iter()
        .chain(without_messages())
        .map(packet)
        .collect()
}

fn with_messages() -> Vec<(&'static str, Value)> {
    let text = |text: &str| hex(text.as_bytes());
    let token = hex(&ResetKey::from_bytes(RESET_KEY).token(CID).0);
    vec![
        (
            "a device's first: a whole message, padded to a datagram of 48 bytes",
            json!({ "pieces": [{ "data": text("@hello {}") }], "padding": 4 }),
        ),
        (
            "a server's first: acknowledgement, credit and reset token beside a message",
            json!({
                "ack": { "delay_us": 1_500 },
                "pieces": [{ "data": text(r#"@welcome {"session":"00010123-4567-8089-8000-000000000004","heartbeat_ms":30000,"max_message":1048576,"window":32}"#) }],
                "credit": { "messages": 64, "bytes": 65_536 },
                "reset_token": token,
            }),
        ),
        (
            "two whole messages and the beginning of a third, with acknowledgement and credit",
            json!({
                "ack": { "largest": 300, "ranges": [4, 0, 129, 99, 0], "delay_us": 25_000 },
                "pieces": [
                    { "message": 1, "data": text(r#"{"header":{"namespace":"Weather","name":"Query","id":"req-1"},"payload":{"city":"Oslo"}}"#) },
                    { "message": 2, "kind": 1, "data": "090a014e12016e1a013100ff" },
                    { "message": 3, "kind": 1, "length": 70_000, "data": "00".repeat(300) },
                ],
                "credit": { "messages": 130, "bytes": 1_000_000 },
            }),
        ),
        (
            "pieces from within a message, out of order, and an empty message",
            json!({
                "pieces": [
                    { "message": 300, "kind": 1, "length": 70_000, "offset": 69_999, "data": "ff" },
                    { "message": 300, "kind": 1, "length": 70_000, "offset": 16_384, "data": "0102030405" },
                    { "message": 301 },
                ],
            }),
        ),
    ]
}

/// What is sent beside messages.
fn without_messages() -> Vec<(&'static str, Value)> {
    let largest = ResetKey::from_bytes(RESET_KEY).token(ConnectionId(0)).0;
    vec![
        ("a keep-alive", json!({ "ping": true, "padding": 15 })),
        ("nothing", json!({})),
        (
            "a path challenge",
            json!({ "path_challenge": 0x0102_0304_0506_0708_u64 }),
        ),
        (
            "its response, with an acknowledgement of packet 0",
            json!({ "ack": {}, "path_response": 0x0102_0304_0506_0708_u64, "padding": 0 }),
        ),
        (
            "the largest numbers",
            json!({
                "ack": { "largest": u64::MAX >> 2, "ranges": [0], "delay_us": u32::MAX },
                "credit": { "messages": u32::MAX, "bytes": u32::MAX },
                "path_challenge": u64::MAX, "path_response": 1, "ping": true, "reset_token": hex(&largest),
            }),
        ),
        (
            "a close",
            json!({ "close": { "code": 1001, "reason": "going_away", "messages": 17 } }),
        ),
        (
            "a close without a word",
            json!({ "close": { "code": 1000 }, "padding": 12 }),
        ),
    ]
}

pub(super) fn good() -> Vec<Value> {
    let mut all: Vec<_> = packets()
        .iter()
        .map(|p| json!({ "about": p.about, "fields": p.fields, "packet": hex(&p.bytes) }))
        .collect();
    // What a sender of a later version may say.
    let ping = json!({ "ping": true });
    let unknown = [
        &number(6, 1)[..],
        &number(10, 300),
        &fixed(11, 1),
        &message(12, b"later"),
        &[13 << 3 | 5, 1, 2, 3, 4],
    ];
    all.push(json!({ "about": "unknown fields", "fields": ping, "packet": hex(&unknown.concat()) }));
    let order = [
        number(6, 1),
        message(3, &[number(2, 9), number(1, 8)].concat()),
        message(9, &[0]),
    ];
    let fields = json!({ "ping": true, "credit": { "messages": 8, "bytes": 9 }, "padding": 1 });
    all.push(json!({ "about": "another order of fields", "fields": fields, "packet": hex(&order.concat()) }));
    all
}

/// The first six packets as bytes.
pub(super) fn plain() -> [Vec<u8>; 6] {
    let mut packets = packets();
    packets.truncate(6);
    packets
        .into_iter()
        .map(|packet| packet.bytes)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

pub(super) fn rejected() -> Vec<Value> {
    let piece = |body: &[Vec<u8>]| message(2, &body.concat());
    let many = |n: usize| piece(&[number(1, 1)]).repeat(n);
    let runs = |runs: &[u8]| message(1, &[number(1, 5), bytes(2, runs)].concat());
    let cases = [
        ("a field that ends beyond the packet", vec![0x12, 5, 0]),
        ("half a key", vec![0x80]),
        ("a length that ends beyond the packet", vec![0x12, 0x80]),
        ("half a fixed64", vec![0x21, 1, 2, 3]),
        ("a varint of 11 bytes", [&[0x30][..], &[0x80; 10], &[1]].concat()),
        ("ack as a number", number(1, 1)),
        ("a piece as a fixed64", fixed(2, 1)),
        ("path_challenge as bytes", message(4, &[0; 8])),
        ("ping as bytes", message(6, b"\x01")),
        ("field 0", vec![0, 0]),
        ("65 pieces", many(65)),
        (
            "a piece beyond its message",
            piece(&[number(3, 10), number(4, 8), bytes(5, b"abc")]),
        ),
        (
            "a piece that begins beyond its message",
            piece(&[number(3, 10), number(4, 11)]),
        ),
        (
            "a part of a message without data",
            piece(&[number(3, 10), number(4, 5)]),
        ),
        ("a kind of 2", piece(&[number(2, 2), bytes(5, b"abc")])),
        ("a length of 2^32", piece(&[number(3, 1 << 32), bytes(5, b"abc")])),
        ("a reset token of 15 bytes", bytes(8, &[7; 15])),
        ("a reset token of 17 bytes", bytes(8, &[7; 17])),
        ("an acknowledgement of numbers below 0", runs(&[6])),
        ("an acknowledgement whose gap reaches below 0", runs(&[0, 5, 0])),
        ("an acknowledgement that ends with a gap", runs(&[0, 0])),
        (
            "a reason that is not UTF-8",
            message(7, &[number(1, 1000), bytes(2, b"\xff")].concat()),
        ),
        ("a close code of 65536", message(7, &number(1, 65_536))),
        ("two credits", message(3, &number(1, 8)).repeat(2)),
    ];
    let entry = |(why, packet): (&str, Vec<u8>)| json!({ "why": why, "packet": hex(&packet) });
    cases.into_iter().map(entry).collect()
}

/// What is said of accepted packets.
pub(super) fn acknowledgements() -> Vec<Value> {
    let cases: [(&[u64], u64, &[u32]); 5] = [
        (&[0], 0, &[]),
        (&[0, 1, 2], 2, &[2]),
        (&[0, 1, 2, 5, 6], 6, &[1, 1, 2]),
        (&[7], 7, &[]),
        (&[0, 2, 4, 200], 200, &[0, 194, 0, 0, 0, 0, 0]),
    ];
    let entry = |(accepted, largest, ranges): (&[u64], u64, &[u32])| json!({ "accepted": accepted, "largest": largest, "ranges": ranges });
    cases.into_iter().map(entry).collect()
}
