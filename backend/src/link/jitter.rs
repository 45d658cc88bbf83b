//! Pseudo-random delays from a seed: pure code must not draw its own randomness.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): enough to spread retries, useless for secrets.
#[derive(Debug, Clone)]
pub struct Jitter {
    state: u64,
}

impl Jitter {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Between half of `delay` and all of it.
    pub fn spread(&mut self, delay: Duration) -> Duration {
        delay / 2 + (delay / 2).mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_half_and_whole_and_differ() {
        let mut jitter = Jitter::new(7);
        let delays: Vec<Duration> = (0..100).map(|_| jitter.spread(Duration::from_secs(1))).collect();
        assert!(delays.iter().all(|d| (500..=1000).contains(&d.as_millis())));
        assert!(delays.windows(2).any(|w| w[0] != w[1]));
        assert_eq!(Jitter::new(7).spread(Duration::from_secs(1)), delays[0]);
    }
}
