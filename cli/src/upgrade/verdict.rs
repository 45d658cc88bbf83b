//! Whether the new backend does worse than the old one did in the same time. Pure.
//!
//! Two questions, each answered only when both sides have enough requests: does it answer with errors significantly more
//! often (two proportions, pooled), and do significantly more than 5 % of its requests take longer than what the old one's
//! slowest 5 % would excuse. A look before the end of the watch is one of many, so it asks for far more certainty than the
//! last one: else looking often enough would find a difference where there is none.

use std::fmt;

use super::figures::Figures;

/// When in the watch it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Early,
    Last,
}

impl Look {
    /// Standard deviations: one chance in 30,000 for an early look, in 200 for the last.
    fn certainty(self) -> f64 {
        match self {
            Self::Early => 4.0,
            Self::Last => 2.576,
        }
    }
}

/// What the figures say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// Why the new one is worse, if it is.
    pub(crate) fault: Option<Fault>,
    /// Whether there were enough requests on both sides to compare errors, and times.
    pub(crate) errors_compared: bool,
    pub(crate) times_compared: bool,
}

/// What is worse about the new one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// Shares from 0 to 1.
    Errors { old: f64, new: f64 },
    /// 95th percentiles in microseconds, the most that was allowed, and the share that took longer.
    Slow {
        old: f64,
        new: f64,
        limit: f64,
        above: f64,
    },
}

/// Compares what both did in the same time.
pub(crate) fn judge(old: &Figures, new: &Figures, look: Look) -> Verdict {
    let errors_compared = old.answered.min(new.answered) >= MIN_REQUESTS;
    let timed = old.duration_us.total().min(new.duration_us.total());
    let times_compared = timed >= MIN_TIMED && old.duration_us.is_sound() && new.duration_us.is_sound();
    let errors = || errors_compared.then(|| more_errors(old, new, look)).flatten();
    let slow = || times_compared.then(|| slower(old, new, look)).flatten();
    Verdict {
        fault: errors().or_else(slow),
        errors_compared,
        times_compared,
    }
}

fn more_errors(old: &Figures, new: &Figures, look: Look) -> Option<Fault> {
    let (old_share, new_share) = (old.error_share()?, new.error_share()?);
    let difference = new_share - old_share;
    // Rounding must not decide about a difference of exactly that much.
    if difference < MIN_ERROR_DIFFERENCE - 1e-9 || new.error_count() < MIN_ERRORS {
        return None;
    }
    let (old_count, new_count) = (old.answered as f64, new.answered as f64);
    let pooled = (old.error_count() + new.error_count()) as f64 / (old_count + new_count);
    let spread = 1.0 / old_count + 1.0 / new_count;
    let deviation = (pooled * (1.0 - pooled) * spread).sqrt();
    // Yates's correction: counts are whole numbers.
    let corrected = difference - spread / 2.0;
    (corrected >= look.certainty() * deviation).then_some(Fault::Errors {
        old: old_share,
        new: new_share,
    })
}

fn slower(old: &Figures, new: &Figures, look: Look) -> Option<Fault> {
    let old_p95 = old.duration_us.quantile(P95)?;
    let new_p95 = new.duration_us.quantile(P95)?;
    let limit = (old_p95 * MAX_FACTOR).max(old_p95 + MAX_EXTRA_US);
    if new_p95 <= limit {
        return None;
    }
    let above = new.duration_us.share_above(limit);
    let expected: f64 = 1.0 - P95;
    let deviation = (expected * P95 / new.duration_us.total() as f64).sqrt();
    (above - expected >= look.certainty() * deviation).then_some(Fault::Slow {
        old: old_p95,
        new: new_p95,
        limit,
        above,
    })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errors { old, new } => write!(
                f,
                "it answered {} of its requests with errors, the old one {}",
                percent(*new),
                percent(*old)
            ),
            Self::Slow {
                old,
                new,
                limit,
                above,
            } => write!(
                f,
                "its p95 was {}, the old one's {}: {} of its requests took longer than {}",
                micros(*new),
                micros(*old),
                percent(*above),
                micros(*limit)
            ),
        }
    }
}

/// A share from 0 to 1 as people read it.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Microseconds as people read them.
pub(crate) fn micros(us: f64) -> String {
    if us < 1_000.0 {
        format!("{us:.0} µs")
    } else if us < 1e6 {
        format!("{:.1} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}

const P95: f64 = 0.95;
/// Answers on each side below which errors are not compared.
pub(crate) const MIN_REQUESTS: u64 = 30;
/// Timed requests on each side below which times are not compared: at 100, 5 are above the 95th percentile.
pub(crate) const MIN_TIMED: u64 = 100;
/// Fewer errors than this are bad luck, not a trend.
const MIN_ERRORS: u64 = 3;
/// Half a percentage point: a smaller difference is not worth a rollback however certain it is.
const MIN_ERROR_DIFFERENCE: f64 = 0.005;
/// A p95 up to twice the old one's, or 50 ms above it, is accepted.
const MAX_FACTOR: f64 = 2.0;
const MAX_EXTRA_US: f64 = 50_000.0;

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
