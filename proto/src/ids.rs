//! Identifiers, each a type of its own.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// Longest device id, in bytes.
pub const MAX_DEVICE_ID_BYTES: usize = 128;

/// What was wrong with the text or the numbers of an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("a device id has 1 to {MAX_DEVICE_ID_BYTES} bytes, not {0}")]
    DeviceLength(usize),
    #[error("a device id holds letters, digits and . _ : - only")]
    DeviceCharacter,
    #[error("not a session uuid")]
    Session,
    #[error("{what} does not fit {bits} bits")]
    Range { what: &'static str, bits: u32 },
}

/// A device's name: 1 to 128 bytes of `[A-Za-z0-9._:-]`. Cloning it shares the bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Bytes);

impl DeviceId {
    /// Checks and takes `bytes` as they are; nothing is copied, so `bytes` keeps its buffer alive.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, IdError> {
        if bytes.is_empty() || bytes.len() > MAX_DEVICE_ID_BYTES {
            return Err(IdError::DeviceLength(bytes.len()));
        }
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        if !bytes.iter().all(allowed) {
            return Err(IdError::DeviceCharacter);
        }
        Ok(Self(bytes))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a device id is ASCII: it was checked when made")
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The same id in a buffer of its own size, for keeping.
    pub fn to_owned_bytes(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl FromStr for DeviceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::from_bytes(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

/// An operator's number for one frontend, unique among those that share backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FrontendId(pub u16);

/// Which life of a frontend: 40 bits, growing with each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FrontendEpoch(pub u64);

/// One of a frontend's single-threaded shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShardId(pub u8);

/// A session's place in its shard: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Slot(pub u32);

/// How often a slot was used before: tells a session from its slot's earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u32);

/// A request's number on its connection, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fields of a [`SessionId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionParts {
    pub frontend: FrontendId,
    pub epoch: FrontendEpoch,
    pub shard: ShardId,
    pub slot: Slot,
    pub generation: Generation,
}

/// A session's uuid, version 8 (RFC 9562 section 5.8), minted by its frontend: frontend (16 bits), epoch (40), shard (8),
/// slot (24), generation (32), filled in that order around the version and variant bits; the last two bits are 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u128);

const EPOCH_BITS: u32 = 40;
const SLOT_BITS: u32 = 24;
const VERSION_8: u128 = 8 << 76;
const VARIANT_RFC: u128 = 0b10 << 62;
const HIGH_48: u32 = 48;
const MID_12: u32 = 12;
const LOW_62: u32 = 62;

impl SessionId {
    /// Fails when the epoch does not fit 40 bits or the slot 24.
    pub fn mint(parts: SessionParts) -> Result<Self, IdError> {
        if parts.epoch.0 >> EPOCH_BITS != 0 {
            return Err(IdError::Range {
                what: "a frontend epoch",
                bits: EPOCH_BITS,
            });
        }
        if parts.slot.0 >> SLOT_BITS != 0 {
            return Err(IdError::Range {
                what: "a slot",
                bits: SLOT_BITS,
            });
        }
        let mut packed = u128::from(parts.frontend.0);
        packed = packed << EPOCH_BITS | u128::from(parts.epoch.0);
        packed = packed << 8 | u128::from(parts.shard.0);
        packed = packed << SLOT_BITS | u128::from(parts.slot.0);
        packed = packed << 32 | u128::from(parts.generation.0);
        packed <<= 2;
        let high = packed >> (MID_12 + LOW_62);
        let mid = packed >> LOW_62 & mask(MID_12);
        let low = packed & mask(LOW_62);
        Ok(Self(high << 80 | VERSION_8 | mid << 64 | VARIANT_RFC | low))
    }

    /// Takes 128 bits from the link; fails unless they are a version 8 uuid of our form.
    pub fn from_u128(bits: u128) -> Result<Self, IdError> {
        let versioned = bits & (0xf << 76) == VERSION_8 && bits & (0b11 << 62) == VARIANT_RFC;
        if versioned && bits & 0b11 == 0 {
            Ok(Self(bits))
        } else {
            Err(IdError::Session)
        }
    }

    pub fn from_halves(high: u64, low: u64) -> Result<Self, IdError> {
        Self::from_u128(u128::from(high) << 64 | u128::from(low))
    }

    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// The upper and lower 64 bits, as they travel on the link.
    pub fn halves(self) -> (u64, u64) {
        ((self.0 >> 64) as u64, self.0 as u64)
    }

    pub fn parts(self) -> SessionParts {
        let high = self.0 >> 80 & mask(HIGH_48);
        let mid = self.0 >> 64 & mask(MID_12);
        let packed = (high << (MID_12 + LOW_62) | mid << LOW_62 | self.0 & mask(LOW_62)) >> 2;
        SessionParts {
            frontend: FrontendId((packed >> 104) as u16),
            epoch: FrontendEpoch((packed >> 64) as u64 & mask(EPOCH_BITS) as u64),
            shard: ShardId((packed >> 56) as u8),
            slot: Slot((packed >> 32) as u32 & mask(SLOT_BITS) as u32),
            generation: Generation(packed as u32),
        }
    }
}

const fn mask(bits: u32) -> u128 {
    (1 << bits) - 1
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            (b >> 96) as u32,
            (b >> 80) as u16,
            (b >> 64) as u16,
            (b >> 48) as u16,
            b as u64 & mask(HIGH_48) as u64
        )
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl FromStr for SessionId {
    type Err = IdError;

    /// Takes the hyphenated form, in either case.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
        if lengths != [8, 4, 4, 4, 12] || !text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
            return Err(IdError::Session);
        }
        u128::from_str_radix(&groups.concat(), 16)
            .map_err(|_| IdError::Session)
            .and_then(Self::from_u128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn session_id_round_trips(frontend: u16, epoch in 0u64..1 << 40, shard: u8, slot in 0u32..1 << 24, generation: u32) {
            let parts = SessionParts {
                frontend: FrontendId(frontend),
                epoch: FrontendEpoch(epoch),
                shard: ShardId(shard),
                slot: Slot(slot),
                generation: Generation(generation),
            };
            let id = SessionId::mint(parts).unwrap();
            prop_assert_eq!(id.parts(), parts);
            prop_assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
            let (high, low) = id.halves();
            prop_assert_eq!(SessionId::from_halves(high, low).unwrap(), id);
            prop_assert_eq!(&id.to_string()[14..15], "8");
        }

        #[test]
        fn session_id_parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<SessionId>();
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let parts = SessionParts {
            frontend: FrontendId(1),
            epoch: FrontendEpoch(1 << 40),
            shard: ShardId(0),
            slot: Slot(0),
            generation: Generation(0),
        };
        assert!(SessionId::mint(parts).is_err());
        assert!(
            SessionId::mint(SessionParts {
                epoch: FrontendEpoch(1),
                slot: Slot(1 << 24),
                ..parts
            })
            .is_err()
        );
        assert!(SessionId::from_u128(0).is_err());
    }

    #[test]
    fn device_ids_are_checked() {
        assert!("speaker-1.kitchen:a_b".parse::<DeviceId>().is_ok());
        assert_eq!("".parse::<DeviceId>(), Err(IdError::DeviceLength(0)));
        assert_eq!("a b".parse::<DeviceId>(), Err(IdError::DeviceCharacter));
        assert_eq!("é".parse::<DeviceId>(), Err(IdError::DeviceCharacter));
        assert!("x".repeat(128).parse::<DeviceId>().is_ok());
        assert_eq!(
            "x".repeat(129).parse::<DeviceId>(),
            Err(IdError::DeviceLength(129))
        );
    }
}
