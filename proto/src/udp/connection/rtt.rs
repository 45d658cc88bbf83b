//! The round-trip time (RFC 9002 section 5) and what is derived from it (section 6).

use std::time::Duration;

/// How long the receiver of a packet may wait before it acknowledges.
pub(super) const MAX_ACK_DELAY: Duration = Duration::from_millis(25);
/// The round-trip time that is assumed before the first sample.
pub(super) const INITIAL_RTT: Duration = Duration::from_millis(333);
/// No timer for loss is shorter.
pub(super) const GRANULARITY: Duration = Duration::from_millis(1);
/// The shortest wait for an acknowledgement before a probe goes out. Longer than short paths need: a device's radio sleeps, either end
/// may be busy, and acknowledgements that come after the probe cost three datagrams where one was enough. When a message goes to
/// very many devices at once, that is the difference between an end that is behind and one that never catches up.
pub(super) const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest wait for an acknowledgement before a probe goes out.
pub(super) const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(8);

/// In microseconds, so that it fits the idle connection; 0 before the first sample. Over an hour counts as an hour.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rtt {
    smoothed: u32,
    variation: u32,
    least: u32,
}

impl Rtt {
    pub(super) fn is_known(&self) -> bool {
        self.smoothed > 0
    }

    pub(super) fn smoothed(&self) -> Duration {
        match self.smoothed {
            0 => INITIAL_RTT,
            known => micros(known),
        }
    }

    fn variation(&self) -> Duration {
        match self.smoothed {
            0 => INITIAL_RTT / 2,
            _ => micros(self.variation),
        }
    }

    /// Takes a sample; `ack_delay` is what the peer says that it waited.
    pub(super) fn update(&mut self, latest: Duration, ack_delay: Duration) {
        let latest = to_micros(latest);
        if !self.is_known() {
            *self = Self {
                smoothed: latest,
                variation: latest / 2,
                least: latest,
            };
            return;
        }
        self.least = self.least.min(latest);
        let delay = to_micros(ack_delay.min(MAX_ACK_DELAY));
        let adjusted = match latest.checked_sub(delay) {
            Some(adjusted) if adjusted >= self.least => adjusted,
            _ => latest,
        };
        // 64 bits, as 3 and 7 times the most do not fit 32.
        let weigh =
            |old: u32, new: u32, share: u64| ((u64::from(old) * (share - 1) + u64::from(new)) / share) as u32;
        self.variation = weigh(self.variation, self.smoothed.abs_diff(adjusted), 4);
        self.smoothed = weigh(self.smoothed, adjusted, 8).max(1);
    }

    /// How long after the last packet a probe is sent, when `expired` of them were already sent in vain.
    pub(super) fn probe_timeout(&self, expired: u32) -> Duration {
        (self.period() * (1 << expired.min(16))).min(MAX_PROBE_TIMEOUT)
    }

    fn period(&self) -> Duration {
        let usual = self.smoothed() + (self.variation() * 4).max(GRANULARITY) + MAX_ACK_DELAY;
        usual.max(MIN_PROBE_TIMEOUT)
    }

    /// A packet is lost when a later one is acknowledged and it is older than this: 9/8 of the round-trip time. No longer than the
    /// longest wait for a probe, which there is none of meanwhile: an acknowledgement that somebody held back must not stop everything.
    pub(super) fn loss_delay(&self, latest: Duration) -> Duration {
        (self.smoothed().max(latest) * 9 / 8).clamp(GRANULARITY, MAX_PROBE_TIMEOUT)
    }

    /// When all packets over such a time are lost, the path is congested for good (section 7.6).
    pub(super) fn persistent_congestion(&self) -> Duration {
        self.period() * 3
    }
}

fn micros(n: u32) -> Duration {
    Duration::from_micros(n.into())
}

fn to_micros(duration: Duration) -> u32 {
    const HOUR: u128 = 3_600_000_000;
    duration.as_micros().clamp(1, HOUR) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn before_a_sample_the_first_probe_waits_a_second() {
        let rtt = Rtt::default();
        // 333 + 4 × 166.5 + 25.
        assert_eq!(rtt.probe_timeout(0), ms(1024));
        assert_eq!(rtt.probe_timeout(1), ms(2048));
        assert_eq!(rtt.probe_timeout(3), MAX_PROBE_TIMEOUT);
        assert_eq!(rtt.probe_timeout(u32::MAX), MAX_PROBE_TIMEOUT);
    }

    #[test]
    fn samples_are_weighed_as_rfc_9002_has_it() {
        let mut rtt = Rtt::default();
        // The first sample stands as it is, whatever delay is said.
        rtt.update(ms(100), ms(20));
        assert_eq!((rtt.smoothed(), rtt.variation()), (ms(100), ms(50)));
        // 7/8 × 100 + 1/8 × 180; 3/4 × 50 + 1/4 × |100 − 180|.
        rtt.update(ms(200), ms(20));
        assert_eq!(
            (rtt.smoothed(), rtt.variation()),
            (ms(110), Duration::from_micros(57_500))
        );
        assert_eq!(rtt.probe_timeout(0), ms(110 + 230 + 25));
        assert_eq!(rtt.persistent_congestion(), ms(3 * 365));
        assert_eq!(rtt.loss_delay(ms(160)), ms(180));
        assert_eq!(rtt.loss_delay(ms(80)), ms(110) * 9 / 8);
        assert_eq!(rtt.loss_delay(ms(30_000)), MAX_PROBE_TIMEOUT);
    }

    #[test]
    fn a_peer_s_delay_is_bounded_and_never_goes_below_the_least() {
        let mut rtt = Rtt::default();
        rtt.update(ms(100), ms(0));
        // Of 1,000 only 25 count.
        rtt.update(ms(180), ms(1000));
        assert_eq!(rtt.smoothed(), Duration::from_micros((7 * 100_000 + 155_000) / 8));
        // 110 − 20 would be below 100: not taken off.
        let mut rtt = Rtt::default();
        rtt.update(ms(100), ms(0));
        rtt.update(ms(110), ms(20));
        assert_eq!(rtt.smoothed(), Duration::from_micros((7 * 100_000 + 110_000) / 8));
    }

    #[test]
    fn no_time_at_all_is_a_sample_too() {
        let mut rtt = Rtt::default();
        for _ in 0..100 {
            rtt.update(Duration::ZERO, Duration::ZERO);
        }
        assert!(rtt.is_known());
        assert_eq!(rtt.probe_timeout(0), MIN_PROBE_TIMEOUT);
        assert_eq!(rtt.loss_delay(Duration::ZERO), GRANULARITY);
        rtt.update(Duration::from_secs(1 << 40), Duration::ZERO);
        assert!(rtt.smoothed() <= Duration::from_secs(3600));
    }
}
