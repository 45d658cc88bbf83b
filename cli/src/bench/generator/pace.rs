//! When each request is due: at a steady rate, whatever became of those before (an open loop). Pure.

#![deny(clippy::disallowed_methods)]

use std::time::Duration;

/// The schedule of one thread: its devices in turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    from: Duration,
    per_second: f64,
}

impl Pace {
    /// The first request is due at `from`.
    pub(super) fn new(from: Duration, per_second: f64) -> Self {
        Self { from, per_second }
    }

    /// When the request of this place is due. Times lie on a grid, so that a fast thread wakes for a few requests at once.
    pub(super) fn due(&self, place: u64) -> Duration {
        let steps = place as f64 / self.per_second / GRID.as_secs_f64();
        self.from + Duration::from_nanos(steps as u64 * GRID.as_nanos() as u64)
    }
}

const GRID: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_hours() {
        let from = Duration::from_secs(3);
        for rate in [0.5, 3.0, 100.0, 5000.0, 33_333.3] {
            let pace = Pace::new(from, rate);
            assert_eq!(pace.due(0), from);
            for place in [1, 2, 999, 1_000_000, 100_000_000] {
                let exact = from.as_secs_f64() + place as f64 / rate;
                let due = pace.due(place).as_secs_f64();
                assert!(
                    due <= exact + 1e-6 && exact - due < 0.000_502,
                    "{rate}/s: {place} is due at {due}"
                );
                assert!(pace.due(place + 1) >= pace.due(place));
            }
        }
    }
}
