//! What BIND learnt and LOGIN needs, as bytes that the frontend carries without reading them.

use bytes::Bytes;

/// Most that a frontend keeps per session, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 512;

/// The facts of a proof that outlive its check. The first byte of its encoding says which kind it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Of a token. Encoded as 1, the expiry as eight bytes big-endian, and the token id to the end.
    Token {
        /// Seconds since 1970.
        expires_at: u64,
        /// The token's `jti`, if it has one: at most 256 bytes, not empty.
        token_id: Option<String>,
    },
    /// Of a device key. Encoded as 2, the key version as four bytes big-endian, then key id, product and class, each after a byte
    /// of its length.
    DeviceKey {
        /// 1 to 32 bytes.
        key_id: String,
        key_version: u32,
        /// At most 64 bytes each.
        product: String,
        class: String,
    },
}

/// Bytes that are no principal which this version can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a principal that this version knows")]
pub struct PrincipalError;

const TOKEN: u8 = 1;
const DEVICE_KEY: u8 = 2;
const FIXED_TOKEN_BYTES: usize = 9;
const FIXED_KEY_BYTES: usize = 5;
pub(super) const MAX_TOKEN_ID_BYTES: usize = 256;
/// A part's length is one byte.
const MAX_PART_BYTES: usize = 255;

const _: () = assert!(FIXED_TOKEN_BYTES + MAX_TOKEN_ID_BYTES <= MAX_PRINCIPAL_BYTES);

impl Principal {
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Token { expires_at, token_id } => {
                let id = token_id.as_deref().unwrap_or_default();
                let mut bytes = Vec::with_capacity(FIXED_TOKEN_BYTES + id.len());
                bytes.push(TOKEN);
                bytes.extend_from_slice(&expires_at.to_be_bytes());
                bytes.extend_from_slice(id.as_bytes());
                bytes.into()
            }
            Self::DeviceKey {
                key_id,
                key_version,
                product,
                class,
            } => {
                let parts = [key_id, product, class];
                let length = parts.iter().map(|part| 1 + part.len()).sum::<usize>();
                let mut bytes = Vec::with_capacity(FIXED_KEY_BYTES + length);
                bytes.push(DEVICE_KEY);
                bytes.extend_from_slice(&key_version.to_be_bytes());
                for part in parts {
                    debug_assert!(part.len() <= MAX_PART_BYTES, "an identity's parts are shorter");
                    bytes.push(part.len() as u8);
                    bytes.extend_from_slice(part.as_bytes());
                }
                bytes.into()
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, PrincipalError> {
        match bytes.split_first().ok_or(PrincipalError)? {
            (&TOKEN, rest) => decode_token(rest),
            (&DEVICE_KEY, rest) => decode_device_key(rest),
            _ => Err(PrincipalError),
        }
    }
}

fn decode_token(bytes: &[u8]) -> Result<Principal, PrincipalError> {
    let (expiry, id) = bytes.split_first_chunk::<8>().ok_or(PrincipalError)?;
    if id.len() > MAX_TOKEN_ID_BYTES {
        return Err(PrincipalError);
    }
    let id = text(id)?;
    Ok(Principal::Token {
        expires_at: u64::from_be_bytes(*expiry),
        token_id: (!id.is_empty()).then_some(id),
    })
}

fn decode_device_key(bytes: &[u8]) -> Result<Principal, PrincipalError> {
    let (version, mut rest) = bytes.split_first_chunk::<4>().ok_or(PrincipalError)?;
    let mut part = || {
        let (&length, after) = rest.split_first().ok_or(PrincipalError)?;
        let (part, after) = after.split_at_checked(length.into()).ok_or(PrincipalError)?;
        rest = after;
        text(part)
    };
    let (key_id, product, class) = (part()?, part()?, part()?);
    if !rest.is_empty() || key_id.is_empty() {
        return Err(PrincipalError);
    }
    Ok(Principal::DeviceKey {
        key_id,
        key_version: u32::from_be_bytes(*version),
        product,
        class,
    })
}

fn text(bytes: &[u8]) -> Result<String, PrincipalError> {
    let text = std::str::from_utf8(bytes).map_err(|_| PrincipalError)?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device_key() -> Principal {
        Principal::DeviceKey {
            key_id: "k1".into(),
            key_version: 0x0102,
            product: "tv".into(),
            class: String::new(),
        }
    }

    proptest! {
        #[test]
        fn tokens_round_trip(expires_at: u64, token_id in proptest::option::of("[a-z]{1,64}")) {
            let principal = Principal::Token { expires_at, token_id };
            prop_assert_eq!(Principal::decode(&principal.encode()), Ok(principal));
        }

        #[test]
        fn device_keys_round_trip(
            key_id in "[a-z]{1,32}", key_version: u32, product in "[!-~]{0,64}", class in "[!-~]{0,64}",
        ) {
            let principal = Principal::DeviceKey { key_id, key_version, product, class };
            let bytes = principal.encode();
            prop_assert!(bytes.len() <= MAX_PRINCIPAL_BYTES);
            prop_assert_eq!(Principal::decode(&bytes), Ok(principal));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(principal) = Principal::decode(&bytes) {
                prop_assert_eq!(&principal.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn the_bytes_are_as_documented() {
        let token = Principal::Token {
            expires_at: 7,
            token_id: Some("t".into()),
        };
        assert_eq!(&token.encode()[..], b"\x01\0\0\0\0\0\0\0\x07t");
        assert_eq!(&device_key().encode()[..], b"\x02\0\0\x01\x02\x02k1\x02tv\0");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let good = device_key().encode();
        for cut in 0..good.len() {
            assert_eq!(Principal::decode(&good[..cut]), Err(PrincipalError));
        }
        let longer = [&good[..], b"x"].concat();
        assert_eq!(Principal::decode(&longer), Err(PrincipalError));
        let mut other = good.to_vec();
        other[0] = 3;
        assert_eq!(Principal::decode(&other), Err(PrincipalError));
        assert_eq!(
            Principal::decode(b"\x02\0\0\0\0\0\0\0"),
            Err(PrincipalError),
            "a key without an id"
        );
        let long = [&[TOKEN; 9][..], &[b'x'; 257]].concat();
        assert_eq!(Principal::decode(&long), Err(PrincipalError));
    }
}
