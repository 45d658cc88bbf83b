//! What BIND learnt and LOGIN needs, as bytes that the frontend carries without reading them.

use bytes::Bytes;

/// Most that a frontend keeps per session, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 512;

/// The facts of a token that outlive its check.
///
/// Encoded as a version byte (1), the expiry as eight bytes big-endian, and the token id to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Seconds since 1970.
    pub expires_at: u64,
    /// The token's `jti`, if it has one: at most 256 bytes, not empty.
    pub token_id: Option<String>,
}

/// Bytes that are no principal which this version can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a principal of version {VERSION}")]
pub struct PrincipalError;

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 9;
pub(super) const MAX_TOKEN_ID_BYTES: usize = 256;

const _: () = assert!(FIXED_BYTES + MAX_TOKEN_ID_BYTES <= MAX_PRINCIPAL_BYTES);

impl Principal {
    pub fn encode(&self) -> Bytes {
        let id = self.token_id.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(FIXED_BYTES + id.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.expires_at.to_be_bytes());
        bytes.extend_from_slice(id.as_bytes());
        bytes.into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, PrincipalError> {
        let (&version, rest) = bytes.split_first().ok_or(PrincipalError)?;
        let (expiry, id) = rest.split_first_chunk::<8>().ok_or(PrincipalError)?;
        if version != VERSION || id.len() > MAX_TOKEN_ID_BYTES {
            return Err(PrincipalError);
        }
        let id = std::str::from_utf8(id).map_err(|_| PrincipalError)?;
        let token_id = (!id.is_empty()).then(|| id.to_owned());
        Ok(Self {
            expires_at: u64::from_be_bytes(*expiry),
            token_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(expires_at: u64, id in proptest::option::of("[a-z]{1,64}")) {
            let principal = Principal { expires_at, token_id: id };
            prop_assert_eq!(Principal::decode(&principal.encode()), Ok(principal));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Principal::decode(&bytes);
        }
    }

    #[test]
    fn other_versions_are_refused() {
        let mut bytes = Principal {
            expires_at: 1,
            token_id: None,
        }
        .encode()
        .to_vec();
        bytes[0] = 2;
        assert_eq!(Principal::decode(&bytes), Err(PrincipalError));
        assert_eq!(Principal::decode(&[]), Err(PrincipalError));
    }
}
