//! The answers to an upgrade: `101`, or a refusal with a problem document (RFC 9457).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use holdfast_proto::ChannelKind;

use super::upgrade::{Acceptance, SUBPROTOCOL};

const TOKEN_MISSING: &str = "token_missing";
const CREDENTIAL_MISSING: &str = "credential_missing";

/// Why there is no WebSocket, for the peer to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// The stable word that clients act on.
    pub code: Cow<'static, str>,
    /// One sentence for people.
    pub message: Cow<'static, str>,
    /// `Retry-After` (rounded up to seconds) and `retry_after_ms`.
    pub retry_after: Option<Duration>,
    pub retryable: bool,
}

impl Refusal {
    /// The request is not one that opens a WebSocket here.
    pub fn bad_upgrade(status: u16, message: &'static str) -> Self {
        Self::new(status, "bad_upgrade", message)
    }

    /// There is no credential.
    pub fn credential_missing(kind: ChannelKind) -> Self {
        match kind {
            ChannelKind::Wss => Self::new(401, TOKEN_MISSING, "a bearer token is required"),
            ChannelKind::Ws | ChannelKind::Udp => {
                Self::new(401, CREDENTIAL_MISSING, "a device's credential is required")
            }
        }
    }

    /// There is a credential that cannot be one.
    pub fn credential_invalid(kind: ChannelKind) -> Self {
        match kind {
            ChannelKind::Wss => Self::new(
                401,
                "token_invalid",
                "the bearer token has characters that none may have",
            ),
            ChannelKind::Ws | ChannelKind::Udp => {
                Self::new(400, "bad_credential", "the credential is not base64url")
            }
        }
    }

    /// The credential is longer than any is.
    pub fn credential_too_long(kind: ChannelKind) -> Self {
        match kind {
            ChannelKind::Wss => Self::bad_upgrade(431, "the bearer token is longer than 4096 bytes"),
            ChannelKind::Ws | ChannelKind::Udp => {
                Self::new(400, "bad_credential", "the credential is longer than 1024 bytes")
            }
        }
    }

    /// The credential is of a kind that another channel takes.
    pub fn wrong_channel(kind: ChannelKind) -> Self {
        match kind {
            ChannelKind::Wss => Self::new(400, "wrong_channel", "this credential is for ws only"),
            ChannelKind::Ws | ChannelKind::Udp => {
                Self::new(400, "wrong_channel", "a bearer token is for wss only")
            }
        }
    }

    /// Nobody is there to decide; come back.
    pub fn unavailable(retry_after: Duration) -> Self {
        let refusal = Self::new(503, "unavailable", "the service is not available");
        Self {
            retry_after: Some(retry_after),
            retryable: true,
            ..refusal
        }
    }

    /// There is no room; come back.
    pub fn overloaded(retry_after: Duration) -> Self {
        let refusal = Self::new(503, "overloaded", "too many connections");
        Self {
            retry_after: Some(retry_after),
            retryable: true,
            ..refusal
        }
    }

    fn new(status: u16, code: &'static str, message: &'static str) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            retry_after: None,
            retryable: false,
        }
    }

    /// The code as a word that outlives the refusal, for metrics: only the ones that this process makes itself.
    pub(crate) fn static_code(&self) -> &'static str {
        match self.code {
            Cow::Borrowed(code) => code,
            Cow::Owned(_) => "refused",
        }
    }
}

/// Appends the `101` (RFC 6455 section 4.2.2).
pub(crate) fn write_acceptance(out: &mut Vec<u8>, acceptance: &Acceptance) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    );
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(acceptance.key.as_bytes());
    if acceptance.subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(SUBPROTOCOL.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a refusal; the connection ends with it.
pub(crate) fn write_refusal(out: &mut Vec<u8>, refusal: &Refusal, kind: ChannelKind) {
    let body = problem(refusal);
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n",
        refusal.status,
        title(refusal.status),
        body.len(),
    );
    head.push_str(match refusal.status {
        401 if kind == ChannelKind::Ws => "WWW-Authenticate: Holdfast\r\n",
        // RFC 6750 section 3.1: no error code when there was no credential.
        401 if refusal.code == TOKEN_MISSING => "WWW-Authenticate: Bearer\r\n",
        401 => "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n",
        405 => "Allow: GET\r\n",
        426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        _ => "",
    });
    if let Some(after) = refusal.retry_after {
        head.push_str("Retry-After: ");
        push_number(&mut head, after.as_millis().div_ceil(1000));
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body.as_bytes());
}

fn problem(refusal: &Refusal) -> String {
    let mut body = String::with_capacity(192);
    body.push_str("{\"type\":\"about:blank\",\"title\":");
    push_json(&mut body, title(refusal.status));
    body.push_str(",\"status\":");
    push_number(&mut body, u128::from(refusal.status));
    body.push_str(",\"detail\":");
    push_json(&mut body, &refusal.message);
    body.push_str(",\"code\":");
    push_json(&mut body, &refusal.code);
    body.push_str(if refusal.retryable {
        ",\"retryable\":true"
    } else {
        ",\"retryable\":false"
    });
    if let Some(after) = refusal.retry_after {
        body.push_str(",\"retry_after_ms\":");
        push_number(&mut body, after.as_millis());
    }
    body.push('}');
    body
}

fn push_number(text: &mut String, number: u128) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{number}");
}

/// RFC 8259 section 7.
fn push_json(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            control if control < ' ' => {
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(refusal: &Refusal) -> String {
        let mut out = Vec::new();
        write_refusal(&mut out, refusal, ChannelKind::Wss);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_refusal_is_a_problem_document_of_the_stated_length() {
        let text = rendered(&Refusal::overloaded(Duration::from_millis(1200)));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("\r\nRetry-After: 2"), "{head}");
        assert!(
            head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())),
            "{head}"
        );
        assert_eq!(
            body,
            "{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections\",\
             \"code\":\"overloaded\",\"retryable\":true,\"retry_after_ms\":1200}"
        );
    }

    #[test]
    fn challenges_follow_the_rfcs() {
        assert!(
            rendered(&Refusal::credential_missing(ChannelKind::Wss))
                .contains("\r\nWWW-Authenticate: Bearer\r\n")
        );
        assert!(
            rendered(&Refusal::credential_invalid(ChannelKind::Wss))
                .contains("Bearer error=\"invalid_token\"\r\n")
        );
        assert!(rendered(&Refusal::bad_upgrade(426, "x")).contains("\r\nSec-WebSocket-Version: 13\r\n"));
        assert!(rendered(&Refusal::bad_upgrade(405, "x")).contains("\r\nAllow: GET\r\n"));
    }

    #[test]
    fn text_from_elsewhere_is_escaped() {
        let refusal = Refusal {
            message: "a\"b\\c\r\n".into(),
            ..Refusal::credential_missing(ChannelKind::Wss)
        };
        assert!(rendered(&refusal).contains(r#""detail":"a\"b\\c\u000d\u000a""#));
    }
}
