//! The datagrams of `udp` and what is encrypted in them, written down a second time from the specification, so that a mistake in the
//! gateway's own codec cannot hide itself, and so that a test can say what no transport in its right mind says.

mod liar;
mod packet;

pub use liar::Liar;
pub use packet::{Acknowledgement, Close, Credit, Packet, Piece};

use holdfast_proto::secure::{DeviceKey, Identity, Initiator};

use crate::keys::now_ms;

const VERSION: u8 = 1;
const HELLO: u8 = 0x01;
const DATA: u8 = 0x40;
pub const MIN_HELLO_BYTES: usize = 256;
/// Longest UDP payload.
pub const MAX_DATAGRAM_BYTES: usize = 1472;
/// What DATA has before its ciphertext.
pub const DATA_HEADER_BYTES: usize = 13;

/// What a HELLO says but for its cookie.
#[derive(Debug, Clone)]
pub struct Hello {
    pub attempt: u64,
    pub max_datagram: u16,
    pub receive_bytes: u32,
    pub receive_messages: u16,
    pub credential: Vec<u8>,
}

impl Hello {
    /// One that a server refuses only for its credential, which is left empty.
    pub fn new() -> Self {
        Self {
            attempt: rand::random(),
            max_datagram: MAX_DATAGRAM_BYTES as u16,
            receive_bytes: 65_536,
            receive_messages: 64,
            credential: Vec::new(),
        }
    }

    /// One of `identity`, and what its CHALLENGE is opened with.
    pub fn of(identity: &Identity, key: &DeviceKey) -> (Self, Initiator) {
        Self::of_time(identity, key, now_ms())
    }

    /// The same, made at some time, in milliseconds since 1970.
    pub fn of_time(identity: &Identity, key: &DeviceKey, now_ms: u64) -> (Self, Initiator) {
        let mut hello = Self::new();
        let made = Initiator::for_datagrams(&hello.parameters(), identity, key, Some(now_ms));
        let (initiator, credential) = made.expect("a good identity");
        hello.credential = credential;
        (hello, initiator)
    }

    pub fn parameters(&self) -> [u8; 16] {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.attempt.to_be_bytes());
        bytes.extend_from_slice(&self.max_datagram.to_be_bytes());
        bytes.extend_from_slice(&self.receive_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.receive_messages.to_be_bytes());
        bytes.try_into().expect("16 bytes")
    }

    pub fn encode(&self, cookie: &[u8]) -> Vec<u8> {
        let mut datagram = vec![HELLO, VERSION];
        datagram.extend_from_slice(&self.parameters());
        datagram.push(cookie.len() as u8);
        datagram.extend_from_slice(cookie);
        datagram.extend_from_slice(&(self.credential.len() as u16).to_be_bytes());
        datagram.extend_from_slice(&self.credential);
        let length = datagram.len().max(MIN_HELLO_BYTES);
        datagram.resize(length, 0);
        datagram
    }
}

impl Default for Hello {
    fn default() -> Self {
        Self::new()
    }
}

/// What a server says, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Retry {
        attempt: u64,
        cookie: Vec<u8>,
    },
    Challenge {
        attempt: u64,
        cid: u64,
        message2: Vec<u8>,
    },
    Refused {
        attempt: u64,
        status: u16,
        retry_after_ms: u32,
        retryable: bool,
        code: String,
    },
    Reset {
        cid: u64,
        token: Vec<u8>,
    },
    Data {
        cid: u64,
        number_low: u32,
        sealed: Vec<u8>,
    },
}

impl Said {
    /// Panics when it is nothing that a server says.
    pub fn parse(datagram: &[u8]) -> Self {
        let parsed = Self::try_parse(datagram);
        parsed.unwrap_or_else(|| panic!("no server says {datagram:02x?}"))
    }

    fn try_parse(datagram: &[u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first()?;
        match kind {
            0x02 => {
                let (attempt, rest) = attempt(rest)?;
                let (length, cookie) = rest.split_first()?;
                (usize::from(*length) == cookie.len() && cookie.len() <= 32).then(|| Self::Retry {
                    attempt,
                    cookie: cookie.to_vec(),
                })
            }
            0x03 => {
                let (attempt, rest) = attempt(rest)?;
                let (cid, message2) = number(rest)?;
                (message2.len() == 48).then(|| Self::Challenge {
                    attempt,
                    cid,
                    message2: message2.to_vec(),
                })
            }
            0x04 => {
                let (attempt, rest) = attempt(rest)?;
                let (head, code) = rest.split_first_chunk::<8>()?;
                let [s1, s2, r1, r2, r3, r4, retryable @ 0..=1, length] = *head else {
                    return None;
                };
                (usize::from(length) == code.len()).then_some(())?;
                Some(Self::Refused {
                    attempt,
                    status: u16::from_be_bytes([s1, s2]),
                    retry_after_ms: u32::from_be_bytes([r1, r2, r3, r4]),
                    retryable: retryable == 1,
                    code: String::from_utf8(code.to_vec()).ok()?,
                })
            }
            0x05 => {
                let (cid, token) = number(rest)?;
                (token.len() == 16).then(|| Self::Reset {
                    cid,
                    token: token.to_vec(),
                })
            }
            &DATA => {
                let (cid, rest) = number(rest)?;
                let (low, sealed) = rest.split_first_chunk()?;
                Some(Self::Data {
                    cid,
                    number_low: u32::from_be_bytes(*low),
                    sealed: sealed.to_vec(),
                })
            }
            _ => None,
        }
    }
}

fn attempt(rest: &[u8]) -> Option<(u64, &[u8])> {
    let (version, rest) = rest.split_first()?;
    (*version == VERSION).then(|| number(rest))?
}

fn number(rest: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = rest.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), rest))
}

/// A RESET.
pub fn reset(cid: u64, token: &[u8; 16]) -> Vec<u8> {
    [&[0x05][..], &cid.to_be_bytes(), token].concat()
}

/// A REFUSED.
pub fn refused(attempt: u64, status: u16, code: &str) -> Vec<u8> {
    let mut datagram = vec![0x04, VERSION];
    datagram.extend_from_slice(&attempt.to_be_bytes());
    datagram.extend_from_slice(&status.to_be_bytes());
    datagram.extend_from_slice(&[0; 5]);
    datagram.push(code.len() as u8);
    datagram.extend_from_slice(code.as_bytes());
    datagram
}

/// A CHALLENGE.
pub fn challenge(attempt: u64, cid: u64, message2: &[u8]) -> Vec<u8> {
    let head = [0x03, VERSION];
    [&head[..], &attempt.to_be_bytes(), &cid.to_be_bytes(), message2].concat()
}

/// What DATA begins with.
pub fn data_header(cid: u64, number: u64) -> [u8; DATA_HEADER_BYTES] {
    let low = (number as u32).to_be_bytes();
    let header = [&[DATA][..], &cid.to_be_bytes(), &low].concat();
    header.try_into().expect("13 bytes")
}

#[cfg(test)]
mod tests {
    use holdfast_proto::udp::datagram as ours;
    use holdfast_proto::udp::{ConnectionId, Datagram, Parameters, parse};

    use super::*;

    #[test]
    fn both_codecs_say_the_same() {
        let mut hello = Hello::new();
        hello.credential = vec![7; 100];
        let parameters = Parameters::decode(&hello.parameters()).unwrap();
        let mut encoded = Vec::new();
        let (cookie, credential) = (&[9; 20][..], hello.credential.as_slice());
        let theirs = ours::Hello {
            parameters,
            cookie,
            credential,
        };
        ours::encode_hello(&theirs, &mut encoded);
        assert_eq!(encoded, hello.encode(cookie));
        assert_eq!(parse(&encoded), Ok(Datagram::Hello(theirs)));
        let mut encoded = Vec::new();
        ours::encode_retry(5, cookie, &mut encoded);
        let said = Said::Retry {
            attempt: 5,
            cookie: cookie.to_vec(),
        };
        assert_eq!(Said::parse(&encoded), said);
        let mut encoded = Vec::new();
        ours::encode_challenge(5, ConnectionId(6), &[1; 48], &mut encoded);
        assert_eq!(encoded, challenge(5, 6, &[1; 48]));
        assert!(matches!(Said::parse(&encoded), Said::Challenge { cid: 6, .. }));
        let mut encoded = Vec::new();
        ours::encode_reset(ConnectionId(6), &[1; 16], &mut encoded);
        assert_eq!(encoded, reset(6, &[1; 16]));
        assert_eq!(data_header(6, 1 << 32 | 3), ours::data_header(ConnectionId(6), 3));
    }

    #[test]
    fn both_codecs_refuse_alike() {
        let mut encoded = Vec::new();
        let theirs = ours::Refused {
            attempt: 5,
            status: 401,
            retry_after_ms: 0,
            retryable: false,
            code: "key_unknown",
        };
        ours::encode_refused(&theirs, &mut encoded);
        assert_eq!(encoded, refused(5, 401, "key_unknown"));
        let said = Said::Refused {
            attempt: 5,
            status: 401,
            retry_after_ms: 0,
            retryable: false,
            code: "key_unknown".to_owned(),
        };
        assert_eq!(Said::parse(&encoded), said);
    }
}
