//! Batches as bytes. Written and read by hand at the outer level only, so that each frame's encoded length, which is what
//! credits count, is the same number at both ends whatever fields the other end does not know.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint};

use zeroize::Zeroizing;

use super::Command;
use super::frames::{Frame, Header, bound};

/// Frames in one batch, at most: what one turn of a link thread moves.
pub const MAX_BATCH_FRAMES: usize = 64;
/// Bytes of frames in one batch, at most; a larger frame travels alone.
pub const MAX_BATCH_BYTES: usize = 64 * 1024;

const HEADER_FIELD: u32 = 1;
const FRAME_FIELD: u32 = 2;

/// Writes one batch. `frames` holds each frame with its encoded length.
pub(crate) fn encode_batch<'a>(
    header: &Header,
    frames: impl Iterator<Item = (&'a Frame, usize)> + Clone,
) -> Bytes {
    let header_len = header.encoded_len();
    let total: usize =
        frames.clone().map(|(_, len)| delimited_len(len)).sum::<usize>() + delimited_len(header_len);
    let mut out = Vec::with_capacity(total);
    encode_key(HEADER_FIELD, WireType::LengthDelimited, &mut out);
    encode_varint(header_len as u64, &mut out);
    header.encode_raw(&mut out);
    for (frame, len) in frames.clone() {
        encode_key(FRAME_FIELD, WireType::LengthDelimited, &mut out);
        encode_varint(len as u64, &mut out);
        frame.encode_raw(&mut out);
    }
    debug_assert_eq!(out.len(), total);
    if frames.into_iter().any(|(frame, _)| holds_keys(frame)) {
        return Bytes::from_owner(Zeroizing::new(out));
    }
    out.into()
}

/// Whether a frame's bytes must not be left behind.
fn holds_keys(frame: &Frame) -> bool {
    let Some(Command::Bound(bound)) = &frame.command else {
        return false;
    };
    matches!(&bound.result, Some(bound::Result::Admitted(admitted)) if admitted.challenge.is_some())
}

/// A batch of one frame outside any lane, for an end that has no lane (yet, or any more): `REFUSED` and `FENCED`.
pub fn encode_notice(from: super::Epoch, to: super::Epoch, command: Command) -> Bytes {
    let header = Header {
        from: Some(from.into()),
        to: Some(to.into()),
        ..Default::default()
    };
    let frame = Frame {
        command: Some(command),
    };
    let len = frame.encoded_len();
    encode_batch(&header, std::iter::once((&frame, len)))
}

/// The command of a notice to `local`, whatever epoch it comes from; `None` for every other batch.
pub fn read_notice(local: super::Epoch, header: &Header, frames: &[(Frame, u32)]) -> Option<Command> {
    if header.first_frame != 0 || header.to.map(super::Epoch::from) != Some(local) {
        return None;
    }
    match frames {
        [
            (
                Frame {
                    command: Some(command @ (Command::Fenced(_) | Command::Refused(_))),
                },
                _,
            ),
        ] => Some(command.clone()),
        _ => None,
    }
}

fn delimited_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// Reads one batch: its header, and each frame with its encoded length. Payloads share `batch`'s buffer.
///
/// Fails on anything malformed, on a missing header and on more than [`MAX_BATCH_FRAMES`] frames.
pub fn decode_batch(mut batch: Bytes) -> Result<(Header, Vec<(Frame, u32)>), prost::DecodeError> {
    let mut header = None;
    let mut frames = Vec::new();
    while batch.has_remaining() {
        let (field, wire) = decode_key(&mut batch)?;
        if !matches!(field, HEADER_FIELD | FRAME_FIELD) {
            prost::encoding::skip_field(wire, field, &mut batch, prost::encoding::DecodeContext::default())?;
            continue;
        }
        if wire != WireType::LengthDelimited {
            return Err(malformed("a field of another type"));
        }
        let len = usize::try_from(decode_varint(&mut batch)?).unwrap_or(usize::MAX);
        if len > batch.remaining() {
            return Err(malformed("a field is longer than its batch"));
        }
        let body = batch.split_to(len);
        match field {
            HEADER_FIELD if header.is_some() => return Err(malformed("two headers")),
            HEADER_FIELD => header = Some(Header::decode(body)?),
            FRAME_FIELD if frames.len() == MAX_BATCH_FRAMES => return Err(malformed("too many frames")),
            _ => {
                let frame_len = u32::try_from(len).map_err(|_| malformed("a frame is too long"))?;
                frames.push((Frame::decode(body)?, frame_len));
            }
        }
    }
    Ok((
        header.ok_or_else(|| malformed("a batch without a header"))?,
        frames,
    ))
}

fn malformed(_what: &'static str) -> prost::DecodeError {
    // prost has no public constructor for its error: an unterminated varint is the shortest input that makes one.
    decode_varint(&mut &[0x80u8][..])
        .err()
        .unwrap_or_else(|| unreachable!("an unterminated varint does not decode"))
}

#[cfg(test)]
mod tests {
    use super::super::frames::Reply;
    use super::*;
    use proptest::prelude::*;

    fn reply(payload: Vec<u8>) -> Frame {
        Frame {
            command: Some(Command::Reply(Reply {
                payload: payload.into(),
                sequence: 7,
                ..Default::default()
            })),
        }
    }

    proptest! {
        #[test]
        fn batches_round_trip(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..MAX_BATCH_FRAMES)) {
            let frames: Vec<Frame> = payloads.into_iter().map(reply).collect();
            let header = Header { first_frame: 3, acknowledged: 9, ..Default::default() };
            let bytes = encode_batch(&header, frames.iter().map(|f| (f, f.encoded_len())));
            let generated = super::super::frames::Batch::decode(bytes.clone()).unwrap();
            prop_assert_eq!(generated.header.as_ref(), Some(&header));
            prop_assert_eq!(&generated.frames, &frames);
            let (read_header, read) = decode_batch(bytes).unwrap();
            prop_assert_eq!(read_header, header);
            for ((frame, len), expected) in read.iter().zip(&frames) {
                prop_assert_eq!(frame, expected);
                prop_assert_eq!(*len as usize, expected.encoded_len());
            }
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_batch(bytes.into());
        }
    }

    #[test]
    fn a_notice_is_told_from_other_batches() {
        use super::super::{Epoch, frames::Fenced};
        let (us, them) = (Epoch { boot: 1, attach: 1 }, Epoch { boot: 2, attach: 0 });
        let notice = decode_batch(encode_notice(them, us, Command::Fenced(Fenced {}))).unwrap();
        assert!(matches!(
            read_notice(us, &notice.0, &notice.1),
            Some(Command::Fenced(_))
        ));
        assert!(read_notice(them, &notice.0, &notice.1).is_none());
        let other = decode_batch(encode_notice(them, us, Command::Reply(Reply::default()))).unwrap();
        assert!(read_notice(us, &other.0, &other.1).is_none());
    }

    #[test]
    fn bounds_hold() {
        assert!(decode_batch(Bytes::new()).is_err());
        let frames: Vec<Frame> = (0..=MAX_BATCH_FRAMES).map(|_| reply(vec![])).collect();
        let bytes = encode_batch(&Header::default(), frames.iter().map(|f| (f, f.encoded_len())));
        assert!(decode_batch(bytes).is_err());
        // A frame that claims more bytes than there are.
        assert!(decode_batch(Bytes::from_static(&[0x0a, 0x00, 0x12, 0xff, 0xff, 0x03])).is_err());
    }
}
