//! Makes the vectors of datagrams that nobody takes.

use serde_json::{Value, json};

use super::super::datagram::{self, Refused, data_header};
use super::generate::{Attempt, CID, challenge, encoded, parameters};
use crate::secure::MAX_CREDENTIAL_BYTES;
use crate::secure::vectors::generate::hex;

type Case = (&'static str, Vec<u8>);

pub(super) fn rejected() -> Vec<Value> {
    let entry = |(why, datagram): Case| json!({ "why": why, "datagram": hex(&datagram) });
    hellos().into_iter().chain(others()).map(entry).collect()
}

/// `datagram` with other bytes at `at`.
fn changed(datagram: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    datagram[at..at + bytes.len()].copy_from_slice(bytes);
    datagram
}

fn hellos() -> Vec<Case> {
    let good = Attempt::usual().hello();
    let credential = Attempt::usual().initiate().1;
    let mut long = good.clone();
    long.resize(1_473, 0);
    let mut over = changed(&good, 19, &(MAX_CREDENTIAL_BYTES as u16 + 1).to_be_bytes());
    over[21 + credential.len()..].fill(0);
    over.resize(600, 0);
    let with = |at: usize, bytes: &[u8]| changed(&good, at, bytes);
    vec![
        ("empty", Vec::new()),
        ("an unknown type", with(0, &[0x06])),
        ("HELLO: another version", with(1, &[2])),
        ("HELLO: 255 bytes", good[..255].to_vec()),
        ("HELLO: 1473 bytes", long),
        ("HELLO: max_datagram 511", with(10, &511u16.to_be_bytes())),
        ("HELLO: max_datagram 1473", with(10, &1473u16.to_be_bytes())),
        ("HELLO: receive_bytes 4095", with(12, &4095u32.to_be_bytes())),
        (
            "HELLO: receive_bytes 16777217",
            with(12, &16_777_217u32.to_be_bytes()),
        ),
        ("HELLO: receive_messages 3", with(16, &3u16.to_be_bytes())),
        ("HELLO: receive_messages 1025", with(16, &1025u16.to_be_bytes())),
        ("HELLO: a cookie of 33 bytes", with(18, &[33])),
        ("HELLO: no credential", with(19, &[0, 0])),
        ("HELLO: a credential of 354 bytes", over),
        (
            "HELLO: a credential beyond the end",
            with(19, &300u16.to_be_bytes()),
        ),
        ("HELLO: something behind it", with(255, &[1])),
    ]
}

fn others() -> Vec<Case> {
    let p = parameters();
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
    vec![
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
    ]
}
