//! How often somebody may try: a bound on rates per key in a fixed piece of memory.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use siphasher::sip::SipHasher13;

/// Where somebody comes from, as limits count it.
pub type Source = [u8; 8];

/// How far behind the others' a thread's time may be, in milliseconds: longer than any turn of work takes. A clock that was set back by
/// less than this delays attempts by as much, and by more it begins anew.
pub const MAX_SKEW_MS: u64 = 60_000;

/// An IPv4 address, or an IPv6 network of 64 bits, which is what one customer has.
pub fn source_of(address: IpAddr) -> Source {
    let mut source = [0; 8];
    match address.to_canonical() {
        IpAddr::V4(v4) => source[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => source.copy_from_slice(&v6.octets()[..8]),
    }
    source
}

/// The generic cell rate algorithm (ITU-T I.371, as a virtual schedule) over a fixed table of slots, shared by threads without a lock.
///
/// A key belongs to the slot that a keyed hash gives it, so nobody can choose whose slot to fill. Keys that meet in a slot share its
/// rate: with `s` slots and `n` keys that are busy at the same time, a key shares with probability about `n / s`. A slot is 8 bytes.
#[derive(Debug)]
pub struct Throttle {
    seed: (u64, u64),
    /// When each slot will have worked off what it was given, in milliseconds. 0 in one that was never used.
    slots: Box<[AtomicU64]>,
    interval_ms: u64,
    /// How far ahead of now a slot may be and still take one more, in milliseconds.
    tolerance_ms: u64,
}

impl Throttle {
    /// One attempt each `interval_ms` in the long run, and `burst` at once. `seed` is random and secret. There is at least one slot,
    /// and a burst of at least one.
    pub fn new(seed: u128, slots: usize, interval_ms: u64, burst: u32) -> Self {
        Self {
            seed: ((seed >> 64) as u64, seed as u64),
            slots: (0..slots.max(1)).map(|_| AtomicU64::new(0)).collect(),
            interval_ms,
            tolerance_ms: interval_ms.saturating_mul(u64::from(burst.max(1) - 1)),
        }
    }

    /// Counts an attempt of `key`, or says after how many milliseconds one will be allowed; one that is refused costs nothing.
    /// `now_ms` is of one clock that only goes forward, the same for all threads; one that took it a while ago may be up to
    /// [`MAX_SKEW_MS`] behind the others, and gets no more for that.
    pub fn check(&self, key: &[u8], now_ms: u64) -> Result<(), u64> {
        let slot = self.slot(key);
        let mut until = slot.load(Ordering::Relaxed);
        loop {
            let next = self.start(until, now_ms)?.saturating_add(self.interval_ms);
            match slot.compare_exchange_weak(until, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => until = seen,
            }
        }
    }

    /// What [`check`](Self::check) would say, without counting: for attempts that count only when it is known how they end.
    pub fn would_allow(&self, key: &[u8], now_ms: u64) -> Result<(), u64> {
        self.start(self.slot(key).load(Ordering::Relaxed), now_ms)
            .map(drop)
    }

    /// From when an attempt in a slot counts, or after how many milliseconds one will be allowed.
    fn start(&self, until: u64, now_ms: u64) -> Result<u64, u64> {
        let mut from = until.max(now_ms);
        let furthest = self.tolerance_ms.saturating_add(self.interval_ms);
        if from - now_ms > furthest.saturating_add(MAX_SKEW_MS) {
            // Only a clock that went back puts a slot so far ahead; nobody shall wait for it to come again.
            from = now_ms;
        }
        if from - now_ms > self.tolerance_ms {
            return Err(from - now_ms - self.tolerance_ms);
        }
        Ok(from)
    }

    fn slot(&self, key: &[u8]) -> &AtomicU64 {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        hasher.write(key);
        &self.slots[(hasher.finish() % self.slots.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_one_each_interval() {
        let throttle = Throttle::new(1, 64, 100, 3);
        for _ in 0..3 {
            assert_eq!(throttle.check(b"a", 5_000), Ok(()));
        }
        assert_eq!(throttle.check(b"a", 5_000), Err(100));
        assert_eq!(throttle.check(b"a", 5_060), Err(40));
        assert_eq!(throttle.check(b"a", 5_100), Ok(()));
        assert_eq!(throttle.check(b"a", 5_100), Err(100));
        // After a long rest the burst is whole again, and no more than whole.
        for _ in 0..3 {
            assert_eq!(throttle.check(b"a", 60_000), Ok(()));
        }
        assert_eq!(throttle.check(b"a", 60_000), Err(100));
    }

    #[test]
    fn a_question_counts_nothing_and_is_answered_as_an_attempt_would_be() {
        let throttle = Throttle::new(1, 64, 100, 2);
        for _ in 0..2 {
            assert!((0..10).all(|_| throttle.would_allow(b"a", 0).is_ok()));
            assert_eq!(throttle.check(b"a", 0), Ok(()));
        }
        assert_eq!(throttle.would_allow(b"a", 40), Err(60));
        assert_eq!(throttle.would_allow(b"a", 100), Ok(()));
    }

    #[test]
    fn keys_do_not_disturb_each_other_unless_they_share_a_slot() {
        let throttle = Throttle::new(7, 1 << 16, 1_000, 1);
        assert_eq!(throttle.check(b"a", 0), Ok(()));
        assert_eq!(throttle.check(b"b", 0), Ok(()));
        assert_eq!(throttle.check(b"a", 0), Err(1_000));
        let shared = Throttle::new(7, 1, 1_000, 1);
        assert_eq!(shared.check(b"a", 0), Ok(()));
        assert_eq!(shared.check(b"b", 0), Err(1_000));
    }

    #[test]
    fn another_seed_gives_other_slots() {
        let shares = |seed: u128| {
            let throttle = Throttle::new(seed, 2, 1_000, 1);
            throttle.check(b"a", 0).unwrap();
            throttle.check(b"b", 0).is_err()
        };
        let shared = (0..64).filter(|seed| shares(*seed << 64 | *seed)).count();
        assert!((8..56).contains(&shared), "{shared}");
    }

    #[test]
    fn a_thread_that_is_behind_gets_no_more_and_gives_others_no_more() {
        for behind in [1, 99, 101, 5_000, MAX_SKEW_MS] {
            let throttle = Throttle::new(1, 1, 100, 3);
            let now = 1_000_000;
            for _ in 0..3 {
                assert_eq!(throttle.check(b"a", now), Ok(()));
            }
            for _ in 0..10 {
                assert_eq!(throttle.check(b"a", now - behind), Err(100 + behind), "{behind}");
                assert_eq!(throttle.check(b"a", now), Err(100), "{behind}");
            }
            assert_eq!(throttle.check(b"a", now + 100), Ok(()));
        }
    }

    #[test]
    fn a_clock_that_went_back_locks_nobody_out() {
        let throttle = Throttle::new(1, 1, 100, 2);
        throttle.check(b"a", 1_000_000).unwrap();
        for _ in 0..2 {
            assert_eq!(throttle.check(b"a", 10), Ok(()));
        }
        assert_eq!(throttle.check(b"a", 10), Err(100));
        assert_eq!(throttle.check(b"a", 110), Ok(()));
    }

    #[test]
    fn extreme_numbers_are_survived() {
        let throttle = Throttle::new(u128::MAX, 0, u64::MAX, u32::MAX);
        assert_eq!(throttle.check(b"", u64::MAX), Ok(()));
        let free = Throttle::new(0, 1, 0, 0);
        assert!((0..100).all(|_| free.check(b"a", 0).is_ok()));
    }

    #[test]
    fn threads_together_get_no_more_than_the_burst() {
        let throttle = Throttle::new(3, 16, 1_000, 50);
        let allowed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..100).filter(|_| throttle.check(b"a", 7).is_ok()).count()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(allowed, 50);
    }

    proptest! {
        /// Against the definition: in any span of time at most the burst and one for each whole interval, and whoever waits as
        /// told is let in.
        #[test]
        fn no_span_has_more_than_its_share(steps in proptest::collection::vec(0u64..300, 1..100), interval in 1u64..200, burst in 1u32..6) {
            let throttle = Throttle::new(5, 1, interval, burst);
            let mut now = 0;
            let mut taken = Vec::new();
            for step in steps {
                now += step;
                match throttle.check(b"a", now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => {
                        prop_assert!(wait > 0 && wait <= interval);
                        now += wait;
                        prop_assert_eq!(throttle.check(b"a", now), Ok(()));
                        taken.push(now);
                    }
                }
            }
            for (i, from) in taken.iter().enumerate() {
                for (n, to) in taken[i..].iter().enumerate() {
                    prop_assert!((n as u64) < u64::from(burst) + (to - from) / interval);
                }
            }
        }
    }
}
