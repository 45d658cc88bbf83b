//! The test vectors in `vectors/udp.json`: that they are what this code makes, and that a device or a server which only reads them
//! comes to the same results. `vectors/check.py` checks them without any of our code.
//!
//! `cargo test -p holdfast-proto --lib rewrite_the_udp_vectors -- --ignored` writes the file anew.

mod data;
mod generate;
mod malformed;
mod packets;
mod sealed;

use serde_json::Value;

use super::datagram::{Datagram, parse};
use super::*;
use crate::secure::vectors::generate::{DEVICE_EPHEMERAL, hex};
use crate::secure::{Credential, DeviceKey, TrafficKeys, fixed};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/udp.json");

fn load() -> Value {
    serde_json::from_str(&std::fs::read_to_string(PATH).unwrap()).unwrap()
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

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len()).step_by(2).map(|i| &text[i..i + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    unhex(text(value, field))
}

fn number(value: &Value, field: &str) -> u64 {
    value[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field} in {value}"))
}

fn device_key(value: &Value) -> DeviceKey {
    text(value, "device_key").parse().unwrap()
}

fn cid(value: &Value) -> ConnectionId {
    ConnectionId(u64::from_be_bytes(
        bytes(value, "connection_id").try_into().unwrap(),
    ))
}

fn parameters(value: &Value) -> Parameters {
    Parameters {
        attempt: number(value, "attempt"),
        max_datagram: number(value, "max_datagram") as u16,
        receive_bytes: number(value, "receive_bytes") as u32,
        receive_messages: number(value, "receive_messages") as u16,
    }
}

#[test]
#[ignore = "writes the file"]
fn rewrite_the_udp_vectors() {
    let text = serde_json::to_string_pretty(&generate::vectors()).unwrap() + "\n";
    std::fs::write(PATH, text).unwrap();
}

#[test]
fn the_vectors_are_what_this_code_makes() {
    assert!(load() == generate::vectors(), "see how to rewrite them, above");
}

#[test]
fn hellos_are_taken_and_authenticate() {
    for vector in list(&load(), "handshakes") {
        let hello = bytes(vector, "hello");
        let Ok(Datagram::Hello(read)) = parse(&hello) else {
            panic!("{vector}")
        };
        assert_eq!(read.parameters, parameters(vector));
        assert_eq!(read.parameters.encode()[..], bytes(vector, "parameters"));
        assert_eq!(read.cookie, bytes(vector, "cookie"));
        let credential = [bytes(vector, "identity"), bytes(vector, "message_1")].concat();
        assert_eq!(read.credential, credential);
        let verified = generate::verified(&hello, &device_key(vector)).unwrap();
        assert_eq!(verified.timestamp_ms(), vector["now_ms"].as_u64());
    }
    for vector in list(&load(), "rejected_handshakes") {
        let verified = generate::verified(&bytes(vector, "hello"), &device_key(vector));
        assert!(verified.is_none(), "{vector}");
    }
}

/// The device's half, from its ephemeral key to the traffic keys.
fn finish(vector: &Value) -> Option<TrafficKeys> {
    assert_eq!(bytes(vector, "device_ephemeral_private"), DEVICE_EPHEMERAL);
    let device = (DEVICE_EPHEMERAL, vector["now_ms"].as_u64());
    let parameters = parameters(vector);
    let (initiator, credential) = fixed::initiator_for_datagrams(
        &parameters.encode(),
        &bytes(vector, "identity"),
        &device_key(vector),
        device,
    );
    assert!(Credential::parse_datagram(&parameters.encode(), &credential).is_ok());
    let challenge = bytes(vector, "challenge");
    let Ok(Datagram::Challenge {
        attempt,
        cid: of,
        message2,
    }) = parse(&challenge)
    else {
        panic!("{vector}")
    };
    assert_eq!((attempt, of), (parameters.attempt, cid(vector)));
    initiator.finish(message2).ok()
}

#[test]
fn a_device_takes_the_answer_to_its_own_hello_and_no_other() {
    for vector in list(&load(), "handshakes") {
        let keys = finish(vector).unwrap();
        assert_eq!(keys.to_server.as_bytes()[..], bytes(vector, "to_server"));
        assert_eq!(keys.to_device.as_bytes()[..], bytes(vector, "to_device"));
    }
    for vector in list(&load(), "unverified_challenges") {
        assert_eq!(finish(vector), None, "{vector}");
    }
}

#[test]
fn answers_are_read() {
    for vector in list(&load(), "answers") {
        let datagram = bytes(vector, "datagram");
        match parse(&datagram).unwrap() {
            Datagram::Retry { attempt, cookie } => {
                assert_eq!(text(vector, "type"), "retry");
                assert_eq!(attempt, number(vector, "attempt"));
                assert_eq!(cookie, bytes(vector, "cookie"));
            }
            Datagram::Refused(refused) => {
                assert_eq!(text(vector, "type"), "refused");
                assert_eq!(refused.attempt, number(vector, "attempt"));
                assert_eq!(u64::from(refused.status), number(vector, "status"));
                assert_eq!(refused.code, text(vector, "code"));
                assert_eq!(Some(refused.retryable), vector["retryable"].as_bool());
                assert_eq!(
                    u64::from(refused.retry_after_ms),
                    number(vector, "retry_after_ms")
                );
            }
            other => panic!("{other:?}"),
        }
    }
    for vector in list(&load(), "rejected_datagrams") {
        assert!(parse(&bytes(vector, "datagram")).is_err(), "{vector}");
    }
}

#[test]
fn reset_tokens_are_derived() {
    for vector in list(&load(), "reset_tokens") {
        let key = ResetKey::from_bytes(bytes(vector, "reset_key").try_into().unwrap());
        assert_eq!(key.token(cid(vector)).0[..], bytes(vector, "token"));
        let datagram = bytes(vector, "datagram");
        let Ok(Datagram::Reset { cid: of, token }) = parse(&datagram) else {
            panic!("{vector}")
        };
        assert_eq!((of, token[..].to_vec()), (cid(vector), bytes(vector, "token")));
        assert_eq!(hex(token), text(vector, "token"));
    }
}
