//! What can go wrong, split by who is at fault and by what is known of the outcome.

use std::time::Duration;

use holdfast_proto::codes::CloseCode;

/// An error of a request or of the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request got an error in place of its reply. `retryable` is the server's opinion.
    #[error("{code}: {message}")]
    Service {
        code: String,
        message: String,
        retryable: bool,
    },
    /// As many requests are in flight as this device allows; nothing was sent.
    #[error("too many requests in flight")]
    Busy,
    /// The message is longer than the server takes; nothing was sent.
    #[error("the message has {bytes} bytes, the server takes {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// The connection was lost after the request was sent: whether the service saw it is not known.
    #[error("disconnected before the reply came: the outcome is unknown")]
    Disconnected,
    /// No reply within the request's timeout: the outcome is not known.
    #[error("no reply in time: the outcome is unknown")]
    Timeout,
    /// The server broke the device protocol (a reply twice, crossed, out of order, or unreadable).
    #[error("protocol error: {0}")]
    Protocol(Violation),
    /// Somebody between here and the server changed something, or it is not our server (on `ws` and `udp`). The connection was dropped.
    #[error("the channel was disturbed: {0}")]
    Disturbed(Disturbance),
    /// The server answered the upgrade with something else than 101, on `udp` the HELLO with a refusal.
    #[error("{0}")]
    Refused(Refusal),
    /// No connection could be made, or it broke (DNS, TCP, TLS, WebSocket; on `udp` also: nothing was acknowledged, or the server has
    /// forgotten the connection).
    #[error("{0}")]
    Connect(String),
    /// Nothing was heard from the server for 2.5 heartbeats.
    #[error("the server has gone silent")]
    HeartbeatTimeout,
    /// The server closed the connection. `reason` is the word of its `@goodbye` or close frame.
    #[error("closed by the server: {code} {reason}")]
    ClosedByServer { code: u16, reason: String },
    /// The token provider failed.
    #[error("no token: {0}")]
    Token(String),
    /// A setting of the builder cannot be used.
    #[error("{0}")]
    Config(String),
    /// This device was closed by its owner.
    #[error("the device is closed")]
    Closed,
}

/// What on `ws` and `udp` must not be, and what anybody on the way can bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disturbance {
    /// Another first message than a challenge that only a holder of this device's key can make.
    #[error("the server did not prove that it knows this device's key")]
    Challenge,
    #[error("a record does not open: changed, repeated, lost or out of its place on the way")]
    Record,
    #[error("a message in the clear where only records may be")]
    ClearText,
}

impl Disturbance {
    /// The code that tells the server, for its counts.
    pub(crate) fn close_code(self) -> CloseCode {
        match self {
            Self::Challenge => CloseCode::ChallengeFailed,
            Self::Record => CloseCode::RecordRejected,
            Self::ClearText => CloseCode::ClearText,
        }
    }
}

/// How the server broke the device protocol: promise P2 or P3 was broken, or the peer is no Holdfast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{0}")]
    Unreadable(Box<str>),
    #[error("a reply to request {seq}, but only {sent} were sent")]
    Unsent { seq: u64, sent: u64 },
    #[error("a second reply to request {seq}")]
    Duplicate { seq: u64 },
    #[error("the reply to request {seq} names {named:?} instead of {id:?}")]
    Crossed { seq: u64, id: Box<str>, named: Box<str> },
    #[error("the reply to request {seq} came after that to {after}")]
    Reordered { seq: u64, after: u64 },
}

/// An answer that refused the connection: of HTTP the problem document's (RFC 9457) code and title, as far as it had them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server refused the connection: {status} {code}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub detail: String,
    /// `Retry-After` in seconds or `retry_after_ms`, whichever is longer; unauthenticated, so only a hint.
    pub retry_after: Option<Duration>,
    /// What the problem document says; `None` when the answer had none, so that it is not known to be Holdfast's.
    pub retryable: Option<bool>,
}

impl Error {
    /// A short stable label for counts: the server's code, or a word of ours.
    pub fn label(&self) -> &str {
        match self {
            Self::Service { code, .. } => code,
            Self::Busy => "busy",
            Self::TooLarge { .. } => "too_large",
            Self::Disconnected => "disconnected",
            Self::Timeout => "timeout",
            Self::Protocol(_) => "protocol_error",
            Self::Disturbed(disturbance) => disturbance.close_code().label(),
            Self::Refused(refusal) => &refusal.code,
            Self::Connect(_) => "connect_failed",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::ClosedByServer { .. } => "closed_by_server",
            Self::Token(_) => "no_token",
            Self::Config(_) => "bad_config",
            Self::Closed => "closed",
        }
    }

    /// Whether the server answered: the outcome is known.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Service { .. })
    }
}
