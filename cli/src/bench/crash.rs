//! The last time in which a backend may have died or hung, and which requests met it: only those may be called twice. Pure.

#![deny(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use super::book::Stay;

/// Between `begin` and `end` lies the moment, or all of a hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    None,
    Open { begun: Instant },
    Ended { begun: Instant, ended: Instant },
}

impl Crash {
    pub(crate) fn begin(&mut self, now: Instant) {
        *self = Self::Open { begun: now };
    }

    /// Without a beginning it is nothing.
    pub(crate) fn end(&mut self, now: Instant) {
        if let Self::Open { begun } = *self {
            *self = Self::Ended { begun, ended: now };
        }
    }

    /// Whether a request that was at its service so long was in flight at it: it had been called before the end, and was not
    /// so long back that its reply must have reached its device, which takes at most `max_wait`.
    pub(crate) fn was_met_by(&self, stay: &Stay, max_wait: Duration) -> bool {
        let (begun, ended) = match *self {
            Self::None => return false,
            Self::Open { begun } => (begun, None),
            Self::Ended { begun, ended } => (begun, Some(ended)),
        };
        stay.left + max_wait >= begun && ended.is_none_or(|ended| stay.came <= ended + SLACK)
    }
}

/// A call that a backend made before it died may be read this much later on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need some time")]
mod tests {
    use super::*;

    #[test]
    fn only_requests_in_flight_met_it() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * second;
        let stay = |came, left| Stay {
            came: at(came),
            left: at(left),
        };
        let met = |crash: &Crash, came, left| crash.was_met_by(&stay(came, left), 5 * second);
        let mut crash = Crash::None;
        assert!(!met(&crash, 1, 2));
        crash.end(at(3));
        assert_eq!(crash, Crash::None);
        crash.begin(at(20));
        assert!(met(&crash, 10, 15) && met(&crash, 19, 20) && met(&crash, 25, 26));
        assert!(!met(&crash, 10, 14), "its device had its reply");
        crash.end(at(22));
        assert!(met(&crash, 19, 20) && met(&crash, 22, 23) && met(&crash, 23, 23));
        assert!(!met(&crash, 24, 25), "it came after the end");
    }
}
