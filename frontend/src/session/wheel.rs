//! A hashed timing wheel (Varghese and Lauck 1987, scheme 6): one timer per slot, O(1) to set, move and clear.
//!
//! Lists are intrusive, so that a timer costs 12 bytes and no allocation of its own.

use std::time::{Duration, Instant};

/// What the wheel rounds up to.
pub const TICK: Duration = Duration::from_millis(20);
/// A later deadline fires at the horizon, 164 s ahead, and is set again by its owner.
const BUCKETS: usize = 8192;
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
    /// All buckets before this tick have been emptied.
    tick: u64,
    /// No timer is due before this tick. A lower bound: exact after [`Wheel::poll`] returned `None`.
    earliest: u64,
    heads: Box<[u32]>,
    links: Vec<Links>,
    armed: usize,
}

impl Wheel {
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            tick: 0,
            earliest: u64::MAX,
            heads: vec![NONE; BUCKETS].into(),
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
        let due = ticks_up(at.saturating_duration_since(self.start)).max(self.tick + 1);
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
        }
    }

    /// Takes one slot whose timer is due; call until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<u32> {
        let target = ticks_down(now.saturating_duration_since(self.start));
        if self.armed == 0 {
            self.tick = self.tick.max(target);
            self.earliest = u64::MAX;
            return None;
        }
        if target < self.earliest {
            return None;
        }
        // A long pause passes each bucket once, not once per tick.
        self.tick = self.tick.max(target.saturating_sub(BUCKETS as u64));
        while self.tick <= target {
            let head = self.heads[(self.tick % BUCKETS as u64) as usize];
            if head != NONE {
                self.clear(head);
                return Some(head);
            }
            self.tick += 1;
        }
        self.tick = target;
        self.earliest = self.scan().unwrap_or(u64::MAX);
        None
    }

    fn scan(&self) -> Option<u64> {
        (self.tick..self.tick + BUCKETS as u64)
            .find(|tick| self.heads[(tick % BUCKETS as u64) as usize] != NONE)
    }

    /// When to poll next, or earlier; `None` when no timer is set.
    pub fn next_deadline(&self) -> Option<Instant> {
        let after = || Duration::from_millis(self.earliest.saturating_mul(TICK.as_millis() as u64));
        (self.armed > 0 && self.earliest != u64::MAX).then(|| self.start + after())
    }
}

fn ticks_up(elapsed: Duration) -> u64 {
    elapsed.as_nanos().div_ceil(TICK.as_nanos()) as u64
}

fn ticks_down(elapsed: Duration) -> u64 {
    (elapsed.as_nanos() / TICK.as_nanos()) as u64
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
            let mut wheel = Wheel::new(start);
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

    impl Wheel {
        pub(crate) fn is_set(&self, slot: u32) -> bool {
            self.links.get(slot as usize).is_some_and(|l| l.bucket != NONE)
        }
    }

    #[test]
    fn deadlines_hold_after_years() {
        let start = Instant::now();
        let years = Duration::from_secs(4 * 366 * 86_400);
        let mut wheel = Wheel::new(start);
        assert_eq!(wheel.poll(start + years), None);
        wheel.set(1, start + years + Duration::from_secs(1));
        let next = wheel.next_deadline().unwrap();
        assert!(next > start + years && next <= start + years + Duration::from_secs(1) + TICK);
    }

    #[test]
    fn a_long_pause_is_survived() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.set(3, start + Duration::from_secs(1));
        assert_eq!(wheel.poll(start + Duration::from_secs(86_400)), Some(3));
        assert_eq!(wheel.poll(start + Duration::from_secs(86_400)), None);
        assert_eq!(wheel.next_deadline(), None);
    }
}
