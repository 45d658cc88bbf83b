//! A hashed timing wheel (Varghese and Lauck 1987, scheme 6): one timer per slot, O(1) to set, move and clear.
//!
//! Lists are intrusive, so that a timer costs 12 bytes and no allocation of its own. What its owner needs is how fine time is
//! cut: sessions are judged to 20 ms, datagrams are acknowledged to 1 ms.

use std::time::{Duration, Instant};

/// What a wheel of sessions rounds up to.
pub const TICK: Duration = Duration::from_millis(20);
/// A later deadline fires at the horizon (164 s ahead with ticks of 20 ms, 8 s with ticks of 1 ms), and is set again by its owner.
const BUCKETS: usize = 8192;
/// Buckets that one word of the map of used ones tells of.
const WORD_BITS: usize = u64::BITS as usize;
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Links {
    next: u32,
    previous: u32,
    bucket: u32,
}

const UNSET: Links = Links {
    next: NONE,
    previous: NONE,
    bucket: NONE,
};

/// Timers of slots `0..n`.
#[derive(Debug)]
pub struct Wheel {
    start: Instant,
    tick_nanos: u64,
    /// All buckets before this tick have been emptied.
    tick: u64,
    /// No timer is due before this tick. A lower bound: exact after [`Wheel::poll`] returned `None`.
    earliest: u64,
    heads: Box<[u32]>,
    /// One bit per bucket that holds a timer, so that the next one is found in a few steps.
    used: Box<[u64]>,
    links: Vec<Links>,
    armed: usize,
}

impl Wheel {
    /// What one more slot costs.
    pub const TIMER_BYTES: usize = size_of::<Links>();

    /// A wheel that rounds deadlines up to multiples of `tick` after `start`.
    pub fn new(start: Instant, tick: Duration) -> Self {
        Self {
            start,
            tick_nanos: (tick.as_nanos() as u64).max(1),
            tick: 0,
            earliest: u64::MAX,
            heads: vec![NONE; BUCKETS].into(),
            used: vec![0; BUCKETS / WORD_BITS].into(),
            links: Vec::new(),
            armed: 0,
        }
    }

    /// Sets the one timer of `slot`, in place of an earlier one.
    pub fn set(&mut self, slot: u32, at: Instant) {
        self.clear(slot);
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, UNSET);
        }
        let due = self.ticks_up(at).max(self.tick + 1);
        let tick = due.min(self.tick + BUCKETS as u64 - 1);
        let bucket = (tick % BUCKETS as u64) as u32;
        let head = self.heads[bucket as usize];
        if head != NONE {
            self.links[head as usize].previous = slot;
        }
        self.links[slot as usize] = Links {
            next: head,
            previous: NONE,
            bucket,
        };
        self.heads[bucket as usize] = slot;
        self.used[bucket as usize / WORD_BITS] |= 1 << (bucket as usize % WORD_BITS);
        self.earliest = self.earliest.min(tick);
        self.armed += 1;
    }

    pub fn clear(&mut self, slot: u32) {
        let Some(links) = self.links.get_mut(slot as usize) else {
            return;
        };
        let Links {
            next,
            previous,
            bucket,
        } = std::mem::replace(links, UNSET);
        if bucket == NONE {
            return;
        }
        self.armed -= 1;
        match previous {
            NONE => self.heads[bucket as usize] = next,
            previous => self.links[previous as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        } else if previous == NONE {
            self.used[bucket as usize / WORD_BITS] &= !(1 << (bucket as usize % WORD_BITS));
        }
    }

    /// Timers that are set.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Takes one slot whose timer is due; call until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<u32> {
        let target = self.ticks_down(now);
        if self.armed == 0 {
            self.tick = self.tick.max(target);
            self.earliest = u64::MAX;
            return None;
        }
        if target < self.earliest {
            // The horizon moves along with the time.
            self.tick = self.tick.max(target);
            return None;
        }
        // A long pause passes each bucket once, not once per tick.
        self.tick = self.tick.max(target.saturating_sub(BUCKETS as u64));
        while let Some(tick) = self.scan().filter(|tick| *tick <= target) {
            self.tick = tick;
            let head = self.heads[(tick % BUCKETS as u64) as usize];
            if head != NONE {
                self.clear(head);
                return Some(head);
            }
        }
        self.tick = target;
        self.earliest = self.scan().unwrap_or(u64::MAX);
        None
    }

    /// The first tick from now on whose bucket holds a timer.
    fn scan(&self) -> Option<u64> {
        let words = self.used.len();
        let at = (self.tick % BUCKETS as u64) as usize;
        let (first, bit) = (at / WORD_BITS, at % WORD_BITS);
        // The word in which the search begins comes again at the end, for the buckets before the first.
        (0..=words).find_map(|step| {
            let word = self.used[(first + step) % words];
            let word = match step {
                0 => word & (u64::MAX << bit),
                _ if step == words => word & !(u64::MAX << bit),
                _ => word,
            };
            let bucket = (first + step) * WORD_BITS + word.trailing_zeros() as usize;
            (word != 0).then(|| self.tick + (bucket - at) as u64)
        })
    }

    /// When to poll next, or earlier; `None` when no timer is set.
    pub fn next_deadline(&self) -> Option<Instant> {
        let after = || Duration::from_nanos(self.earliest.saturating_mul(self.tick_nanos));
        (self.armed > 0 && self.earliest != u64::MAX).then(|| self.start + after())
    }

    fn ticks_up(&self, at: Instant) -> u64 {
        self.nanos(at).div_ceil(self.tick_nanos)
    }

    fn ticks_down(&self, at: Instant) -> u64 {
        self.nanos(at) / self.tick_nanos
    }

    /// Enough for 584 years.
    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Against a map of deadlines: nothing fires early, nothing later than one tick, nothing twice, nothing is lost.
        #[test]
        fn agrees_with_a_sorted_map(operations in prop::collection::vec((0u32..40, 0u64..400_000, any::<bool>(), 0u64..9_000), 1..300)) {
            let start = Instant::now();
            let mut wheel = Wheel::new(start, TICK);
            let mut model = BTreeMap::<u32, Instant>::new();
            let mut now = start;
            let horizon = TICK * (BUCKETS as u32 - 1);
            for (slot, delay_ms, set, step_ms) in operations {
                if set {
                    let at = now + Duration::from_millis(delay_ms);
                    wheel.set(slot, at);
                    model.insert(slot, at);
                } else {
                    wheel.clear(slot);
                    model.remove(&slot);
                }
                now += Duration::from_millis(step_ms);
                while let Some(slot) = wheel.poll(now) {
                    let at = model.remove(&slot).expect("only a set timer fires, once");
                    if at > now {
                        prop_assert!(at > now + TICK || at <= now + horizon + TICK, "only the horizon makes a timer fire early");
                        wheel.set(slot, at);
                        model.insert(slot, at);
                    }
                }
                for at in model.values() {
                    prop_assert!(*at + TICK > now, "a due timer did not fire");
                }
                if let (Some(next), Some(first)) = (wheel.next_deadline(), model.values().min()) {
                    prop_assert!(next <= *first + TICK * 2);
                }
            }
        }
    }

    /// A million idle connections have no timer; those that have one are found without a walk over the others.
    #[test]
    fn a_million_slots_and_fine_ticks() {
        let start = Instant::now();
        let tick = Duration::from_millis(1);
        let mut wheel = Wheel::new(start, tick);
        for slot in 0..1_000_000 {
            wheel.set(slot, start + Duration::from_millis(25 + u64::from(slot % 50)));
        }
        assert_eq!(wheel.armed(), 1_000_000);
        for slot in 1..1_000_000 {
            wheel.clear(slot);
        }
        assert_eq!(wheel.poll(start + Duration::from_millis(24)), None);
        assert_eq!(wheel.poll(start + Duration::from_millis(25)), Some(0));
        assert_eq!((wheel.armed(), wheel.next_deadline()), (0, None));
        wheel.set(999_999, start + Duration::from_secs(60));
        assert_eq!(
            wheel.poll(start + tick * (25 + BUCKETS as u32)),
            Some(999_999),
            "at the horizon"
        );
    }

    impl Wheel {
        pub(crate) fn is_set(&self, slot: u32) -> bool {
            self.links.get(slot as usize).is_some_and(|l| l.bucket != NONE)
        }
    }

    #[test]
    fn deadlines_hold_after_years() {
        let start = Instant::now();
        let years = Duration::from_secs(4 * 366 * 86_400);
        let mut wheel = Wheel::new(start, TICK);
        assert_eq!(wheel.poll(start + years), None);
        wheel.set(1, start + years + Duration::from_secs(1));
        let next = wheel.next_deadline().unwrap();
        assert!(next > start + years && next <= start + years + Duration::from_secs(1) + TICK);
    }

    #[test]
    fn a_long_pause_is_survived() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start, TICK);
        wheel.set(3, start + Duration::from_secs(1));
        assert_eq!(wheel.poll(start + Duration::from_secs(86_400)), Some(3));
        assert_eq!(wheel.poll(start + Duration::from_secs(86_400)), None);
        assert_eq!(wheel.next_deadline(), None);
    }
}
