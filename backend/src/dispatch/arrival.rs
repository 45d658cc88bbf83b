//! A request as it comes from the link, and a reply as it goes back.

use std::time::{Duration, Instant};

use holdfast_proto::link::Class;
use holdfast_proto::link::frames::{self, MessageKind};

use crate::sequence::Release;

/// Payloads up to this size are copied out of the batch that they came in, which they would otherwise keep alive.
pub const SMALL_PAYLOAD_BYTES: usize = 8 * 1024;

/// A request frame, as it came.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub request: frames::Request,
    pub binary: bool,
    pub charge: Option<(Class, u32)>,
    pub at: Instant,
}

impl Arrival {
    pub(super) fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(self.request.age_ms.into()) + now.saturating_duration_since(self.at)
    }

    /// `None` when the request has no deadline.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        let limit = Duration::from_millis(self.request.deadline_ms.into());
        (limit > Duration::ZERO).then(|| limit.saturating_sub(self.age(now)))
    }

    pub(super) fn expires(&self) -> Option<Instant> {
        self.remaining(self.at).map(|left| self.at + left)
    }
}

pub(super) fn reply_frame(release: Release) -> frames::Reply {
    let Release { key, after, answer } = release;
    let kind = if answer.binary {
        MessageKind::Binary
    } else {
        MessageKind::Text
    };
    frames::Reply {
        id: Some(key.session.into()),
        sequence: key.sequence.0,
        index: 0,
        r#final: true,
        after: after.0,
        kind: kind as i32,
        silent: answer.silent,
        payload: answer.payload,
    }
}
