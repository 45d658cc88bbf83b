//! That a session's keys are wiped on their way from a backend's frame to the device's channel, and with that.
//!
//! Not covered: the buffer that the frame arrived in, which is ZeroMQ's (the test keeps it), and what calls leave on the stack.

#[path = "../../proto/tests/wiped/freed.rs"]
mod freed;

use std::time::Instant;

use bytes::Bytes;
use holdfast_frontend::channel::{
    Challenge, Channel, ChannelEvent, Scratch, ScratchLimits, StreamChannel, WsChannel,
};
use holdfast_frontend::exchange::{PeerId, ToShard};
use holdfast_frontend::session::{Output, SessionKey, Shard, ShardConfig, ShardMetrics};
use holdfast_proto::link::frames::{self, bound};
use holdfast_proto::link::{Command, Epoch, Incoming, Lane, LaneConfig};
use holdfast_proto::secure::{Opener, RecordKind, Sealer, TrafficKey};
use holdfast_proto::{ChannelKind, MessageKind, SessionId, Share};

use freed::{Keeping, freed_by};

#[global_allocator]
static ALLOCATOR: Keeping = Keeping;

const TO_SERVER: [u8; 32] = *b"what the device encrypts with...";
const TO_DEVICE: [u8; 32] = *b"what the gateway encrypts with..";
const PEER: PeerId = PeerId(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Holdfast abc\r\n\r\n";

fn key(bytes: &[u8; 32]) -> TrafficKey {
    TrafficKey::from_bytes(bytes).expect("32 bytes")
}

/// The ends of the link between a backend and this frontend.
fn lanes(now: Instant) -> (Lane, Lane) {
    let (a, b) = (Epoch { boot: 1, attach: 1 }, Epoch { boot: 2, attach: 1 });
    let mut backend = Lane::new(LaneConfig::default(), a, b, now);
    let mut frontend = Lane::new(LaneConfig::default(), b, a, now);
    let credit = frontend.poll_header(now, 0).expect("the first header");
    take(now, &mut backend, credit);
    (backend, frontend)
}

fn take(now: Instant, lane: &mut Lane, batch: Bytes) -> Vec<Incoming> {
    let mut taken = Vec::new();
    let batch = holdfast_proto::link::decode_batch(batch).expect("a batch");
    lane.handle_batch(now, batch, &mut taken).expect("of the epoch");
    taken
}

/// A backend's answer as it arrives.
fn bound(now: Instant, backend: &mut Lane, id: SessionId) -> Bytes {
    let challenge = frames::Challenge {
        message: Bytes::from_static(b"@challenge {}"),
        to_server: key(&TO_SERVER).into_bytes(),
        to_device: key(&TO_DEVICE).into_bytes(),
    };
    let admitted = frames::Admitted {
        device: Bytes::from_static(b"lamp"),
        principal: Bytes::from_static(b"principal"),
        challenge: Some(challenge),
    };
    let bound = frames::Bound {
        id: Some(id.into()),
        result: Some(bound::Result::Admitted(admitted)),
    };
    backend.enqueue(Command::Bound(bound), None);
    backend.poll_batch(now, 0, |_, _| {}).expect("a batch")
}

/// A shard with one device that asked to be let in.
fn asked(now: Instant) -> (Shard, SessionKey) {
    let mut shard = Shard::new(ShardConfig::default(), ShardMetrics::default(), now);
    let active = ToShard::PeerActive {
        peer: PEER,
        seed: 1,
        share: Share::FULL,
    };
    shard.handle_hub(now, active);
    let address = "192.0.2.7:4000".parse().expect("an address");
    let key = shard.accept(now, ChannelKind::Ws, address).expect("room");
    shard.handle_upgrade(now, key, Bytes::from_static(b"abc"));
    (shard, key)
}

fn input(channel: &mut WsChannel, scratch: &mut Scratch, bytes: &[u8]) -> Vec<ChannelEvent> {
    scratch.read_target()[..bytes.len()].copy_from_slice(bytes);
    channel.handle_input(scratch, bytes.len()).expect("input");
    let events = std::iter::from_fn(|| channel.poll_event(scratch).expect("decoded")).collect();
    channel.park(scratch).expect("room");
    events
}

/// What goes out, as the socket takes it.
fn output(channel: &mut WsChannel, scratch: &mut Scratch) -> Vec<u8> {
    channel.flush(scratch).expect("encrypted");
    let bytes = scratch.outbound().to_vec();
    scratch.clear_outbound();
    bytes
}

/// One record each way.
fn talk(channel: &mut WsChannel, scratch: &mut Scratch) {
    let mut frame = vec![0x82, 0x80, 0, 0, 0, 0];
    let mut sealer = Sealer::new(key(&TO_SERVER));
    sealer
        .seal(RecordKind::Text, false, b"@hello {}", &mut frame)
        .expect("sealed");
    frame[1] |= frame.len() as u8 - 6;
    let events = input(channel, scratch, &frame);
    let hello = ChannelEvent::Message(MessageKind::Text, Bytes::from_static(b"@hello {}"));
    assert!(events.contains(&hello), "{events:?}");
    let text = Bytes::from_static(b"@welcome {}");
    channel.send(scratch, MessageKind::Text, &text).expect("open");
    let mut frame = output(channel, scratch);
    Opener::new(key(&TO_DEVICE))
        .open(&mut frame[2..])
        .expect("the gateway's record");
}

#[test]
fn the_keys_of_a_session_are_wiped_from_its_frame_to_its_end() {
    let now = Instant::now();
    let (mut backend, mut frontend) = lanes(now);
    let (mut shard, session) = asked(now);
    let arrived = bound(now, &mut backend, shard.session_id(session).expect("a session"));
    assert!(arrived.windows(32).any(|bytes| bytes == TO_DEVICE));
    let ((), freed) = freed_by(|| {
        let mut scratch = Scratch::new(ScratchLimits::default());
        let mut channel = WsChannel::new(&mut scratch);
        input(&mut channel, &mut scratch, REQUEST);
        for incoming in take(now, &mut frontend, arrived.clone()) {
            shard.handle_hub(now, ToShard::Frame { peer: PEER, incoming });
        }
        let Some(Output::Admit {
            challenge: Some(challenge),
            ..
        }) = shard.poll_output()
        else {
            panic!("the device is not challenged")
        };
        // As the driver does.
        let challenge = Challenge {
            message: challenge.message,
            keys: challenge.keys,
        };
        channel
            .accept(&mut scratch, Some(Box::new(challenge)))
            .expect("it asked");
        output(&mut channel, &mut scratch);
        talk(&mut channel, &mut scratch);
        channel.close(&mut scratch, 1000, "").expect("said");
        drop(channel);
        shard.handle_closed(now, session, true);
        drop(shard);
    });
    for key in [TO_SERVER, TO_DEVICE] {
        let blocks = freed.holding(&key);
        assert!(
            blocks.is_empty(),
            "a traffic key stands in freed blocks of {blocks:?} bytes"
        );
    }
}
