use super::generated as reference;
use super::*;
use crate::MessageKind;
use crate::udp::{PeerCredit, ResetToken};
use proptest::prelude::*;
use prost::Message;

/// What is read, as generated code has it.
fn as_generated(packet: &Packet<'_>) -> reference::Packet {
    reference::Packet {
        ack: packet.ack.as_ref().map(|ack| reference::Acknowledgement {
            largest: ack.largest,
            ranges: values(ack),
            delay_us: ack.delay_us,
        }),
        pieces: packet.pieces().map(|piece| generated_piece(&piece)).collect(),
        credit: packet.credit.map(|credit| reference::Credit {
            messages: credit.messages,
            bytes: credit.bytes,
        }),
        path_challenge: packet.path_challenge.unwrap_or(0),
        path_response: packet.path_response.unwrap_or(0),
        ping: packet.ping,
        close: packet.close.map(|close| reference::Close {
            code: close.code.into(),
            reason: close.reason.to_owned(),
            messages: close.messages,
        }),
        reset_token: packet
            .reset_token
            .map_or_else(Default::default, |token| token.0.to_vec().into()),
        padding: Default::default(),
    }
}

fn generated_piece(piece: &Piece<'_>) -> reference::Piece {
    let is_whole = piece.data.len() == piece.length as usize;
    reference::Piece {
        message: piece.message,
        kind: piece.kind as u32,
        length: if is_whole { 0 } else { piece.length },
        offset: piece.offset,
        data: piece.data.to_vec().into(),
    }
}

/// The numbers of an acknowledgement, from its runs.
fn values(ack: &Acknowledgement<'_>) -> Vec<u32> {
    let mut values = Vec::new();
    let mut below = None;
    for (low, high) in ack.ranges() {
        if let Some(below) = below {
            values.push((below - high - 2) as u32);
        }
        values.push((high - low) as u32);
        below = Some(low);
    }
    values
}

prop_compose! {
    fn pieces()(
        message in prop_oneof![0u64..300, any::<u64>().prop_map(|m| m.min(u64::MAX - 1))],
        kind in 0u32..2,
        offset in prop_oneof![Just(0u32), 0u32..2_000_000],
        behind in prop_oneof![Just(0u32), 0u32..2_000_000],
        data in prop::collection::vec(any::<u8>(), 0..200),
    ) -> reference::Piece {
        let size = data.len() as u32;
        let whole = size == 0 || (offset, behind) == (0, 0);
        let length = offset + size + behind;
        reference::Piece {
            message,
            kind,
            length: if whole { 0 } else { length },
            offset: if whole { 0 } else { offset },
            data: data.into(),
        }
    }
}

prop_compose! {
    fn acks()(
        runs in prop::collection::vec(0u32..256, 0..32),
        more in 0u64..1 << 50,
        delay_us: u32,
    ) -> reference::Acknowledgement {
        let mut ranges: Vec<u32> = runs.iter().flat_map(|run| [*run, 255 - *run]).collect();
        ranges.pop();
        if ranges.is_empty() {
            ranges.push(0);
        }
        let reach = ranges.iter().map(|value| u64::from(*value) + 1).sum::<u64>();
        reference::Acknowledgement { largest: reach + more, ranges, delay_us }
    }
}

prop_compose! {
    fn packets()(
        ack in prop::option::of(acks()),
        pieces in prop::collection::vec(pieces(), 0..MAX_PIECES),
        credit in prop::option::of((any::<u64>(), any::<u64>())),
        tokens: (u64, u64),
        ping: bool,
        close in prop::option::of((any::<u16>(), ".{0,30}", any::<u64>())),
        reset_token in prop::option::of(any::<[u8; 16]>()),
        padding in 0usize..40,
    ) -> reference::Packet {
        reference::Packet {
            ack,
            pieces,
            credit: credit.map(|(messages, bytes)| reference::Credit { messages, bytes }),
            path_challenge: tokens.0,
            path_response: tokens.1,
            ping,
            close: close.map(|(code, reason, messages)| reference::Close { code: code.into(), reason, messages }),
            reset_token: reset_token.map_or_else(Default::default, |token| token.to_vec().into()),
            padding: vec![0; padding].into(),
        }
    }
}

/// Writes the fields in the order of their numbers, as generated code does.
fn write(packet: &reference::Packet) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(ack) = &packet.ack {
        let mut ranges = Ranges::default();
        let mut numbers = std::iter::once(&0).chain(&ack.ranges);
        while let (Some(gap), Some(run)) = (numbers.next(), numbers.next()) {
            assert!(ranges.push(gap + 1, run + 1));
        }
        push_ack(&mut out, ack.largest, ack.delay_us, &ranges);
    }
    for piece in &packet.pieces {
        let piece = Piece {
            message: piece.message,
            kind: MessageKind::try_from(piece.kind as i32).unwrap(),
            length: if piece.length == 0 {
                piece.data.len() as u32
            } else {
                piece.length
            },
            offset: piece.offset,
            data: &piece.data,
        };
        let before = out.len();
        push_piece(&mut out, &piece);
        assert_eq!(out.len() - before, piece_len(&piece));
    }
    if let Some(credit) = packet.credit {
        push_credit(
            &mut out,
            PeerCredit {
                messages: credit.messages,
                bytes: credit.bytes,
            },
        );
    }
    if packet.path_challenge != 0 {
        push_challenge(&mut out, packet.path_challenge);
    }
    if packet.path_response != 0 {
        push_response(&mut out, packet.path_response);
    }
    if packet.ping {
        push_ping(&mut out);
    }
    if let Some(close) = &packet.close {
        let (code, reason) = (close.code as u16, close.reason.as_str());
        push_close(
            &mut out,
            &Close {
                code,
                reason,
                messages: close.messages,
            },
        );
    }
    if let Ok(token) = packet.reset_token[..].try_into() {
        push_reset_token(&mut out, &ResetToken(token));
    }
    if !packet.padding.is_empty() {
        push_padding(&mut out, packet.padding.len() + 2);
    }
    out
}

proptest! {
    #[test]
    fn what_is_generated_is_read_the_same(packet in packets()) {
        let bytes = packet.encode_to_vec();
        let read = Packet::decode(&bytes).unwrap();
        prop_assert_eq!(read.pieces().len(), packet.pieces.len());
        let expected = reference::Packet { padding: Default::default(), ..packet };
        prop_assert_eq!(as_generated(&read), expected);
    }

    #[test]
    fn what_is_written_is_what_generated_code_writes(packet in packets()) {
        prop_assert_eq!(write(&packet), packet.encode_to_vec());
    }

    #[test]
    fn garbage_is_read_as_generated_code_reads_it_or_not_at_all(
        packet in packets(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        noise in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut bytes = packet.encode_to_vec();
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        for bytes in [&bytes, &noise] {
            if let Ok(read) = Packet::decode(bytes) {
                let mut expected = reference::Packet::decode(&bytes[..]).unwrap();
                expected.padding.clear();
                for piece in &mut expected.pieces {
                    if piece.length as usize == piece.data.len() {
                        piece.length = 0;
                    }
                }
                if let Some(ack) = expected.ack.as_mut().filter(|ack| ack.ranges.is_empty()) {
                    ack.ranges.push(0);
                }
                prop_assert_eq!(as_generated(&read), expected);
            }
        }
    }

    #[test]
    fn a_cut_piece_fits_its_room(
        message: u64, offset in 0u32..1 << 20, length in 1u32..1 << 20, room in 30usize..1_500,
    ) {
        let data = vec![1; 2_000];
        let length = length.max(offset.saturating_add(2_000));
        let piece = Piece { message: message >> 1, kind: MessageKind::Binary, length, offset, data: &data };
        let cut = cut_to_room(&piece, room);
        let part = Piece { data: &data[..cut], ..piece };
        let cost = if cut == 0 { 0 } else { piece_len(&part) };
        prop_assert!(cost <= room && room - cost.max(1) <= 40, "{cost} of {room}");
        prop_assert!(room < 200 || cost == room, "{cost} of {room}");
    }
}

#[test]
fn what_no_sender_writes_is_refused() {
    let refused = |bytes: &[u8]| Packet::decode(bytes).unwrap_err();
    use PacketError::*;
    for (bytes, error) in [
        (&b"\x80"[..], Truncated),
        (b"\x12\x05\x08", Truncated),
        (b"\x21\0\0\0", Truncated),
        // Field 0, and a key over 32 bits.
        (b"\x00", WireType),
        (b"\xff\xff\xff\xff\x7f", Range),
        (b"\x08\x01", WireType),
        (b"\x10\x01", WireType),
        (b"\x25\0\0\0\0", WireType),
        (b"\x12\x02\x0a\x00", WireType),
        (b"\x0a\x02\x10\x00", WireType),
        // Groups.
        (b"\x53\x54", WireType),
        (b"\x0a\x00\x0a\x00", Repeated),
        (b"\x1a\x00\x1a\x00", Repeated),
        (b"\x3a\x00\x3a\x00", Repeated),
        (b"\x0a\x06\x12\x01\x00\x12\x01\x00", Repeated),
        // A gap at the end; below 0; a run of 3 that ends at 1.
        (b"\x0a\x06\x08\x09\x12\x02\x00\x00", Acknowledgement),
        (b"\x0a\x03\x12\x01\x01", Acknowledgement),
        (b"\x0a\x05\x08\x01\x12\x01\x02", Acknowledgement),
        (b"\x12\x02\x10\x02", Piece),
        // Nothing of a message of 5; an offset without a length; beyond the length.
        (b"\x12\x02\x18\x05", Piece),
        (b"\x12\x05\x20\x01\x2a\x01x", Piece),
        (b"\x12\x07\x18\x02\x20\x02\x2a\x01x", Piece),
        (b"\x12\x0f\x18\x02\x20\xff\xff\xff\xff\x0f\x2a\x05xxxxx", Piece),
        (b"\x12\x06\x18\x80\x80\x80\x80\x10", Range),
        (b"\x3a\x04\x08\x80\x80\x04", Close),
        (b"\x3a\x03\x12\x01\xff", Close),
        (b"\x42\x01x", ResetToken),
        (b"\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Range),
    ] {
        assert_eq!(refused(bytes), error, "{bytes:?}");
    }
    assert_eq!(refused(&b"\x12\x00".repeat(MAX_PIECES + 1)), TooManyPieces);
    assert_eq!(
        Packet::decode(&b"\x12\x00".repeat(MAX_PIECES))
            .unwrap()
            .pieces()
            .len(),
        MAX_PIECES
    );
    let ack = |values: usize| {
        let mut bytes = vec![0x0a, values as u8 + 5, 0x08, 0xff, 0x7f, 0x12, values as u8];
        bytes.resize(bytes.len() + values, 0);
        bytes
    };
    assert_eq!(
        Packet::decode(&ack(63)).unwrap().ack.unwrap().ranges().count(),
        MAX_ACK_RUNS
    );
    assert_eq!(refused(&ack(65)), Acknowledgement);
}

#[test]
fn unknown_fields_are_skipped_also_between_pieces() {
    let unknown: [&[u8]; 4] = [
        b"\x50\xff\x01",
        b"\x51\0\0\0\0\0\0\0\0",
        b"\x52\x02ab",
        b"\x55\0\0\0\0",
    ];
    let mut bytes = b"\x12\x03\x2a\x01x".to_vec();
    unknown.iter().for_each(|field| bytes.extend_from_slice(field));
    bytes.extend_from_slice(b"\x30\x01\x12\x05\x08\x01\x2a\x01y\x30\x00");
    let packet = Packet::decode(&bytes).unwrap();
    let data: Vec<&[u8]> = packet.pieces().map(|piece| piece.data).collect();
    assert_eq!((data, packet.ping), (vec![&b"x"[..], b"y"], false));
    assert!(packet.is_eliciting());
    assert!(!Packet::decode(b"\x4a\x01\0\x50\x01").unwrap().is_eliciting());
}
