//! A bound on how often something is done: a token bucket without a table (pure).

use std::time::Instant;

/// So many at once, and so many per second in the long run.
#[derive(Debug)]
pub(super) struct Allowance {
    per_second: f64,
    burst: f64,
    left: f64,
    since: Instant,
}

impl Allowance {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_second: per_second.into(),
            burst: burst.into(),
            left: burst.into(),
            since: now,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.left = (self.left + seconds * self.per_second).min(self.burst);
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, 3, start);
        let taken = (0..5).filter(|_| allowance.take(start)).count();
        assert_eq!(taken, 3);
        assert!(!allowance.take(start + Duration::from_millis(99)));
        assert!(allowance.take(start + Duration::from_millis(101)));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| allowance.take(later)).count(), 3);
    }
}
