//! What a link is told and what it says of itself.

use std::time::{Duration, Instant};

use holdfast_proto::link::{LaneConfig, LaneError};
use holdfast_proto::{FrontendEpoch, FrontendId, Share};

/// What all links of a process have in common.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// This backend's name, at most 64 bytes.
    pub name: String,
    pub build: String,
    /// New with each start of the process.
    pub boot: u128,
    pub lane: LaneConfig,
    /// First pause before a lost link is tried again; doubles up to 1 s, after refusals up to 5 s.
    pub retry: Duration,
    /// The part of the sessions that it wants at the start.
    pub share: Share,
}

/// What a frontend said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    pub id: FrontendId,
    pub epoch: FrontendEpoch,
    pub heartbeat_ms: u32,
    pub max_message_bytes: u32,
    pub window_requests: u32,
    pub build: String,
}

/// What a batch did to the state of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its frames, if any, were handed out.
    Taken,
    /// The same, and the handshake is complete.
    Attached,
    /// It belonged to another epoch and was dropped.
    Stale,
}

/// The link was lost: cancel its work and open another socket at the time given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub reason: LossReason,
    pub retry_at: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LossReason {
    #[error("the socket is gone")]
    Disconnected,
    #[error("the frontend did not answer in time")]
    NoAnswer,
    #[error("nothing was heard from the frontend in time")]
    Silent,
    #[error("the frontend gave this epoch up")]
    Fenced,
    #[error("the frontend refused: {code}: {reason}")]
    Refused { code: String, reason: String },
    #[error("the frontend broke the protocol: {0}")]
    Protocol(&'static str),
    #[error(transparent)]
    Lane(LaneError),
}

impl LossReason {
    /// Bounded, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::NoAnswer => "no_answer",
            Self::Silent => "silent",
            Self::Fenced => "fenced",
            Self::Refused { .. } => "refused",
            Self::Protocol(_) | Self::Lane(_) => "protocol",
        }
    }
}

/// Where a link is, for readiness, metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    Detached,
    Greeting,
    Attached,
    Draining,
    Finished,
}
