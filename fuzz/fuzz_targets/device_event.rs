//! A device's message: the text header beside serde_json's own reading, and the binary header.
#![no_main]

use bytes::Bytes;
use holdfast_proto::event::{parse_binary, parse_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(event) = parse_text(&bytes) {
        let payload = event.payload_in(&bytes);
        let whole: serde_json::Value = serde_json::from_slice(data).expect("a readable event is JSON");
        assert!(whole.get("header").is_some());
        let _: serde_json::Value = serde_json::from_slice(&payload).expect("its payload is JSON");
    }
    if let Ok(event) = parse_binary(&bytes) {
        assert!(bytes.ends_with(&event.payload));
    }
});
