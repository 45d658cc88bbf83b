//! When to acknowledge (RFC 9000 section 13.2).

use std::time::{Duration, Instant};

use super::rtt::MAX_ACK_DELAY;

/// After so many packets that ask for it an acknowledgement goes out at once.
const ACK_EVERY: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Acks {
    /// Packets that ask for an acknowledgement and have none yet.
    waiting: u32,
    /// When one goes out though nothing else does.
    at: Option<Instant>,
    /// When the highest packet came.
    largest_at: Option<Instant>,
}

impl Acks {
    /// The highest packet so far was accepted.
    pub(super) fn on_largest(&mut self, now: Instant) {
        self.largest_at = Some(now);
    }

    /// A packet was accepted that asks for an acknowledgement; at once if anything is missing or it must not wait.
    pub(super) fn on_eliciting(&mut self, now: Instant, at_once: bool) {
        self.waiting += 1;
        let at = if at_once || self.waiting >= ACK_EVERY {
            now
        } else {
            now + MAX_ACK_DELAY
        };
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }

    /// What is owed is due now.
    pub(super) fn hurry(&mut self) {
        if self.is_waiting() {
            self.at = self.largest_at.or(self.at);
        }
    }

    /// Whether an acknowledgement should go along with whatever is sent.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.at
    }

    /// How long ago the highest packet came.
    pub(super) fn delay(&self, now: Instant) -> Duration {
        self.largest_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    pub(super) fn on_sent(&mut self) {
        self.waiting = 0;
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_packet_or_a_gap_is_acknowledged_at_once() {
        let now = Instant::now();
        let mut acks = Acks::default();
        acks.on_largest(now);
        acks.on_eliciting(now, false);
        assert!(acks.is_waiting() && !acks.is_due(now));
        assert_eq!(acks.deadline(), Some(now + MAX_ACK_DELAY));
        let later = now + Duration::from_millis(9);
        assert_eq!(acks.delay(later), Duration::from_millis(9));
        acks.on_eliciting(later, false);
        assert!(acks.is_due(later));
        acks.on_sent();
        assert!(!acks.is_waiting() && acks.deadline().is_none());
        acks.on_eliciting(now, true);
        assert!(acks.is_due(now));
    }
}
