//! What became of each HELLO, so that one that is repeated gets the same answer again, and nothing is begun twice (pure).
//!
//! An attempt is unfinished from its HELLO until the device has shown that it holds its key, was refused, or let its time pass. Answers
//! of finished ones are kept for as long as a device may repeat itself.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use siphasher::sip::SipHasher13;

/// Attempts of one shard that may be unfinished: 4 MiB. Beyond 64 (by default) each must have shown where it is.
pub(super) const MAX_UNFINISHED: usize = 32_768;
/// Finished attempts whose answers are kept, the newest: 2 MiB.
pub(super) const MAX_FINISHED: usize = 16_384;
/// A device gives up an attempt 15 s after its first HELLO.
const KEPT: Duration = Duration::from_secs(16);

/// Which attempt: a keyed hash of all that its HELLO says, so nobody can make one that meets another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AttemptKey(u64);

#[derive(Debug)]
struct Attempt {
    /// The device's own number for it; the hash alone would be too short to trust.
    number: u64,
    /// Where it was begun, and the one place to which it is answered: who gets the answer there is taken to be there.
    from: SocketAddr,
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
    /// It was begun from another address.
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
            finished: VecDeque::new(),
            unfinished: 0,
        }
    }

    pub(super) fn key(&self, parameters: &[u8], credential: &[u8]) -> AttemptKey {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        hasher.write(parameters);
        hasher.write(credential);
        AttemptKey(hasher.finish())
    }

    pub(super) fn find(&self, key: AttemptKey, number: u64, from: SocketAddr) -> Known<'_> {
        match self.attempts.get(&key).filter(|a| a.number == number) {
            None => Known::No,
            Some(attempt) if attempt.from != from => Known::Elsewhere,
            Some(attempt) => attempt.answer.as_deref().map_or(Known::UnderWay, Known::Answered),
        }
    }

    /// How many devices have yet to show that they hold their keys.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// A backend is asked.
    pub(super) fn begin(&mut self, key: AttemptKey, number: u64, from: SocketAddr) -> Result<(), Full> {
        if self.unfinished >= MAX_UNFINISHED {
            return Err(Full);
        }
        self.unfinished += 1;
        let attempt = Attempt {
            number,
            from,
            answer: None,
            finished: false,
        };
        // What another attempt of the same hash has is lost; that one begins again.
        if self.attempts.insert(key, attempt).is_some_and(|a| !a.finished) {
            self.unfinished -= 1;
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
        if let Some(attempt) = self.attempts.remove(&key)
            && !attempt.finished
        {
            self.unfinished -= 1;
        }
    }

    /// Lets go of answers that nobody waits for any more.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.finished.len() > MAX_FINISHED || self.finished.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.finished.pop_front() else {
                return;
            };
            if self.attempts.get(&key).is_some_and(|a| a.finished) {
                self.attempts.remove(&key);
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
        let key = attempts.key(b"parameters", b"credential");
        assert_ne!(key, attempts.key(b"parameters", b"credentiaL"));
        assert_eq!(attempts.find(key, 1, here()), Known::No);
        attempts.begin(key, 1, here()).unwrap();
        assert_eq!(attempts.find(key, 1, here()), Known::UnderWay);
        assert_eq!(
            attempts.find(key, 2, here()),
            Known::No,
            "the hash alone is not trusted"
        );
        attempts.answer(key, b"answer");
        assert_eq!(attempts.find(key, 1, here()), Known::Answered(b"answer"));
        let elsewhere = ([192, 0, 2, 1], 6).into();
        assert_eq!(attempts.find(key, 1, elsewhere), Known::Elsewhere);
        assert_eq!(attempts.unfinished(), 1);
        attempts.finish(now, key);
        attempts.finish(now, key);
        assert_eq!(attempts.unfinished(), 0);
        attempts.expire(now + KEPT - Duration::from_millis(1));
        assert_eq!(attempts.find(key, 1, here()), Known::Answered(b"answer"));
        attempts.expire(now + KEPT);
        assert_eq!(attempts.find(key, 1, here()), Known::No);
        assert!(attempts.attempts.is_empty());
    }

    #[test]
    fn what_came_to_nothing_may_begin_again() {
        let mut attempts = attempts();
        let key = attempts.key(b"", b"x");
        attempts.begin(key, 1, here()).unwrap();
        attempts.forget(key);
        attempts.forget(key);
        assert_eq!(
            (attempts.find(key, 1, here()), attempts.unfinished()),
            (Known::No, 0)
        );
        attempts.begin(key, 1, here()).unwrap();
        attempts.begin(key, 2, here()).unwrap();
        assert_eq!(attempts.unfinished(), 1, "one place, one attempt");
    }

    #[test]
    fn both_bounds_hold() {
        let (mut attempts, now) = (attempts(), Instant::now());
        let keys: Vec<_> = (0..=MAX_UNFINISHED as u64)
            .map(|n| (attempts.key(&n.to_be_bytes(), b""), n))
            .collect();
        for (key, n) in &keys[..MAX_UNFINISHED] {
            attempts.begin(*key, *n, here()).unwrap();
        }
        let (key, n) = keys[MAX_UNFINISHED];
        assert_eq!(attempts.begin(key, n, here()), Err(Full));
        for (key, _) in &keys[..MAX_UNFINISHED] {
            attempts.finish(now, *key);
        }
        assert_eq!(attempts.attempts.len(), MAX_FINISHED);
        attempts.begin(key, n, here()).unwrap();
    }
}
