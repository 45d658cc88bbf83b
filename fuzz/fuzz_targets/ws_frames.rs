//! Any bytes, in any pieces: our frame reader never panics, and agrees with tungstenite.
//! The input is one byte for the limit, one for the pieces, then the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tungstenite;

#[allow(dead_code)]
#[path = "../../frontend/tests/support/frames.rs"]
mod frames;

fuzz_target!(|data: &[u8]| {
    let Some((&[limit, pieces], stream)) = data.split_first_chunk::<2>() else {
        return;
    };
    // tungstenite counts control frames, of up to 125 bytes, against the limit too.
    let max = 125 + usize::from(limit) * 16;
    let mut state = u32::from(pieces);
    let chunk = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 24) as usize % (1 + usize::from(pieces))
    };
    frames::compare(stream, max, chunk);
});
