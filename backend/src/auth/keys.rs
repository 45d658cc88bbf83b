//! The public keys that tokens are checked with.

use std::fmt::Write;
use std::path::Path;

use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey;
use jsonwebtoken::DecodingKey;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::config::{ConfigError, secrets};

/// Most keys in the file: a token without a known key id costs one signature check per key.
pub const MAX_TOKEN_KEYS: usize = 8;

/// One or more Ed25519 public keys.
#[derive(Clone)]
pub struct TokenKeys {
    pub(super) keys: Vec<TokenKey>,
}

#[derive(Clone)]
pub(super) struct TokenKey {
    pub(super) id: String,
    pub(super) key: DecodingKey,
}

/// A key's id, for the token's `kid`: the first eight bytes of the SHA-256 of the raw public key, in lower-case hex.
pub fn key_id(public_key: &[u8; 32]) -> String {
    Sha256::digest(public_key)
        .iter()
        .take(KEY_ID_BYTES)
        .fold(String::new(), |mut id, byte| {
            let _ = write!(id, "{byte:02x}");
            id
        })
}

const KEY_ID_BYTES: usize = 8;

impl TokenKeys {
    /// Reads a PEM file of 1 to [`MAX_TOKEN_KEYS`] public keys (SubjectPublicKeyInfo, RFC 8410).
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let pem = secrets::read_text(path)?;
        Self::from_pem(&pem).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })
    }

    /// Reads keys from PEM text; the error is a sentence.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY") {
            return Err("holds a private key; only public keys belong here".to_owned());
        }
        let mut keys: Vec<TokenKey> = Vec::new();
        for spki in SubjectPublicKeyInfoDer::pem_slice_iter(pem.as_bytes()) {
            let number = keys.len() + 1;
            let bad = |what: &str| format!("key {number}: {what}");
            let spki = spki.map_err(|error| bad(&error.to_string()))?;
            let key =
                VerifyingKey::from_public_key_der(&spki).map_err(|_| bad("not an Ed25519 public key"))?;
            if key.is_weak() {
                return Err(bad("a weak point, for which anybody can sign"));
            }
            let key = TokenKey {
                id: key_id(key.as_bytes()),
                key: DecodingKey::from_ed_der(key.as_bytes()),
            };
            if keys.iter().any(|k| k.id == key.id) {
                return Err(bad("is there twice"));
            }
            keys.push(key);
            if keys.len() > MAX_TOKEN_KEYS {
                return Err(format!("holds more than {MAX_TOKEN_KEYS} keys"));
            }
        }
        if keys.is_empty() {
            Err("holds no PUBLIC KEY in PEM".to_owned())
        } else {
            Ok(Self { keys })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::jwt::tests::{public_pem, signing_key};

    #[test]
    fn several_keys_are_read() {
        let pem = format!("{}\n{}", public_pem(&signing_key(1)), public_pem(&signing_key(2)));
        let keys = TokenKeys::from_pem(&pem).unwrap();
        assert_eq!(keys.keys.len(), 2);
        assert_eq!(keys.keys[0].id, key_id(signing_key(1).verifying_key().as_bytes()));
        assert_eq!(keys.keys[0].id.len(), 16);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let one = public_pem(&signing_key(1));
        let nine: String = (0..9).map(|n| public_pem(&signing_key(n))).collect();
        for (pem, wanted) in [
            ("", "no PUBLIC KEY"),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "private key",
            ),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                "key 1: not an Ed25519",
            ),
            (&format!("{one}{one}"), "key 2: is there twice"),
            (&nine, "more than 8"),
        ] {
            let error = TokenKeys::from_pem(pem).err().unwrap();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
