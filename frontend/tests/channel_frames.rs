//! Our frame reader against tungstenite's, on streams of frames that are mostly legal.

use proptest::prelude::*;
use tokio_tungstenite::tungstenite;

#[path = "support/frames.rs"]
mod frames;

/// A limit low enough that generated messages cross it.
const MAX_MESSAGE: usize = 300;

/// One frame with any first byte that is likely to mean something, masked unless `bare`.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81u8, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A]),
        1 => prop::sample::select(vec![0x88u8, 0x09, 0xC1, 0x83, 0x8B]),
    ];
    let text = prop::collection::vec(prop::sample::select(vec!['a', 'é', '€', '🦀']), 0..60)
        .prop_map(|chars| chars.into_iter().collect::<String>().into_bytes());
    let payload = prop_oneof![
        6 => text,
        2 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (0u16..5000, "[a-z]{0,9}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
    ];
    (first, payload, any::<[u8; 4]>(), prop::bool::weighted(0.02)).prop_map(|(first, payload, mask, bare)| {
        let mut bytes = vec![first];
        let flag = if bare { 0 } else { 0x80 };
        match payload.len() {
            len @ 0..126 => bytes.push(flag | len as u8),
            len => {
                bytes.push(flag | 126);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            }
        }
        if !bare {
            bytes.extend_from_slice(&mask);
        }
        bytes.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ if bare { 0 } else { *key }),
        );
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn streams_of_frames_are_read_as_tungstenite_reads_them(
        stream in prop::collection::vec(frame(), 1..12),
        pieces in prop::collection::vec(1usize..40, 1..8),
    ) {
        let stream = stream.concat();
        let mut pieces = pieces.into_iter().cycle();
        frames::compare(&stream, MAX_MESSAGE, || pieces.next().unwrap_or(1));
    }

    #[test]
    fn any_bytes_are_read_as_tungstenite_reads_them(stream in prop::collection::vec(any::<u8>(), 0..200)) {
        frames::compare(&stream, MAX_MESSAGE, || 7);
    }

    #[test]
    fn the_pieces_make_no_difference(stream in prop::collection::vec(frame(), 1..12), piece in 1usize..30) {
        let stream = stream.concat();
        let whole = frames::ours(&stream, MAX_MESSAGE, || usize::MAX / 2);
        let pieced = frames::ours(&stream, MAX_MESSAGE, || piece);
        prop_assert_eq!(whole.frames, pieced.frames);
        prop_assert_eq!(whole.error.map(|e| e.close_code()), pieced.error.map(|e| e.close_code()));
    }
}
