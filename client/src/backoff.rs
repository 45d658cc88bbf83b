//! When to try again: exponential backoff with full jitter, and the server's hint as a floor.
//!
//! Full jitter after "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): the delay is uniform between zero and the
//! exponential bound, so that a million devices that lost one server do not come back together.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// A schedule of delays; pure, so the same seed gives the same delays.
#[derive(Debug, Clone)]
pub struct Backoff {
    rng: SmallRng,
    failures: u32,
}

impl Backoff {
    /// The upper bound of the first delay.
    pub const BASE: Duration = Duration::from_millis(500);
    /// The upper bound that further delays grow to.
    pub const CAP: Duration = Duration::from_secs(60);
    /// The most that a server's hint is believed: before the login nobody has proved that it is our server.
    pub const MAX_HINT: Duration = Duration::from_secs(600);
    /// How long a connection must have lasted to count as a success.
    pub const STABLE: Duration = Duration::from_secs(10);

    /// Seeds should differ between devices.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            failures: 0,
        }
    }

    /// The delay before the next attempt. With a `hint` (`Retry-After`, `retry_after_ms`) it is never less than the hint,
    /// capped at [`Self::MAX_HINT`], and the jitter comes on top.
    pub fn next_delay(&mut self, hint: Option<Duration>) -> Duration {
        let bound = Self::bound(self.failures);
        self.failures = self.failures.saturating_add(1);
        let jitter = bound.mul_f64(self.rng.random::<f64>());
        hint.unwrap_or_default().min(Self::MAX_HINT) + jitter
    }

    /// Tells how long a connection was online. Only a stable one starts the schedule anew: a server that accepts and closes
    /// at once must not be hammered.
    pub fn handle_online_for(&mut self, lasted: Duration) {
        if lasted >= Self::STABLE {
            self.failures = 0;
        }
    }

    fn bound(failures: u32) -> Duration {
        Self::BASE
            .saturating_mul(2u32.saturating_pow(failures))
            .min(Self::CAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_under_a_growing_bound() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed);
            for (failures, bound_ms) in [500u64, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
                .iter()
                .enumerate()
            {
                let delay = backoff.next_delay(None);
                assert!(
                    delay <= Duration::from_millis(*bound_ms),
                    "seed {seed}, failure {failures}: {delay:?}"
                );
            }
        }
    }

    #[test]
    fn delays_spread_over_the_whole_bound() {
        let first: Vec<_> = (0..400).map(|seed| Backoff::new(seed).next_delay(None)).collect();
        assert!(first.iter().any(|d| *d < Backoff::BASE / 10));
        assert!(first.iter().any(|d| *d > Backoff::BASE * 9 / 10));
    }

    #[test]
    fn a_hint_is_a_floor_with_jitter_on_top_and_is_capped() {
        let hint = Duration::from_secs(7);
        let delays: Vec<_> = (0..50)
            .map(|seed| Backoff::new(seed).next_delay(Some(hint)))
            .collect();
        assert!(delays.iter().all(|d| *d >= hint && *d <= hint + Backoff::BASE));
        assert!(delays.iter().any(|d| *d > hint));
        let capped = Backoff::new(1).next_delay(Some(Duration::from_secs(86_400)));
        assert!(capped <= Backoff::MAX_HINT + Backoff::BASE);
    }

    #[test]
    fn only_a_stable_connection_starts_anew() {
        let mut backoff = Backoff::new(3);
        for _ in 0..100 {
            backoff.next_delay(None);
        }
        backoff.handle_online_for(Duration::from_secs(1));
        assert_eq!(backoff.failures, 100);
        backoff.handle_online_for(Backoff::STABLE);
        assert!(backoff.next_delay(None) <= Backoff::BASE);
    }

    #[test]
    fn the_same_seed_gives_the_same_delays() {
        let delays = |seed| {
            let mut backoff = Backoff::new(seed);
            std::array::from_fn::<_, 8, _>(|_| backoff.next_delay(None))
        };
        assert_eq!(delays(9), delays(9));
        assert_ne!(delays(9), delays(10));
    }
}
