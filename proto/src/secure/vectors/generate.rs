//! Makes the vectors from a few fixed inputs.

use std::fmt::Write as _;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::handshake::{fixed, prologue};
use super::super::records::nonce;
use super::super::*;
use super::{challenges, data, label, received};

pub(crate) const DEVICE_EPHEMERAL: fixed::Ephemeral = &counting(0x20);
pub(crate) const SERVER_EPHEMERAL: fixed::Ephemeral = &counting(0x60);
pub(crate) const NOW_MS: u64 = 1_750_000_000_123;

/// 32 bytes that count up.
pub(crate) const fn counting(first: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        bytes[i] = first.wrapping_add(i as u8);
        i += 1;
    }
    bytes
}

pub(super) fn vectors() -> Value {
    json!({
        "about": "Test vectors of the device protocol on ws; PROTOCOL.md says how to read them. Bytes are hex, keys and credentials base64url.",
        "noise": PATTERN,
        "device_keys": identities().iter().map(device_key).collect::<Vec<_>>(),
        "handshakes": handshakes(),
        "rejected_credentials": rejected_credentials(),
        "rejected_handshakes": rejected_handshakes(),
        "accepted_challenges": challenges::accepted(),
        "rejected_challenges": challenges::rejected(),
        "unverified_challenges": challenges::unverified(),
        "record_sequences": [few_records(), around_a_rekey(), around_the_second_rekey(), at_the_end()],
        "message_sequences": [messages()],
        "received_sequences": received::sequences(),
        "rejected_records": rejected_records(),
        "control_records": control_records(),
        "rejected_control_records": rejected_control_records(),
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The word under which the vectors and PROTOCOL.md know an error.
pub(super) fn reason(error: &CredentialError) -> &'static str {
    match error {
        CredentialError::TooLong => "too_long",
        CredentialError::NotBase64 => "not_base64",
        CredentialError::MessageLength(_) => "message_length",
        CredentialError::Identity(IdentityError::CutOff) => "cut_off",
        CredentialError::Identity(IdentityError::Version(_)) => "version",
        CredentialError::Identity(IdentityError::KeyId) => "key_id",
        CredentialError::Identity(IdentityError::Product) => "product",
        CredentialError::Identity(IdentityError::Class) => "class",
        CredentialError::Identity(IdentityError::Device(_)) => "device",
    }
}

pub(crate) fn master() -> MasterKey {
    MasterKey::from_bytes(&counting(0)).unwrap()
}

pub(crate) fn identities() -> [Identity; 3] {
    let identity = |key_id: &str, product: &str, class: &str, device: &str, key_version| Identity {
        key_id: key_id.into(),
        product: product.into(),
        class: class.into(),
        device: device.parse().unwrap(),
        key_version,
    };
    [
        identity("2026-a", "speaker", "home", "dev-0001", 1),
        identity("k", "", "", "d", 0),
        identity(
            &"K".repeat(32),
            &"p".repeat(64),
            &"c".repeat(64),
            &"D".repeat(128),
            u32::MAX,
        ),
    ]
}

pub(crate) fn fields(identity: &Identity) -> Value {
    json!({
        "key_id": identity.key_id,
        "product": identity.product,
        "class": identity.class,
        "device": identity.device.as_str(),
        "key_version": identity.key_version,
        "identity": hex(&identity.encode()),
        "device_key": master().device_key(identity).to_text(),
    })
}

/// `fields` with more in it.
pub(crate) fn with(mut fields: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

fn device_key(identity: &Identity) -> Value {
    with(fields(identity), json!({ "master_key": master().to_text() }))
}

fn handshakes() -> Vec<Value> {
    let [usual, shortest, longest] = identities();
    let ws = SecureChannel::Ws;
    vec![
        handshake(ws, &usual, Some(NOW_MS)).0,
        handshake(ws, &usual, None).0,
        handshake(ws, &shortest, Some(0)).0,
        handshake(ws, &longest, Some(u64::MAX >> 11)).0,
        handshake(SecureChannel::Link, &usual, Some(NOW_MS)).0,
    ]
}

fn handshake(channel: SecureChannel, identity: &Identity, now_ms: Option<u64>) -> (Value, TrafficKeys) {
    let key = master().device_key(identity);
    let bytes = identity.encode();
    let (initiator, text) = fixed::initiator(channel, &bytes, &key, (DEVICE_EPHEMERAL, now_ms));
    let credential = Credential::parse(text.as_bytes()).unwrap();
    let verified = fixed::verified(channel, &credential, &key, SERVER_EPHEMERAL);
    let (message2, keys) = verified.answer().unwrap();
    assert_eq!(initiator.finish(&message2).unwrap(), keys);
    let more = json!({
        "channel": channel.label(),
        "prologue": hex(&prologue(channel, &bytes, &[])),
        "device_ephemeral_private": hex(DEVICE_EPHEMERAL),
        "server_ephemeral_private": hex(SERVER_EPHEMERAL),
        "now_ms": now_ms,
        "message_1": hex(credential.message1()),
        "credential": text,
        "message_2": hex(&message2),
        "challenge": render_challenge(&message2),
        "to_server": hex(keys.to_server.as_bytes()),
        "to_device": hex(keys.to_device.as_bytes()),
    });
    (with(fields(identity), more), keys)
}

/// The traffic keys of the first handshake.
pub(super) fn keys() -> TrafficKeys {
    handshake(SecureChannel::Ws, &identities()[0], Some(NOW_MS)).1
}

fn good() -> Credential {
    let identity = &identities()[0];
    let key = master().device_key(identity);
    let (_, text) = fixed::initiator(
        SecureChannel::Ws,
        &identity.encode(),
        &key,
        (DEVICE_EPHEMERAL, Some(NOW_MS)),
    );
    Credential::parse(text.as_bytes()).unwrap()
}

fn rejected_credentials() -> Vec<Value> {
    let good = good();
    let text = Credential::render(good.identity_bytes(), good.message1());
    let framed = |identity: &[u8]| Credential::render(identity, good.message1());
    let strings = |strings: [&[u8]; 4]| {
        let mut bytes = vec![IDENTITY_VERSION];
        for string in strings {
            bytes.push(string.len() as u8);
            bytes.extend_from_slice(string);
        }
        bytes.extend_from_slice(&1u32.to_be_bytes());
        framed(&bytes)
    };
    let mut version = good.identity_bytes().to_vec();
    version[0] = 2;
    let long = |length| Credential::render(good.identity_bytes(), &vec![7; length]);
    let texts = [
        String::new(),
        "A".repeat(MAX_CREDENTIAL_TEXT + 1),
        format!("{text}="),
        format!("{} ", &text[..text.len() - 1]),
        text.replacen(&text[10..11], "+", 1),
        framed(&version),
        Credential::render(&good.identity_bytes()[..20], &[]),
        strings([b"", b"p", b"c", b"d"]),
        strings([&[b'k'; 33], b"p", b"c", b"d"]),
        strings([b"a/b", b"p", b"c", b"d"]),
        strings([b"k", &[b'p'; 65], b"c", b"d"]),
        strings([b"k", b"a b", b"c", b"d"]),
        strings([b"k", b"p", &[b'c'; 65], b"d"]),
        strings([b"k", b"p", b"\x7f", b"d"]),
        strings([b"k", b"p", b"c", b""]),
        strings([b"k", b"p", b"c", &[b'd'; 129]]),
        strings([b"k", b"p", b"c", b"d/1"]),
        long(0),
        long(47),
        long(49),
        long(55),
        long(57),
    ];
    let entry = |text: String| {
        let error = Credential::parse(text.as_bytes()).unwrap_err();
        json!({ "credential": text, "reason": reason(&error) })
    };
    texts.into_iter().map(entry).collect()
}

fn rejected_handshakes() -> Vec<Value> {
    let (good, [usual, ..]) = (good(), identities());
    let key = master().device_key(&usual);
    let entry = |why: &str, channel: &str, credential: String, key: &DeviceKey| json!({ "why": why, "channel": channel, "credential": credential, "device_key": key.to_text() });
    let text = Credential::render(good.identity_bytes(), good.message1());
    let other_version = Identity {
        key_version: 2,
        ..usual.clone()
    };
    let mut tag = good.message1().to_vec();
    *tag.last_mut().unwrap() ^= 1;
    let mut ephemeral = good.message1().to_vec();
    ephemeral[31] ^= 0x80;
    let cut = &good.message1()[..48];
    let render = |message: &[u8]| Credential::render(good.identity_bytes(), message);
    vec![
        entry(
            "another device key",
            "ws",
            text.clone(),
            &master().device_key(&other_version),
        ),
        entry("made for another channel", "link", text, &key),
        entry(
            "another identity than the one it was made for",
            "ws",
            Credential::render(&other_version.encode(), good.message1()),
            &key,
        ),
        entry("a bit of the tag", "ws", render(&tag), &key),
        entry(
            "the bit of the ephemeral key that the curve ignores",
            "ws",
            render(&ephemeral),
            &key,
        ),
        entry("the time is cut off", "ws", render(cut), &key),
    ]
}

fn few_records() -> Value {
    let control = |record: ControlRecord| (RecordKind::Control, record.encode());
    let records = [
        (RecordKind::Text, b"@hello {}".to_vec()),
        (
            RecordKind::Text,
            br#"{"header":{"namespace":"Weather","name":"Query","id":"req-1"},"payload":{"city":"Oslo"}}"#
                .to_vec(),
        ),
        (
            RecordKind::Binary,
            b"\x09\x0a\x01N\x12\x01n\x1a\x011\x00\xff".to_vec(),
        ),
        (RecordKind::Text, Vec::new()),
        control(ControlRecord::Ping),
        control(ControlRecord::Pong),
        control(ControlRecord::Close {
            code: 1000,
            reason: "done".into(),
        }),
    ];
    sequence("the first records of a session", keys().to_server, 0, &records)
}

fn around_a_rekey() -> Value {
    let key = keys().to_device;
    let first = REKEY_RECORDS - 2;
    sequence("around the first rekey", key, first, &numbered())
}

fn around_the_second_rekey() -> Value {
    // The key moved on once; the sequence begins under the second.
    let mut sealer = Sealer::at(keys().to_device, REKEY_RECORDS - 1);
    sealer
        .seal(RecordKind::Text, false, b"", &mut Vec::new())
        .unwrap();
    let key = sealer.current_key().clone();
    let first = 2 * REKEY_RECORDS - 2;
    sequence("around the second rekey", key, first, &numbered())
}

fn at_the_end() -> Value {
    let [one, two, ..] = numbered();
    let about = "the last records of a direction";
    let mut sequence = sequence(about, keys().to_server, u64::MAX - 2, &[one, two]);
    sequence["ended"] = true.into();
    sequence
}

fn numbered() -> [(RecordKind, Vec<u8>); 4] {
    ["one", "two", "three", "four"].map(|word| (RecordKind::Text, word.into()))
}

fn sequence(about: &str, key: TrafficKey, first: u64, plain: &[(RecordKind, Vec<u8>)]) -> Value {
    let mut sealer = Sealer::at(key.clone(), first);
    let mut records = Vec::new();
    for (i, (kind, data)) in plain.iter().enumerate() {
        let current = hex(sealer.current_key().as_bytes());
        let mut record = Vec::new();
        sealer.seal(*kind, false, data, &mut record).unwrap();
        records.push(json!({
            "counter": first + i as u64,
            "key": current,
            "kind": label(*kind),
            "data": hex(data),
            "record": hex(&record),
        }));
    }
    json!({ "about": about, "key": hex(key.as_bytes()), "first_counter": first, "records": records })
}

fn messages() -> Value {
    let key = keys().to_server;
    let mut sealer = Sealer::new(key.clone());
    let mut messages = Vec::new();
    let full = MAX_CHUNK_BYTES as u64;
    for length in [0, 1, full - 1, full, full + 1, 2 * full, 2 * full + 100] {
        let mut message = json!({ "kind": "binary", "length": length });
        let mut records = Vec::new();
        for (more, chunk) in chunks(&data(&message)) {
            let mut record = Vec::new();
            sealer.seal(RecordKind::Binary, more, chunk, &mut record).unwrap();
            records.push(json!({ "length": record.len(), "sha256": digest(&record) }));
        }
        message["records"] = records.into();
        messages.push(message);
    }
    json!({
        "about": "messages of `length` bytes, each its place modulo 251, and the records that one direction sends for them",
        "key": hex(key.as_bytes()),
        "messages": messages,
    })
}

fn rejected_records() -> Vec<Value> {
    let key = keys().to_server;
    let mut good = Vec::new();
    let mut sealer = Sealer::new(key.clone());
    sealer
        .seal(RecordKind::Text, false, b"@hello {}", &mut good)
        .unwrap();
    let changed = |at: usize| {
        let mut record = good.clone();
        record[at] ^= 1;
        record
    };
    let raw = |plain: &[u8]| raw(&key, 0, plain);
    let cases = [
        ("a bit of the kind", 0, changed(0), "not_authentic"),
        ("a bit of the data", 0, changed(3), "not_authentic"),
        ("a bit of the tag", 0, changed(good.len() - 1), "not_authentic"),
        (
            "replayed, or one before it lost",
            1,
            good.clone(),
            "not_authentic",
        ),
        (
            "cut off by a byte",
            0,
            good[..good.len() - 1].to_vec(),
            "not_authentic",
        ),
        ("a byte longer", 0, [&good[..], &[0]].concat(), "not_authentic"),
        (
            "in the clear",
            0,
            b"@hello {} in the clear".to_vec(),
            "not_authentic",
        ),
        ("empty", 0, Vec::new(), "not_authentic"),
        ("no room for a kind", 0, good[..16].to_vec(), "not_authentic"),
        ("no kind within", 0, raw(b""), "not_authentic"),
        ("an unknown kind", 0, raw(b"\x03data"), "form"),
        ("an unknown kind with more to follow", 0, raw(b"\x83data"), "form"),
        ("a reserved bit", 0, raw(b"\x40data"), "form"),
        ("more to follow, but not full", 0, raw(b"\x80data"), "form"),
        (
            "a control record with more to follow",
            0,
            raw(b"\x82\x00"),
            "form",
        ),
    ];
    let entry = |(why, counter, record, reason): (&str, u64, Vec<u8>, &str)| json!({ "why": why, "key": hex(key.as_bytes()), "counter": counter, "record": hex(&record), "reason": reason });
    cases.into_iter().map(entry).collect()
}

/// A record that authenticates, whatever is in it.
pub(super) fn raw(key: &TrafficKey, counter: u64, plain: &[u8]) -> Vec<u8> {
    let mut record = plain.to_vec();
    let tag = Aes256Gcm::new(key.as_bytes().into())
        .encrypt_in_place_detached(&nonce(counter), &[], &mut record)
        .unwrap();
    record.extend_from_slice(&tag);
    record
}

fn control_records() -> Vec<Value> {
    let close = |code: u16, reason: &str| {
        let record = ControlRecord::Close {
            code,
            reason: reason.into(),
        };
        json!({ "type": "close", "code": code, "reason": reason, "data": hex(&record.encode()) })
    };
    vec![
        json!({ "type": "ping", "data": hex(&ControlRecord::Ping.encode()) }),
        json!({ "type": "pong", "data": hex(&ControlRecord::Pong.encode()) }),
        close(1000, ""),
        close(1003, ""),
        close(1007, ""),
        close(1014, ""),
        close(3000, ""),
        close(4000, "replaced"),
        close(4999, ""),
        close(4007, &"é".repeat(61)),
    ]
}

fn rejected_control_records() -> Vec<Value> {
    let long = [&[2, 0x0f, 0xa0][..], &[b'x'; MAX_REASON_BYTES + 1]].concat();
    let cases: [(&str, &[u8]); 17] = [
        ("empty", b""),
        ("a ping with data", b"\0x"),
        ("a pong with data", b"\x01x"),
        ("a close without a code", b"\x02"),
        ("a close with half a code", b"\x02\x03"),
        ("close code 0", b"\x02\0\0"),
        ("close code 999", b"\x02\x03\xe7"),
        ("close code 1004", b"\x02\x03\xec"),
        ("close code 1005", b"\x02\x03\xed"),
        ("close code 1006", b"\x02\x03\xee"),
        ("close code 1015", b"\x02\x03\xf7"),
        ("close code 1016", b"\x02\x03\xf8"),
        ("close code 2999", b"\x02\x0b\xb7"),
        ("close code 5000", b"\x02\x13\x88"),
        ("a reason that is not UTF-8", b"\x02\x03\xe8\xff"),
        ("a reason of 124 bytes", &long),
        ("an unknown kind", b"\x03"),
    ];
    let entry = |(why, data): (&str, &[u8])| json!({ "why": why, "data": hex(data) });
    cases.into_iter().map(entry).collect()
}
