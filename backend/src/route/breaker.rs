//! The circuit breaker: after a run of transport failures a service is left alone for a while, then probed by one call.
//!
//! Pure: the caller keeps one per [`RouteKey`](super::RouteKey), asks before each call and tells how it ended.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::{Duration, Instant};

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Consecutive transport failures that open it.
    pub failures: u32,
    /// How long it stays open the first time; doubles with each failed probe.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures: 20,
            first_pause: Duration::from_secs(2),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// Leave to make one call, to be given back through [`Breaker::on_success`], [`Breaker::on_failure`] or
/// [`Breaker::on_abandoned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an admission that is not given back blocks the probe"]
pub struct Admission {
    /// The breaker's period that the call was admitted in; later periods ignore its outcome.
    period: u64,
}

/// One service's breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    settings: BreakerSettings,
    state: State,
    /// Grows with each transition.
    period: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls pass. Next: `Open`, after enough failures in a row.
    Closed { failures: u32 },
    /// Calls are refused until the time. Next: `HalfOpen`, by the first call after it.
    Open { until: Instant, pause: Duration },
    /// One probe is under way, others are refused. Next: `Closed` or `Open` by its outcome, `Probing` again if abandoned.
    HalfOpen { pause: Duration },
}

impl Breaker {
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            state: State::Closed { failures: 0 },
            period: 0,
        }
    }

    /// Asks for leave to call; `None` means: answer `upstream_unavailable` without calling.
    pub fn admit(&mut self, now: Instant) -> Option<Admission> {
        match self.state {
            State::Closed { .. } => Some(Admission { period: self.period }),
            State::Open { until, pause } if now >= until => {
                self.enter(State::HalfOpen { pause });
                Some(Admission { period: self.period })
            }
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// The service answered, whatever it answered.
    pub fn on_success(&mut self, admission: Admission) {
        if admission.period != self.period {
            return;
        }
        match &mut self.state {
            State::Closed { failures } => *failures = 0,
            State::HalfOpen { .. } => self.enter(State::Closed { failures: 0 }),
            State::Open { .. } => {}
        }
    }

    /// The service could not be reached, broke off or did not answer in time. Returns true when this opened the breaker.
    pub fn on_failure(&mut self, admission: Admission, now: Instant) -> bool {
        if admission.period != self.period {
            return false;
        }
        let pause = match &mut self.state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures < self.settings.failures {
                    return false;
                }
                self.settings.first_pause
            }
            State::HalfOpen { pause } => (*pause * 2).min(self.settings.longest_pause),
            State::Open { .. } => return false,
        };
        self.enter(State::Open {
            until: now + pause,
            pause,
        });
        true
    }

    /// The call was given up before it could tell anything. An abandoned probe lets the next call probe at once.
    pub fn on_abandoned(&mut self, admission: Admission, now: Instant) {
        if admission.period != self.period {
            return;
        }
        if let State::HalfOpen { pause } = self.state {
            self.enter(State::Open { until: now, pause });
        }
    }

    /// Another service is behind it from now on: what is known of the old one counts for nothing.
    pub fn reset(&mut self) {
        self.enter(State::Closed { failures: 0 });
    }

    /// Whether calls are refused or being probed.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    fn enter(&mut self, state: State) {
        self.period += 1;
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: BreakerSettings = BreakerSettings {
        failures: 3,
        first_pause: Duration::from_secs(2),
        longest_pause: Duration::from_secs(30),
    };

    fn start() -> Instant {
        Instant::now()
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(SETTINGS);
        for n in 1..=3 {
            let admission = breaker.admit(now).unwrap();
            assert_eq!(breaker.on_failure(admission, now), n == 3);
        }
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let now = start();
        let mut breaker = Breaker::new(SETTINGS);
        for _ in 0..10 {
            for _ in 0..2 {
                let admission = breaker.admit(now).unwrap();
                assert!(!breaker.on_failure(admission, now));
            }
            let admission = breaker.admit(now).unwrap();
            breaker.on_success(admission);
        }
        assert!(!breaker.is_open());
        assert!(opened(now).is_open());
    }

    #[test]
    fn one_probe_goes_through_after_the_pause_and_closes_it() {
        let now = start();
        let mut breaker = opened(now);
        assert!(breaker.admit(now + Duration::from_millis(1999)).is_none());
        let probe = breaker.admit(now + Duration::from_secs(2)).unwrap();
        assert!(
            breaker.admit(now + Duration::from_secs(60)).is_none(),
            "one probe at a time"
        );
        breaker.on_success(probe);
        assert!(!breaker.is_open() && breaker.admit(now).is_some());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut now = start();
        let mut breaker = opened(now);
        for seconds in [2, 4, 8, 16, 30, 30] {
            assert!(
                breaker
                    .admit(now + Duration::from_secs(seconds) - Duration::from_millis(1))
                    .is_none()
            );
            now += Duration::from_secs(seconds);
            let probe = breaker.admit(now).unwrap();
            assert!(breaker.on_failure(probe, now));
        }
    }

    #[test]
    fn outcomes_of_an_earlier_period_count_for_nothing() {
        let now = start();
        let mut breaker = Breaker::new(SETTINGS);
        let early = breaker.admit(now).unwrap();
        for _ in 0..3 {
            let admission = breaker.admit(now).unwrap();
            breaker.on_failure(admission, now);
        }
        breaker.on_success(early);
        assert!(breaker.is_open());
        let probe = breaker.admit(now + Duration::from_secs(2)).unwrap();
        assert!(!breaker.on_failure(early, now));
        breaker.on_success(probe);
        assert!(!breaker.is_open());
    }

    #[test]
    fn an_abandoned_probe_is_followed_by_another() {
        let now = start();
        let mut breaker = opened(now);
        let later = now + Duration::from_secs(2);
        let probe = breaker.admit(later).unwrap();
        breaker.on_abandoned(probe, later);
        assert!(breaker.admit(later).is_some());
    }

    #[test]
    fn a_reset_lets_calls_through_and_ignores_those_of_before() {
        let now = start();
        let mut breaker = opened(now);
        let probe = breaker.admit(now + Duration::from_secs(2)).unwrap();
        breaker.reset();
        assert!(!breaker.is_open() && !breaker.on_failure(probe, now));
        for n in 1..=3 {
            let admission = breaker.admit(now).unwrap();
            assert_eq!(breaker.on_failure(admission, now), n == 3);
        }
    }

    proptest! {
        /// Whatever happens, a breaker whose admissions are all given back lets a call through within the longest pause.
        #[test]
        fn it_never_stays_shut(steps in proptest::collection::vec((0u8..3, 0u64..40), 0..200)) {
            let mut now = start();
            let mut breaker = Breaker::new(SETTINGS);
            for (outcome, seconds) in steps {
                now += Duration::from_secs(seconds);
                let Some(admission) = breaker.admit(now) else { continue };
                match outcome {
                    0 => breaker.on_success(admission),
                    1 => drop(breaker.on_failure(admission, now)),
                    _ => breaker.on_abandoned(admission, now),
                }
            }
            prop_assert!(breaker.admit(now + SETTINGS.longest_pause).is_some());
        }
    }
}
