//! Any text as the first message of a server on `ws`: what is taken is short, names one message 2, and does so in other words too.
#![no_main]

use holdfast_proto::secure::{MAX_CHALLENGE_BYTES, parse_challenge, render_challenge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(message) = parse_challenge(text) {
        assert!(text.len() <= MAX_CHALLENGE_BYTES);
        assert_eq!(parse_challenge(&render_challenge(&message)), Some(message));
    }
});
