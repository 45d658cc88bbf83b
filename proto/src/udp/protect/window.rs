//! Which of the last 256 packet numbers were accepted: against replays, and to acknowledge them.

use crate::udp::packet::Ranges;

pub(super) const BITS: u64 = 256;
const WORDS: usize = 4;

/// A ring of bits, one for each of the numbers `next - 256 .. next`.
#[derive(Debug, Default, Clone)]
pub(super) struct Window {
    /// The highest accepted number and 1.
    next: u64,
    bits: [u64; WORDS],
}

impl Window {
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn largest(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }

    /// Whether a number was accepted, or is too old to tell.
    pub(super) fn has(&self, number: u64) -> bool {
        number < self.next && (self.next - number > BITS || self.bit(number))
    }

    fn bit(&self, number: u64) -> bool {
        let (word, mask) = place(number);
        self.bits[word] & mask != 0
    }

    pub(super) fn insert(&mut self, number: u64) {
        if number >= self.next {
            self.forget(number - self.next);
            self.next = number + 1;
        } else if self.next - number > BITS {
            return;
        }
        let (word, mask) = place(number);
        self.bits[word] |= mask;
    }

    /// Makes room for the numbers from `next` on, of which `skipped` were not accepted, and one more.
    fn forget(&mut self, skipped: u64) {
        if skipped >= BITS {
            self.bits = [0; WORDS];
            return;
        }
        for number in self.next..=self.next + skipped {
            let (word, mask) = place(number);
            self.bits[word] &= !mask;
        }
    }

    /// The highest accepted number, and the runs from it downwards.
    pub(super) fn runs(&self) -> Option<(u64, Ranges)> {
        let largest = self.largest()?;
        let mut ranges = Ranges::default();
        let mut left = BITS.min(self.next) as u32;
        let (mut number, mut gap) = (largest, 0);
        while left > 0 {
            let run = self.same_below(number, left, true);
            if run > 0 && !ranges.push(gap, run) {
                break;
            }
            left -= run;
            number = number.wrapping_sub(run.into());
            gap = self.same_below(number, left, false);
            left -= gap;
            number = number.wrapping_sub(gap.into());
        }
        Some((largest, ranges))
    }

    /// How many numbers in a row, from this one downwards and at most `left`, were accepted (or were not).
    fn same_below(&self, number: u64, left: u32, accepted: bool) -> u32 {
        let mut count = 0;
        while count < left {
            let at = number - u64::from(count);
            let (word, _) = place(at);
            let bits = if accepted {
                self.bits[word]
            } else {
                !self.bits[word]
            };
            // The number's bit becomes the highest, those of lower numbers follow.
            let above = 63 - (at % 64) as u32;
            let ones = (bits << above).leading_ones().min(64 - above);
            count += ones;
            if ones < 64 - above {
                break;
            }
        }
        count.min(left)
    }
}

fn place(number: u64) -> (usize, u64) {
    ((number / 64) as usize % WORDS, 1 << (number % 64))
}

#[cfg(test)]
impl Window {
    /// One that accepted all before this number.
    pub(super) fn full(next: u64) -> Self {
        let mut window = Self::default();
        for number in next.saturating_sub(BITS)..next {
            window.insert(number);
        }
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    proptest::proptest! {
        #[test]
        fn it_knows_what_a_set_knows(steps in proptest::collection::vec((0u64..3, 0u64..600), 1..300)) {
            let mut window = Window::default();
            let mut set = BTreeSet::new();
            for (how, distance) in steps {
                let number = match how {
                    0 => window.next(),
                    1 => window.next() + distance % 90,
                    _ => window.next().saturating_sub(distance),
                };
                let next = window.next();
                let old = number < next && next - number > BITS;
                proptest::prop_assert_eq!(window.has(number), old || set.contains(&number));
                window.insert(number);
                if !old {
                    set.insert(number);
                }
                let largest = *set.iter().next_back().unwrap();
                proptest::prop_assert_eq!(window.largest(), Some(largest));
                let mut bytes = Vec::new();
                let (top, ranges) = window.runs().unwrap();
                crate::udp::packet::push_ack(&mut bytes, top, 0, &ranges);
                let packet = crate::udp::packet::Packet::decode(&bytes).unwrap();
                let said: Vec<u64> = packet.ack.unwrap().ranges().flat_map(|(low, high)| (low..=high).rev()).collect();
                let kept: Vec<u64> = set.iter().rev().copied().take_while(|n| largest - n < BITS).collect();
                proptest::prop_assert_eq!(&said[..], &kept[..said.len()]);
                let runs = packet.ack.unwrap().ranges().count();
                proptest::prop_assert!(runs == 32 || said.len() == kept.len());
            }
        }
    }
}
