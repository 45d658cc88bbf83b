//! What a backend says of its requests, and what of that fell into a stretch of time. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A backend's own word: `GET /status` on its control socket, as far as an upgrade needs it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct BackendStatus {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) requests: Figures,
}

/// Requests answered and how, either since a process began or within a stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Final replies, errors included.
    pub(crate) answered: u64,
    /// Error replies by code.
    #[serde(default)]
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) duration_us: Histogram,
}

/// Counts between bounds; `counts` has one entry more than `bounds`, for what is above the last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Histogram {
    /// Upper limits in microseconds, ascending.
    pub(crate) bounds: Vec<u64>,
    pub(crate) counts: Vec<u64>,
    #[serde(default)]
    pub(crate) sum: u64,
}

impl Figures {
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The share of answers that were errors; `None` without answers.
    pub(crate) fn error_share(&self) -> Option<f64> {
        (self.answered > 0).then(|| self.error_count() as f64 / self.answered as f64)
    }

    /// What was added since `earlier`; `None` if this does not continue it (the process is another).
    fn since(&self, earlier: &Self) -> Option<Self> {
        let mut errors = self.errors.clone();
        for (code, before) in &earlier.errors {
            let now = errors.get_mut(code)?;
            *now = now.checked_sub(*before)?;
        }
        errors.retain(|_, count| *count > 0);
        Some(Self {
            answered: self.answered.checked_sub(earlier.answered)?,
            errors,
            duration_us: self.duration_us.since(&earlier.duration_us)?,
        })
    }

    fn add(&mut self, more: &Self) {
        self.answered += more.answered;
        for (code, count) in &more.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
        self.duration_us.add(&more.duration_us);
    }
}

impl Histogram {
    /// Whether it is one: a peer of another version wrote it.
    pub(crate) fn is_sound(&self) -> bool {
        self.counts.len() == self.bounds.len() + 1 && self.bounds.is_sorted_by(|a, b| a < b)
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value in microseconds that `share` (0 to 1) of the samples do not exceed, estimated within its bucket; `None`
    /// without samples. What is above the last bound counts as that bound, so the estimate is never too high there.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.total();
        if total == 0 || !self.is_sound() {
            return None;
        }
        let wanted = share * total as f64;
        let mut below = 0.0;
        for (count, (low, high)) in self.counts.iter().zip(self.ranges()) {
            let count = *count as f64;
            if count > 0.0 && below + count >= wanted {
                let part = ((wanted - below) / count).clamp(0.0, 1.0);
                return Some(low + (high - low) * part);
            }
            below += count;
        }
        self.bounds.last().map(|last| *last as f64)
    }

    /// The share of the samples above `value` microseconds; 0 without samples. Of those above the last bound none counts when
    /// `value` is above it too.
    pub(crate) fn share_above(&self, value: f64) -> f64 {
        let total = self.total();
        if total == 0 || !self.is_sound() {
            return 0.0;
        }
        let above = |(count, (low, high)): (&u64, (f64, f64))| {
            let part = if low >= high {
                f64::from(u8::from(value < low))
            } else {
                ((high - value) / (high - low)).clamp(0.0, 1.0)
            };
            *count as f64 * part
        };
        self.counts.iter().zip(self.ranges()).map(above).sum::<f64>() / total as f64
    }

    /// Each bucket's lower and upper limit; the last one's are the same.
    fn ranges(&self) -> impl Iterator<Item = (f64, f64)> {
        let last = self.bounds.last().copied().unwrap_or(0);
        let lows = std::iter::once(0).chain(self.bounds.iter().copied());
        let highs = self.bounds.iter().copied().chain(std::iter::once(last));
        lows.zip(highs).map(|(low, high)| (low as f64, high as f64))
    }

    fn since(&self, earlier: &Self) -> Option<Self> {
        if self.bounds != earlier.bounds || self.counts.len() != earlier.counts.len() {
            return None;
        }
        let minus = |(now, before): (&u64, &u64)| now.checked_sub(*before);
        Some(Self {
            bounds: self.bounds.clone(),
            counts: self
                .counts
                .iter()
                .zip(&earlier.counts)
                .map(minus)
                .collect::<Option<_>>()?,
            sum: self.sum.checked_sub(earlier.sum)?,
        })
    }

    /// Histograms of other bounds cannot be joined: the newer one stays.
    fn add(&mut self, more: &Self) {
        if self.bounds != more.bounds || self.counts.len() != more.counts.len() {
            *self = more.clone();
            return;
        }
        for (count, more) in self.counts.iter_mut().zip(&more.counts) {
            *count += more;
        }
        self.sum += more.sum;
    }
}

/// What one backend did during a watch, also when it was started again meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// What it had done when this life was first seen, and which life that is.
    base: Option<(u32, Figures)>,
    /// What this life has added.
    present: Figures,
    /// What earlier lives had.
    past: Figures,
    lives: u32,
}

impl Tally {
    /// Takes what the backend says of itself. The first word is where the watch begins; a process that is started again
    /// begins at nothing.
    pub(crate) fn handle_status(&mut self, status: &BackendStatus) {
        let base = match &self.base {
            Some((pid, base)) if *pid == status.pid => Some(base),
            _ => None,
        };
        if let Some(added) = base.and_then(|base| status.requests.since(base)) {
            self.present = added;
            return;
        }
        let first = self.base.is_none();
        self.past.add(&std::mem::take(&mut self.present));
        self.lives += 1;
        let base = if first {
            status.requests.clone()
        } else {
            let nothing = status.requests.duration_us.counts.iter().map(|_| 0).collect();
            Figures {
                duration_us: Histogram {
                    bounds: status.requests.duration_us.bounds.clone(),
                    counts: nothing,
                    sum: 0,
                },
                ..Figures::default()
            }
        };
        self.present = status.requests.since(&base).unwrap_or_default();
        self.base = Some((status.pid, base));
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut all = self.past.clone();
        all.add(&self.present);
        all
    }

    /// How often it was started again.
    pub(crate) fn restarts(&self) -> u32 {
        self.lives.saturating_sub(1)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn figures(answered: u64, errors: u64, counts: &[u64]) -> Figures {
        let mut by_code = BTreeMap::new();
        if errors > 0 {
            by_code.insert("upstream_error".to_owned(), errors);
        }
        Figures {
            answered,
            errors: by_code,
            duration_us: Histogram {
                bounds: BOUNDS.to_vec(),
                counts: counts.to_vec(),
                sum: 0,
            },
        }
    }

    pub(crate) const BOUNDS: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

    pub(crate) fn status(pid: u32, requests: Figures) -> BackendStatus {
        BackendStatus {
            version: "1".into(),
            pid,
            requests,
        }
    }

    #[test]
    fn quantiles_are_estimated_within_their_bucket() {
        let histogram = figures(0, 0, &[0, 100, 0, 0, 0]).duration_us;
        assert_eq!(histogram.quantile(0.5), Some(5_500.0));
        assert_eq!(histogram.quantile(1.0), Some(10_000.0));
        let above_all = figures(0, 0, &[0, 0, 0, 0, 7]).duration_us;
        assert_eq!(above_all.quantile(0.95), Some(1_000_000.0));
        assert_eq!(figures(0, 0, &[0; 5]).duration_us.quantile(0.5), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn the_share_above_a_value_is_estimated_too() {
        let histogram = figures(0, 0, &[10, 0, 80, 0, 10]).duration_us;
        assert_eq!(histogram.share_above(0.0), 1.0);
        assert_eq!(histogram.share_above(55_000.0), 0.5);
        assert_eq!(histogram.share_above(999_999.0), 0.1);
        assert_eq!(
            histogram.share_above(1_000_000.0),
            0.0,
            "how far above is not known"
        );
    }

    #[test]
    fn an_unsound_histogram_says_nothing() {
        for (bounds, counts) in [
            (vec![1, 2], vec![1, 1]),
            (vec![2, 1], vec![1, 1, 1]),
            (vec![], vec![]),
        ] {
            let histogram = Histogram {
                bounds,
                counts,
                sum: 0,
            };
            assert!(!histogram.is_sound());
            assert_eq!((histogram.quantile(0.9), histogram.share_above(0.0)), (None, 0.0));
        }
    }

    #[test]
    fn a_tally_begins_at_the_first_word_and_goes_on_over_restarts() {
        let mut tally = Tally::default();
        tally.handle_status(&status(1, figures(100, 5, &[100, 0, 0, 0, 0])));
        assert_eq!(tally.figures().answered, 0);
        tally.handle_status(&status(1, figures(150, 7, &[140, 10, 0, 0, 0])));
        let all = tally.figures();
        assert_eq!((all.answered, all.error_count()), (50, 2));
        assert_eq!(all.duration_us.counts, [40, 10, 0, 0, 0]);

        tally.handle_status(&status(2, figures(3, 0, &[0, 3, 0, 0, 0])));
        assert_eq!(tally.restarts(), 1);
        tally.handle_status(&status(2, figures(5, 1, &[0, 5, 0, 0, 0])));
        let all = tally.figures();
        assert_eq!((all.answered, all.error_count()), (55, 3));
        assert_eq!(all.duration_us.counts, [40, 15, 0, 0, 0]);
    }

    #[test]
    fn an_error_code_that_vanishes_means_another_process() {
        let before = figures(10, 2, &[10, 0, 0, 0, 0]);
        assert_eq!(figures(12, 0, &[12, 0, 0, 0, 0]).since(&before), None);
        assert_eq!(figures(9, 2, &[10, 0, 0, 0, 0]).since(&before), None);
    }

    /// The wire format of the backend's control socket, with fields that an upgrade does not need.
    #[test]
    fn a_backend_s_word_is_read() {
        let text = r#"{"name":"backend-1","version":"0.1.0","epoch":"e","pid":7,"share_percent":100,"draining":false,
            "in_flight":0,"frontends":[{"address":"ipc:///x","state":"attached","frontend_id":1,"frontend_epoch":2}],
            "requests":{"answered":3,"errors":{"no_route":1},"duration_us":{"bounds":[1000],"counts":[2,1],"sum":5000}}}"#;
        let status: BackendStatus = serde_json::from_str(text).unwrap();
        assert_eq!((status.pid, status.requests.error_count()), (7, 1));
        assert!(status.requests.duration_us.is_sound());
    }
}
