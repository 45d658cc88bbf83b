//! What each command of a frontend leads to.
//!
//! Pure. [`Lifecycle`] admits devices and keeps their logins and small state; [`Requests`] routes requests to services and
//! their answers back in order. Both take commands and give commands and actions; neither knows sockets, tasks or clocks.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod arrival;
mod control;
mod durations;
mod event;
mod last_seen;
mod lifecycle;
mod metrics;
mod requests;
mod routes;
mod shares;
mod state_blob;

use std::time::{Duration, Instant, SystemTime};

pub use arrival::{Arrival, SMALL_PAYLOAD_BYTES};
pub use control::{control_error, handle_control};
pub use durations::{DURATION_BOUNDS_US, DurationCounts, Durations};
pub use last_seen::LastSeen;
pub use lifecycle::{
    ADMITTED, BindAnswer, BindId, BindStep, Lifecycle, LoginStep, MAX_AUTHENTICATIONS, Replaced,
};
pub use metrics::RequestMetrics;
pub use requests::{CallId, RequestOutput, RequestSettings, Requests};
pub use state_blob::{MAX_ATTRIBUTES, MAX_BLOB_BYTES, UpdateError, apply_update, handle_update};

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub instant: Instant,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

impl Now {
    /// The wall clock's time so many milliseconds ago.
    pub(crate) fn wall_before(self, age: Duration) -> SystemTime {
        let ms = u128::from(self.unix_ms).saturating_sub(age.as_millis());
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms as u64)
    }
}

/// A frame that a frontend in its right mind does not send: counted and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed frame")]
pub struct Malformed;

impl From<holdfast_proto::IdError> for Malformed {
    fn from(_: holdfast_proto::IdError) -> Self {
        Self
    }
}

/// Values that tests of several modules need.
#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::lifecycle::tests::{id, session};
    pub(crate) use super::requests::tests::{event, request};
}
