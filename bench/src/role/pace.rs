//! Even load without spinning: how many requests are due at each tick.

use std::time::{Duration, Instant};

/// Between two looks at what is due: the granularity of tokio's clock.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// After a pause (the machine had something else to do), at most so many ticks' requests are made up for at once: a burst
/// would measure batching.
const MAX_TICKS_AT_ONCE: u32 = 4;

/// Counts what is due at a rate.
pub(super) struct Pacer {
    per_second: f64,
    started: Instant,
    /// Requests that were given out or given up.
    passed: f64,
}

impl Pacer {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_second),
            started: now,
            passed: 0.0,
        }
    }

    pub(super) fn due(&mut self, now: Instant) -> u64 {
        let due = (now - self.started).as_secs_f64() * self.per_second - self.passed;
        let whole = due.max(0.0).floor();
        self.passed += whole;
        let most = (TICK * MAX_TICKS_AT_ONCE).as_secs_f64() * self.per_second;
        whole.min(most.ceil()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_pauses_are_not_made_up_for() {
        let start = Instant::now();
        let mut pacer = Pacer::new(2500, start);
        let total: u64 = (1..=1000)
            .map(|ms| pacer.due(start + Duration::from_millis(ms)))
            .sum();
        assert_eq!(total, 2500);
        assert_eq!(pacer.due(start + Duration::from_millis(1100)), 10);
        assert_eq!(pacer.due(start + Duration::from_millis(1102)), 5);
    }
}
