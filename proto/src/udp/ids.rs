//! A connection's id, and the token that proves a reset of it.

use std::fmt;

use subtle::ConstantTimeEq;

/// A reset token's length.
pub const RESET_TOKEN_BYTES: usize = 16;

/// What a DATA datagram says which connection it belongs to, the same in both directions: shard (8 bits), slot (24), random (32).
/// It is not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    /// `slot`'s upper 8 bits are not kept.
    pub fn new(shard: u8, slot: u32, random: u32) -> Self {
        Self(u64::from(shard) << 56 | u64::from(slot & 0xff_ffff) << 32 | u64::from(random))
    }

    /// Which of the server's shards holds the connection.
    pub fn shard(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Its place in that shard: 24 bits.
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({self})")
    }
}

/// What a stateless reset of one connection carries: only the server can make it. Compared in constant time, never shown.
#[derive(Clone, Copy)]
pub struct ResetToken(pub [u8; RESET_TOKEN_BYTES]);

impl PartialEq for ResetToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ResetToken {}

impl fmt::Debug for ResetToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_shard_and_slot() {
        let id = ConnectionId::new(0xab, 0x0112_3456, 0x89ab_cdef);
        assert_eq!(id.0, 0xab12_3456_89ab_cdef);
        assert_eq!((id.shard(), id.slot()), (0xab, 0x12_3456));
        assert_eq!(id.to_string(), "ab12345689abcdef");
    }

    #[test]
    fn tokens_are_compared_and_not_shown() {
        let token = ResetToken([7; RESET_TOKEN_BYTES]);
        let mut other = token;
        assert_eq!(token, other);
        other.0[15] ^= 1;
        assert_ne!(token, other);
        assert_eq!(format!("{token:?}"), "ResetToken(..)");
    }
}
