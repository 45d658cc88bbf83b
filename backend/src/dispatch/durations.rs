//! How long requests take, for operators and for who compares two backends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Upper bounds in microseconds: 100 µs to 36 s, each the square root of two above the last, so that a quantile read from the
/// counts is at most that far off.
pub const DURATION_BOUNDS_US: [u64; BOUNDS] = bounds();

const BOUNDS: usize = 38;

const fn bounds() -> [u64; BOUNDS] {
    let mut bounds = [0; BOUNDS];
    let mut n = 0;
    while n < BOUNDS {
        let whole = 100_000 << (n / 2);
        bounds[n] = if n % 2 == 0 {
            whole
        } else {
            whole * 14_142 / 10_000
        } / 1000;
        n += 1;
    }
    bounds
}

/// A histogram that can be read. Clones share their numbers.
#[derive(Debug, Clone)]
pub struct Durations(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// One more than bounds: what is above the last.
    counts: [AtomicU64; BOUNDS + 1],
    sum_us: AtomicU64,
}

/// What was counted so far. `counts` are not cumulative over buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurationCounts {
    pub counts: [u64; BOUNDS + 1],
    pub sum_us: u64,
}

impl Default for Durations {
    fn default() -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self(Arc::new(Counts {
            counts,
            sum_us: AtomicU64::new(0),
        }))
    }
}

impl Durations {
    pub(super) fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_US.partition_point(|bound| *bound < us);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub fn read(&self) -> DurationCounts {
        DurationCounts {
            counts: std::array::from_fn(|n| self.0.counts[n].load(Ordering::Relaxed)),
            sum_us: self.0.sum_us.load(Ordering::Relaxed),
        }
    }
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let DurationCounts { counts, sum_us } = self.read();
        let seconds = |us: u64| us as f64 / 1e6;
        let bounds = DURATION_BOUNDS_US
            .iter()
            .map(|us| seconds(*us))
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        encoder.encode_histogram::<NoLabelSet>(seconds(sum_us), counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn bounds_grow_evenly_and_reach_beyond_the_longest_call() {
        assert_eq!(
            (
                DURATION_BOUNDS_US[0],
                DURATION_BOUNDS_US[1],
                DURATION_BOUNDS_US[2]
            ),
            (100, 141, 200)
        );
        assert!(DURATION_BOUNDS_US[BOUNDS - 1] > 30_000_000);
        for pair in DURATION_BOUNDS_US.windows(2) {
            let step = pair[1] as f64 / pair[0] as f64;
            assert!((1.40..1.43).contains(&step), "{pair:?}");
        }
    }

    #[test]
    fn durations_fall_into_the_bucket_that_they_do_not_exceed() {
        let durations = Durations::default();
        for us in [0, 100, 101, 141, 3_600_000_000] {
            durations.observe(Duration::from_micros(us));
        }
        let read = durations.read();
        assert_eq!((read.counts[0], read.counts[1], read.counts[BOUNDS]), (2, 2, 1));
        assert_eq!((read.counts.iter().sum::<u64>(), read.sum_us), (5, 3_600_000_342));
    }

    #[test]
    fn they_are_a_histogram_to_prometheus() {
        let durations = Durations::default();
        durations.observe(Duration::from_micros(150));
        durations.observe(Duration::from_secs(60));
        let mut registry = Registry::default();
        registry.register("d_seconds", "D", durations);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "d_seconds_sum 60.00015",
            "d_seconds_count 2",
            "d_seconds_bucket{le=\"0.0001\"} 0",
            "d_seconds_bucket{le=\"0.0002\"} 1",
            "d_seconds_bucket{le=\"+Inf\"} 2",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
