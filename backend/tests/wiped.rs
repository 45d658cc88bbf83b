//! That keys are wiped on their way from a device's claim to the frame that tells a frontend the session's keys.
//!
//! Not covered: ZeroMQ's buffer, into which the frame is copied, the HTTP client's, in which an endpoint's answer comes, and what calls
//! leave on the stack.

#[path = "../../proto/tests/wiped/freed.rs"]
mod freed;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use holdfast_backend::auth::{
    DenyList, DeviceAuthenticator, DeviceKeySettings, MasterKeys, QuestionSettings, Verdict,
};
use holdfast_backend::dispatch::{BindStep, Lifecycle, Now};
use holdfast_backend::link::LinkIndex;
use holdfast_proto::link::frames::{Bind, Channel};
use holdfast_proto::link::{Epoch, Lane, LaneConfig, decode_batch};
use holdfast_proto::secure::{
    DeviceKey, Identity, Initiator, MasterKey, SecureChannel, TrafficKeys, parse_challenge,
};
use holdfast_proto::{FrontendEpoch, FrontendId, Generation, SessionId, SessionParts, ShardId, Slot};

use freed::{Freed, Keeping, freed_by};

#[global_allocator]
static ALLOCATOR: Keeping = Keeping;

const MASTER: [u8; 32] = *b"a master key of 32 bytes, or so!";
const ELSEWHERE: [u8; 32] = *b"a key that an endpoint has; long";
const LINK: LinkIndex = LinkIndex::new(0);

fn identity(key_id: &str) -> Identity {
    Identity {
        key_id: key_id.into(),
        product: "speaker".into(),
        class: "home".into(),
        device: "d-1".parse().expect("a device id"),
        key_version: 7,
    }
}

fn master() -> MasterKey {
    MasterKey::from_bytes(&MASTER).expect("32 bytes")
}

/// The text of a file with the master key, and the key's own.
fn file() -> (String, String) {
    let key = master().to_text();
    (format!("[keys]\nk1 = {key:?}\n"), key)
}

fn authenticator(text: &str, started: Instant) -> DeviceAuthenticator {
    let keys = MasterKeys::parse(Path::new("master.toml"), text).expect("a good file");
    DeviceAuthenticator::new(DeviceKeySettings {
        keys: Arc::new(ArcSwap::from_pointee(keys)),
        denied: Arc::new(ArcSwap::from_pointee(DenyList::default())),
        questions: Some(QuestionSettings {
            key_ids: None,
            failures_per_minute: 0,
        }),
        max_clock_skew_ms: 120_000,
        require_timestamp: false,
        attempt_interval_ms: 6_000,
        attempt_burst: 5,
        seed: [7; 32],
        started,
    })
}

fn session() -> SessionId {
    SessionId::mint(SessionParts {
        frontend: FrontendId(1),
        epoch: FrontendEpoch(1),
        shard: ShardId(0),
        slot: Slot(1),
        generation: Generation(0),
    })
    .expect("a session id")
}

/// A lane whose other end takes frames.
fn lane(now: Instant) -> Lane {
    let (a, b) = (Epoch { boot: 1, attach: 1 }, Epoch { boot: 2, attach: 1 });
    let mut lane = Lane::new(LaneConfig::default(), a, b, now);
    let header = Lane::new(LaneConfig::default(), b, a, now).poll_header(now, 0);
    let header = decode_batch(header.expect("the first header")).expect("a batch");
    lane.handle_batch(now, header, &mut Vec::new())
        .expect("of the epoch");
    lane
}

/// From the master key's file to the batch that was sent, which is given in memory of its own.
fn bind(text: &str, credential: &str, answer: Option<DeviceKey>) -> Vec<u8> {
    let now = Instant::now();
    let authenticator = authenticator(text, now);
    let at = Now {
        instant: now,
        unix_ms: 1_750_000_000_000,
    };
    let mut lifecycle = Lifecycle::new(10, 1);
    let asked = Bind {
        id: Some(session().into()),
        channel: Channel::Ws.into(),
        address: "192.0.2.7:4000".into(),
        credential: Bytes::copy_from_slice(credential.as_bytes()),
        ..Bind::default()
    };
    let Ok(BindStep::Authenticate { bind, credential, .. }) = lifecycle.handle_bind(LINK, asked) else {
        panic!("not to be authenticated")
    };
    let result = match authenticator.authenticate((SecureChannel::Ws, [0; 8]), &credential, at) {
        Verdict::Judged(result) => result,
        Verdict::Ask(inquiry) => authenticator.authenticate_with(&inquiry, Ok(answer), at),
    };
    // Through a queue, as from a worker to the link's thread.
    let (sender, receiver) = std::sync::mpsc::channel();
    sender.send(result).expect("the receiver is there");
    let result = receiver.recv().expect("the sender is there");
    let answer = lifecycle.handle_authenticated(bind, result).expect("an answer");
    let mut lane = lane(now);
    lane.enqueue(answer.answer, None);
    let batch = lane.poll_batch(now, 0, |_, _| {}).expect("a batch");
    batch.to_vec()
}

/// The device's end.
fn device(key_id: &str, key: &DeviceKey) -> (Initiator, String) {
    Initiator::new(SecureChannel::Ws, &identity(key_id), key, None).expect("an initiator")
}

/// What the device makes of what the frontend is told.
fn finish(initiator: Initiator, sent: &[u8]) -> TrafficKeys {
    let begin = sent
        .windows(11)
        .position(|bytes| bytes == b"@challenge ")
        .expect("a challenge");
    let length = sent[begin..]
        .iter()
        .position(|byte| *byte == b'}')
        .expect("its end")
        + 1;
    let text = std::str::from_utf8(&sent[begin..begin + length]).expect("text");
    let message2 = parse_challenge(text).expect("message 2");
    initiator.finish(&message2).expect("the same key")
}

#[track_caller]
fn assert_wiped(freed: &Freed, what: &str, key: &[u8; 32]) {
    let blocks = freed.holding(key);
    assert!(
        blocks.is_empty(),
        "{what} stands in freed blocks of {blocks:?} bytes"
    );
}

fn assert_sent_and_wiped(freed: &Freed, sent: &[u8], keys: &TrafficKeys) {
    for key in [&keys.to_server, &keys.to_device] {
        assert!(
            sent.windows(32).any(|bytes| bytes == key.as_bytes()),
            "it was sent"
        );
        assert_wiped(freed, "a traffic key", key.as_bytes());
    }
}

#[test]
fn the_keys_of_an_admission_are_wiped_from_the_master_key_to_the_frame() {
    let (text, key_text) = file();
    let device_key = master().device_key(&identity("k1"));
    let (initiator, credential) = device("k1", &device_key);
    let (sent, freed) = freed_by(|| bind(&text, &credential, None));
    assert_sent_and_wiped(&freed, &sent, &finish(initiator, &sent));
    assert_wiped(&freed, "the master key", &MASTER);
    assert_wiped(&freed, "the device key", device_key.as_bytes());
    let key_text = key_text.as_bytes().first_chunk().expect("43 characters");
    assert_wiped(&freed, "the master key's text", key_text);
}

#[test]
fn a_key_that_an_endpoint_had_is_wiped_too() {
    let (text, _) = file();
    let key = || DeviceKey::from_bytes(&ELSEWHERE).expect("32 bytes");
    let (initiator, credential) = device("elsewhere", &key());
    let (sent, freed) = freed_by(|| bind(&text, &credential, Some(key())));
    assert_sent_and_wiped(&freed, &sent, &finish(initiator, &sent));
    assert_wiped(&freed, "the device key", &ELSEWHERE);
}
