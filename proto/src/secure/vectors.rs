//! The test vectors in `vectors/ws.json`: that they are what this code makes, and that a device or a server which only reads them
//! comes to the same results. `vectors/check.py` checks them without any of our code.
//!
//! `cargo test -p holdfast-proto --lib rewrite_the_vectors -- --ignored` writes the file anew.

mod generate;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::*;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/ws.json");

fn load() -> Value {
    let text = std::fs::read_to_string(PATH).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(vectors: &'a Value, name: &str) -> &'a [Value] {
    let list = vectors[name].as_array().unwrap();
    assert!(!list.is_empty(), "{name}");
    list
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} in {value}"))
}

fn hex(value: &Value, field: &str) -> Vec<u8> {
    let text = text(value, field);
    let pairs = (0..text.len()).step_by(2).map(|i| &text[i..i + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn traffic_key(value: &Value, field: &str) -> TrafficKey {
    TrafficKey::from_bytes(&hex(value, field)).unwrap()
}

fn device_key(value: &Value) -> DeviceKey {
    text(value, "device_key").parse().unwrap()
}

fn identity(value: &Value) -> Identity {
    Identity {
        key_id: text(value, "key_id").into(),
        product: text(value, "product").into(),
        class: text(value, "class").into(),
        device: text(value, "device").parse().unwrap(),
        key_version: value["key_version"].as_u64().unwrap().try_into().unwrap(),
    }
}

fn channel(value: &Value) -> SecureChannel {
    let all = [SecureChannel::Ws, SecureChannel::Udp, SecureChannel::Link];
    all.into_iter()
        .find(|c| c.label() == text(value, "channel"))
        .unwrap()
}

/// A message's bytes: as hex, or `length` bytes of which each is its place modulo 251.
fn data(value: &Value) -> Vec<u8> {
    match value["length"].as_u64() {
        Some(length) => (0..length).map(|i| (i % 251) as u8).collect(),
        None => hex(value, "data"),
    }
}

#[test]
#[ignore = "writes the file"]
fn rewrite_the_vectors() {
    std::fs::write(PATH, render(&generate::vectors())).unwrap();
}

fn render(vectors: &Value) -> String {
    serde_json::to_string_pretty(vectors).unwrap() + "\n"
}

#[test]
fn the_vectors_are_what_this_code_makes() {
    assert!(load() == generate::vectors(), "see how to rewrite them, above");
}

#[test]
fn device_keys_are_derived() {
    for vector in list(&load(), "device_keys") {
        let master: MasterKey = text(vector, "master_key").parse().unwrap();
        assert_eq!(
            master.device_key(&identity(vector)),
            device_key(vector),
            "{vector}"
        );
    }
}

#[test]
fn credentials_are_taken_and_authenticate() {
    for vector in list(&load(), "handshakes") {
        let credential = Credential::parse(text(vector, "credential").as_bytes()).unwrap();
        assert_eq!(credential.identity, identity(vector));
        assert_eq!(credential.identity_bytes(), hex(vector, "identity"));
        assert_eq!(credential.message1(), hex(vector, "message_1"));
        let verified = Verified::verify(channel(vector), &credential, &device_key(vector)).unwrap();
        assert_eq!(verified.timestamp_ms(), vector["now_ms"].as_u64());
        let message2 = parse_challenge(text(vector, "challenge")).unwrap();
        assert_eq!(message2, hex(vector, "message_2"));
    }
}

#[test]
fn what_is_no_credential_is_refused() {
    for vector in list(&load(), "rejected_credentials") {
        let error = Credential::parse(text(vector, "credential").as_bytes()).unwrap_err();
        assert_eq!(generate::reason(&error), text(vector, "reason"), "{vector}");
    }
    for vector in list(&load(), "rejected_handshakes") {
        let credential = Credential::parse(text(vector, "credential").as_bytes()).unwrap();
        let verified = Verified::verify(channel(vector), &credential, &device_key(vector));
        assert_eq!(verified.err(), Some(HandshakeError::NotAuthentic), "{vector}");
    }
    for vector in list(&load(), "rejected_challenges") {
        assert_eq!(parse_challenge(text(vector, "challenge")), None, "{vector}");
    }
}

fn record_kind(value: &Value) -> RecordKind {
    match text(value, "kind") {
        "text" => RecordKind::Text,
        "binary" => RecordKind::Binary,
        "control" => RecordKind::Control,
        other => panic!("{other}"),
    }
}

#[test]
fn records_open() {
    for sequence in list(&load(), "record_sequences") {
        let first = sequence["first_counter"].as_u64().unwrap();
        let mut opener = Opener::at(traffic_key(sequence, "key"), first);
        for vector in list(sequence, "records") {
            let mut record = hex(vector, "record");
            let opened = opener.open(&mut record).unwrap();
            assert_eq!(opened.kind, record_kind(vector));
            assert!(!opened.more);
            assert_eq!(record[1..record.len() - 16], hex(vector, "data"));
        }
    }
}

#[test]
fn messages_are_cut_into_these_records() {
    for sequence in list(&load(), "message_sequences") {
        let mut sealer = Sealer::new(traffic_key(sequence, "key"));
        let mut opener = Opener::new(traffic_key(sequence, "key"));
        let mut assembler = Assembler::new(1 << 20);
        for vector in list(sequence, "messages") {
            let (kind, message) = (record_kind(vector), data(vector));
            let mut records = list(vector, "records").iter();
            for (more, chunk) in chunks(&message) {
                let expected = records.next().unwrap();
                let mut record = Vec::new();
                sealer.seal(kind, more, chunk, &mut record).unwrap();
                assert_eq!(generate::digest(&record), text(expected, "sha256"));
                assert_eq!(Some(record.len() as u64), expected["length"].as_u64());
                let opened = opener.open(&mut record).unwrap();
                let data = &record[1..record.len() - 16];
                if let Some(whole) = assembler.push(opened, data).unwrap() {
                    assert!(whole.kind == kind && *whole.data == message);
                }
            }
            assert!(records.next().is_none());
            assert_eq!(assembler.held_bytes(), 0);
        }
    }
}

#[test]
fn what_is_no_record_is_refused() {
    for vector in list(&load(), "rejected_records") {
        let counter = vector["counter"].as_u64().unwrap();
        let mut opener = Opener::at(traffic_key(vector, "key"), counter);
        let error = opener.open(&mut hex(vector, "record")).unwrap_err();
        let reason = match error {
            RecordError::Form => "form",
            RecordError::NotAuthentic => "not_authentic",
            RecordError::Ended => "ended",
        };
        assert_eq!(reason, text(vector, "reason"), "{vector}");
    }
}

#[test]
fn control_records_are_read() {
    for vector in list(&load(), "control_records") {
        let expected = match text(vector, "type") {
            "ping" => ControlRecord::Ping,
            "pong" => ControlRecord::Pong,
            _ => ControlRecord::Close {
                code: vector["code"].as_u64().unwrap().try_into().unwrap(),
                reason: text(vector, "reason").into(),
            },
        };
        assert_eq!(ControlRecord::decode(&hex(vector, "data")), Ok(expected));
    }
    for vector in list(&load(), "rejected_control_records") {
        assert!(ControlRecord::decode(&hex(vector, "data")).is_err(), "{vector}");
    }
}

/// The texts of keys and messages say what their bytes say.
#[test]
fn both_forms_of_a_value_agree() {
    for vector in list(&load(), "handshakes") {
        let bytes = [hex(vector, "identity"), hex(vector, "message_1")].concat();
        assert_eq!(URL_SAFE_NO_PAD.encode(bytes), text(vector, "credential"));
        let mut prologue = format!("holdfast/1 {}\0", text(vector, "channel")).into_bytes();
        prologue.extend_from_slice(&hex(vector, "identity"));
        assert_eq!(prologue, hex(vector, "prologue"));
    }
}
