//! When a process that ended is started again. Pure.

use std::time::Duration;

/// At once first, then after 100 ms, doubling up to 5 s; anew once it has been up for a second: devices wait for each
/// delay, and one start a second is no burden.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    recent: u32,
    total: u32,
}

impl Restarts {
    /// The delay before the next start of a process that was up for so long.
    pub(super) fn handle_exit(&mut self, was_up_for: Duration) -> Duration {
        if was_up_for >= STABLE {
            self.recent = 0;
        }
        let delay = match self.recent {
            0 => Duration::ZERO,
            failures => BASE.saturating_mul(2u32.saturating_pow(failures - 1)).min(CAP),
        };
        self.recent = self.recent.saturating_add(1);
        self.total = self.total.saturating_add(1);
        delay
    }

    /// Restarts since the beginning.
    pub(super) fn total(&self) -> u32 {
        self.total
    }
}

const BASE: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(5);
const STABLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_doubling_up_to_a_cap() {
        let mut restarts = Restarts::default();
        let delays: Vec<_> = (0..9)
            .map(|_| restarts.handle_exit(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(restarts.handle_exit(STABLE), Duration::ZERO);
        assert_eq!(restarts.handle_exit(Duration::from_millis(999)), BASE);
        assert_eq!(restarts.total(), 11);
    }
}
