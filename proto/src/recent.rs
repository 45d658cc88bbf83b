//! What came lately: a memory that is bounded in time and number.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

/// Keys, each remembered for a span of time; for one that finds no room the oldest is forgotten.
#[derive(Debug)]
pub struct Recent<K> {
    limit: usize,
    span_ms: u64,
    seen: HashSet<K>,
    /// In the order in which they came, each with the time until which it is remembered.
    order: VecDeque<(u64, K)>,
}

impl<K: Copy + Eq + Hash> Recent<K> {
    /// Remembers at most `limit` keys, and at least one, each for `span_ms`.
    pub fn new(limit: usize, span_ms: u64) -> Self {
        Self {
            limit: limit.max(1),
            span_ms,
            seen: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether this came within the span.
    pub fn contains(&mut self, key: &K, now_ms: u64) -> bool {
        while self.order.front().is_some_and(|(until, _)| *until < now_ms) {
            self.forget_oldest();
        }
        self.seen.contains(key)
    }

    /// Remembers a key, or says `false` if it is remembered already, which does not make that last longer.
    pub fn insert(&mut self, key: K, now_ms: u64) -> bool {
        if self.contains(&key, now_ms) {
            return false;
        }
        if self.order.len() >= self.limit {
            self.forget_oldest();
        }
        self.order.push_back((now_ms.saturating_add(self.span_ms), key));
        self.seen.insert(key)
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.order.pop_front() {
            self.seen.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_for_its_span_and_no_longer() {
        let mut recent = Recent::new(10, 100);
        assert!(!recent.contains(&1, 50) && recent.insert(1, 50));
        assert!(recent.contains(&1, 150) && !recent.insert(1, 150));
        assert!(!recent.contains(&1, 151) && recent.insert(1, 151));
    }

    #[test]
    fn the_oldest_makes_room_and_what_is_known_takes_none() {
        let mut recent = Recent::new(3, 100);
        for key in 0..5 {
            assert!(recent.insert(key, 0));
            assert!(recent.seen.len() <= 3 && recent.order.len() == recent.seen.len());
        }
        for _ in 0..10 {
            assert!(!recent.insert(4, 0));
        }
        assert_eq!(
            [0, 1, 2, 3, 4].map(|key| recent.contains(&key, 0)),
            [false, false, true, true, true]
        );
        assert!(recent.insert(9, 101));
        assert_eq!(recent.order.len(), 1);
    }
}
