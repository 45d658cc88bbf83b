//! What goes wrong on a channel, split by who is at fault.

use holdfast_proto::CloseCode;

use super::budget::OverBudget;

/// Why a channel cannot go on. The driver answers with `close(error.close_code(), …)` and lets go of the connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer broke RFC 6455 or a limit.
    #[error("{0}")]
    Peer(#[from] PeerFault),
    /// The HTTP upgrade was not acceptable; the channel has already queued the HTTP answer.
    #[error("upgrade refused with status {status}: {code}")]
    Upgrade { status: u16, code: &'static str },
    /// No room in the shard's budget.
    #[error(transparent)]
    Capacity(#[from] OverBudget),
    /// The peer does not acknowledge what it is sent, and no more can be kept for it.
    #[error("the peer has too much to acknowledge")]
    SlowConsumer,
    /// The peer closes, and takes nothing more. What it said before may not all be taken yet.
    #[error("the peer takes nothing more")]
    PeerCloses,
    /// TLS failed; the alert, if there is one, is already queued.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    /// The call does not fit the channel's state: ours to fix.
    #[error("not legal in the channel's state: {0}")]
    State(&'static str),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
}

/// A rule that the peer broke (sections are those of RFC 6455).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    #[error("reserved bits are set (5.2)")]
    ReservedBits,
    #[error("unknown opcode (5.2)")]
    UnknownOpcode,
    #[error("frame is not masked (5.1)")]
    Unmasked,
    #[error("control frame is longer than 125 bytes (5.5)")]
    ControlTooLong,
    #[error("control frame is fragmented (5.5)")]
    ControlFragmented,
    #[error("length is not in its shortest form (5.2)")]
    LengthEncoding,
    #[error("continuation without a message (5.4)")]
    UnexpectedContinuation,
    #[error("new message within a fragmented one (5.4)")]
    ExpectedContinuation,
    #[error("text is not UTF-8 (8.1)")]
    InvalidUtf8,
    #[error("close frame is malformed (5.5.1, 7.4)")]
    BadClose,
    #[error("message is longer than {max} bytes")]
    MessageTooBig { max: usize },
    #[error("sent too far ahead of what can be decoded yet")]
    TooFarAhead,
    #[error("a record does not open: changed, repeated, lost or out of its place on the way")]
    Record,
    #[error("what a record holds is not allowed")]
    RecordContent,
    #[error("a message in the clear where only records may be")]
    ClearText,
    #[error("what a packet holds is not allowed")]
    Packet,
}

impl PeerFault {
    fn close_code(self) -> CloseCode {
        match self {
            Self::InvalidUtf8 => CloseCode::InvalidPayload,
            Self::MessageTooBig { .. } => CloseCode::TooBig,
            Self::Record => CloseCode::RecordRejected,
            Self::ClearText => CloseCode::ClearText,
            _ => CloseCode::Protocol,
        }
    }
}

impl ChannelError {
    /// The close code that tells the peer.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Peer(fault) => fault.close_code(),
            Self::Upgrade { .. } | Self::Tls(_) => CloseCode::Protocol,
            Self::Capacity(_) => CloseCode::TryAgainLater,
            Self::SlowConsumer => CloseCode::SlowConsumer,
            Self::PeerCloses => CloseCode::Normal,
            Self::State(_) | Self::Io(_) => CloseCode::GoingAway,
        }
    }

    /// The word by which metrics count the end of a connection that it ends: where the close code would hide what happened, one of
    /// its own.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Peer(fault) => fault.close_code().label(),
            Self::Upgrade { .. } => "bad_upgrade",
            Self::Capacity(_) => "capacity",
            Self::SlowConsumer => CloseCode::SlowConsumer.label(),
            Self::PeerCloses => CloseCode::Normal.label(),
            Self::Tls(_) => "tls",
            Self::State(_) => "internal",
            Self::Io(_) => "io",
        }
    }

    /// How loud it is: a peer's fault is its own affair, ours is not. That there is no room is counted, for strangers can make it so
    /// as often as they like.
    pub fn level(&self) -> tracing::Level {
        match self {
            Self::Peer(_)
            | Self::Upgrade { .. }
            | Self::SlowConsumer
            | Self::PeerCloses
            | Self::Tls(_)
            | Self::Capacity(_)
            | Self::Io(_) => tracing::Level::DEBUG,
            Self::State(_) => tracing::Level::ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_map_to_the_close_codes_of_the_rfc() {
        let code = |fault: PeerFault| ChannelError::from(fault).close_code() as u16;
        assert_eq!(code(PeerFault::Unmasked), 1002);
        assert_eq!(code(PeerFault::InvalidUtf8), 1007);
        assert_eq!(code(PeerFault::MessageTooBig { max: 1 }), 1009);
        assert_eq!(ChannelError::from(OverBudget).close_code() as u16, 1013);
    }

    #[test]
    fn only_our_own_faults_are_loud() {
        assert_eq!(
            ChannelError::from(PeerFault::Unmasked).level(),
            tracing::Level::DEBUG
        );
        assert_eq!(ChannelError::State("x").level(), tracing::Level::ERROR);
        assert_eq!(ChannelError::from(OverBudget).level(), tracing::Level::DEBUG);
    }
}
