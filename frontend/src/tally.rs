//! How many of something each of many has at a time, over all shards: exact, and as large as what is counted.

use std::hash::Hasher;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use siphasher::sip::SipHasher13;

/// Counts by key. Whoever has none takes no memory, and nobody takes another's place: two that are counted meet in one key with a
/// probability of their number squared in 2^65.
pub(crate) struct Tally {
    seed: (u64, u64),
    counts: Mutex<FxHashMap<TallyKey, u32>>,
}

/// A keyed hash of who is counted, so that strangers can neither choose one nor make many meet in the table. Not zero, so that whoever
/// may have one needs no more room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TallyKey(NonZeroU64);

impl Tally {
    /// `seed` is random and secret.
    pub(crate) fn new(seed: u128) -> Self {
        Self {
            seed: ((seed >> 64) as u64, seed as u64),
            counts: Mutex::default(),
        }
    }

    /// Whom these parts name; all but the last have one length each.
    pub(crate) fn key(&self, parts: &[&[u8]]) -> TallyKey {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        parts.iter().for_each(|part| hasher.write(part));
        TallyKey(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }

    /// Counts one more, unless there are `most` already.
    pub(crate) fn enter(&self, key: TallyKey, most: u32) -> bool {
        let mut counts = self.counts();
        let count = counts.get(&key).copied().unwrap_or(0);
        let has_room = count < most;
        if has_room {
            counts.insert(key, count + 1);
        }
        has_room
    }

    /// Counts one less.
    pub(crate) fn leave(&self, key: TallyKey) {
        let mut counts = self.counts();
        match counts.get_mut(&key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => drop(counts.remove(&key)),
            None => debug_assert!(false, "somebody left twice"),
        }
    }

    fn counts(&self) -> MutexGuard<'_, FxHashMap<TallyKey, u32>> {
        // No call between a lock and its end can panic half-way.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_count_and_nothing_is_kept_of_who_has_none() {
        let tally = Tally::new(7);
        let keys: Vec<_> = (0..100_000_u32).map(|n| tally.key(&[&n.to_be_bytes()])).collect();
        for key in &keys {
            assert!(tally.enter(*key, 1));
        }
        assert!(keys.iter().all(|key| !tally.enter(*key, 1)));
        assert!(keys.iter().all(|key| tally.enter(*key, 2)));
        for key in keys.iter().chain(&keys) {
            tally.leave(*key);
        }
        assert!(tally.counts().is_empty());
    }

    #[test]
    fn threads_together_get_no_more_than_there_is() {
        let tally = Tally::new(3);
        let key = tally.key(&[b"a"]);
        let entered: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..100).filter(|_| tally.enter(key, 50)).count()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(entered, 50);
    }
}
