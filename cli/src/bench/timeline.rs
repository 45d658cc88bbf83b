//! Latency and rate over time: a histogram per interval while replies to it may still come, then its figures alone. Pure.
//!
//! A request counts where it was due, not where its reply came: a stall shows at the moment from which it was felt.

#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The figures of one interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Point {
    /// Begin of the interval since the run's start.
    pub(crate) at_ms: u64,
    /// Requests due in it.
    pub(crate) sent: u64,
    /// Those of them that were answered.
    pub(crate) answered: u64,
    /// Replies that came in it.
    pub(crate) replies: u64,
    #[serde(flatten)]
    pub(crate) latency: Quantiles,
}

/// Milliseconds; `None` where nothing was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
}

impl Quantiles {
    pub(crate) fn of(histogram: &Latencies) -> Self {
        if histogram.0.is_empty() {
            return Self::default();
        }
        let ms = |us: u64| Some((us as f64 / 10.0).round() / 100.0);
        Self {
            p50_ms: ms(histogram.0.value_at_quantile(0.5)),
            p99_ms: ms(histogram.0.value_at_quantile(0.99)),
            // Not the highest value that its bucket could hold.
            max_ms: ms(histogram.0.max()),
        }
    }
}

/// Latencies in microseconds, to 1 %: at most about 12 KiB.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u32>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_US, SIGNIFICANT_DIGITS);
        Self(histogram.expect("the constants are within what the crate allows"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(MAX_US);
        self.0.saturating_record(us);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds that `share` of the requests did not exceed; 0 when there are none.
    pub(crate) fn ms_at(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1000.0
    }
}

/// Intervals from the run's start on.
#[derive(Debug)]
pub(crate) struct Timeline {
    width: Duration,
    /// The intervals up to here are closed.
    closed: Vec<Point>,
    open: VecDeque<Interval>,
}

#[derive(Debug)]
struct Interval {
    sent: u64,
    replies: u64,
    /// Made when the first reply comes.
    latencies: Option<Box<Latencies>>,
}

impl Timeline {
    pub(crate) fn new(width: Duration) -> Self {
        Self {
            width,
            closed: Vec::new(),
            open: VecDeque::new(),
        }
    }

    pub(crate) fn handle_sent(&mut self, due: Duration) {
        if let Some(interval) = self.interval(due) {
            interval.sent += 1;
        }
    }

    pub(crate) fn handle_answered(&mut self, due: Duration, latency: Duration) {
        if let Some(interval) = self.interval(due) {
            let latencies = interval
                .latencies
                .get_or_insert_with(|| Box::new(Latencies::new()));
            latencies.record(latency);
        }
        if let Some(interval) = self.interval(due + latency) {
            interval.replies += 1;
        }
    }

    /// Reduces what ended more than [`KEPT_OPEN`] before `now` to its figures.
    pub(crate) fn close_before(&mut self, now: Duration) {
        let Some(until) = now.checked_sub(KEPT_OPEN) else {
            return;
        };
        let until = self.index(until);
        while self.closed.len() < until {
            match self.open.pop_front() {
                Some(interval) => self.closed.push(interval.point(self.closed.len(), self.width)),
                None => return,
            }
        }
    }

    pub(crate) fn points(&self) -> Vec<Point> {
        let open = (self.closed.len()..).zip(&self.open);
        let open = open.map(|(index, interval)| interval.point(index, self.width));
        self.closed.iter().cloned().chain(open).collect()
    }

    fn index(&self, at: Duration) -> usize {
        (at.as_nanos() / self.width.as_nanos().max(1)) as usize
    }

    /// `None` for what is closed, or so far ahead that it cannot be true.
    fn interval(&mut self, at: Duration) -> Option<&mut Interval> {
        let place = self.index(at).checked_sub(self.closed.len())?;
        if place >= MAX_OPEN {
            return None;
        }
        while self.open.len() <= place {
            self.open.push_back(Interval {
                sent: 0,
                replies: 0,
                latencies: None,
            });
        }
        self.open.get_mut(place)
    }
}

impl Interval {
    fn point(&self, index: usize, width: Duration) -> Point {
        let latency = self.latencies.as_deref().map(Quantiles::of).unwrap_or_default();
        Point {
            at_ms: index as u64 * width.as_millis() as u64,
            sent: self.sent,
            replies: self.replies,
            answered: self.latencies.as_ref().map_or(0, |latencies| latencies.count()),
            latency,
        }
    }
}

/// Longer than any reply is waited for.
pub(crate) const KEPT_OPEN: Duration = Duration::from_secs(70);
/// At a quarter of a second each more than three times [`KEPT_OPEN`], and about 12 MiB when all are full.
const MAX_OPEN: usize = 1024;
const MAX_US: u64 = 120_000_000;
const SIGNIFICANT_DIGITS: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: Duration = Duration::from_millis(250);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn requests_count_where_they_were_due() {
        let mut timeline = Timeline::new(WIDTH);
        timeline.handle_sent(ms(10));
        timeline.handle_sent(ms(260));
        timeline.handle_answered(ms(10), ms(900));
        timeline.handle_answered(ms(260), ms(2));
        let points = timeline.points();
        assert_eq!(points.len(), 4);
        let counts = |p: &Point| (p.at_ms, p.sent, p.answered, p.replies);
        let expected = [(0, 1, 1, 0), (250, 1, 1, 1), (500, 0, 0, 0), (750, 0, 0, 1)];
        assert_eq!(points.iter().map(counts).collect::<Vec<_>>(), expected);
        let max = points[0].latency.max_ms.unwrap();
        assert!((890.0..=910.0).contains(&max), "{max}");
    }

    #[test]
    fn closed_intervals_keep_their_figures() {
        let mut timeline = Timeline::new(WIDTH);
        for second in 0..300 {
            let now = Duration::from_secs(second);
            timeline.handle_sent(now);
            timeline.handle_answered(now, ms(5));
            timeline.close_before(now);
            assert!(timeline.open.len() <= 4 * (KEPT_OPEN.as_secs() as usize + 1));
        }
        let points = timeline.points();
        assert_eq!(points.len(), 1197);
        assert_eq!(points.iter().map(|p| p.answered).sum::<u64>(), 300);
        timeline.handle_answered(ms(0), ms(5));
        assert_eq!(timeline.points(), points, "what is closed stays closed");
    }

    #[test]
    fn a_due_time_far_ahead_costs_nothing() {
        let mut timeline = Timeline::new(WIDTH);
        timeline.handle_sent(Duration::from_secs(1_000_000));
        assert!(timeline.points().is_empty());
    }

    #[test]
    fn quantiles_are_those_of_the_latencies() {
        let mut latencies = Latencies::new();
        assert_eq!(Quantiles::of(&latencies), Quantiles::default());
        (1..=100).for_each(|n| latencies.record(ms(n)));
        latencies.record(Duration::from_secs(1000));
        let found = Quantiles::of(&latencies);
        assert!((50.0..=52.0).contains(&found.p50_ms.unwrap()));
        assert!((99.0..=101.0).contains(&found.p99_ms.unwrap()));
        assert!(
            found.max_ms.unwrap() >= 119_000.0,
            "beyond the scale is at its end"
        );
    }
}
