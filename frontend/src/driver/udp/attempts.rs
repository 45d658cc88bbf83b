//! What became of each HELLO, so that one that is repeated gets the same answer again, and nothing is begun twice (pure).
//!
//! An attempt is unfinished from its HELLO until the device has shown that it holds its key, was refused, or let its time pass. Answers
//! of finished ones are kept for as long as a device may repeat itself.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::{Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use siphasher::sip::SipHasher13;

/// Attempts of one shard that may be unfinished: 5 MiB. Beyond 64 (by default) each must have shown where it is.
pub(super) const MAX_UNFINISHED: usize = 32_768;
/// Finished attempts whose answers are kept, the newest: 3 MiB.
pub(super) const MAX_FINISHED: usize = 16_384;
/// A device gives up an attempt 15 s after its first HELLO.
const KEPT: Duration = Duration::from_secs(16);

/// Which attempt: a keyed hash of all that its HELLO says, so nobody can make one that meets another's, and one of where it was begun.
/// Who gets the answer there is taken to be there, so the same HELLO from elsewhere is another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AttemptKey {
    said: u64,
    from: u64,
}

#[derive(Debug)]
struct Attempt {
    /// The device's own number for it; the hash alone would be too short to trust.
    number: u64,
    /// `None` while a backend judges it.
    answer: Option<Box<[u8]>>,
    finished: bool,
}

/// What is known of a HELLO.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known<'a> {
    No,
    /// A backend judges it.
    UnderWay,
    /// It was begun from another address, not from this one.
    Elsewhere,
    Answered(&'a [u8]),
}

/// There are [`MAX_UNFINISHED`] already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The attempts of one shard.
#[derive(Debug)]
pub(super) struct Attempts {
    seed: (u64, u64),
    attempts: FxHashMap<AttemptKey, Attempt>,
    /// How many of them say the same, by what they say.
    saying: FxHashMap<u64, u32>,
    /// Oldest first; some are gone already.
    finished: VecDeque<(Instant, AttemptKey)>,
    unfinished: usize,
}

impl Attempts {
    /// `seed` is random and secret.
    pub(super) fn new(seed: u128) -> Self {
        Self {
            seed: ((seed >> 64) as u64, seed as u64),
            attempts: FxHashMap::default(),
            saying: FxHashMap::default(),
            finished: VecDeque::new(),
            unfinished: 0,
        }
    }

    pub(super) fn key(&self, from: SocketAddr, parameters: &[u8], credential: &[u8]) -> AttemptKey {
        let hasher = || SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        let (mut said, mut place) = (hasher(), hasher());
        said.write(parameters);
        said.write(credential);
        from.hash(&mut place);
        AttemptKey {
            said: said.finish(),
            from: place.finish(),
        }
    }

    pub(super) fn find(&self, key: AttemptKey, number: u64) -> Known<'_> {
        match self.attempts.get(&key).filter(|a| a.number == number) {
            Some(attempt) => attempt.answer.as_deref().map_or(Known::UnderWay, Known::Answered),
            None if self.saying.contains_key(&key.said) => Known::Elsewhere,
            None => Known::No,
        }
    }

    /// How many devices have yet to show that they hold their keys.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// A backend is asked.
    pub(super) fn begin(&mut self, key: AttemptKey, number: u64) -> Result<(), Full> {
        if self.unfinished >= MAX_UNFINISHED {
            return Err(Full);
        }
        self.unfinished += 1;
        let attempt = Attempt {
            number,
            answer: None,
            finished: false,
        };
        // What another attempt of the same hash has is lost; that one begins again.
        match self.attempts.insert(key, attempt) {
            Some(before) => self.unfinished -= usize::from(!before.finished),
            None => *self.saying.entry(key.said).or_default() += 1,
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, key: AttemptKey, answer: &[u8]) {
        if let Some(attempt) = self.attempts.get_mut(&key) {
            attempt.answer = Some(answer.into());
        }
    }

    /// The device was refused, or has shown that it holds its key.
    pub(super) fn finish(&mut self, now: Instant, key: AttemptKey) {
        let Some(attempt) = self.attempts.get_mut(&key).filter(|a| !a.finished) else {
            return;
        };
        attempt.finished = true;
        self.unfinished -= 1;
        self.finished.push_back((now + KEPT, key));
        self.expire(now);
    }

    /// It came to nothing: whoever asks again begins anew.
    pub(super) fn forget(&mut self, key: AttemptKey) {
        if let Some(attempt) = self.remove(key)
            && !attempt.finished
        {
            self.unfinished -= 1;
        }
    }

    fn remove(&mut self, key: AttemptKey) -> Option<Attempt> {
        let attempt = self.attempts.remove(&key)?;
        if let Entry::Occupied(mut saying) = self.saying.entry(key.said) {
            *saying.get_mut() -= 1;
            if *saying.get() == 0 {
                saying.remove();
            }
        }
        Some(attempt)
    }

    /// Lets go of answers that nobody waits for any more.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.finished.len() > MAX_FINISHED || self.finished.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.finished.pop_front() else {
                return;
            };
            if self.attempts.get(&key).is_some_and(|a| a.finished) {
                self.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> SocketAddr {
        ([192, 0, 2, 1], 5).into()
    }

    fn attempts() -> Attempts {
        Attempts::new(0x1234_5678_9abc_def0_1122_3344_5566_7788)
    }

    #[test]
    fn an_attempt_is_judged_once_and_its_answer_kept_for_its_time() {
        let (mut attempts, now) = (attempts(), Instant::now());
        let key = attempts.key(here(), b"parameters", b"credential");
        assert_ne!(key, attempts.key(here(), b"parameters", b"credentiaL"));
        assert_eq!(attempts.find(key, 1), Known::No);
        attempts.begin(key, 1).unwrap();
        assert_eq!(attempts.find(key, 1), Known::UnderWay);
        assert_eq!(
            attempts.find(key, 2),
            Known::Elsewhere,
            "the hash alone is not trusted"
        );
        attempts.answer(key, b"answer");
        assert_eq!(attempts.find(key, 1), Known::Answered(b"answer"));
        let elsewhere = attempts.key(([192, 0, 2, 1], 6).into(), b"parameters", b"credential");
        assert_eq!(attempts.find(elsewhere, 1), Known::Elsewhere);
        assert_eq!(attempts.unfinished(), 1);
        attempts.finish(now, key);
        attempts.finish(now, key);
        assert_eq!(attempts.unfinished(), 0);
        attempts.expire(now + KEPT - Duration::from_millis(1));
        assert_eq!(attempts.find(key, 1), Known::Answered(b"answer"));
        attempts.expire(now + KEPT);
        assert_eq!(attempts.find(key, 1), Known::No);
        assert_eq!(attempts.find(elsewhere, 1), Known::No);
        assert!(attempts.attempts.is_empty() && attempts.saying.is_empty());
    }

    #[test]
    fn the_same_from_two_places_is_two_attempts() {
        let mut attempts = attempts();
        let places = [5, 6].map(|port| attempts.key(([192, 0, 2, 1], port).into(), b"p", b"c"));
        for key in places {
            attempts.begin(key, 1).unwrap();
        }
        attempts.answer(places[0], b"first");
        assert_eq!(attempts.find(places[0], 1), Known::Answered(b"first"));
        assert_eq!(attempts.find(places[1], 1), Known::UnderWay);
        attempts.forget(places[0]);
        assert_eq!(attempts.find(places[0], 1), Known::Elsewhere);
        attempts.forget(places[1]);
        assert_eq!(attempts.find(places[0], 1), Known::No);
        assert_eq!(attempts.unfinished(), 0);
    }

    #[test]
    fn what_came_to_nothing_may_begin_again() {
        let mut attempts = attempts();
        let key = attempts.key(here(), b"", b"x");
        attempts.begin(key, 1).unwrap();
        attempts.forget(key);
        attempts.forget(key);
        assert_eq!((attempts.find(key, 1), attempts.unfinished()), (Known::No, 0));
        attempts.begin(key, 1).unwrap();
        attempts.begin(key, 2).unwrap();
        assert_eq!(attempts.unfinished(), 1, "one place, one attempt");
    }

    #[test]
    fn both_bounds_hold() {
        let (mut attempts, now) = (attempts(), Instant::now());
        let keys: Vec<_> = (0..=MAX_UNFINISHED as u64)
            .map(|n| (attempts.key(here(), &n.to_be_bytes(), b""), n))
            .collect();
        for (key, n) in &keys[..MAX_UNFINISHED] {
            attempts.begin(*key, *n).unwrap();
        }
        let (key, n) = keys[MAX_UNFINISHED];
        assert_eq!(attempts.begin(key, n), Err(Full));
        for (key, _) in &keys[..MAX_UNFINISHED] {
            attempts.finish(now, *key);
        }
        assert_eq!(attempts.attempts.len(), MAX_FINISHED);
        attempts.begin(key, n).unwrap();
    }
}
