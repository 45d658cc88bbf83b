//! What may be asked of the operator's key endpoint, and how often in vain.
//!
//! Anybody can name a device with a key id of the endpoint's, and nothing can be verified before the endpoint has answered. So what
//! counts is how it ends: a source takes from its share by questions that come to nothing, and what came to nothing is not asked again
//! for a while. Devices with their keys take nothing, however many share an address.
//!
//! A device that is not known and a wrong key are treated alike, and what one source asked in vain binds no other: so nobody learns
//! from the time that an answer takes which devices there are, and nobody keeps a device elsewhere from being asked for. Who is not
//! asked for is told to come back, for it may be a device whose neighbour used its name.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use holdfast_proto::recent::Recent;
use holdfast_proto::throttle::{Source, Throttle};
use sha2::{Digest, Sha256};

use crate::dispatch::Now;

/// Places in which sources' failures are counted: 512 KiB. Sources that share one share its failures.
const SOURCE_SLOTS: usize = 1 << 16;
/// Failures that are remembered: 320 KiB at most. The oldest is forgotten for one that finds no room.
const MAX_REMEMBERED: usize = 4096;
/// For so long is not asked again what came to nothing: a new device has to wait no longer than it would between two tries.
const REMEMBERED_MS: u64 = 10_000;

/// What the configuration says of questions.
#[derive(Debug, Clone)]
pub struct QuestionSettings {
    /// The key ids that the endpoint has; `None`: it may have any.
    pub key_ids: Option<Vec<String>>,
    /// Questions of one source that may come to nothing in a minute, which it may also do at once. 0: any number.
    pub failures_per_minute: u32,
}

/// Why the endpoint is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotAsked {
    /// It does not have such keys.
    KeyId,
    /// After so many milliseconds this source may ask again.
    TooMany(u64),
}

/// Decides what is asked.
pub(super) struct Questions {
    key_ids: Option<Vec<String>>,
    failures: Option<Throttle>,
    vain: Mutex<Recent<[u8; 32]>>,
    started: Instant,
}

impl Questions {
    /// `seed` is random and secret.
    pub(super) fn new(settings: QuestionSettings, seed: u128, started: Instant) -> Self {
        let per_minute = settings.failures_per_minute;
        let failures = (per_minute > 0)
            .then(|| Throttle::new(seed, SOURCE_SLOTS, 60_000 / u64::from(per_minute), per_minute));
        Self {
            key_ids: settings.key_ids,
            failures,
            vain: Mutex::new(Recent::new(MAX_REMEMBERED, REMEMBERED_MS)),
            started,
        }
    }

    /// Whether the endpoint may be asked for a key of `key_id` for the device whose whole identity is `identity`.
    pub(super) fn permit(
        &self,
        source: Source,
        (key_id, identity): (&str, &[u8]),
        now: Now,
    ) -> Result<(), NotAsked> {
        let has = |ids: &Vec<String>| ids.iter().any(|id| id == key_id);
        if !self.key_ids.as_ref().is_none_or(has) {
            return Err(NotAsked::KeyId);
        }
        let now_ms = self.since_start(now);
        if self.vain().contains(&question(source, identity), now_ms) {
            return Err(NotAsked::TooMany(REMEMBERED_MS));
        }
        match &self.failures {
            Some(failures) => failures.would_allow(&source, now_ms).map_err(NotAsked::TooMany),
            None => Ok(()),
        }
    }

    /// The key did not fit, or there was none.
    pub(super) fn on_vain(&self, source: Source, identity: &[u8], now: Now) {
        self.vain()
            .insert(question(source, identity), self.since_start(now));
        self.on_failure(source, now);
    }

    /// The endpoint answered, and the device was not admitted.
    pub(super) fn on_failure(&self, source: Source, now: Now) {
        let now_ms = self.since_start(now);
        if let Some(failures) = &self.failures {
            // Of those under way together a few can be too many; the next is not asked.
            let _ = failures.check(&source, now_ms);
        }
    }

    fn since_start(&self, now: Now) -> u64 {
        now.instant.saturating_duration_since(self.started).as_millis() as u64
    }

    fn vain(&self) -> MutexGuard<'_, Recent<[u8; 32]>> {
        self.vain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names who asked for whom.
fn question(source: Source, identity: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(source)
        .chain_update(identity)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HERE: Source = [1; 8];
    const ELSEWHERE: Source = [2; 8];

    struct World {
        questions: Questions,
        start: Instant,
    }

    impl World {
        fn new(key_ids: Option<&[&str]>, failures_per_minute: u32) -> Self {
            let start = Instant::now();
            let settings = QuestionSettings {
                key_ids: key_ids.map(|ids| ids.iter().map(|&id| id.to_owned()).collect()),
                failures_per_minute,
            };
            let questions = Questions::new(settings, 7, start);
            Self { questions, start }
        }

        fn at(&self, ms: u64) -> Now {
            Now {
                instant: self.start + Duration::from_millis(ms),
                unix_ms: 0,
            }
        }

        fn permit(&self, source: Source, device: &str, at_ms: u64) -> Result<(), NotAsked> {
            let identity = ("cloud", device.as_bytes());
            self.questions.permit(source, identity, self.at(at_ms))
        }

        fn fail(&self, source: Source, device: &str, at_ms: u64) {
            self.questions.on_vain(source, device.as_bytes(), self.at(at_ms));
        }
    }

    #[test]
    fn only_key_ids_that_the_endpoint_has_are_asked_for() {
        let world = World::new(Some(&["a", "cloud"]), 60);
        assert_eq!(world.permit(HERE, "tv", 0), Ok(()));
        let other = world.questions.permit(HERE, ("b", b"tv"), world.at(0));
        assert_eq!(other, Err(NotAsked::KeyId));
    }

    #[test]
    fn a_source_has_so_many_failures_and_others_their_own() {
        let world = World::new(None, 60);
        for n in 0..60 {
            assert_eq!(world.permit(HERE, &format!("d{n}"), 0), Ok(()));
            world.fail(HERE, &format!("d{n}"), 0);
        }
        assert_eq!(world.permit(HERE, "another", 0), Err(NotAsked::TooMany(1_000)));
        assert_eq!(world.permit(ELSEWHERE, "another", 0), Ok(()));
        assert_eq!(world.permit(HERE, "another", 1_000), Ok(()));
        world.fail(HERE, "another", 1_000);
        assert_eq!(
            world.permit(HERE, "one more", 1_000),
            Err(NotAsked::TooMany(1_000))
        );
    }

    #[test]
    fn what_does_not_fail_takes_nothing() {
        let world = World::new(None, 1);
        assert!((0..1_000).all(|n| world.permit(HERE, &format!("d{n}"), 0).is_ok()));
        let unbounded = World::new(None, 0);
        for n in 0..1_000 {
            assert_eq!(unbounded.permit(HERE, &format!("d{n}"), 0), Ok(()));
            unbounded.fail(HERE, &format!("d{n}"), 0);
        }
    }

    #[test]
    fn what_came_to_nothing_is_not_asked_again_from_there_for_a_while() {
        let world = World::new(None, 60);
        world.fail(HERE, "tv", 0);
        let again = world.permit(HERE, "tv", REMEMBERED_MS);
        assert_eq!(again, Err(NotAsked::TooMany(REMEMBERED_MS)));
        assert_eq!(world.permit(ELSEWHERE, "tv", 0), Ok(()));
        assert_eq!(world.permit(HERE, "lamp", 0), Ok(()));
        assert_eq!(world.permit(HERE, "tv", REMEMBERED_MS + 1), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let world = World::new(None, 0);
        for n in 0..=MAX_REMEMBERED {
            world.fail(HERE, &format!("d{n}"), 0);
        }
        assert_eq!(world.permit(HERE, "d0", 0), Ok(()), "forgotten for the last one");
        let remembered = world.permit(HERE, "d1", 0);
        assert_eq!(remembered, Err(NotAsked::TooMany(REMEMBERED_MS)));
    }
}
