//! The test vectors in `vectors/ws.json`: that they are what this code makes, and that a device or a server which only reads them
//! comes to the same results. `vectors/check.py` checks them without any of our code.
//!
//! `cargo test -p holdfast-proto --lib rewrite_the_vectors -- --ignored` writes the file anew.

mod challenges;
pub(crate) mod generate;
mod received;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::*;
use crate::codes::CloseCode;

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

/// `unit` again and again, cut to `length` bytes.
fn repeated(unit: &[u8], length: usize) -> Vec<u8> {
    unit.iter().copied().cycle().take(length).collect()
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

#[test]
fn a_device_takes_the_answer_to_its_own_message_and_no_other() {
    let vectors = load();
    for vector in list(&vectors, "accepted_challenges") {
        let message2 = parse_challenge(text(vector, "challenge"));
        assert_eq!(message2, Some(hex(vector, "message_2")), "{vector}");
    }
    let finish = |vector: &Value| {
        let ephemeral = generate::DEVICE_EPHEMERAL;
        assert_eq!(hex(vector, "device_ephemeral_private"), ephemeral);
        let device = (ephemeral, vector["now_ms"].as_u64());
        let identity = hex(vector, "identity");
        let (initiator, _) =
            handshake::fixed::initiator(channel(vector), &identity, &device_key(vector), device);
        initiator.finish(&parse_challenge(text(vector, "challenge")).unwrap())
    };
    for vector in list(&vectors, "handshakes") {
        let keys = TrafficKeys {
            to_server: traffic_key(vector, "to_server"),
            to_device: traffic_key(vector, "to_device"),
        };
        assert_eq!(finish(vector), Ok(keys), "{vector}");
    }
    for vector in list(&vectors, "unverified_challenges") {
        assert_eq!(finish(vector), Err(HandshakeError::NotAuthentic), "{vector}");
    }
}

fn record_kind(value: &Value) -> RecordKind {
    let all = [RecordKind::Text, RecordKind::Binary, RecordKind::Control];
    all.into_iter()
        .find(|kind| label(*kind) == text(value, "kind"))
        .unwrap()
}

fn label(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Text => "text",
        RecordKind::Binary => "binary",
        RecordKind::Control => "control",
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
        let next = opener.open(&mut generate::raw(&traffic_key(sequence, "key"), u64::MAX, b"\0"));
        let ended = sequence["ended"].as_bool().unwrap_or(false);
        assert_eq!(next == Err(RecordError::Ended), ended, "{next:?}");
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
fn records_are_put_together_or_refused() {
    for sequence in list(&load(), "received_sequences") {
        let key = traffic_key(sequence, "key");
        let mut receiver = Receiver {
            opener: Opener::new(key.clone()),
            assembler: Assembler::new(sequence["max_message"].as_u64().unwrap() as usize),
        };
        for (counter, vector) in list(sequence, "records").iter().enumerate() {
            let data = repeated(&hex(vector, "unit"), vector["length"].as_u64().unwrap() as usize);
            let mut record = generate::raw(&key, counter as u64, &[hex(vector, "kind"), data].concat());
            assert_eq!(generate::digest(&record), text(vector, "record_sha256"));
            assert_eq!(Some(record.len() as u64), vector["record_length"].as_u64());
            assert_eq!(receiver.take(&mut record), expected(vector), "{vector}");
        }
    }
}

/// What a record leads to: its name, and a message or a close code.
#[derive(Debug, PartialEq)]
struct Received(String, Option<(RecordKind, u64, String)>, Option<u64>);

fn expected(vector: &Value) -> Received {
    let message = vector.get("message").map(|message| {
        let length = message["length"].as_u64().unwrap();
        (record_kind(message), length, text(message, "sha256").to_owned())
    });
    Received(
        text(vector, "result").to_owned(),
        message,
        vector["close"].as_u64(),
    )
}

struct Receiver {
    opener: Opener,
    assembler: Assembler,
}

impl Receiver {
    fn take(&mut self, record: &mut [u8]) -> Received {
        let refused = |reason: &str, close: CloseCode| Received(reason.into(), None, Some(close as u64));
        if record.len() > MAX_RECORD_BYTES {
            // Whoever reads frames refuses it before it gets here; if it does get here, it is not opened either.
            assert_eq!(self.opener.open(record), Err(RecordError::NotAuthentic));
            return refused("too_long", CloseCode::TooBig);
        }
        let opened = match self.opener.open(record) {
            Ok(opened) => opened,
            Err(error) => return refused(record_error(error), error.close_code()),
        };
        match self.assembler.push(opened, &record[1..record.len() - 16]) {
            Ok(None) => Received("part".into(), None, None),
            Ok(Some(whole)) if whole.kind == RecordKind::Control => Received("control".into(), None, None),
            Ok(Some(whole))
                if whole.kind == RecordKind::Text && std::str::from_utf8(&whole.data).is_err() =>
            {
                refused("not_utf8", CloseCode::InvalidPayload)
            }
            Ok(Some(whole)) => {
                let message = (whole.kind, whole.data.len() as u64, generate::digest(&whole.data));
                Received("message".into(), Some(message), None)
            }
            Err(error) => refused(assemble_error(error), error.close_code()),
        }
    }
}

fn record_error(error: RecordError) -> &'static str {
    match error {
        RecordError::Form => "form",
        RecordError::NotAuthentic => "not_authentic",
        RecordError::Ended => "ended",
    }
}

fn assemble_error(error: AssembleError) -> &'static str {
    match error {
        AssembleError::TooBig => "too_big",
        AssembleError::Interleaved => "interleaved",
        AssembleError::EmptyChunk => "empty_chunk",
    }
}

#[test]
fn what_is_no_record_is_refused() {
    for vector in list(&load(), "rejected_records") {
        let counter = vector["counter"].as_u64().unwrap();
        let mut opener = Opener::at(traffic_key(vector, "key"), counter);
        let error = opener.open(&mut hex(vector, "record")).unwrap_err();
        assert_eq!(record_error(error), text(vector, "reason"), "{vector}");
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
