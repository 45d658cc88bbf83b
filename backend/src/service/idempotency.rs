//! The key by which a service recognises a request that it has seen before.

use std::fmt::Write;

use holdfast_proto::event::MAX_FIELD_BYTES;
use holdfast_proto::ids::MAX_DEVICE_ID_BYTES;
use holdfast_proto::{DeviceId, Sequence, SessionId};

/// Longest key: a device id, a slash and a retry key.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = MAX_DEVICE_ID_BYTES + 1 + MAX_FIELD_BYTES;

/// `<device>/<retry_key>` when the device chose a key, else `<session uuid>-<sequence>`. Neither form can be mistaken for the
/// other: a device id holds no slash.
pub fn idempotency_key(
    device: &DeviceId,
    session: SessionId,
    sequence: Sequence,
    retry_key: Option<&str>,
) -> String {
    let mut key = String::with_capacity(64);
    write_idempotency_key(&mut key, device, (session, sequence), retry_key);
    key
}

/// The same, appended to `out`.
pub(super) fn write_idempotency_key(
    out: &mut String,
    device: &DeviceId,
    (session, sequence): (SessionId, Sequence),
    retry_key: Option<&str>,
) {
    let written = match retry_key {
        Some(key) => write!(out, "{device}/{key}"),
        None => write!(out, "{session}-{sequence}"),
    };
    written.expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let device: DeviceId = "speaker-1".parse().unwrap();
        let session: SessionId = "00010000-0000-8001-8000-000000000004".parse().unwrap();
        let key = idempotency_key(&device, session, Sequence(7), None);
        assert_eq!(key, "00010000-0000-8001-8000-000000000004-7");
        let key = idempotency_key(&device, session, Sequence(7), Some("pay/1"));
        assert_eq!(key, "speaker-1/pay/1");
    }
}
