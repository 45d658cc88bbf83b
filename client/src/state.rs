//! What a device's owner can see of its connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Error;

/// Where the connection stands. `Connecting → Online → Waiting → Connecting …`, and `Closed` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Dialling, or waiting for `@welcome`.
    Connecting,
    /// Requests flow.
    Online(Welcome),
    /// Not connected because of `error`; the next attempt starts after `delay`.
    Waiting { error: Error, delay: Duration },
    /// Over: by the owner ([`Error::Closed`]) or for a reason that trying again would not mend.
    Closed(Error),
}

/// The server's `@welcome`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The session's uuid, the address that services push to.
    pub session: String,
    pub heartbeat: Duration,
    /// The longest message that the server takes, in bytes.
    pub max_message: usize,
    /// How many unanswered requests the server reads before it stops reading.
    pub window: u32,
}

/// Counts since the device was made.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) connects: AtomicU64,
    pub(crate) pushes: AtomicU64,
    pub(crate) pushes_dropped: AtomicU64,
    pub(crate) violations: AtomicU64,
    pub(crate) disturbed: AtomicU64,
    pub(crate) resent: AtomicU64,
}

impl Counters {
    /// Times that the device came online.
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// Pushes received, dropped ones included.
    pub fn pushes(&self) -> u64 {
        self.pushes.load(Ordering::Relaxed)
    }

    /// Pushes that found the push queue full.
    pub fn pushes_dropped(&self) -> u64 {
        self.pushes_dropped.load(Ordering::Relaxed)
    }

    /// Replies that broke the device protocol; each also ended its connection.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// Connections that ended because somebody between disturbed them ([`Error::Disturbed`]).
    pub fn disturbed(&self) -> u64 {
        self.disturbed.load(Ordering::Relaxed)
    }

    /// Requests with a retry key that were sent again after a reconnect.
    pub fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
