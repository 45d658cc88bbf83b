//! Who a device says it is, in the one form of bytes that the handshake is bound to.

use std::str::FromStr;

use crate::ids::{DeviceId, IdError, MAX_DEVICE_ID_BYTES};

/// The first byte of an encoded identity.
pub const IDENTITY_VERSION: u8 = 1;
/// Longest key id, in bytes.
pub const MAX_KEY_ID_BYTES: usize = 32;
/// Longest product name, in bytes.
pub const MAX_PRODUCT_BYTES: usize = 64;
/// Longest class name, in bytes.
pub const MAX_CLASS_BYTES: usize = 64;
/// Longest encoded identity, in bytes: each of the four strings after its length.
pub const MAX_IDENTITY_BYTES: usize =
    1 + 4 + MAX_KEY_ID_BYTES + MAX_PRODUCT_BYTES + MAX_CLASS_BYTES + MAX_DEVICE_ID_BYTES + 4;

/// What a device's key is derived from, beside the master key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Which master key: 1 to 32 bytes of `[A-Za-z0-9._-]`.
    pub key_id: String,
    /// At most 64 bytes of printable ASCII without spaces; may be empty.
    pub product: String,
    /// As `product`.
    pub class: String,
    pub device: DeviceId,
    /// Raised to give a device another key; the old one can then be denied.
    pub key_version: u32,
}

/// Why bytes or fields are no identity: always the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the identity is cut off")]
    CutOff,
    #[error("identities of version {0} are not known here")]
    Version(u8),
    #[error("a key id has 1 to {MAX_KEY_ID_BYTES} letters, digits and . _ -")]
    KeyId,
    #[error("a product has at most {MAX_PRODUCT_BYTES} printable ASCII characters, and no spaces")]
    Product,
    #[error("a class has at most {MAX_CLASS_BYTES} printable ASCII characters, and no spaces")]
    Class,
    #[error(transparent)]
    Device(#[from] IdError),
}

impl Identity {
    /// Whether the fields are within what [`decode`](Self::decode) takes.
    pub fn check(&self) -> Result<(), IdentityError> {
        key_id(self.key_id.as_bytes())?;
        name(self.product.as_bytes(), MAX_PRODUCT_BYTES).ok_or(IdentityError::Product)?;
        name(self.class.as_bytes(), MAX_CLASS_BYTES).ok_or(IdentityError::Class)?;
        Ok(())
    }

    /// The bytes that travel in a credential and go into the prologue.
    ///
    /// # Panics
    /// When a field has more than 255 bytes: [`check`](Self::check) first what somebody typed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.push(IDENTITY_VERSION);
        push_short(&mut out, self.key_id.as_bytes());
        push_short(&mut out, self.product.as_bytes());
        push_short(&mut out, self.class.as_bytes());
        push_short(&mut out, self.device.as_bytes());
        out.extend_from_slice(&self.key_version.to_be_bytes());
        out
    }

    fn encoded_len(&self) -> usize {
        let strings =
            self.key_id.len() + self.product.len() + self.class.len() + self.device.as_bytes().len();
        1 + 4 + strings + 4
    }

    /// Reads an identity from the front of `bytes`, and says how many of them it is. What is read is what
    /// [`encode`](Self::encode) writes, byte for byte; nothing else is taken.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), IdentityError> {
        let mut rest = bytes;
        match take(&mut rest, 1)? {
            [IDENTITY_VERSION] => {}
            other => return Err(IdentityError::Version(other[0])),
        }
        let key_id = key_id(take_short(&mut rest)?)?;
        let product = name(take_short(&mut rest)?, MAX_PRODUCT_BYTES).ok_or(IdentityError::Product)?;
        let class = name(take_short(&mut rest)?, MAX_CLASS_BYTES).ok_or(IdentityError::Class)?;
        let device = take_short(&mut rest)?;
        // Not ASCII is not UTF-8 or not in the alphabet: both are the character's fault.
        let device = std::str::from_utf8(device).map_err(|_| IdError::DeviceCharacter)?;
        let device = DeviceId::from_str(device)?;
        let mut version = [0; 4];
        version.copy_from_slice(take(&mut rest, 4)?);
        let identity = Self {
            key_id,
            product,
            class,
            device,
            key_version: u32::from_be_bytes(version),
        };
        Ok((identity, bytes.len() - rest.len()))
    }
}

/// A byte string of at most 255 bytes, after its length.
pub(super) fn push_short(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u8::try_from(bytes.len()).expect("names are checked to be shorter than 256 bytes");
    out.push(length);
    out.extend_from_slice(bytes);
}

fn take_short<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], IdentityError> {
    let length = take(rest, 1)?[0];
    take(rest, usize::from(length))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], IdentityError> {
    let (head, tail) = rest.split_at_checked(length).ok_or(IdentityError::CutOff)?;
    *rest = tail;
    Ok(head)
}

fn key_id(bytes: &[u8]) -> Result<String, IdentityError> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if bytes.is_empty() || bytes.len() > MAX_KEY_ID_BYTES || !bytes.iter().all(allowed) {
        return Err(IdentityError::KeyId);
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| IdentityError::KeyId)
}

fn name(bytes: &[u8], longest: usize) -> Option<String> {
    if bytes.len() > longest || !bytes.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity {
            key_id: "k1".into(),
            product: "speaker".into(),
            class: "home".into(),
            device: "d-1".parse().unwrap(),
            key_version: 7,
        }
    }

    #[test]
    fn an_identity_has_one_form() {
        let bytes = identity().encode();
        assert_eq!(bytes, b"\x01\x02k1\x07speaker\x04home\x03d-1\0\0\0\x07");
        let mut longer = bytes.clone();
        longer.extend_from_slice(b"rest");
        assert_eq!(Identity::decode(&longer), Ok((identity(), bytes.len())));
        for cut in 0..bytes.len() {
            assert_eq!(
                Identity::decode(&bytes[..cut]),
                Err(IdentityError::CutOff),
                "{cut}"
            );
        }
    }

    /// Each bound, reached and exceeded, in the check of the fields and in the reading of the bytes.
    #[test]
    fn bounds_hold() {
        let ok = |i: &Identity| {
            assert_eq!(i.check(), Ok(()));
            let bytes = i.encode();
            assert_eq!(Identity::decode(&bytes), Ok((i.clone(), bytes.len())));
        };
        let bad = |i: &Identity, error: IdentityError| {
            assert_eq!(i.check(), Err(error.clone()));
            assert_eq!(Identity::decode(&i.encode()), Err(error));
        };
        let set = |change: fn(&mut Identity, String), value: &str| {
            let mut i = identity();
            change(&mut i, value.to_owned());
            i
        };
        let key_id = |v: &str| set(|i, v| i.key_id = v, v);
        let product = |v: &str| set(|i, v| i.product = v, v);
        let class = |v: &str| set(|i, v| i.class = v, v);
        ok(&key_id(&"k".repeat(32)));
        ok(&key_id("A.z_0-9"));
        for text in ["", &"k".repeat(33), "a b", "a:b", "a/b", "é"] {
            bad(&key_id(text), IdentityError::KeyId);
        }
        for (field, error) in [
            (&product as &dyn Fn(&str) -> Identity, IdentityError::Product),
            (&class, IdentityError::Class),
        ] {
            ok(&field(""));
            ok(&field(&"~".repeat(64)));
            ok(&field("!"));
            for text in [&"p".repeat(65), "a b", "\x7f", "é", "\0"] {
                bad(&field(text), error.clone());
            }
        }
        let longest = Identity {
            device: "d".repeat(128).parse().unwrap(),
            key_version: u32::MAX,
            ..identity()
        };
        ok(&longest);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(Identity::decode(b"\x02"), Err(IdentityError::Version(2)));
        let mut bytes = identity().encode();
        let device = bytes.len() - 7;
        bytes[device] = b'/';
        assert_eq!(
            Identity::decode(&bytes),
            Err(IdentityError::Device(IdError::DeviceCharacter))
        );
        bytes[device] = 0xff;
        assert_eq!(
            Identity::decode(&bytes),
            Err(IdentityError::Device(IdError::DeviceCharacter))
        );
        assert_eq!(
            Identity::decode(b"\x01\x01k\0\0\0\0\0\0\0"),
            Err(IdentityError::Device(IdError::DeviceLength(0)))
        );
        let mut long = b"\x01\x01k\0\0\x81".to_vec();
        long.extend_from_slice(&[b'd'; 129]);
        long.extend_from_slice(&[0; 4]);
        assert_eq!(
            Identity::decode(&long),
            Err(IdentityError::Device(IdError::DeviceLength(129)))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_what_is_taken_has_one_form(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), versioned: bool) {
            if versioned && !bytes.is_empty() {
                bytes[0] = IDENTITY_VERSION;
            }
            if let Ok((identity, length)) = Identity::decode(&bytes) {
                prop_assert_eq!(identity.check(), Ok(()));
                prop_assert_eq!(identity.encode(), &bytes[..length]);
            }
        }

        #[test]
        fn identities_round_trip(key_id in "[A-Za-z0-9._-]{1,32}", product in "[!-~]{0,64}", class in "[!-~]{0,64}", device in "[A-Za-z0-9._:-]{1,128}", key_version: u32) {
            let identity = Identity { key_id, product, class, device: device.parse().unwrap(), key_version };
            prop_assert_eq!(identity.check(), Ok(()));
            let bytes = identity.encode();
            prop_assert_eq!(bytes.len(), bytes.capacity());
            prop_assert_eq!(Identity::decode(&bytes), Ok((identity, bytes.len())));
        }
    }
}
