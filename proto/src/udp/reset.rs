//! How a device learns that the server knows its connection no more (as RFC 9000 section 10.3).
//!
//! The server tells the device of each connection a token, inside of that connection. Once it has lost all else, it can make the
//! same token again from the connection id and a key that outlives it. Who does not know the token cannot end a connection with it.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{ConnectionId, RESET_TOKEN_BYTES, ResetToken};

/// Bytes of a reset key.
pub const RESET_KEY_BYTES: usize = 32;

/// What tokens are made with: random, secret, kept on disk, and never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ResetKey([u8; RESET_KEY_BYTES]);

impl ResetKey {
    pub fn from_bytes(bytes: [u8; RESET_KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The first 16 bytes of HMAC-SHA256 over the connection id.
    pub fn token(&self, cid: ConnectionId) -> ResetToken {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(&cid.0.to_be_bytes());
        let whole = mac.finalize().into_bytes();
        let mut token = [0; RESET_TOKEN_BYTES];
        token.copy_from_slice(&whole[..RESET_TOKEN_BYTES]);
        ResetToken(token)
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_depends_on_key_and_connection_and_outlives_the_key() {
        let (key, cid) = (ResetKey::from_bytes([7; 32]), ConnectionId(5));
        let token = key.token(cid);
        assert_eq!(token, ResetKey::from_bytes([7; 32]).token(cid));
        assert_ne!(token, key.token(ConnectionId(6)));
        assert_ne!(token, ResetKey::from_bytes([8; 32]).token(cid));
    }

    #[test]
    fn the_key_is_not_shown() {
        let key = ResetKey::from_bytes([7; 32]);
        assert_eq!(format!("{key:?}"), "ResetKey(..)");
    }
}
