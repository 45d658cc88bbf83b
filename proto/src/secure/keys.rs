//! Secret keys. Each kind is a type of its own, is wiped when dropped, and never shows itself.
//!
//! A key's bytes stay in one place of the heap for as long as it lives. What moves, through queues, futures and tables that grow, is
//! the pointer, so that nothing is left behind where the key was.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Identity;
use super::hkdf::hkdf;
use super::identity::push_short;

/// Every key has 256 bits.
pub const KEY_BYTES: usize = 32;
/// A key as people write it: base64url without padding.
pub const KEY_TEXT_CHARS: usize = 43;

/// What device keys are derived from: whoever has it can be every device, and the server to every device.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey(Box<[u8; KEY_BYTES]>);

/// What a device and the backend share: whoever has it can be that device, and the server to it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DeviceKey(Box<[u8; KEY_BYTES]>);

/// What one direction of one session is encrypted with.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TrafficKey(Box<[u8; KEY_BYTES]>);

/// Text that is no key. It is not repeated: it may be one with a slip in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is {KEY_TEXT_CHARS} characters of base64url without padding")]
pub struct KeyError;

const DEVICE_KEY_LABEL: &[u8] = b"holdfast device key 1";

impl MasterKey {
    /// The key of one device: HKDF-SHA256 (RFC 5869) with an empty salt.
    pub fn device_key(&self, identity: &Identity) -> DeviceKey {
        let mut info = Vec::with_capacity(320);
        push_short(&mut info, DEVICE_KEY_LABEL);
        push_short(&mut info, identity.product.as_bytes());
        push_short(&mut info, identity.class.as_bytes());
        push_short(&mut info, identity.device.as_bytes());
        info.extend_from_slice(&identity.key_version.to_be_bytes());
        let mut key = DeviceKey::blank();
        hkdf(&[], self.as_bytes(), &info, [&mut key.0]);
        key
    }
}

impl TrafficKey {
    /// For a frame. The bytes are wiped when the last handle on them is dropped.
    pub fn into_bytes(self) -> Bytes {
        struct Owner(TrafficKey);

        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        Bytes::from_owner(Owner(self))
    }

    /// To be filled in place.
    pub(super) fn as_mut_bytes(&mut self) -> &mut [u8; KEY_BYTES] {
        &mut self.0
    }
}

macro_rules! secret {
    ($name:ident) => {
        impl $name {
            /// `None` unless there are 32 bytes. They are copied; wiping them is the caller's.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let bytes: &[u8; KEY_BYTES] = bytes.try_into().ok()?;
                let mut key = Self::blank();
                key.0.copy_from_slice(bytes);
                Some(key)
            }

            /// To be filled in place.
            pub(crate) fn blank() -> Self {
                Self(Box::new([0; KEY_BYTES]))
            }

            pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
                &self.0
            }
        }

        /// In constant time.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.as_slice().ct_eq(other.0.as_slice()).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

macro_rules! written {
    ($name:ident) => {
        impl $name {
            /// As it stands in files and on screens. The text is the caller's to keep safe.
            pub fn to_text(&self) -> String {
                URL_SAFE_NO_PAD.encode(self.as_bytes())
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                let mut key = Self::blank();
                match URL_SAFE_NO_PAD.decode_slice(text, &mut *key.0) {
                    Ok(KEY_BYTES) => Ok(key),
                    _ => Err(KeyError),
                }
            }
        }
    };
}

secret!(MasterKey);
secret!(DeviceKey);
secret!(TrafficKey);
written!(MasterKey);
written!(DeviceKey);

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
    fn a_device_key_depends_on_every_field_but_the_key_id() {
        let master = MasterKey(Box::new([1; KEY_BYTES]));
        let key = master.device_key(&identity());
        let other_id = Identity {
            key_id: "k2".into(),
            ..identity()
        };
        assert_eq!(key, master.device_key(&other_id));
        // The same letters, cut elsewhere.
        let shifted = Identity {
            product: "speake".into(),
            class: "rhome".into(),
            ..identity()
        };
        let others = [
            shifted,
            Identity {
                product: "speakes".into(),
                ..identity()
            },
            Identity {
                class: String::new(),
                ..identity()
            },
            Identity {
                device: "d-2".parse().unwrap(),
                ..identity()
            },
            Identity {
                key_version: 8,
                ..identity()
            },
        ];
        for other in &others {
            assert_ne!(key, master.device_key(other), "{other:?}");
        }
        assert_ne!(key, MasterKey(Box::new([2; KEY_BYTES])).device_key(&identity()));
    }

    #[test]
    fn keys_are_written_read_and_never_shown() {
        let key = DeviceKey(Box::new([0xfb; KEY_BYTES]));
        let text = key.to_text();
        assert_eq!(
            (text.len(), text.parse::<DeviceKey>()),
            (KEY_TEXT_CHARS, Ok(key.clone()))
        );
        assert_eq!(format!("{key:?}"), "DeviceKey(..)");
        assert_eq!(
            format!("{:?}", MasterKey(Box::new([1; KEY_BYTES]))),
            "MasterKey(..)"
        );
        assert_eq!(
            format!("{:?}", TrafficKey(Box::new([1; KEY_BYTES]))),
            "TrafficKey(..)"
        );
        for bad in [
            String::new(),
            text[1..].to_owned(),
            format!("{text}A"),
            format!("{text}="),
            format!("{}=", &text[1..]),
            text.replace('-', "+"),
            // The last character carries two spare bits.
            format!("{}9", &text[..KEY_TEXT_CHARS - 1]),
        ] {
            assert_eq!(bad.parse::<DeviceKey>(), Err(KeyError), "{bad}");
        }
        assert!(!KeyError.to_string().contains(&text));
        assert_eq!(TrafficKey::from_bytes(&[0; 31]), None);
        assert_eq!(TrafficKey::from_bytes(&[0; 33]), None);
    }

    #[test]
    fn keys_are_wiped() {
        let mut key = MasterKey(Box::new([7; KEY_BYTES]));
        key.zeroize();
        assert_eq!(key.as_bytes(), &[0; KEY_BYTES]);
        const { assert!(std::mem::needs_drop::<TrafficKey>() && std::mem::needs_drop::<DeviceKey>()) };
    }

    proptest! {
        #[test]
        fn texts_round_trip(bytes: [u8; KEY_BYTES], text in ".{0,50}") {
            let key = MasterKey(Box::new(bytes));
            prop_assert_eq!(key.to_text().parse::<MasterKey>(), Ok(key));
            let _ = text.parse::<MasterKey>();
        }
    }
}
