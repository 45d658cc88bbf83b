//! Any bytes as an upgrade request on each kind of channel: no panic, the same result whole and byte by byte, and the promised
//! bounds.

#![no_main]

use holdfast_frontend::channel::ChannelKind;
use holdfast_frontend::channel::upgrade::{MAX_CREDENTIAL_BYTES, MAX_HEAD_BYTES, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for kind in ChannelKind::WEB_SOCKET {
        check(data, kind);
    }
});

fn check(data: &[u8], kind: ChannelKind) {
    let whole = parse(data, kind, &mut 0);
    let mut scanned = 0;
    let pieced = (0..=data.len())
        .map(|end| parse(&data[..end], kind, &mut scanned))
        .find(|result| !matches!(result, Ok(None)))
        .unwrap_or(Ok(None));
    assert_eq!(whole, pieced);
    if let Ok(Some(upgrade)) = whole {
        assert!(upgrade.head_bytes <= MAX_HEAD_BYTES.min(data.len()));
        let credential = &upgrade.request.credential;
        assert!(!credential.is_empty() && credential.len() <= MAX_CREDENTIAL_BYTES);
        assert_eq!(upgrade.acceptance.key.len(), 28);
    }
}
