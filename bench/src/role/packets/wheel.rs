//! A timing wheel: who is due, to within a tick.

use std::time::{Duration, Instant};

/// Times are counted in ticks since the wheel was made. Entries are never taken out: who arms again for an earlier tick gets a second
/// one, and has to know by itself which is its own.
pub(super) struct Wheel {
    began: Instant,
    slots: Vec<Vec<u32>>,
    /// Slots before this one are done.
    next: u32,
}

/// How exact times are: the peer allows acknowledgements 25 ms and hardly more.
pub(in super::super) const TICK: Duration = Duration::from_millis(1);
/// A turn of the wheel is longer than any keep-alive; what is due later is asked once a turn.
const SLOTS: u32 = 32_768;

impl Wheel {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            next: 0,
        }
    }

    /// The tick at which `at` has passed, or an earlier one if it is far away.
    pub(super) fn tick_of(&self, at: Instant) -> u32 {
        let since = at.saturating_duration_since(self.began).as_micros();
        let tick = since.div_ceil(TICK.as_micros()) as u32;
        tick.clamp(self.next, self.next + SLOTS - 1)
    }

    pub(super) fn arm(&mut self, index: u32, tick: u32) {
        self.slots[(tick % SLOTS) as usize].push(index);
    }

    /// The next tick that has passed, and its entries.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(u32, Vec<u32>)> {
        let passed = (now - self.began).as_micros() / TICK.as_micros();
        while u128::from(self.next) <= passed {
            let tick = self.next;
            self.next += 1;
            let slot = &mut self.slots[(tick % SLOTS) as usize];
            if !slot.is_empty() {
                return Some((tick, std::mem::take(slot)));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_when_they_are_due_and_not_before() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let at = start + Duration::from_millis(23);
        let tick = wheel.tick_of(at);
        wheel.arm(7, tick);
        assert_eq!(wheel.pop(start + Duration::from_millis(22)), None);
        assert_eq!(
            wheel.pop(start + Duration::from_millis(25)),
            Some((tick, vec![7]))
        );
        assert_eq!(wheel.pop(start + Duration::from_secs(100)), None);
    }

    #[test]
    fn what_is_far_away_or_past_comes_within_a_turn() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        assert_eq!(wheel.tick_of(start + Duration::from_secs(3600)), SLOTS - 1);
        assert_eq!(wheel.pop(start + Duration::from_millis(50)), None);
        assert_eq!(wheel.tick_of(start), 51);
    }
}
