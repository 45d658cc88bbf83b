//! A device on `ws` after its challenge says anything: records with any content, and frames that are none. In any pieces the same comes
//! of it, nothing is held after the connection is gone, and who has not said so in a record never closed it.
#![no_main]

use bytes::Bytes;
use holdfast_frontend::channel::{
    Challenge, Channel, ChannelEvent, READ_BYTES, Scratch, ScratchLimits, StreamChannel, WsChannel,
};
use holdfast_proto::secure::{MAX_CHUNK_BYTES, RecordKind, Sealer, TrafficKey, TrafficKeys};
use libfuzzer_sys::fuzz_target;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Holdfast abc\r\n\r\n";
static FULL: [u8; MAX_CHUNK_BYTES] = [b'x'; MAX_CHUNK_BYTES];

fuzz_target!(|data: &[u8]| {
    let Some((&[piece, rest @ ..], operations)) = data.split_first_chunk::<2>() else {
        return;
    };
    let wire = said(operations);
    let whole = heard(&wire, READ_BYTES);
    assert_eq!(whole, heard(&wire, 1 + usize::from(piece) * usize::from(rest[0])));
});

/// Operations of two bytes and, for most, so many bytes of content.
fn said(mut operations: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(keys().to_server);
    let mut wire = Vec::new();
    while let Some((&[operation, length], rest)) = operations.split_first_chunk::<2>() {
        let (content, rest) = rest.split_at(usize::from(length).min(rest.len()));
        operations = rest;
        let kind = [RecordKind::Text, RecordKind::Binary, RecordKind::Control][usize::from(operation % 3)];
        let mut record = Vec::new();
        match operation / 3 % 6 {
            0..=2 => drop(sealer.seal(kind, false, content, &mut record)),
            3 => drop(sealer.seal(kind, true, &FULL, &mut record)),
            // In the clear.
            4 => record.extend_from_slice(content),
            _ => {
                wire.extend_from_slice(content);
                continue;
            }
        }
        // Mostly the one frame that a record is in.
        let first = if operation < 200 { 0x82 } else { operation };
        frame(first, &record, &mut wire);
    }
    wire
}

/// A frame of a client, under the mask 0.
fn frame(first: u8, payload: &[u8], wire: &mut Vec<u8>) {
    wire.push(first);
    match payload.len() {
        short @ 0..=125 => wire.push(0x80 | short as u8),
        long => {
            wire.push(0x80 | 127);
            wire.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    wire.extend_from_slice(&[0; 4]);
    wire.extend_from_slice(payload);
}

/// What a session hears of it, but for signs of life, of which there is one for each turn that had one; then how it ended.
fn heard(wire: &[u8], piece: usize) -> (Vec<ChannelEvent>, Option<u16>) {
    let limits = ScratchLimits {
        max_message_bytes: 150_000,
        ..ScratchLimits::default()
    };
    let mut scratch = Scratch::new(limits);
    let mut channel = WsChannel::new(&mut scratch);
    let mut events = Vec::new();
    turn(&mut channel, &mut scratch, REQUEST, &mut events).expect("a good request");
    events.clear();
    let challenge = Challenge {
        message: Bytes::from_static(b"@challenge {}"),
        keys: keys(),
    };
    channel
        .accept(&mut scratch, Some(Box::new(challenge)))
        .expect("it asked");
    let mut end = None;
    for piece in wire.chunks(piece.min(READ_BYTES)) {
        if let Err(error) = turn(&mut channel, &mut scratch, piece, &mut events) {
            end = Some(error.close_code() as u16);
            break;
        }
        if events.iter().any(|e| matches!(e, ChannelEvent::Closed { .. } | ChannelEvent::Lost)) {
            break;
        }
    }
    drop(channel);
    assert_eq!(scratch.budget().used(), 0);
    events.retain(|event| *event != ChannelEvent::Alive);
    (events, end)
}

fn turn(
    channel: &mut WsChannel,
    scratch: &mut Scratch,
    bytes: &[u8],
    events: &mut Vec<ChannelEvent>,
) -> Result<(), holdfast_frontend::channel::ChannelError> {
    scratch.read_target()[..bytes.len()].copy_from_slice(bytes);
    channel.handle_input(scratch, bytes.len())?;
    while let Some(event) = channel.poll_event(scratch)? {
        let over = matches!(event, ChannelEvent::Closed { .. } | ChannelEvent::Lost);
        events.push(event);
        if over {
            break;
        }
    }
    channel.park(scratch)?;
    scratch.clear_outbound();
    Ok(())
}

fn keys() -> TrafficKeys {
    TrafficKeys {
        to_server: TrafficKey::from_bytes(&[1; 32]).expect("32 bytes"),
        to_device: TrafficKey::from_bytes(&[2; 32]).expect("32 bytes"),
    }
}
