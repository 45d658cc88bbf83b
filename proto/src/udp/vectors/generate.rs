//! Makes the vectors of datagrams and of what is encrypted in them, from a few fixed inputs.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use serde_json::{Value, json};

use super::super::datagram::{self, Hello, Refused, data_header};
use super::super::{ConnectionId, Parameters, ResetKey};
use super::packets;
use crate::secure::vectors::generate::{
    DEVICE_EPHEMERAL, NOW_MS, SERVER_EPHEMERAL, counting, fields, hex, identities, master, with,
};
use crate::secure::{
    Credential, Identity, Initiator, MAX_CREDENTIAL_BYTES, PATTERN, SecureChannel, TrafficKey, TrafficKeys,
    Verified, fixed, prologue,
};

pub(super) const CID: ConnectionId = ConnectionId(0x0300_1234_89ab_cdef);
pub(super) const RESET_KEY: [u8; 32] = counting(0xc0);
const COOKIE: [u8; 20] = *b"any bytes of hers 20";

pub(super) fn vectors() -> Value {
    json!({
        "about": "Test vectors of the device protocol on udp; PROTOCOL.md says how to read them. Bytes are hex, device keys base64url.",
        "noise": PATTERN,
        "handshakes": handshakes(),
        "rejected_handshakes": rejected_handshakes(),
        "unverified_challenges": unverified_challenges(),
        "answers": answers(),
        "rejected_datagrams": rejected_datagrams(),
        "packets": packets::good(),
        "rejected_packets": packets::rejected(),
        "acknowledgements": packets::acknowledgements(),
        "data": data(),
        "rejected_data": rejected_data(),
        "packet_numbers": packet_numbers(),
        "replays": replays(),
        "reset_tokens": reset_tokens(),
    })
}

pub(super) fn parameters() -> Parameters {
    Parameters {
        attempt: 0x0123_4567_89ab_cdef,
        max_datagram: 1_200,
        receive_bytes: 65_536,
        receive_messages: 64,
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// One attempt, with both sides' ephemeral keys fixed.
struct Attempt {
    identity: Identity,
    parameters: Parameters,
    now_ms: Option<u64>,
    cookie: &'static [u8],
}

impl Attempt {
    fn usual() -> Self {
        Self {
            identity: identities()[0].clone(),
            parameters: parameters(),
            now_ms: Some(NOW_MS),
            cookie: b"",
        }
    }

    fn initiate(&self) -> (Initiator, Vec<u8>) {
        let key = master().device_key(&self.identity);
        let device = (DEVICE_EPHEMERAL, self.now_ms);
        fixed::initiator_for_datagrams(&self.parameters.encode(), &self.identity.encode(), &key, device)
    }

    fn hello(&self) -> Vec<u8> {
        let (_, credential) = self.initiate();
        hello(self.parameters, self.cookie, &credential)
    }

    fn finish(&self) -> (Vec<u8>, TrafficKeys) {
        let (initiator, bytes) = self.initiate();
        let credential = Credential::parse_datagram(&self.parameters.encode(), &bytes).unwrap();
        let key = master().device_key(&self.identity);
        let verified = fixed::verified(SecureChannel::Udp, &credential, &key, SERVER_EPHEMERAL);
        let (message2, keys) = verified.answer().unwrap();
        assert_eq!(initiator.finish(&message2).as_ref(), Ok(&keys));
        (message2, keys)
    }

    fn vector(&self) -> Value {
        let (_, credential) = self.initiate();
        let (message2, keys) = self.finish();
        let identity = self.identity.encode();
        let bytes = self.parameters.encode();
        let more = json!({
            "attempt": self.parameters.attempt,
            "max_datagram": self.parameters.max_datagram,
            "receive_bytes": self.parameters.receive_bytes,
            "receive_messages": self.parameters.receive_messages,
            "parameters": hex(&bytes),
            "prologue": hex(&prologue(SecureChannel::Udp, &identity, &bytes)),
            "device_ephemeral_private": hex(DEVICE_EPHEMERAL),
            "server_ephemeral_private": hex(SERVER_EPHEMERAL),
            "now_ms": self.now_ms,
            "message_1": hex(&credential[identity.len()..]),
            "cookie": hex(self.cookie),
            "hello": hex(&self.hello()),
            "message_2": hex(&message2),
            "connection_id": hex(&CID.0.to_be_bytes()),
            "challenge": hex(&challenge(&self.parameters, &message2)),
            "to_server": hex(keys.to_server.as_bytes()),
            "to_device": hex(keys.to_device.as_bytes()),
        });
        with(fields(&self.identity), more)
    }
}

fn hello(parameters: Parameters, cookie: &[u8], credential: &[u8]) -> Vec<u8> {
    let hello = Hello {
        parameters,
        cookie,
        credential,
    };
    encoded(|out| datagram::encode_hello(&hello, out))
}

fn challenge(parameters: &Parameters, message2: &[u8]) -> Vec<u8> {
    let message2 = message2.try_into().unwrap();
    encoded(|out| datagram::encode_challenge(parameters.attempt, CID, message2, out))
}

/// The traffic keys of the first handshake.
pub(super) fn keys() -> TrafficKeys {
    Attempt::usual().finish().1
}

fn handshakes() -> Vec<Value> {
    let [_, shortest, longest] = identities();
    let least = Parameters {
        attempt: 0,
        max_datagram: 512,
        receive_bytes: 4_096,
        receive_messages: 4,
    };
    let most = Parameters {
        attempt: u64::MAX,
        max_datagram: 1_472,
        receive_bytes: 16_777_216,
        receive_messages: 1_024,
    };
    let attempts = [
        Attempt::usual(),
        Attempt {
            cookie: &COOKIE,
            ..Attempt::usual()
        },
        Attempt {
            identity: shortest,
            parameters: least,
            now_ms: None,
            ..Attempt::usual()
        },
        Attempt {
            identity: longest,
            parameters: most,
            now_ms: Some(0),
            cookie: &[0xff; 32],
        },
    ];
    attempts.iter().map(Attempt::vector).collect()
}

fn rejected_handshakes() -> Vec<Value> {
    let usual = Attempt::usual();
    let (_, credential) = usual.initiate();
    let key = master().device_key(&usual.identity);
    let entry =
        |why: &str, hello: Vec<u8>| json!({ "why": why, "hello": hex(&hello), "device_key": key.to_text() });
    let parameter = |why: &str, parameters: Parameters| entry(why, hello(parameters, b"", &credential));
    let p = parameters();
    let ws = {
        let device = (DEVICE_EPHEMERAL, Some(NOW_MS));
        let identity = usual.identity.encode();
        let (_, text) = fixed::initiator(SecureChannel::Ws, &identity, &key, device);
        let claim = Credential::parse(text.as_bytes()).unwrap();
        [claim.identity_bytes(), claim.message1()].concat()
    };
    let mut tag = credential.clone();
    *tag.last_mut().unwrap() ^= 1;
    vec![
        parameter(
            "another attempt",
            Parameters {
                attempt: p.attempt ^ 1,
                ..p
            },
        ),
        parameter(
            "another max_datagram",
            Parameters {
                max_datagram: 1_201,
                ..p
            },
        ),
        parameter(
            "another receive_bytes",
            Parameters {
                receive_bytes: 65_537,
                ..p
            },
        ),
        parameter(
            "another receive_messages",
            Parameters {
                receive_messages: 65,
                ..p
            },
        ),
        entry(
            "made for ws, without parameters in the prologue",
            hello(p, b"", &ws),
        ),
        entry("a bit of the tag", hello(p, b"", &tag)),
    ]
}

/// CHALLENGEs that a device passes over.
fn unverified_challenges() -> Vec<Value> {
    let usual = Attempt::usual();
    let good = usual.finish().0;
    let mut changed = good.clone();
    changed[47] ^= 1;
    let other = Attempt {
        parameters: Parameters {
            receive_messages: 65,
            ..parameters()
        },
        ..Attempt::usual()
    };
    let p = parameters();
    let cases = [
        ("a bit of the tag", challenge(&p, &changed)),
        ("the answer to other parameters", challenge(&p, &other.finish().0)),
    ];
    let entry = |(why, challenge): (&str, Vec<u8>)| {
        let mut vector = usual.vector();
        vector["why"] = why.into();
        vector["challenge"] = hex(&challenge).into();
        vector
    };
    cases.into_iter().map(entry).collect()
}

fn answers() -> Vec<Value> {
    let attempt = parameters().attempt;
    let retry = |cookie: &[u8]| {
        let datagram = encoded(|out| datagram::encode_retry(attempt, cookie, out));
        json!({ "type": "retry", "attempt": attempt, "cookie": hex(cookie), "datagram": hex(&datagram) })
    };
    let refused = |status: u16, code: &str, (retryable, retry_after_ms): (bool, u32)| {
        let refused = Refused {
            attempt,
            status,
            retry_after_ms,
            retryable,
            code,
        };
        let datagram = encoded(|out| datagram::encode_refused(&refused, out));
        json!({
            "type": "refused", "attempt": attempt, "status": status, "code": code, "retryable": retryable,
            "retry_after_ms": retry_after_ms, "datagram": hex(&datagram),
        })
    };
    vec![
        retry(b"\0"),
        retry(&COOKIE),
        retry(&[0xff; 32]),
        refused(401, "handshake_failed", (false, 0)),
        refused(503, "overloaded", (true, 1_200)),
        refused(599, &"z".repeat(64), (true, u32::MAX)),
    ]
}

fn rejected_datagrams() -> Vec<Value> {
    let p = parameters();
    let good = Attempt::usual().hello();
    let credential = Attempt::usual().initiate().1;
    let changed = |datagram: &[u8], at: usize, bytes: &[u8]| {
        let mut datagram = datagram.to_vec();
        datagram[at..at + bytes.len()].copy_from_slice(bytes);
        datagram
    };
    let challenge = challenge(&p, &[7; 48]);
    let retry = encoded(|out| datagram::encode_retry(p.attempt, b"cookie", out));
    let refused = Refused {
        attempt: p.attempt,
        status: 503,
        retry_after_ms: 0,
        retryable: true,
        code: "overloaded",
    };
    let refused = encoded(|out| datagram::encode_refused(&refused, out));
    let reset = encoded(|out| datagram::encode_reset(CID, &[7; 16], out));
    let mut long = good.clone();
    long.resize(1_473, 0);
    let mut over = changed(&good, 19, &(MAX_CREDENTIAL_BYTES as u16 + 1).to_be_bytes());
    over[21 + credential.len()..].fill(0);
    over.resize(600, 0);
    let cases = [
        ("empty", Vec::new()),
        ("an unknown type", changed(&good, 0, &[0x06])),
        ("HELLO: another version", changed(&good, 1, &[2])),
        ("HELLO: 255 bytes", good[..255].to_vec()),
        ("HELLO: 1473 bytes", long),
        (
            "HELLO: max_datagram 511",
            changed(&good, 10, &511u16.to_be_bytes()),
        ),
        (
            "HELLO: max_datagram 1473",
            changed(&good, 10, &1473u16.to_be_bytes()),
        ),
        (
            "HELLO: receive_bytes 4095",
            changed(&good, 12, &4095u32.to_be_bytes()),
        ),
        (
            "HELLO: receive_bytes 16777217",
            changed(&good, 12, &16_777_217u32.to_be_bytes()),
        ),
        (
            "HELLO: receive_messages 3",
            changed(&good, 16, &3u16.to_be_bytes()),
        ),
        (
            "HELLO: receive_messages 1025",
            changed(&good, 16, &1025u16.to_be_bytes()),
        ),
        ("HELLO: a cookie of 33 bytes", changed(&good, 18, &[33])),
        ("HELLO: no credential", changed(&good, 19, &[0, 0])),
        ("HELLO: a credential of 354 bytes", over),
        (
            "HELLO: a credential beyond the end",
            changed(&good, 19, &300u16.to_be_bytes()),
        ),
        ("HELLO: something behind it", changed(&good, 255, &[1])),
        ("RETRY: another version", changed(&retry, 1, &[0])),
        ("RETRY: no cookie", [&retry[..10], &[0]].concat()),
        (
            "RETRY: a cookie of 33 bytes",
            [&retry[..10], &[33], &[0; 33]].concat(),
        ),
        ("RETRY: cut off", retry[..retry.len() - 1].to_vec()),
        ("RETRY: a byte more", [&retry[..], &[0]].concat()),
        ("CHALLENGE: another version", changed(&challenge, 1, &[2])),
        ("CHALLENGE: cut off", challenge[..65].to_vec()),
        ("CHALLENGE: a byte more", [&challenge[..], &[0]].concat()),
        (
            "REFUSED: status 399",
            changed(&refused, 10, &399u16.to_be_bytes()),
        ),
        (
            "REFUSED: status 600",
            changed(&refused, 10, &600u16.to_be_bytes()),
        ),
        ("REFUSED: retryable 2", changed(&refused, 16, &[2])),
        ("REFUSED: a code with a capital", changed(&refused, 18, b"O")),
        ("REFUSED: no code", [&refused[..17], &[0]].concat()),
        (
            "REFUSED: a code of 65 characters",
            [&refused[..17], &[65], &[b'c'; 65]].concat(),
        ),
        ("REFUSED: cut off", refused[..refused.len() - 1].to_vec()),
        ("RESET: cut off", reset[..24].to_vec()),
        ("RESET: a byte more", [&reset[..], &[0]].concat()),
        ("DATA: 28 bytes", [&data_header(CID, 0)[..], &[0; 15]].concat()),
        (
            "DATA: 1473 bytes",
            [&data_header(CID, 0)[..], &[0; 1_460]].concat(),
        ),
    ];
    let entry = |(why, datagram): (&str, Vec<u8>)| json!({ "why": why, "datagram": hex(&datagram) });
    cases.into_iter().map(entry).collect()
}

/// A DATA datagram, whatever is in it.
fn seal(key: &TrafficKey, number: u64, plain: &[u8]) -> Vec<u8> {
    let header = data_header(CID, number as u32);
    let mut sealed = plain.to_vec();
    let tag = Aes256Gcm::new(key.as_bytes().into())
        .encrypt_in_place_detached(&nonce(number), &header, &mut sealed)
        .unwrap();
    [&header[..], &sealed, &tag].concat()
}

fn nonce(number: u64) -> aes_gcm::Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce.into()
}

/// Noise's REKEY, so often.
pub(super) fn generation(key: &TrafficKey, times: u64) -> TrafficKey {
    let mut key = key.as_bytes().to_owned();
    for _ in 0..times {
        let mut next = [0; 32];
        Aes256Gcm::new(&key.into())
            .encrypt_in_place_detached(&nonce(u64::MAX), &[], &mut next)
            .unwrap();
        key = next;
    }
    TrafficKey::from_bytes(&key).unwrap()
}

const REKEY: u64 = 1 << 20;

fn data() -> Vec<Value> {
    let TrafficKeys { to_server, to_device } = keys();
    let packets = packets::plain();
    let [hello, welcome, full, cut, ping, empty] = &packets;
    let cases = [
        ("to_server", &to_server, 0, hello),
        ("to_device", &to_device, 0, welcome),
        ("to_server", &to_server, 1, full),
        ("to_device", &to_device, 1, cut),
        ("to_device", &to_device, 255, empty),
        ("to_server", &to_server, REKEY - 1, ping),
        ("to_server", &to_server, REKEY, ping),
        ("to_device", &to_device, 2 * REKEY - 1, ping),
        ("to_device", &to_device, 2 * REKEY, cut),
        ("to_device", &to_device, (1 << 32) + 5, ping),
    ];
    let entry = |(direction, first, number, plain): (&str, &TrafficKey, u64, &Vec<u8>)| {
        let key = generation(first, number >> 20);
        json!({
            "direction": direction,
            "first_key": hex(first.as_bytes()),
            "number": number,
            "key": hex(key.as_bytes()),
            "connection_id": hex(&CID.0.to_be_bytes()),
            "packet": hex(plain),
            "datagram": hex(&seal(&key, number, plain)),
        })
    };
    cases.into_iter().map(entry).collect()
}

/// What a receiver of the first packet of `to_server` does not open.
fn rejected_data() -> Vec<Value> {
    let TrafficKeys { to_server, to_device } = keys();
    let [hello, ..] = packets::plain();
    let good = seal(&to_server, 0, &hello);
    let flip = |at: usize| {
        let mut datagram = good.clone();
        datagram[at] ^= 1;
        datagram
    };
    let cases = [
        ("a bit of the connection id", flip(8)),
        ("a bit of the packet number", flip(12)),
        ("a bit of the packet", flip(13)),
        ("a bit of the tag", flip(good.len() - 1)),
        ("cut off by a byte", good[..good.len() - 1].to_vec()),
        ("a byte longer", [&good[..], &[0]].concat()),
        (
            "under the key of the other direction",
            seal(&to_device, 0, &hello),
        ),
        ("under the next key", seal(&generation(&to_server, 1), 0, &hello)),
        ("no header in the associated data", {
            let mut sealed = hello.clone();
            let tag = Aes256Gcm::new(to_server.as_bytes().into())
                .encrypt_in_place_detached(&nonce(0), &[], &mut sealed)
                .unwrap();
            [&data_header(CID, 0)[..], &sealed, &tag].concat()
        }),
    ];
    let entry = |(why, datagram): (&str, Vec<u8>)| json!({ "why": why, "first_key": hex(to_server.as_bytes()), "datagram": hex(&datagram) });
    cases.into_iter().map(entry).collect()
}

/// `expected` is one more than the highest number accepted.
fn packet_numbers() -> Vec<Value> {
    const HALF: u64 = 1 << 31;
    const WHOLE: u64 = 1 << 32;
    let cases: [(u64, u64); 18] = [
        (0, 0),
        (0, 5),
        (0, HALF),
        // Nobody is before 0.
        (0, WHOLE - 1),
        (1, 0),
        (1_000, 999),
        (1_000, 1_300),
        (WHOLE - 1, WHOLE - 1),
        (WHOLE - 1, WHOLE),
        (WHOLE, WHOLE - 200),
        (WHOLE + 5, WHOLE - 1),
        (WHOLE + 5, WHOLE + 6),
        (WHOLE + 5, WHOLE + 5 + HALF),
        (WHOLE + 5, WHOLE + 6 - HALF),
        (3 * WHOLE - 2, 3 * WHOLE + 100),
        (3 * WHOLE + 2, 3 * WHOLE - 100),
        (5 * WHOLE + HALF, 5 * WHOLE + 1),
        (5 * WHOLE + HALF, 6 * WHOLE),
    ];
    let entry = |(expected, number): (u64, u64)| json!({ "expected": expected, "low": number as u32, "number": number });
    cases.into_iter().map(entry).collect()
}

/// The numbers of packets as they come, and whether each is accepted.
fn replays() -> Vec<Value> {
    let sequences: [(&str, &[(u64, bool)]); 3] = [
        (
            "each once",
            &[(0, true), (0, false), (1, true), (0, false), (1, false)],
        ),
        (
            "out of order",
            &[(5, true), (3, true), (4, true), (3, false), (5, false), (0, true)],
        ),
        (
            "256 numbers are remembered",
            &[
                (0, true),
                (2, true),
                (256, true),
                (1, true),
                (0, false),
                (257, true),
                (1, false),
                (2, false),
                (3, true),
                (600, true),
                (344, false),
                (345, true),
                (345, false),
                (257, false),
            ],
        ),
    ];
    let entry = |(about, packets): (&str, &[(u64, bool)])| {
        let packets = packets.iter();
        let packets: Vec<_> = packets
            .map(|(number, accepted)| json!({ "number": number, "accepted": accepted }))
            .collect();
        json!({ "about": about, "packets": packets })
    };
    sequences.into_iter().map(entry).collect()
}

fn reset_tokens() -> Vec<Value> {
    let key = ResetKey::from_bytes(RESET_KEY);
    let entry = |cid: ConnectionId| {
        let token = key.token(cid).0;
        json!({
            "reset_key": hex(&RESET_KEY),
            "connection_id": hex(&cid.0.to_be_bytes()),
            "token": hex(&token),
            "datagram": hex(&encoded(|out| datagram::encode_reset(cid, &token, out))),
        })
    };
    [CID, ConnectionId(0), ConnectionId(u64::MAX)]
        .into_iter()
        .map(entry)
        .collect()
}

/// Whether a device with this attempt takes the challenge.
pub(super) fn verified(hello: &[u8], key: &crate::secure::DeviceKey) -> Option<Verified> {
    let Ok(datagram::Datagram::Hello(hello)) = datagram::parse(hello) else {
        panic!("no HELLO")
    };
    let credential = Credential::parse_datagram(&hello.parameters.encode(), hello.credential).unwrap();
    Verified::verify(SecureChannel::Udp, &credential, key).ok()
}
