//! The datagrams of the `udp` channel: what is in the clear of each (PROTOCOL.md section 14.2).
//!
//! Whoever gets one that [`parse`] refuses drops it and says nothing: an answer to what anybody can send is a way to make us send.
//! What is inside of DATA is encrypted, and not looked at here.

use super::{
    ConnectionId, DATA, HEADER_BYTES, MAX_DATAGRAM_BYTES, OVERHEAD_BYTES, Parameters, RESET_TOKEN_BYTES,
};
use crate::secure::{MAX_CREDENTIAL_BYTES, MESSAGE_2_BYTES, PARAMETER_BYTES};

/// The version of this channel's datagrams.
pub const VERSION: u8 = 1;
/// Shortest HELLO, in bytes: longer than any answer to it.
pub const MIN_HELLO_BYTES: usize = 256;
/// Longest cookie, in bytes.
pub const MAX_COOKIE_BYTES: usize = 32;
/// Longest code of a REFUSED, in bytes.
pub const MAX_CODE_BYTES: usize = 64;
/// What a RESET has in all.
pub const RESET_BYTES: usize = 1 + 8 + RESET_TOKEN_BYTES;
/// Shortest DATA datagram: one with an empty packet.
pub const MIN_DATA_BYTES: usize = OVERHEAD_BYTES;

const HELLO: u8 = 0x01;
const RETRY: u8 = 0x02;
const CHALLENGE: u8 = 0x03;
const REFUSED: u8 = 0x04;
const RESET: u8 = 0x05;

/// A datagram, taken apart and not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// A device asks to be let in.
    Hello(Hello<'a>),
    /// The server wants to see that the device gets what is sent to its address: the HELLO again, with this cookie.
    Retry { attempt: u64, cookie: &'a [u8] },
    /// The device is let in, if the two have the same key.
    Challenge {
        attempt: u64,
        cid: ConnectionId,
        message2: &'a [u8; MESSAGE_2_BYTES],
    },
    /// The device is not let in. Anybody can have made it.
    Refused(Refused<'a>),
    /// The server knows no such connection.
    Reset {
        cid: ConnectionId,
        token: &'a [u8; RESET_TOKEN_BYTES],
    },
    /// A packet of a connection: [`HEADER_BYTES`], then what is encrypted.
    Data { cid: ConnectionId, number_low: u32 },
}

/// What a device asks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    pub parameters: Parameters,
    /// Empty, or that of a RETRY.
    pub cookie: &'a [u8],
    /// Identity and message 1: 1 to [`MAX_CREDENTIAL_BYTES`], not taken apart.
    pub credential: &'a [u8],
}

/// Why a device is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused<'a> {
    pub attempt: u64,
    /// As HTTP's: 400 to 599.
    pub status: u16,
    /// Milliseconds; 0 when the server has no opinion.
    pub retry_after_ms: u32,
    pub retryable: bool,
    /// 1 to [`MAX_CODE_BYTES`] of `a-z 0-9 _`.
    pub code: &'a str,
}

/// Bytes that are no datagram of this channel: always the sender's fault, or an accident on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    #[error("a datagram of an unknown type")]
    Type,
    #[error("a version that is not spoken here")]
    Version,
    #[error("a datagram that is too short or too long for its type, or for what it says of itself")]
    Length,
    #[error("a field with a value that is not allowed")]
    Value,
}

/// Takes a UDP payload apart. Each type has one form: lengths are exact, and what fills a HELLO up is zeros.
pub fn parse(datagram: &[u8]) -> Result<Datagram<'_>, Malformed> {
    if datagram.len() > usize::from(MAX_DATAGRAM_BYTES) {
        return Err(Malformed::Length);
    }
    let mut fields = Fields(datagram);
    let parsed = match fields.byte()? {
        DATA if datagram.len() >= MIN_DATA_BYTES => {
            let cid = ConnectionId(u64::from_be_bytes(*fields.array()?));
            let number_low = u32::from_be_bytes(*fields.array()?);
            return Ok(Datagram::Data { cid, number_low });
        }
        DATA => return Err(Malformed::Length),
        HELLO => return hello(datagram, fields),
        RETRY => retry(&mut fields)?,
        CHALLENGE => challenge(&mut fields)?,
        REFUSED => refused(&mut fields)?,
        RESET => Datagram::Reset {
            cid: ConnectionId(u64::from_be_bytes(*fields.array()?)),
            token: fields.array()?,
        },
        _ => return Err(Malformed::Type),
    };
    fields.end()?;
    Ok(parsed)
}

fn hello<'a>(datagram: &[u8], mut fields: Fields<'a>) -> Result<Datagram<'a>, Malformed> {
    if datagram.len() < MIN_HELLO_BYTES {
        return Err(Malformed::Length);
    }
    fields.version()?;
    let parameters = Parameters::decode(fields.array::<PARAMETER_BYTES>()?)?;
    let cookie = fields.short(MAX_COOKIE_BYTES)?;
    let length = usize::from(u16::from_be_bytes(*fields.array()?));
    if !(1..=MAX_CREDENTIAL_BYTES).contains(&length) {
        return Err(Malformed::Length);
    }
    let credential = fields.take(length)?;
    if fields.0.iter().any(|byte| *byte != 0) {
        return Err(Malformed::Value);
    }
    Ok(Datagram::Hello(Hello {
        parameters,
        cookie,
        credential,
    }))
}

fn retry<'a>(fields: &mut Fields<'a>) -> Result<Datagram<'a>, Malformed> {
    fields.version()?;
    let attempt = u64::from_be_bytes(*fields.array()?);
    let cookie = fields.short(MAX_COOKIE_BYTES)?;
    if cookie.is_empty() {
        return Err(Malformed::Length);
    }
    Ok(Datagram::Retry { attempt, cookie })
}

fn challenge<'a>(fields: &mut Fields<'a>) -> Result<Datagram<'a>, Malformed> {
    fields.version()?;
    Ok(Datagram::Challenge {
        attempt: u64::from_be_bytes(*fields.array()?),
        cid: ConnectionId(u64::from_be_bytes(*fields.array()?)),
        message2: fields.array()?,
    })
}

fn refused<'a>(fields: &mut Fields<'a>) -> Result<Datagram<'a>, Malformed> {
    fields.version()?;
    let attempt = u64::from_be_bytes(*fields.array()?);
    let status = u16::from_be_bytes(*fields.array()?);
    let retry_after_ms = u32::from_be_bytes(*fields.array()?);
    let retryable = fields.byte()?;
    let code = std::str::from_utf8(fields.short(MAX_CODE_BYTES)?).map_err(|_| Malformed::Value)?;
    if retryable > 1 || !is_status(status) || !is_code(code) {
        return Err(Malformed::Value);
    }
    Ok(Datagram::Refused(Refused {
        attempt,
        status,
        retry_after_ms,
        retryable: retryable == 1,
        code,
    }))
}

fn is_status(status: u16) -> bool {
    (400..600).contains(&status)
}

fn is_code(code: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=MAX_CODE_BYTES).contains(&code.len()) && code.bytes().all(word)
}

/// What is left of a datagram.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Malformed::Length)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Malformed::Length)?;
        self.0 = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn short(&mut self, longest: usize) -> Result<&'a [u8], Malformed> {
        match usize::from(self.byte()?) {
            length if length <= longest => self.take(length),
            _ => Err(Malformed::Length),
        }
    }

    fn version(&mut self) -> Result<(), Malformed> {
        match self.byte()? {
            VERSION => Ok(()),
            _ => Err(Malformed::Version),
        }
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Length)
        }
    }
}

/// Appends a HELLO, filled up to [`MIN_HELLO_BYTES`].
///
/// # Panics
/// When the cookie or the credential is longer than any is.
pub fn encode_hello(hello: &Hello<'_>, out: &mut Vec<u8>) {
    assert!(
        hello.credential.len() <= MAX_CREDENTIAL_BYTES,
        "a credential is bounded"
    );
    let start = out.len();
    out.extend_from_slice(&[HELLO, VERSION]);
    out.extend_from_slice(&hello.parameters.encode());
    push_short(out, hello.cookie, MAX_COOKIE_BYTES);
    out.extend_from_slice(&(hello.credential.len() as u16).to_be_bytes());
    out.extend_from_slice(hello.credential);
    let length = (out.len() - start).max(MIN_HELLO_BYTES);
    out.resize(start + length, 0);
}

/// Appends a RETRY.
///
/// # Panics
/// When the cookie has more than [`MAX_COOKIE_BYTES`].
pub fn encode_retry(attempt: u64, cookie: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[RETRY, VERSION]);
    out.extend_from_slice(&attempt.to_be_bytes());
    push_short(out, cookie, MAX_COOKIE_BYTES);
}

/// Appends a CHALLENGE.
pub fn encode_challenge(
    attempt: u64,
    cid: ConnectionId,
    message2: &[u8; MESSAGE_2_BYTES],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&[CHALLENGE, VERSION]);
    out.extend_from_slice(&attempt.to_be_bytes());
    out.extend_from_slice(&cid.0.to_be_bytes());
    out.extend_from_slice(message2);
}

/// Appends a REFUSED. A status or a code that none may have becomes `503` or `refused`: both may come from another program.
pub fn encode_refused(refused: &Refused<'_>, out: &mut Vec<u8>) {
    let status = if is_status(refused.status) {
        refused.status
    } else {
        503
    };
    let code = if is_code(refused.code) {
        refused.code
    } else {
        "refused"
    };
    out.extend_from_slice(&[REFUSED, VERSION]);
    out.extend_from_slice(&refused.attempt.to_be_bytes());
    out.extend_from_slice(&status.to_be_bytes());
    out.extend_from_slice(&refused.retry_after_ms.to_be_bytes());
    out.push(refused.retryable.into());
    push_short(out, code.as_bytes(), MAX_CODE_BYTES);
}

/// Appends a RESET.
pub fn encode_reset(cid: ConnectionId, token: &[u8; RESET_TOKEN_BYTES], out: &mut Vec<u8>) {
    out.push(RESET);
    out.extend_from_slice(&cid.0.to_be_bytes());
    out.extend_from_slice(token);
}

/// What a DATA datagram begins with.
pub fn data_header(cid: ConnectionId, number_low: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = DATA;
    header[1..9].copy_from_slice(&cid.0.to_be_bytes());
    header[9..].copy_from_slice(&number_low.to_be_bytes());
    header
}

fn push_short(out: &mut Vec<u8>, bytes: &[u8], longest: usize) {
    assert!(bytes.len() <= longest, "what is sent is within its bound");
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
#[path = "datagram_tests.rs"]
mod tests;
