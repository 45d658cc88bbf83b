//! What a device says of a connection before there is one.

use super::datagram::Malformed;
use super::{MAX_DATAGRAM_BYTES, MIN_DATAGRAM_LIMIT};
use crate::secure::PARAMETER_BYTES;

/// Least receive credit in bytes: a few packets, so that a message of several needs no round trip for each.
pub const MIN_RECEIVE_BYTES: u32 = 4_096;
/// Most receive credit in bytes.
pub const MAX_RECEIVE_BYTES: u32 = 16 << 20;
/// Least receive credit in messages.
pub const MIN_RECEIVE_MESSAGES: u16 = 4;
/// Most receive credit in messages.
pub const MAX_RECEIVE_MESSAGES: u16 = 1_024;

/// What a device says of the connection that it asks for. The handshake is bound to these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Parameters {
    /// Random; the same in each repetition of one attempt, and in what answers it.
    pub attempt: u64,
    /// Longest UDP payload that the device takes, in bytes.
    pub max_datagram: u16,
    /// Bytes of messages that the device takes before it grants more.
    pub receive_bytes: u32,
    /// The same in messages.
    pub receive_messages: u16,
}

impl Parameters {
    pub fn encode(&self) -> [u8; PARAMETER_BYTES] {
        let mut bytes = [0; PARAMETER_BYTES];
        bytes[..8].copy_from_slice(&self.attempt.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.max_datagram.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.receive_bytes.to_be_bytes());
        bytes[14..].copy_from_slice(&self.receive_messages.to_be_bytes());
        bytes
    }

    /// Takes what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    /// When a value is out of its bounds.
    pub fn decode(bytes: &[u8; PARAMETER_BYTES]) -> Result<Self, Malformed> {
        let [
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            size_1,
            size_2,
            bytes @ ..,
            messages_1,
            messages_2,
        ] = *bytes;
        let parameters = Self {
            attempt: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            max_datagram: u16::from_be_bytes([size_1, size_2]),
            receive_bytes: u32::from_be_bytes(bytes),
            receive_messages: u16::from_be_bytes([messages_1, messages_2]),
        };
        parameters.check()?;
        Ok(parameters)
    }

    /// Whether each value is within its bounds.
    pub fn check(&self) -> Result<(), Malformed> {
        let good = (MIN_DATAGRAM_LIMIT..=MAX_DATAGRAM_BYTES).contains(&self.max_datagram)
            && (MIN_RECEIVE_BYTES..=MAX_RECEIVE_BYTES).contains(&self.receive_bytes)
            && (MIN_RECEIVE_MESSAGES..=MAX_RECEIVE_MESSAGES).contains(&self.receive_messages);
        if good { Ok(()) } else { Err(Malformed::Value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parameters() -> Parameters {
        Parameters {
            attempt: 0x0102_0304_0506_0708,
            max_datagram: 1200,
            receive_bytes: 65_536,
            receive_messages: 32,
        }
    }

    #[test]
    fn parameters_have_the_documented_form() {
        assert_eq!(
            parameters().encode(),
            *b"\x01\x02\x03\x04\x05\x06\x07\x08\x04\xb0\0\x01\0\0\0\x20"
        );
        assert_eq!(Parameters::decode(&parameters().encode()), Ok(parameters()));
    }

    /// Each bound, reached and exceeded.
    #[test]
    fn bounds_hold() {
        let judge = |change: &dyn Fn(&mut Parameters)| {
            let mut changed = parameters();
            change(&mut changed);
            assert_eq!(Parameters::decode(&changed.encode()).err(), changed.check().err());
            changed.check().is_ok()
        };
        for (value, good) in [(0, false), (511, false), (512, true), (1472, true), (1473, false)] {
            assert_eq!(judge(&|p| p.max_datagram = value), good, "{value}");
        }
        for (value, good) in [
            (4_095, false),
            (4_096, true),
            (16_777_216, true),
            (16_777_217, false),
        ] {
            assert_eq!(judge(&|p| p.receive_bytes = value), good, "{value}");
        }
        for (value, good) in [(3, false), (4, true), (1_024, true), (1_025, false)] {
            assert_eq!(judge(&|p| p.receive_messages = value), good, "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_has_one_form(bytes: [u8; PARAMETER_BYTES]) {
            if let Ok(parameters) = Parameters::decode(&bytes) {
                prop_assert_eq!(parameters.encode(), bytes);
            }
        }
    }
}
