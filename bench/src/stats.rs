//! Medians, spreads and slopes.

use serde::Serialize;

/// One figure over several rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Sample {
    /// At least one round.
    pub(crate) fn new(rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        } else {
            sorted[middle]
        };
        Self {
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            rounds,
        }
    }

    /// Round by round: what disturbed a round disturbed both of its halves.
    pub(crate) fn ratio(&self, baseline: &Self) -> Self {
        Self::paired(self, baseline, |ours, theirs| ours / theirs)
    }

    pub(crate) fn minus(&self, baseline: &Self) -> Self {
        Self::paired(self, baseline, |ours, theirs| ours - theirs)
    }

    fn paired(a: &Self, b: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self::new(a.rounds.iter().zip(&b.rounds).map(|(a, b)| f(*a, *b)).collect())
    }
}

/// The least-squares slope of y over x.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let covariance: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    covariance / variance
}

/// The value below which the fraction `q` lies. Sorts.
pub(crate) fn quantile(values: &mut [u64], q: f64) -> u64 {
    values.sort_unstable();
    let at = (values.len() as f64 * q) as usize;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_paired_ratios() {
        let (a, b) = (Sample::new(vec![4.0, 9.0, 2.0]), Sample::new(vec![2.0, 3.0, 2.0]));
        assert_eq!((a.median, a.min, a.max), (4.0, 2.0, 9.0));
        assert_eq!(a.ratio(&b).rounds, [2.0, 3.0, 1.0]);
        assert_eq!(a.minus(&b).median, 2.0);
        assert_eq!(Sample::new(vec![1.0, 2.0]).median, 1.5);
    }

    #[test]
    fn a_slope_ignores_what_is_constant() {
        let points = [(1.0, 107.0), (2.0, 114.0), (5.0, 135.0)];
        assert!((slope(&points) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn quantiles() {
        let mut values: Vec<u64> = (0..100).rev().collect();
        assert_eq!(
            (quantile(&mut values, 0.5), quantile(&mut values, 0.99)),
            (50, 99)
        );
        assert_eq!(quantile(&mut [], 0.5), 0);
    }
}
