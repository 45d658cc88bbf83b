//! Close codes and error codes that devices see, with their meanings.

use std::time::Duration;

/// How long after a device gave up a connection its login on it may still take effect: who holds back its `@hello` decides when.
/// A device that is replaced within this time after a loss comes back; a frontend's times for admission add up to no more.
pub const LATEST_LOGIN: Duration = Duration::from_secs(300);

/// A WebSocket close code (RFC 6455 section 7.4): the standard ones that we use, and ours from the private range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// The device or the operator is done.
    Normal = 1000,
    /// The frontend stops; come back after the hint.
    GoingAway = 1001,
    /// The device broke RFC 6455 or the device protocol.
    Protocol = 1002,
    /// A kind of message that is not taken here.
    Unsupported = 1003,
    /// A text message that is not UTF-8.
    InvalidPayload = 1007,
    /// A message over the limit that `@welcome` named.
    TooBig = 1009,
    /// No room or no backend; come back after the hint.
    TryAgainLater = 1013,
    /// A newer session of the same device took over; do not come back by yourself.
    Replaced = 4000,
    /// An operator closed the session.
    ClosedByOperator = 4001,
    /// The device did not read what it was sent.
    SlowConsumer = 4002,
    /// Nothing was heard from the device in time.
    HeartbeatTimeout = 4003,
    /// The login was refused.
    LoginFailed = 4004,
    /// More control messages at once than allowed.
    ControlFlood = 4005,
    /// Two backends were lost with this session's login.
    BackendFailed = 4006,
    /// A record that does not decrypt: changed, doubled, lost or out of its place on the way.
    RecordRejected = 4007,
    /// A WebSocket text message in the clear where only records are taken.
    ClearText = 4008,
    /// The device did not prove in time, by its first message, that it holds its key.
    ChallengeFailed = 4009,
}

impl CloseCode {
    /// The word used in `@goodbye`, in metrics and in `LOGOUT`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol_error",
            Self::Unsupported => "unsupported_data",
            Self::InvalidPayload => "invalid_payload",
            Self::TooBig => "message_too_big",
            Self::TryAgainLater => "try_again_later",
            Self::Replaced => "replaced",
            Self::ClosedByOperator => "closed_by_operator",
            Self::SlowConsumer => "slow_consumer",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::LoginFailed => "login_failed",
            Self::ControlFlood => "control_flood",
            Self::BackendFailed => "backend_failed",
            Self::RecordRejected => "record_rejected",
            Self::ClearText => "clear_text",
            Self::ChallengeFailed => "challenge_failed",
        }
    }

    /// Whether a client may come back by itself.
    pub fn may_reconnect(self) -> bool {
        !matches!(
            self,
            Self::Normal | Self::Replaced | Self::ClosedByOperator | Self::LoginFailed
        )
    }

    pub fn from_u16(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|c| *c as u16 == code)
    }

    pub const ALL: [Self; 17] = [
        Self::Normal,
        Self::GoingAway,
        Self::Protocol,
        Self::Unsupported,
        Self::InvalidPayload,
        Self::TooBig,
        Self::TryAgainLater,
        Self::Replaced,
        Self::ClosedByOperator,
        Self::SlowConsumer,
        Self::HeartbeatTimeout,
        Self::LoginFailed,
        Self::ControlFlood,
        Self::BackendFailed,
        Self::RecordRejected,
        Self::ClearText,
        Self::ChallengeFailed,
    ];
}

/// Why a request got an error in the place of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The event's header could not be read.
    BadRequest,
    /// No route takes this namespace and name.
    NoRoute,
    /// The route's queue is full.
    Overloaded,
    /// The service did not answer within the route's timeout.
    UpstreamTimeout,
    /// The service could not be reached, broke off, or its circuit is open.
    UpstreamUnavailable,
    /// The service answered something else than 2xx.
    UpstreamError,
    /// The service's reply is over the route's limit.
    ReplyTooLarge,
    /// The service's reply to a text request is not JSON.
    BadReply,
    /// The request's deadline had passed before a backend could take it up.
    DeadlineExceeded,
    /// Two backends were lost with this request; it was not tried again.
    BackendFailed,
}

impl ErrorCode {
    pub fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NoRoute => "no_route",
            Self::Overloaded => "overloaded",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::UpstreamError => "upstream_error",
            Self::ReplyTooLarge => "reply_too_large",
            Self::BadReply => "bad_reply",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::BackendFailed => "backend_failed",
        }
    }

    /// Whether the same request may succeed when sent again.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::Overloaded | Self::UpstreamTimeout | Self::UpstreamUnavailable | Self::DeadlineExceeded
        )
    }

    /// One sentence for people.
    pub fn message(self) -> &'static str {
        match self {
            Self::BadRequest => "the event's header could not be read",
            Self::NoRoute => "no service takes this namespace and name",
            Self::Overloaded => "the service has too many requests waiting",
            Self::UpstreamTimeout => "the service did not answer in time",
            Self::UpstreamUnavailable => "the service could not be reached",
            Self::UpstreamError => "the service answered with an error",
            Self::ReplyTooLarge => "the service's reply is too large",
            Self::BadReply => "the service's reply is not JSON",
            Self::DeadlineExceeded => "the request waited too long",
            Self::BackendFailed => "the request failed twice and was not tried again",
        }
    }

    pub const ALL: [Self; 10] = [
        Self::BadRequest,
        Self::NoRoute,
        Self::Overloaded,
        Self::UpstreamTimeout,
        Self::UpstreamUnavailable,
        Self::UpstreamError,
        Self::ReplyTooLarge,
        Self::BadReply,
        Self::DeadlineExceeded,
        Self::BackendFailed,
    ];
}

/// Why a session ended that nobody of us closed, as LOGOUT says it beside the labels of [`CloseCode`]: the device sent a
/// close message, or the transport broke without one.
pub const CLOSED_BY_DEVICE: &str = "closed_by_device";
pub const CONNECTION_LOST: &str = "connection_lost";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_distinct_and_codes_round_trip() {
        let labels: HashSet<_> = CloseCode::ALL.iter().map(|c| c.label()).collect();
        assert_eq!(labels.len(), CloseCode::ALL.len());
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_u16(code as u16), Some(code));
        }
        assert_eq!(CloseCode::from_u16(999), None);
        assert_eq!(CloseCode::from_u16(4010), None);
        let labels: HashSet<_> = ErrorCode::ALL.iter().map(|c| c.label()).collect();
        assert_eq!(labels.len(), ErrorCode::ALL.len());
    }

    /// The numbers and words are what devices were built to: they never change.
    #[test]
    fn a_device_whose_channel_was_disturbed_may_come_back() {
        for (code, number, label) in [
            (CloseCode::RecordRejected, 4007, "record_rejected"),
            (CloseCode::ClearText, 4008, "clear_text"),
            (CloseCode::ChallengeFailed, 4009, "challenge_failed"),
        ] {
            assert_eq!((code as u16, code.label()), (number, label));
            assert!(code.may_reconnect());
        }
    }

    /// The rows of a table in PROTOCOL.md that begin so.
    fn rows(first: &str) -> Vec<Vec<&'static str>> {
        include_str!("../PROTOCOL.md")
            .lines()
            .filter(|line| line.starts_with(&format!("| {first} |")))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    #[test]
    fn the_protocol_s_page_has_every_code_with_what_it_means_for_a_device() {
        for code in CloseCode::ALL {
            let rows = rows(&(code as u16).to_string());
            let [row] = &rows[..] else {
                panic!("{code:?}: {rows:?}")
            };
            assert_eq!(row[1], format!("`{}`", code.label()));
            assert_eq!(row[3].starts_with("yes"), code.may_reconnect(), "{code:?}");
        }
        for code in ErrorCode::ALL {
            let rows = rows(&format!("`{}`", code.label()));
            let [row] = &rows[..] else {
                panic!("{code:?}: {rows:?}")
            };
            assert_eq!(row[2] == "yes", code.retryable(), "{code:?}");
        }
    }
}
