//! A device in memory against the channel: records in any pieces, each way to disturb them, and what is bounded.

use super::*;
use crate::channel::test_client::masked;
use crate::channel::{Channel, ChannelEvent, Refusal, ScratchLimits, StreamChannel};
use holdfast_proto::CloseCode;
use holdfast_proto::secure::{MAX_CHUNK_BYTES, TrafficKey, TrafficKeys};
use proptest::prelude::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Holdfast abc\r\n\r\n";
const CHALLENGE: &[u8] = b"@challenge {\"noise\":\"x\"}";

fn keys() -> TrafficKeys {
    TrafficKeys {
        to_server: TrafficKey::from_bytes(&[1; 32]).unwrap(),
        to_device: TrafficKey::from_bytes(&[2; 32]).unwrap(),
    }
}

fn challenge() -> Option<Box<Challenge>> {
    let message = Bytes::from_static(CHALLENGE);
    Some(Box::new(Challenge {
        message,
        keys: keys(),
    }))
}

/// The gateway's end, and the device's keys.
struct Pair {
    channel: WsChannel,
    scratch: Scratch,
    sealer: Sealer,
    opener: Opener,
}

impl Pair {
    fn new(limits: ScratchLimits) -> Self {
        let mut scratch = Scratch::new(limits);
        let keys = keys();
        Self {
            channel: WsChannel::new(&mut scratch),
            scratch,
            sealer: Sealer::new(keys.to_server),
            opener: Opener::new(keys.to_device),
        }
    }

    fn open() -> Self {
        Self::open_with(ScratchLimits::default())
    }

    fn open_with(limits: ScratchLimits) -> Self {
        let mut pair = Self::new(limits);
        let events = pair.turn(REQUEST).unwrap();
        assert!(
            matches!(&events[..], [ChannelEvent::Upgrade(request)] if request.credential == "abc"),
            "{events:?}"
        );
        pair.channel.accept(&mut pair.scratch, challenge()).unwrap();
        let answer = pair.take();
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        let mut clear = Vec::new();
        write_frame(&mut clear, OpCode::Text, CHALLENGE);
        assert!(answer.ends_with(&clear), "the challenge is the one clear message");
        pair
    }

    fn turn(&mut self, bytes: &[u8]) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut events = Vec::new();
        for piece in bytes.chunks(super::super::READ_BYTES) {
            self.scratch.read_target()[..piece.len()].copy_from_slice(piece);
            self.channel.handle_input(&mut self.scratch, piece.len())?;
            while let Some(event) = self.channel.poll_event(&mut self.scratch)? {
                events.push(event);
            }
            self.channel.park(&mut self.scratch)?;
        }
        Ok(events)
    }

    /// What the gateway has to say, as it goes over the wire.
    fn take(&mut self) -> Vec<u8> {
        self.channel.flush(&mut self.scratch).unwrap();
        let bytes = self.scratch.outbound().to_vec();
        self.scratch.clear_outbound();
        bytes
    }

    /// The device's frames with this message.
    fn message(&mut self, kind: RecordKind, message: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        for (more, data) in chunks(message) {
            wire.extend(self.record(kind, more, data));
        }
        wire
    }

    fn record(&mut self, kind: RecordKind, more: bool, data: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        self.sealer.seal(kind, more, data, &mut record).unwrap();
        masked(0x82, &record)
    }

    /// A record in several frames, with a ping in the clear among them.
    fn fragments(&mut self, kind: RecordKind, data: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        self.sealer.seal(kind, false, data, &mut record).unwrap();
        let (first, last) = record.split_at(record.len() / 3);
        [masked(0x02, first), masked(0x89, b"between"), masked(0x80, last)].concat()
    }

    fn control(&mut self, control: &ControlRecord) -> Vec<u8> {
        self.record(RecordKind::Control, false, &control.encode())
    }

    /// Opens the gateway's frames: records, and the first byte of frames that are none.
    fn read(&mut self, mut wire: &[u8]) -> Vec<(RecordKind, Vec<u8>)> {
        let mut records = Vec::new();
        while let [first, length, rest @ ..] = wire {
            let (length, rest) = match length {
                126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
                short => (usize::from(*short), rest),
            };
            if *first == 0x82 {
                let mut record = rest[..length].to_vec();
                let opened = self.opener.open(&mut record).unwrap();
                let data = record[1..length - 16].to_vec();
                records.push((opened.kind, data));
            }
            wire = &rest[length..];
        }
        records
    }

    /// Whether the connection ended with this code, in a record and in the clear.
    fn assert_closed(&mut self, error: &ChannelError, code: CloseCode) {
        assert_eq!(error.close_code(), code, "{error}");
        self.channel
            .close(&mut self.scratch, code as u16, code.label())
            .unwrap();
        let wire = self.take();
        let mut clear = Vec::new();
        write_close(&mut clear, Some(code as u16), code.label());
        assert!(wire.ends_with(&clear));
        let close = ControlRecord::Close {
            code: code as u16,
            reason: code.label().into(),
        };
        assert_eq!(self.read(&wire), [(RecordKind::Control, close.encode())]);
        assert_eq!(self.scratch.budget().used(), 0);
    }
}

fn text(message: &str) -> ChannelEvent {
    ChannelEvent::Message(MessageKind::Text, Bytes::copy_from_slice(message.as_bytes()))
}

#[test]
fn a_device_gets_in_and_talks_in_records() {
    let mut pair = Pair::open();
    let wire = [
        pair.message(RecordKind::Text, b"@hello {}"),
        pair.message(RecordKind::Binary, b"\0"),
    ]
    .concat();
    let binary = ChannelEvent::Message(MessageKind::Binary, Bytes::from_static(b"\0"));
    assert_eq!(pair.turn(&wire).unwrap(), [text("@hello {}"), binary]);
    assert!(!pair.channel.has_parked());
    pair.channel
        .send(
            &mut pair.scratch,
            MessageKind::Text,
            &Bytes::from_static(b"welcome"),
        )
        .unwrap();
    pair.channel
        .send(
            &mut pair.scratch,
            MessageKind::Binary,
            &Bytes::from_static(&[7; 200]),
        )
        .unwrap();
    let wire = pair.take();
    assert!(
        !wire.windows(7).any(|w| w == b"welcome"),
        "nothing is in the clear"
    );
    assert_eq!(
        pair.read(&wire),
        [
            (RecordKind::Text, b"welcome".to_vec()),
            (RecordKind::Binary, vec![7; 200])
        ]
    );
    assert_eq!(pair.scratch.budget().used(), 0);
}

#[test]
fn a_long_message_comes_in_chunks_both_ways_and_is_charged_while_it_does() {
    let mut pair = Pair::open();
    let long: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let wire = pair.message(RecordKind::Binary, &long);
    let (first, rest) = wire.split_at(MAX_CHUNK_BYTES + 100);
    assert_eq!(
        pair.turn(first).unwrap(),
        [ChannelEvent::Alive],
        "a record that opens is life, also if the message goes on: it may take longer than silence is borne"
    );
    assert!(pair.scratch.budget().used() >= MAX_CHUNK_BYTES);
    // Control records pass between chunks only where a record ends; here one is on its way.
    let mut events = pair.turn(rest).unwrap();
    let Some(ChannelEvent::Message(MessageKind::Binary, whole)) = events.pop() else {
        panic!("{events:?}")
    };
    assert!(events.iter().all(|e| *e == ChannelEvent::Alive));
    assert_eq!(whole, long);
    let held = Vec::from(whole).capacity();
    assert_eq!(held, long.len(), "windows count the message, not what it grew in");
    assert_eq!(pair.scratch.budget().used(), 0);
    pair.channel
        .send(
            &mut pair.scratch,
            MessageKind::Binary,
            &Bytes::copy_from_slice(&long),
        )
        .unwrap();
    let wire = pair.take();
    let got: Vec<u8> = pair.read(&wire).into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(got, long);
}

#[test]
fn a_message_over_the_limit_is_refused_in_one_record_or_many() {
    let limits = ScratchLimits {
        max_message_bytes: 100_000,
        ..ScratchLimits::default()
    };
    let mut pair = Pair::open_with(limits);
    let wire = pair.message(RecordKind::Binary, &[0; 100_000]);
    assert!(matches!(
        pair.turn(&wire).unwrap()[..],
        [.., ChannelEvent::Message(..)]
    ));
    let wire = pair.message(RecordKind::Binary, &[0; 100_001]);
    let error = pair.turn(&wire).unwrap_err();
    pair.assert_closed(&error, CloseCode::TooBig);

    let limits = ScratchLimits {
        max_message_bytes: 1_000,
        ..ScratchLimits::default()
    };
    let mut pair = Pair::open_with(limits);
    let wire = pair.message(RecordKind::Text, &[b'x'; 1_001]);
    let error = pair.turn(&wire).unwrap_err();
    pair.assert_closed(&error, CloseCode::TooBig);
}

#[test]
fn what_cannot_be_a_record_is_not_waited_for() {
    let mut pair = Pair::open();
    let longest = MAX_CHUNK_BYTES + RECORD_OVERHEAD;
    let frame = masked(0x82, &vec![0; longest + 1]);
    let error = pair.turn(&frame[..20]).unwrap_err();
    assert_eq!(error.close_code(), CloseCode::TooBig);
}

#[test]
fn over_the_budget_a_chunk_is_refused() {
    let limits = ScratchLimits {
        max_message_bytes: 1 << 20,
        budget_bytes: 2 * MAX_CHUNK_BYTES,
    };
    let mut pair = Pair::open_with(limits);
    let wire = pair.message(RecordKind::Binary, &[0; 4 * MAX_CHUNK_BYTES]);
    let error = pair.turn(&wire).unwrap_err();
    pair.assert_closed(&error, CloseCode::TryAgainLater);
}

type Disturb = fn(&mut Vec<Vec<u8>>);

/// Every way in which somebody between can disturb a sequence of frames, and where the first harm is.
const DISTURBANCES: [(&str, Disturb); 6] = [
    ("flipped", |frames| *frames[1].last_mut().unwrap() ^= 1),
    ("dropped", |frames| drop(frames.remove(1))),
    ("doubled", |frames| frames.insert(1, frames[0].clone())),
    ("swapped", |frames| frames.swap(1, 2)),
    ("injected", |frames| frames.insert(1, masked(0x82, &[9; 40]))),
    ("truncated", |frames| {
        // The frame says that it is whole; its record is not.
        frames[1] = masked(0x82, &[0; 16]);
    }),
];

#[test]
fn every_disturbance_ends_the_session_with_its_own_code_and_nothing_after_it_is_read() {
    for (what, disturb) in DISTURBANCES {
        let mut pair = Pair::open();
        let mut frames: Vec<Vec<u8>> = ["one", "two", "three"]
            .iter()
            .map(|m| pair.message(RecordKind::Text, m.as_bytes()))
            .collect();
        disturb(&mut frames);
        let mut events = Vec::new();
        let mut error = None;
        for frame in frames {
            match pair.turn(&frame) {
                Ok(more) => events.extend(more),
                Err(first) => error = error.or(Some(first)),
            }
        }
        assert_eq!(events, [text("one")], "{what}");
        pair.assert_closed(&error.expect(what), CloseCode::RecordRejected);
    }
}

/// Whoever has not been let in has room of a kind of its own.
#[test]
fn strangers_fill_their_part_of_the_budget_and_no_sessions() {
    let limits = ScratchLimits {
        budget_bytes: 64 * 1024,
        ..ScratchLimits::default()
    };
    let mut pair = Pair::open_with(limits);
    let head = [b'x'; 8_000];
    let mut strangers = Vec::new();
    let refused = loop {
        let mut stranger = WsChannel::new(&mut pair.scratch);
        pair.scratch.read_target()[..head.len()].copy_from_slice(&head);
        stranger.handle_input(&mut pair.scratch, head.len()).unwrap();
        assert_eq!(stranger.poll_event(&mut pair.scratch).unwrap(), None);
        match stranger.park(&mut pair.scratch) {
            Ok(()) => strangers.push(stranger),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.close_code(), CloseCode::TryAgainLater);
    assert!(!strangers.is_empty() && strangers.len() * head.len() <= 16 * 1024);
    let wire = pair.message(RecordKind::Text, &[b'm'; 30_000]);
    let (first, rest) = wire.split_at(20_000);
    assert_eq!(pair.turn(first).unwrap(), []);
    assert_eq!(
        pair.turn(rest).unwrap().len(),
        1,
        "a session's split message has its room"
    );
}

#[test]
fn clear_text_after_the_challenge_ends_the_session() {
    let mut pair = Pair::open();
    let error = pair.turn(&masked(0x81, b"@hello {}")).unwrap_err();
    pair.assert_closed(&error, CloseCode::ClearText);
}

#[test]
fn only_records_are_signs_of_life() {
    let mut pair = Pair::open();
    assert_eq!(pair.turn(&masked(0x89, b"ping")).unwrap(), []);
    let mut pong = Vec::new();
    write_frame(&mut pong, OpCode::Pong, b"ping");
    assert_eq!(pair.take(), pong, "a clear ping has its answer");
    assert_eq!(pair.turn(&masked(0x8A, b"")).unwrap(), []);
    let ping = [
        pair.control(&ControlRecord::Ping),
        pair.control(&ControlRecord::Ping),
    ]
    .concat();
    assert_eq!(pair.turn(&ping).unwrap(), [ChannelEvent::Alive]);
    let wire = pair.take();
    assert_eq!(
        pair.read(&wire),
        [(RecordKind::Control, ControlRecord::Pong.encode())]
    );
    let pong = pair.control(&ControlRecord::Pong);
    assert_eq!(pair.turn(&pong).unwrap(), [ChannelEvent::Alive]);
    pair.channel.ping(&mut pair.scratch).unwrap();
    let wire = pair.take();
    assert_eq!(
        pair.read(&wire),
        [(RecordKind::Control, ControlRecord::Ping.encode())]
    );
}

#[test]
fn a_close_counts_as_the_devices_only_in_a_record() {
    // Who forges a close must not get our word for its code.
    for forged in [1000_u16, 4000] {
        let mut pair = Pair::open();
        let clear = pair.turn(&masked(0x88, &forged.to_be_bytes())).unwrap();
        let (code, authentic) = (Some(forged), false);
        assert_eq!(clear, [ChannelEvent::Closed { code, authentic }]);
        let wire = pair.take();
        assert_eq!(pair.read(&wire), []);
        assert_eq!(wire, [0x88, 0]);
    }

    let mut pair = Pair::open();
    let close = ControlRecord::Close {
        code: 1000,
        reason: String::new(),
    };
    let wire = pair.control(&close);
    let closed = pair.turn(&wire).unwrap();
    let (code, authentic) = (Some(1000), true);
    assert_eq!(closed, [ChannelEvent::Closed { code, authentic }]);
    let wire = pair.take();
    let mut clear = Vec::new();
    write_close(&mut clear, Some(1000), "");
    assert_eq!(wire, clear, "a close record is not answered with another");
    assert!(
        pair.channel
            .send(&mut pair.scratch, MessageKind::Text, &Bytes::from_static(b"x"))
            .is_err()
    );
}

#[test]
fn what_a_record_holds_is_checked() {
    for (kind, data, code) in [
        (RecordKind::Text, &b"\xff"[..], CloseCode::InvalidPayload),
        (RecordKind::Control, b"\x09", CloseCode::Protocol),
    ] {
        let mut pair = Pair::open();
        let wire = pair.record(kind, false, data);
        let error = pair.turn(&wire).unwrap_err();
        pair.assert_closed(&error, code);
    }
    let mut pair = Pair::open();
    let mixed = [
        pair.record(RecordKind::Binary, true, &[0; MAX_CHUNK_BYTES]),
        pair.record(RecordKind::Text, false, b"x"),
    ]
    .concat();
    let error = pair.turn(&mixed).unwrap_err();
    pair.assert_closed(&error, CloseCode::Protocol);
}

#[test]
fn without_a_challenge_nobody_is_let_in() {
    let mut pair = Pair::new(ScratchLimits::default());
    pair.turn(REQUEST).unwrap();
    assert!(pair.channel.accept(&mut pair.scratch, None).is_err());
    assert!(!pair.channel.is_open());
}

#[test]
fn a_bearer_token_does_not_travel_here() {
    let mut pair = Pair::new(ScratchLimits::default());
    let bearer = String::from_utf8_lossy(REQUEST).replace("Holdfast abc", "Bearer abc");
    assert!(pair.turn(bearer.as_bytes()).is_err());
    let answer = String::from_utf8(pair.take()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("\"code\":\"wrong_channel\""), "{answer}");
}

#[test]
fn a_refusal_names_the_scheme() {
    let mut pair = Pair::new(ScratchLimits::default());
    pair.turn(REQUEST).unwrap();
    let refusal = Refusal {
        status: 401,
        code: "handshake_failed".into(),
        ..Refusal::credential_missing(ChannelKind::Ws)
    };
    pair.channel.refuse(&mut pair.scratch, &refusal).unwrap();
    let answer = String::from_utf8(pair.take()).unwrap();
    assert!(answer.contains("\r\nWWW-Authenticate: Holdfast\r\n"), "{answer}");
}

#[test]
fn an_idle_channel_stays_small() {
    println!(
        "WsChannel: {} bytes, its records {}",
        size_of::<WsChannel>(),
        size_of::<Records>()
    );
    assert!(size_of::<WsChannel>() <= 64);
    assert!(size_of::<Records>() <= 48);
}

/// What a request of 128 bytes and its like cost on the wire, beside `wss`.
#[test]
fn a_small_message_weighs_so_much_on_the_wire() {
    let mut pair = Pair::open();
    assert_eq!(pair.message(RecordKind::Binary, &[7; 128]).len(), 153);
    pair.channel
        .send(
            &mut pair.scratch,
            MessageKind::Binary,
            &Bytes::from_static(&[7; 128]),
        )
        .unwrap();
    assert_eq!(pair.take().len(), 149);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pieces_give_the_same_messages(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(0x20_u8..0x7f, 0..300), 0..5_u8), 1..12),
        long in 0..3_usize,
        pieces in prop::collection::vec(1..2_000_usize, 1..20),
    ) {
        let mut pair = Pair::open();
        let mut messages = messages;
        messages.push((true, vec![b'l'; long * MAX_CHUNK_BYTES + long], 0));
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (is_text, message, beside) in &messages {
            let (record, kind) = match is_text {
                true => (RecordKind::Text, MessageKind::Text),
                false => (RecordKind::Binary, MessageKind::Binary),
            };
            match beside {
                1 => wire.extend(pair.control(&ControlRecord::Ping)),
                2 => wire.extend(masked(0x89, b"in the clear")),
                _ => {}
            }
            match beside {
                3 => wire.extend(pair.fragments(record, message)),
                _ => wire.extend(pair.message(record, message)),
            }
            expected.push(ChannelEvent::Message(kind, Bytes::copy_from_slice(message)));
        }
        let mut events = Vec::new();
        let mut rest = &wire[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            events.extend(pair.turn(now).unwrap());
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        events.retain(|event| *event != ChannelEvent::Alive);
        prop_assert_eq!(events, expected);
        prop_assert_eq!(pair.scratch.budget().used(), 0);
    }
}
