//! The reader's rules one by one; `tests/channel_frames.rs` compares it with tungstenite's at large.

use super::*;
use crate::channel::budget::OverBudget;
use crate::channel::test_client::masked;

const MAX: usize = 1000;

fn limits(budget: usize) -> ReadLimits {
    ReadLimits {
        max_message_bytes: MAX,
        max_frames_bytes: MAX,
        budget: Budget::new(budget),
    }
}

/// Reads all of `stream`, fed in pieces of `chunk` bytes.
fn read(stream: &[u8], chunk: usize, limits: &ReadLimits) -> Result<Vec<Frame>, ChannelError> {
    let (mut reader, mut pending, mut frames) = (FrameReader::default(), Vec::new(), Vec::new());
    for piece in stream.chunks(chunk) {
        pending.extend_from_slice(piece);
        loop {
            let (used, frame) = reader.decode(&mut pending, limits, true)?;
            pending.drain(..used);
            match frame {
                Some(frame) => frames.push(frame),
                None => break,
            }
        }
    }
    assert!(pending.is_empty(), "a complete stream leaves nothing");
    Ok(frames)
}

fn fault(stream: &[u8]) -> PeerFault {
    match read(stream, 1, &limits(1 << 20)) {
        Err(ChannelError::Peer(fault)) => fault,
        other => panic!("expected a fault, got {other:?}"),
    }
}

fn text(bytes: &[u8]) -> Frame {
    Frame::Message(MessageKind::Text, Bytes::copy_from_slice(bytes))
}

#[test]
fn fragments_with_control_frames_between_them_make_one_message() {
    let stream = [
        masked(0x01, "h\u{e9}".as_bytes()),
        masked(0x89, b"ping"),
        masked(0x00, b""),
        masked(0x8A, b""),
        masked(0x80, b"llo"),
        masked(0x82, b"\xFF"),
        masked(0x88, b"\x03\xE8bye"),
    ]
    .concat();
    let expected = [
        Frame::Ping(Control::new(b"ping")),
        Frame::Pong,
        text("h\u{e9}llo".as_bytes()),
        Frame::Message(MessageKind::Binary, Bytes::from_static(b"\xFF")),
        Frame::Close(Some(1000)),
    ];
    for chunk in [1, 2, 3, 7, 1000] {
        let limits = limits(1 << 20);
        assert_eq!(
            read(&stream, chunk, &limits).unwrap(),
            expected,
            "in pieces of {chunk}"
        );
        assert_eq!(limits.budget.used(), 0);
    }
}

#[test]
fn a_message_may_have_the_limit_and_not_a_byte_more() {
    for chunk in [1, 4096] {
        assert_eq!(
            read(&masked(0x81, &[b'x'; MAX]), chunk, &limits(1 << 20)).unwrap(),
            [text(&[b'x'; MAX])]
        );
    }
    assert_eq!(
        fault(&masked(0x81, &[b'x'; MAX + 1])),
        PeerFault::MessageTooBig { max: MAX }
    );
    let fragments = [masked(0x01, &[b'x'; MAX]), masked(0x80, b"y")].concat();
    assert_eq!(fault(&fragments), PeerFault::MessageTooBig { max: MAX });
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let limits = ReadLimits {
        max_message_bytes: 1 << 40,
        max_frames_bytes: 1 << 40,
        budget: Budget::new(4096),
    };
    let mut header = vec![0x82, 0xFF, 0, 0, 0, 0xFF, 0, 0, 0, 0, 1, 2, 3, 4, 5];
    let mut reader = FrameReader::default();
    let (used, frame) = reader.decode(&mut header, &limits, true).unwrap();
    assert_eq!((used, frame), (15, None));
    assert!(reader.is_mid_message());
    assert!(limits.budget.used() < 512, "{}", limits.budget.used());
}

#[test]
fn messages_that_arrive_slowly_are_charged_and_refused_over_the_budget() {
    let limits = limits(1000);
    let mut first = masked(0x82, &[0; 900]);
    let mut reader = FrameReader::default();
    reader.decode(&mut first[..700], &limits, true).unwrap();
    assert!(limits.budget.used() >= 690);
    let mut second = FrameReader::default();
    let refused = second.decode(&mut masked(0x82, &[0; 900])[..700], &limits, true);
    assert!(
        matches!(refused, Err(ChannelError::Capacity(OverBudget))),
        "{refused:?}"
    );
    drop((reader, second));
    assert_eq!(limits.budget.used(), 0);
}

#[test]
fn without_absorb_an_incomplete_frame_stays_where_it_is() {
    let mut stream = masked(0x82, &[7; 100]);
    let mut reader = FrameReader::default();
    assert_eq!(
        reader.decode(&mut stream[..50], &limits(1 << 20), false).unwrap(),
        (0, None)
    );
    let (used, frame) = reader.decode(&mut stream, &limits(1 << 20), false).unwrap();
    assert_eq!(used, stream.len());
    assert_eq!(
        frame,
        Some(Frame::Message(MessageKind::Binary, Bytes::from(vec![7; 100])))
    );
}

#[test]
fn text_is_refused_at_its_first_wrong_byte() {
    assert_eq!(fault(&masked(0x81, b"ab\xC0\xAF")), PeerFault::InvalidUtf8);
    assert_eq!(
        fault(&masked(0x81, "é".as_bytes().split_last().unwrap().1)),
        PeerFault::InvalidUtf8
    );
    // The frame is not complete, and already wrong.
    let mut started = masked(0x81, b"\xFFabcdef");
    let got = FrameReader::default().decode(&mut started[..8], &limits(1 << 20), true);
    assert!(
        matches!(got, Err(ChannelError::Peer(PeerFault::InvalidUtf8))),
        "{got:?}"
    );
}

#[test]
fn fragmentation_has_an_order() {
    assert_eq!(fault(&masked(0x80, b"x")), PeerFault::UnexpectedContinuation);
    assert_eq!(
        fault(&[masked(0x01, b"x"), masked(0x81, b"y")].concat()),
        PeerFault::ExpectedContinuation
    );
}

#[test]
fn close_frames_are_checked() {
    for (payload, expected) in [
        (&b""[..], None),
        (b"\x0F\xA0", Some(4000)),
        (b"\x03\xE9why", Some(1001)),
    ] {
        assert_eq!(
            read(&masked(0x88, payload), 1, &limits(1 << 20)).unwrap(),
            [Frame::Close(expected)]
        );
    }
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        assert_eq!(
            fault(&masked(0x88, &code.to_be_bytes())),
            PeerFault::BadClose,
            "{code}"
        );
    }
    assert_eq!(fault(&masked(0x88, b"\x03")), PeerFault::BadClose);
    assert_eq!(fault(&masked(0x88, b"\x03\xE8\xFF")), PeerFault::InvalidUtf8);
}
