//! Makes the vectors of what is encrypted: without the code that the gateway seals and opens with, so that they say something about it.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use serde_json::{Value, json};

use super::super::datagram::data_header;
use super::generate::{CID, keys};
use super::packets;
use crate::secure::vectors::generate::hex;
use crate::secure::{TrafficKey, TrafficKeys};

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

pub(super) fn data() -> Vec<Value> {
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
pub(super) fn rejected_data() -> Vec<Value> {
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
pub(super) fn packet_numbers() -> Vec<Value> {
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
pub(super) fn replays() -> Vec<Value> {
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
