//! That keys are wiped before their memory is freed.
//!
//! Not covered, since no code of ours can reach it: copies that calls leave on the stack (snow's, AES-GCM's and the curve's among them),
//! GHASH's key, which only ever stands there, and registers.

mod freed;

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;
use curve25519_dalek::MontgomeryPoint;
use hmac::{Hmac, KeyInit as _, Mac};
use holdfast_proto::link::Lane;
use holdfast_proto::secure::{
    Credential, DeviceKey, Identity, Initiator, MasterKey, Opener, PATTERN, REKEY_RECORDS, RecordKind,
    SealRun, Sealer, SecureChannel, TrafficKey, TrafficKeys, Verified,
};
use sha2::Sha256;

use freed::{Freed, Keeping, freed_by};

#[global_allocator]
static ALLOCATOR: Keeping = Keeping;

const MASTER: [u8; 32] = *b"a master key of 32 bytes, or so!";
/// The other halves of what is looked for are as good as the whole.
const UNKNOWN: [u8; 32] = *b"somebody else's key of 32 bytes!";

fn identity() -> Identity {
    Identity {
        key_id: "k1".into(),
        product: "speaker".into(),
        class: "home".into(),
        device: "d-1".parse().expect("a device id"),
        key_version: 7,
    }
}

fn master() -> MasterKey {
    MasterKey::from_bytes(&MASTER).expect("32 bytes")
}

fn device_key() -> [u8; 32] {
    *master().device_key(&identity()).as_bytes()
}

#[track_caller]
fn assert_wiped(freed: &Freed, what: &str, key: &[u8; 32]) {
    let blocks = freed.holding(key);
    assert!(
        blocks.is_empty(),
        "{what} stands in freed blocks of {blocks:?} bytes"
    );
}

fn mac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// Noise's HKDF with three outputs, computed independently.
fn noise_hkdf(chaining: &[u8], secret: &[u8]) -> [[u8; 32]; 3] {
    let extracted = mac(chaining, secret);
    let one = mac(&extracted, &[1]);
    let two = mac(&extracted, &[&one[..], &[2]].concat());
    let three = mac(&extracted, &[&two[..], &[3]].concat());
    [one, two, three]
}

/// What follows from the device key before anything is drawn, then from message 1's public key.
fn early_keys(psk: &[u8; 32], message1: &[u8]) -> Vec<(&'static str, [u8; 32])> {
    let name: [u8; 32] = PATTERN
        .as_bytes()
        .try_into()
        .expect("the pattern's name has 32 bytes");
    let [after_psk, _, cipher] = noise_hkdf(&name, psk);
    let [after_e, later_cipher, _] = noise_hkdf(&after_psk, &message1[..32]);
    vec![
        ("the device key", *psk),
        ("the chaining key after psk", after_psk),
        ("the cipher's key after psk", cipher),
        ("the chaining key after e", after_e),
        ("the key of message 1", later_cipher),
    ]
}

/// The key after this one, as PROTOCOL.md has it.
fn next_key(key: &[u8; 32]) -> [u8; 32] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&u64::MAX.to_be_bytes());
    let mut next = [0; 32];
    Aes256Gcm::new(key.into())
        .encrypt_in_place_detached(&Nonce::from(nonce), &[], &mut next)
        .expect("a short message");
    next
}

#[test]
fn what_is_not_wiped_is_found() {
    static PRIVATE: [u8; 32] = UNKNOWN;
    let public = MontgomeryPoint::mul_base_clamped(PRIVATE).to_bytes();
    let ((), freed) = freed_by(|| drop(std::hint::black_box(Box::new([[0; 32], PRIVATE]))));
    assert_eq!(freed.holding(&UNKNOWN), [64]);
    assert!(freed.any(|bytes| MontgomeryPoint::mul_base_clamped(*bytes).to_bytes() == public));
    drop(freed);
    // Also where a vector grew, and when the block is freed elsewhere than where it was filled.
    let ((), freed) = freed_by(|| {
        let mut grown = Vec::with_capacity(32);
        grown.extend_from_slice(&PRIVATE);
        grown.reserve_exact(1000);
        grown.fill(0);
        drop(std::hint::black_box(grown));
    });
    assert_eq!(freed.holding(&UNKNOWN), [32]);
}

#[test]
fn a_device_key_is_derived_without_a_trace() {
    let wanted = device_key();
    let ((), freed) = freed_by(|| {
        let mut keys: Vec<DeviceKey> = Vec::with_capacity(1);
        keys.push(master().device_key(&identity()));
        // Two vectors that are freed after their keys have moved on.
        keys.reserve_exact(10);
        let shared: std::sync::Arc<[DeviceKey]> = keys.into();
        let text = zeroize::Zeroizing::new(shared[0].to_text());
        assert_eq!(text.parse::<DeviceKey>().as_ref(), Ok(&shared[0]));
    });
    assert_wiped(&freed, "the master key", &MASTER);
    assert_wiped(&freed, "the device key", &wanted);
    assert_wiped(
        &freed,
        "what all device keys follow from",
        &mac(&[0; 32], &MASTER),
    );
}

/// Both sides on the heap, as in a future or a table, and what goes between them.
struct Exchange {
    message1: Vec<u8>,
    message2: Vec<u8>,
    keys: TrafficKeys,
}

fn exchange(channel: SecureChannel) -> Exchange {
    let key = master().device_key(&identity());
    let (initiator, text) = Initiator::new(channel, &identity(), &key, Some(7)).expect("an initiator");
    let mut initiators = Vec::with_capacity(1);
    initiators.push(initiator);
    initiators.reserve_exact(10);
    let credential = Credential::parse(text.as_bytes()).expect("a credential");
    let verified = Box::new(Verified::verify(channel, &credential, &key).expect("the same key"));
    let (message2, keys) = verified.answer().expect("an answer");
    let device = initiators.pop().expect("the one").finish(&message2);
    assert_eq!(device.as_ref(), Ok(&keys));
    Exchange {
        message1: credential.message1().to_vec(),
        message2,
        keys,
    }
}

#[test]
fn a_handshake_leaves_no_key_behind() {
    let psk = device_key();
    let (exchange, freed) = freed_by(|| exchange(SecureChannel::Ws));
    for (what, key) in early_keys(&psk, &exchange.message1) {
        assert_wiped(&freed, what, &key);
    }
    let keys = [
        *exchange.keys.to_server.as_bytes(),
        *exchange.keys.to_device.as_bytes(),
    ];
    assert_wiped(&freed, "a traffic key", &keys[0]);
    assert_wiped(&freed, "a traffic key", &keys[1]);
    let is_last_chaining_key = |bytes: &[u8; 32]| mac(&mac(bytes, &[]), &[1]) == keys[0];
    assert!(!freed.any(is_last_chaining_key), "the last chaining key");
    for message in [&exchange.message1, &exchange.message2] {
        let is_private =
            |bytes: &[u8; 32]| MontgomeryPoint::mul_base_clamped(*bytes).to_bytes()[..] == message[..32];
        assert!(!freed.any(is_private), "an ephemeral private key");
    }
}

/// Neither those that came to nothing: what is dropped half-way holds as much.
#[test]
fn an_unfinished_handshake_leaves_no_key_behind() {
    let psk = device_key();
    let (message1, freed) = freed_by(|| {
        let key = master().device_key(&identity());
        let (initiator, text) =
            Initiator::new(SecureChannel::Ws, &identity(), &key, None).expect("an initiator");
        let credential = Credential::parse(text.as_bytes()).expect("a credential");
        let verified = Verified::verify(SecureChannel::Ws, &credential, &key).expect("the same key");
        let other = DeviceKey::from_bytes(&UNKNOWN).expect("32 bytes");
        assert!(Verified::verify(SecureChannel::Ws, &credential, &other).is_err());
        assert!(initiator.finish(&[0; 48]).is_err());
        drop(verified);
        credential.message1().to_vec()
    });
    assert_wiped(&freed, "another's key", &UNKNOWN);
    for (what, key) in early_keys(&psk, &message1) {
        assert_wiped(&freed, what, &key);
    }
    let is_private =
        |bytes: &[u8; 32]| MontgomeryPoint::mul_base_clamped(*bytes).to_bytes()[..] == message1[..32];
    assert!(!freed.any(is_private), "an ephemeral private key");
}

/// The keys of a session and of its successors in one direction.
fn generations(key: &TrafficKey) -> [[u8; 32]; 2] {
    [*key.as_bytes(), next_key(key.as_bytes())]
}

#[test]
fn records_leave_no_key_behind_also_when_it_moved_on() {
    let keys = exchange(SecureChannel::Ws).keys;
    let (first, second) = (generations(&keys.to_server), generations(&keys.to_device));
    let ((), freed) = freed_by(|| {
        let mut sealers = vec![(Sealer::new(keys.to_server.clone()), Opener::new(keys.to_server))];
        sealers.push((Sealer::new(keys.to_device.clone()), Opener::new(keys.to_device)));
        for (sealer, opener) in &mut sealers {
            let mut record = Vec::with_capacity(100);
            let (mut seals, mut opens) = (sealer.begin(), opener.begin());
            for _ in 0..=REKEY_RECORDS {
                record.clear();
                SealRun::seal(&mut seals, RecordKind::Text, false, b"x", &mut record).expect("sealed");
                opens.open(&mut record).expect("opened");
            }
        }
        // What was refused ends a direction.
        assert!(sealers[0].1.open(&mut [0; 20]).is_err());
    });
    for key in first.iter().chain(&second) {
        assert_wiped(&freed, "a traffic key", key);
    }
}

/// Connections lie in tables that grow.
#[test]
fn connections_over_datagrams_leave_no_key_behind() {
    let keys = exchange(SecureChannel::Udp).keys;
    let known = [*keys.to_server.as_bytes(), *keys.to_device.as_bytes()];
    let ((), freed) = freed_by(|| datagrams::talk(keys));
    for key in &known {
        assert_wiped(&freed, "a traffic key", key);
    }
}

mod datagrams {
    use std::time::Instant;

    use holdfast_proto::MessageKind;
    use holdfast_proto::udp::{
        Config, Connection, ConnectionId, Event, INITIAL_SERVER_CREDIT, MAX_DATAGRAM_BYTES, Opening, Side,
    };

    use super::*;

    /// One message from the device, over connections that are moved.
    pub(super) fn talk(keys: TrafficKeys) {
        let (now, config) = (Instant::now(), Config::default());
        let opening = |keys| Opening {
            cid: ConnectionId(7),
            keys,
            peer: "192.0.2.7:4000".parse().expect("an address"),
            peer_max_datagram: MAX_DATAGRAM_BYTES,
            peer_credit: INITIAL_SERVER_CREDIT,
            own_credit: INITIAL_SERVER_CREDIT,
            reset_token: None,
        };
        let mut table = vec![Connection::new(Side::Device, opening(keys.clone()), now)];
        table.push(Connection::new(Side::Server, opening(keys), now));
        table.reserve_exact(100);
        let text = Bytes::from_static(b"hello");
        table[0]
            .send(&config, MessageKind::Text, text.clone())
            .expect("room");
        let mut datagram = Vec::new();
        let from = table[0]
            .poll_transmit(&config, now, &mut datagram)
            .expect("a datagram");
        table[1].handle_datagram(&config, now, from, &mut datagram, 0);
        let events = std::iter::from_fn(|| table[1].poll_event(&config));
        let said = |event: &Event| matches!(event, Event::Message(MessageKind::Text, said) if *said == text);
        assert!(events.into_iter().any(|event| said(&event)));
    }
}

/// The keys' way between the gateway's processes, but for what ZeroMQ copies: that buffer is not ours.
#[test]
fn frames_with_keys_are_wiped_when_they_were_sent() {
    let keys = exchange(SecureChannel::Ws).keys;
    let known = [*keys.to_server.as_bytes(), *keys.to_device.as_bytes()];
    let (sent, freed) = freed_by(|| lane::send_bound(keys));
    assert!(sent.windows(32).any(|window| window == known[0]), "it was sent");
    for key in &known {
        assert_wiped(&freed, "a traffic key", key);
    }
}

mod lane {
    use std::time::Instant;

    use holdfast_proto::link::frames::{Admitted, Bound, Challenge, bound};
    use holdfast_proto::link::{Command, Epoch, LaneConfig, decode_batch};

    use super::*;

    /// Puts the keys into a frame and that into a batch; gives what the socket would have written, in memory of its own.
    pub(super) fn send_bound(keys: TrafficKeys) -> Vec<u8> {
        let now = Instant::now();
        let (a, b) = (Epoch { boot: 1, attach: 1 }, Epoch { boot: 2, attach: 1 });
        let mut to = Lane::new(LaneConfig::default(), b, a, now);
        let mut from = Lane::new(LaneConfig::default(), a, b, now);
        let credit = to.poll_header(now, 0).expect("the first header");
        from.handle_batch(now, decode_batch(credit).expect("a batch"), &mut Vec::new())
            .expect("taken");
        let challenge = Challenge {
            message: Bytes::from_static(b"@challenge {}"),
            to_server: keys.to_server.into_bytes(),
            to_device: keys.to_device.into_bytes(),
        };
        let admitted = Admitted {
            challenge: Some(challenge),
            ..Admitted::default()
        };
        let command = Command::Bound(Bound {
            id: None,
            result: Some(bound::Result::Admitted(admitted)),
        });
        from.enqueue(command, None);
        let batch = from.poll_batch(now, 0, |_, _| {}).expect("a batch");
        batch.to_vec()
    }
}
