//! Signing calls, so that a service knows that they are ours and fresh.

use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{ConfigError, secrets};

/// Seconds since 1970 when the call was signed.
pub const TIMESTAMP_HEADER: &str = "holdfast-timestamp";
/// `v1=` and the signature in lower-case hex.
pub const SIGNATURE_HEADER: &str = "holdfast-signature";

/// Shortest key, in bytes.
const MIN_KEY_BYTES: usize = 32;

/// An HMAC-SHA256 key, set up once. Has no `Debug`: it is a secret.
#[derive(Clone)]
pub struct Signer {
    keyed: Hmac<Sha256>,
}

impl Signer {
    /// Reads a file that holds the key in hex, at least 32 bytes of it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = secrets::read_secret(path)?;
        Self::from_hex(text.trim()).ok_or_else(|| ConfigError::Parse {
            path: path.to_owned(),
            message: WANTED.to_owned(),
        })
    }

    /// `None` unless `text` is hex of at least 32 bytes.
    pub fn from_hex(text: &str) -> Option<Self> {
        let key = decode_hex(text)?;
        if key.len() < MIN_KEY_BYTES {
            return None;
        }
        Some(Self {
            keyed: Hmac::new_from_slice(&key).ok()?,
        })
    }

    /// Appends the signature's hex over `<timestamp>.<ce-id>.<body>`, where both are as they stand in their headers.
    pub(super) fn sign_into(&self, out: &mut String, timestamp: &[u8], event_id: &[u8], body: &[u8]) {
        let mut mac = self.keyed.clone();
        for part in [timestamp, b".", event_id, b".", body] {
            mac.update(part);
        }
        for byte in mac.finalize().into_bytes() {
            push_hex(out, byte);
        }
    }
}

const WANTED: &str = "not a signing key: wanted are at least 64 hex digits";

/// Appends a byte as two lower-case hex digits.
pub(super) fn push_hex(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_signature() {
        let signer = Signer::from_hex(&"0b".repeat(32)).unwrap();
        let mut split = String::new();
        signer.sign_into(&mut split, b"1", b"e", b"body");
        let mut whole = Hmac::<Sha256>::new_from_slice(&[0x0b; 32]).unwrap();
        whole.update(b"1.e.body");
        let mut expected = String::new();
        whole
            .finalize()
            .into_bytes()
            .iter()
            .for_each(|b| push_hex(&mut expected, *b));
        assert_eq!(split, expected);
        assert_eq!(split.len(), 64);
    }

    #[test]
    fn keys_are_checked_and_never_quoted() {
        for bad in ["", "0b", &"0b".repeat(31), &"zz".repeat(32), &"b".repeat(65)] {
            assert!(Signer::from_hex(bad).is_none());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.key");
        std::fs::write(&path, "secret").unwrap();
        let error = Signer::load(&path).err().unwrap().to_string();
        assert!(
            error.contains("64 hex digits") && !error.contains("secret"),
            "{error}"
        );
        std::fs::write(&path, format!("{}\n", "0B".repeat(32))).unwrap();
        assert!(Signer::load(&path).is_ok());
    }
}
