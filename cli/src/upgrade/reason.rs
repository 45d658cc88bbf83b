//! How an upgrade ended, and why. Pure.

use std::fmt;
use std::time::Duration;

/// How an upgrade ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The new one serves, the old one is gone.
    Promoted,
    /// The old one serves, the new one is gone.
    RolledBack(Reason),
    /// Nothing was begun.
    Failed(Reason),
}

/// Why an upgrade did not go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    NotReady(Duration),
    /// Before it was ready; how.
    Exited(String),
    /// After it was ready; how.
    Crashed(String),
    Errors(String),
    Slow(String),
    /// It ran and did not answer, or was not attached.
    Unwell(Duration),
    /// The frontend lost it more often than the old one.
    Lost {
        old: u32,
        new: u32,
    },
    /// It did not take its share.
    Refused(String),
    /// By who asked for it.
    Cancelled,
    /// Who asked for it is gone.
    AskerGone,
    /// The supervisor was told to stop.
    Stopping,
    /// Its process could not be made.
    NotStarted(String),
}

impl Outcome {
    /// The word for programs.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::RolledBack(_) => "rolled_back",
            Self::Failed(_) => "failed",
        }
    }

    pub(crate) fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Promoted => None,
            Self::RolledBack(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

impl Reason {
    /// The word for programs.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "not_ready",
            Self::Exited(_) => "exited",
            Self::Crashed(_) => "crashed",
            Self::Errors(_) => "errors",
            Self::Slow(_) => "slow",
            Self::Unwell(_) => "unwell",
            Self::Lost { .. } => "lost",
            Self::Refused(_) => "refused",
            Self::Cancelled => "cancelled",
            Self::AskerGone => "asker_gone",
            Self::Stopping => "stopping",
            Self::NotStarted(_) => "not_started",
        }
    }
}

/// One sentence for people, about "it", the new backend.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(limit) => write!(f, "it was not ready within {limit:?}"),
            Self::Exited(how) => write!(f, "it ended before it was ready ({how})"),
            Self::Crashed(how) => write!(f, "it ended while it served ({how})"),
            Self::Errors(text) | Self::Slow(text) => f.write_str(text),
            Self::Unwell(limit) => write!(f, "it did not answer, or was not attached, for {limit:?}"),
            Self::Lost { old, new } => write!(
                f,
                "the frontend lost it {} in the watch (it hung, or its link broke), the old one {}",
                times(*new),
                times(*old)
            ),
            Self::Refused(why) => write!(f, "it did not take its share ({why})"),
            Self::Cancelled => f.write_str("it was called off"),
            Self::AskerGone => f.write_str("the command that asked for it is gone"),
            Self::Stopping => f.write_str("`holdfast up` is being stopped"),
            Self::NotStarted(why) => write!(f, "it could not be started ({why})"),
        }
    }
}

/// `once`, `3 times`
pub(crate) fn times(count: u32) -> String {
    match count {
        0 => "never".into(),
        1 => "once".into(),
        count => format!("{count} times"),
    }
}
