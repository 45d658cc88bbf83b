//! The HTTP/1.1 request that opens a WebSocket (RFC 6455 section 4.2.1): a pure parser with the credentials' rules.
//!
//! The `Origin` header is deliberately not looked at: it protects sites whose browsers send ambient credentials, such as
//! cookies, and here a page can only present a token that it holds. Extensions are not negotiated. The path is free.
//!
//! A browser cannot set `Authorization`; it offers the sub-protocols `holdfast.v1, bearer.<token>` instead (on `ws`
//! `holdfast.v1, noise.<credential>`), and the answer selects `holdfast.v1`.
//!
//! Each kind of channel takes its own kind of credential: a bearer token must never travel in the clear.

use bytes::Bytes;
use holdfast_proto::ChannelKind;
use holdfast_proto::secure::MAX_CREDENTIAL_TEXT;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::answer::Refusal;

/// Longest request head in bytes, with its final empty line; beyond it `431`.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Longest credential in bytes.
pub const MAX_CREDENTIAL_BYTES: usize = 4 * 1024;
/// Most header fields; `httparse` wants the room in advance (on the stack, 32 bytes each).
pub const MAX_FIELDS: usize = 64;
/// The sub-protocol that we speak.
pub const SUBPROTOCOL: &str = "holdfast.v1";

const BEARER: Scheme = Scheme {
    word: "Bearer",
    entry: "bearer.",
};
const HOLDFAST: Scheme = Scheme {
    word: "Holdfast",
    entry: "noise.",
};

/// How a credential is named: the authentication scheme (RFC 9110 section 11.1), and the sub-protocol's beginning.
struct Scheme {
    word: &'static str,
    entry: &'static str,
}
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A request that asks properly and brings a credential.
#[derive(Clone, PartialEq, Eq)]
pub struct UpgradeRequest {
    /// The bearer token, or what the device says of itself and its key: `token68` syntax, at most [`MAX_CREDENTIAL_BYTES`], in memory exactly its size.
    pub credential: Bytes,
}

impl std::fmt::Debug for UpgradeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "UpgradeRequest {{ credential: {} bytes }}",
            self.credential.len()
        )
    }
}

/// What the `101` has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The value of `Sec-WebSocket-Accept`.
    pub key: String,
    /// Whether to select [`SUBPROTOCOL`].
    pub subprotocol: bool,
}

/// A parsed request: its length in bytes, for the application, and for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    pub head_bytes: usize,
    pub request: UpgradeRequest,
    pub acceptance: Acceptance,
}

/// Parses the request at the front of `input`. `scanned` is the caller's note of how far the end of the head has already
/// been looked for (0 at first), so that a head that arrives byte by byte costs no more than one that does not.
///
/// # Errors
/// The refusal to answer with.
pub fn parse(input: &[u8], kind: ChannelKind, scanned: &mut usize) -> Result<Option<Upgrade>, Refusal> {
    let from = scanned.saturating_sub(END_OF_HEAD.len() - 1);
    let window = &input[from.min(input.len())..input.len().min(MAX_HEAD_BYTES)];
    let Some(at) = window
        .windows(END_OF_HEAD.len())
        .position(|bytes| bytes == END_OF_HEAD)
    else {
        *scanned = input.len().min(MAX_HEAD_BYTES);
        if input.len() >= MAX_HEAD_BYTES {
            return Err(Refusal::bad_upgrade(
                431,
                "the request head is longer than 8192 bytes",
            ));
        }
        return Ok(None);
    };
    let head = &input[..from + at + END_OF_HEAD.len()];
    let fields = read_fields(head)?;
    let acceptance = fields.acceptance()?;
    let credential = fields.credential(kind)?;
    let request = UpgradeRequest {
        credential: Bytes::copy_from_slice(credential),
    };
    Ok(Some(Upgrade {
        head_bytes: head.len(),
        request,
        acceptance,
    }))
}

/// The fields that matter, each at most once except the lists.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    upgrade: bool,
    connection: bool,
    subprotocol: bool,
    bearer_entry: Option<&'a [u8]>,
    noise_entry: Option<&'a [u8]>,
}

fn read_fields(head: &[u8]) -> Result<Fields<'_>, Refusal> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut storage);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::bad_upgrade(431, "too many header fields"));
        }
        _ => return Err(Refusal::bad_upgrade(400, "not an HTTP/1.1 request")),
    }
    if request.version != Some(1) {
        return Err(Refusal::bad_upgrade(400, "HTTP/1.1 is required"));
    }
    if request.method != Some("GET") {
        return Err(Refusal::bad_upgrade(405, "only GET opens a WebSocket"));
    }
    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.take(header.name, header.value)?;
    }
    Ok(fields)
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &str, value: &'a [u8]) -> Result<(), Refusal> {
        let value = value.trim_ascii();
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("host") {
            once(&mut self.host, value)
        } else if is("sec-websocket-key") {
            once(&mut self.key, value)
        } else if is("sec-websocket-version") {
            once(&mut self.version, value)
        } else if is("authorization") {
            once(&mut self.authorization, value)
        } else if is("upgrade") {
            self.upgrade |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"websocket"));
            Ok(())
        } else if is("connection") {
            self.connection |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
            Ok(())
        } else if is("sec-websocket-protocol") {
            tokens(value).try_for_each(|token| self.take_subprotocol(token))
        } else if is("transfer-encoding") || (is("content-length") && value != b"0") {
            Err(Refusal::bad_upgrade(400, "an upgrade has no body"))
        } else {
            Ok(())
        }
    }

    fn take_subprotocol(&mut self, token: &'a [u8]) -> Result<(), Refusal> {
        if token == SUBPROTOCOL.as_bytes() {
            self.subprotocol = true;
        } else if let Some(bearer) = token.strip_prefix(BEARER.entry.as_bytes()) {
            return once(&mut self.bearer_entry, bearer);
        } else if let Some(noise) = token.strip_prefix(HOLDFAST.entry.as_bytes()) {
            return once(&mut self.noise_entry, noise);
        }
        Ok(())
    }

    /// Section 4.2.1, in the order in which a peer's mistakes are most telling.
    fn acceptance(&self) -> Result<Acceptance, Refusal> {
        if !self.upgrade || !self.connection {
            return Err(Refusal::bad_upgrade(
                400,
                "Upgrade: websocket and Connection: Upgrade are required",
            ));
        }
        if self.host.is_none() {
            return Err(Refusal::bad_upgrade(400, "Host is required"));
        }
        match self.version {
            Some(b"13") => {}
            Some(_) => return Err(Refusal::bad_upgrade(426, "Sec-WebSocket-Version must be 13")),
            None => return Err(Refusal::bad_upgrade(400, "Sec-WebSocket-Version is required")),
        }
        match self.key {
            Some(key) if is_key(key) => Ok(Acceptance {
                key: derive_accept_key(key),
                subprotocol: self.subprotocol,
            }),
            _ => Err(Refusal::bad_upgrade(
                400,
                "Sec-WebSocket-Key must be 16 bytes in base64",
            )),
        }
    }

    fn credential(&self, kind: ChannelKind) -> Result<&'a [u8], Refusal> {
        let bearer = (&BEARER, self.bearer_entry);
        let noise = (&HOLDFAST, self.noise_entry);
        let ((scheme, entry), (other, other_entry), longest) = match kind {
            ChannelKind::Wss => (bearer, noise, MAX_CREDENTIAL_BYTES),
            // Nobody upgrades to udp; with a key of its own a device comes to both.
            ChannelKind::Ws | ChannelKind::Udp => (noise, bearer, MAX_CREDENTIAL_TEXT),
        };
        let given = |scheme| self.authorization.and_then(|field| token_of(field, scheme));
        if other_entry.is_some() || given(other).is_some() {
            return Err(Refusal::wrong_channel(kind));
        }
        let credential = match (given(scheme), entry) {
            (Some(one), Some(other)) if one != other => {
                return Err(Refusal::bad_upgrade(400, "two different credentials"));
            }
            (Some(token), _) | (None, Some(token)) => token,
            (None, None) => b"",
        };
        if credential.is_empty() {
            return Err(Refusal::credential_missing(kind));
        }
        if credential.len() > longest {
            return Err(Refusal::credential_too_long(kind));
        }
        if !is_token68(credential) {
            return Err(Refusal::credential_invalid(kind));
        }
        Ok(credential)
    }
}

fn once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8]) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refusal::bad_upgrade(
            400,
            "a field that may appear once appears twice",
        )),
    }
}

/// The members of a comma-separated list (RFC 9110 section 5.6.1).
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// The token of `<scheme> <token>` (as RFC 6750 section 2.1); another scheme brings none.
fn token_of<'a>(authorization: &'a [u8], scheme: &Scheme) -> Option<&'a [u8]> {
    let at = authorization.iter().position(|&byte| byte == b' ')?;
    let (word, token) = authorization.split_at(at);
    word.eq_ignore_ascii_case(scheme.word.as_bytes())
        .then(|| token.trim_ascii())
}

/// RFC 9110 section 11.2.
fn is_token68(token: &[u8]) -> bool {
    let end = token
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last + 1);
    end > 0
        && token[..end]
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

/// 16 bytes in base64 are 22 characters, the last of which carries only two bits, and `==`.
fn is_key(key: &[u8]) -> bool {
    let Some(digits) = key.strip_suffix(b"==") else {
        return false;
    };
    digits.len() == 22
        && digits
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
        && digits.ends_with(b"A") | digits.ends_with(b"Q") | digits.ends_with(b"g") | digits.ends_with(b"w")
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod tests;
