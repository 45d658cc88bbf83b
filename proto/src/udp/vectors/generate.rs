//! Makes the vectors from a few fixed inputs: here those of handshakes and what is in the clear.

use serde_json::{Value, json};

use super::super::datagram::{self, Hello, Refused};
use super::super::{ConnectionId, Parameters, ResetKey};
use super::{malformed, packets, sealed};
use crate::secure::vectors::generate::{
    DEVICE_EPHEMERAL, NOW_MS, SERVER_EPHEMERAL, counting, fields, hex, identities, master, with,
};
use crate::secure::{
    Credential, Identity, Initiator, PATTERN, SecureChannel, TrafficKeys, Verified, fixed, prologue,
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
        "rejected_datagrams": malformed::rejected(),
        "packets": packets::good(),
        "rejected_packets": packets::rejected(),
        "acknowledgements": packets::acknowledgements(),
        "data": sealed::data(),
        "rejected_data": sealed::rejected_data(),
        "packet_numbers": sealed::packet_numbers(),
        "replays": sealed::replays(),
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

pub(super) fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// One attempt, with both sides' ephemeral keys fixed.
pub(super) struct Attempt {
    identity: Identity,
    parameters: Parameters,
    now_ms: Option<u64>,
    cookie: &'static [u8],
}

impl Attempt {
    pub(super) fn usual() -> Self {
        Self {
            identity: identities()[0].clone(),
            parameters: parameters(),
            now_ms: Some(NOW_MS),
            cookie: b"",
        }
    }

    pub(super) fn initiate(&self) -> (Initiator, Vec<u8>) {
        let key = master().device_key(&self.identity);
        let device = (DEVICE_EPHEMERAL, self.now_ms);
        fixed::initiator_for_datagrams(&self.parameters.encode(), &self.identity.encode(), &key, device)
    }

    pub(super) fn hello(&self) -> Vec<u8> {
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

pub(super) fn challenge(parameters: &Parameters, message2: &[u8]) -> Vec<u8> {
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
