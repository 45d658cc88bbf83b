//! The frame header of RFC 6455 section 5.2, read strictly.

use crate::channel::error::PeerFault;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpCode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl OpCode {
    fn from_bits(bits: u8) -> Result<Self, PeerFault> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return Err(PeerFault::UnknownOpcode),
        })
    }

    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The header of a client's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) fin: bool,
    pub(crate) opcode: OpCode,
    pub(crate) mask: [u8; 4],
    /// Bytes of payload.
    pub(crate) length: u64,
    /// Bytes of the header itself, 6 to 14.
    pub(crate) size: usize,
}

/// Longest payload of a control frame (5.5).
pub(crate) const MAX_CONTROL: usize = 125;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
const MASK_BYTES: usize = 4;

impl Header {
    /// Reads the header at the front of `bytes`. `None`: it is not complete. A fault is reported as soon as it shows.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, PeerFault> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(PeerFault::ReservedBits);
        }
        let (fin, opcode) = (first & FIN != 0, OpCode::from_bits(first & 0x0F)?);
        if second & MASKED == 0 {
            return Err(PeerFault::Unmasked);
        }
        let short = second & !MASKED;
        if opcode.is_control() {
            if !fin {
                return Err(PeerFault::ControlFragmented);
            }
            if usize::from(short) > MAX_CONTROL {
                return Err(PeerFault::ControlTooLong);
            }
        }
        let Some((length, rest)) = parse_length(short, rest)? else {
            return Ok(None);
        };
        let Some(&mask) = rest.first_chunk::<MASK_BYTES>() else {
            return Ok(None);
        };
        let size = bytes.len() - rest.len() + MASK_BYTES;
        Ok(Some(Self {
            fin,
            opcode,
            mask,
            length,
            size,
        }))
    }
}

/// The payload length and what follows it; the shortest of the three forms is the only legal one.
fn parse_length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, PeerFault> {
    let (length, least, rest) = match short {
        LENGTH_16 => {
            let Some((bytes, rest)) = rest.split_first_chunk::<2>() else {
                return Ok(None);
            };
            (u64::from(u16::from_be_bytes(*bytes)), 126, rest)
        }
        LENGTH_64 => {
            let Some((bytes, rest)) = rest.split_first_chunk::<8>() else {
                return Ok(None);
            };
            (u64::from_be_bytes(*bytes), 1 << 16, rest)
        }
        _ => (u64::from(short), 0, rest),
    };
    if length < least || length > i64::MAX as u64 {
        return Err(PeerFault::LengthEncoding);
    }
    Ok(Some((length, rest)))
}

/// XORs `payload` with `mask` (5.3), eight bytes at a time.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends a server's frame: final, not masked.
pub(crate) fn write_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    write_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of a server's frame, whose payload of `length` bytes is to follow.
pub(crate) fn write_header(out: &mut Vec<u8>, opcode: OpCode, length: usize) {
    out.push(FIN | opcode.bits());
    match length {
        len @ 0..=125 => out.push(len as u8),
        len @ 126..=0xFFFF => {
            out.push(LENGTH_16);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(LENGTH_64);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Appends a close frame (5.5.1); a reason over 123 bytes is cut at a character.
pub(crate) fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else {
        return write_frame(out, OpCode::Close, &[]);
    };
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL - 2)];
    out.extend_from_slice(&[FIN | OpCode::Close.bits(), (2 + reason.len()) as u8]);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(bytes: &[u8]) -> PeerFault {
        Header::parse(bytes).unwrap_err()
    }

    #[test]
    fn each_rule_is_enforced() {
        assert_eq!(fault(&[0xC1, 0x80]), PeerFault::ReservedBits);
        assert_eq!(fault(&[0x91, 0x80]), PeerFault::ReservedBits);
        assert_eq!(fault(&[0x83, 0x80]), PeerFault::UnknownOpcode);
        assert_eq!(fault(&[0x8B, 0x80]), PeerFault::UnknownOpcode);
        assert_eq!(fault(&[0x81, 0x00]), PeerFault::Unmasked);
        assert_eq!(fault(&[0x09, 0x80]), PeerFault::ControlFragmented);
        assert_eq!(fault(&[0x89, 0xFE]), PeerFault::ControlTooLong);
        assert_eq!(fault(&[0x82, 0xFE, 0, 125]), PeerFault::LengthEncoding);
        assert_eq!(
            fault(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]),
            PeerFault::LengthEncoding
        );
        assert_eq!(
            fault(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            PeerFault::LengthEncoding
        );
    }

    #[test]
    fn lengths_at_their_edges_are_read() {
        let parse = |bytes: &[u8]| Header::parse(bytes).unwrap().map(|h| (h.length, h.size));
        assert_eq!(parse(&[0x82, 0x80 | 125, 1, 2, 3, 4]), Some((125, 6)));
        assert_eq!(parse(&[0x82, 0xFE, 0, 126, 1, 2, 3, 4]), Some((126, 8)));
        assert_eq!(
            parse(&[0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4]),
            Some((65536, 14))
        );
        assert_eq!(parse(&[0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3]), None);
    }

    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        write_close(&mut out, Some(1001), &"é".repeat(80));
        assert_eq!(out.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }

    proptest! {
        #[test]
        fn unmasking_is_bytewise_xor(mut payload in prop::collection::vec(any::<u8>(), 0..100), mask: [u8; 4]) {
            let expected: Vec<u8> = payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            unmask(&mut payload, mask);
            prop_assert_eq!(payload, expected);
        }
    }
}
