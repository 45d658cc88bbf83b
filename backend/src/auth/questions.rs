//! What may be asked of the operator's key endpoint, and how often in vain.
//!
//! Anybody can name a device with a key id of the endpoint's, and nothing can be verified before the endpoint has answered. So what
//! counts is how it ends: a source takes from its share by questions after which no device is admitted. Devices that are admitted take
//! nothing, however many share an address.
//!
//! A device that is not known and a wrong key are treated alike, and what one source asked in vain binds no other: so nobody learns
//! from the time that an answer takes which devices there are, and nobody keeps a device elsewhere from being asked for. Nor is
//! remembered for whom was asked in vain: anybody can use a device's name, and on `udp` its address. Who is not asked for is told to come
//! back, for it may be a device whose neighbour used the share.

use std::time::Instant;

use holdfast_proto::throttle::{Source, Throttle};

use crate::dispatch::Now;

/// Places in which sources' failures are counted: 512 KiB. Sources that share one share its failures.
const SOURCE_SLOTS: usize = 1 << 16;

/// What the configuration says of questions.
#[derive(Debug, Clone)]
pub struct QuestionSettings {
    /// The key ids that the endpoint has; `None`: it may have any.
    pub key_ids: Option<Vec<String>>,
    /// Questions of one source after which no device is admitted, in a minute, which may also be at once. 0: any number.
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
            started,
        }
    }

    /// Whether the endpoint may be asked for a key of `key_id`.
    pub(super) fn permit(&self, source: Source, key_id: &str, now: Now) -> Result<(), NotAsked> {
        let has = |ids: &Vec<String>| ids.iter().any(|id| id == key_id);
        if !self.key_ids.as_ref().is_none_or(has) {
            return Err(NotAsked::KeyId);
        }
        let now_ms = self.since_start(now);
        match &self.failures {
            Some(failures) => failures.would_allow(&source, now_ms).map_err(NotAsked::TooMany),
            None => Ok(()),
        }
    }

    /// The endpoint answered, and the device was not admitted.
    pub(super) fn on_vain(&self, source: Source, now: Now) {
        let now_ms = self.since_start(now);
        if let Some(failures) = &self.failures {
            // Of those under way together a few can be too many; the next is not asked.
            let _ = failures.check(&source, now_ms);
        }
    }

    fn since_start(&self, now: Now) -> u64 {
        now.instant.saturating_duration_since(self.started).as_millis() as u64
    }
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

        fn permit(&self, source: Source, at_ms: u64) -> Result<(), NotAsked> {
            self.questions.permit(source, "cloud", self.at(at_ms))
        }

        fn fail(&self, source: Source, at_ms: u64) {
            self.questions.on_vain(source, self.at(at_ms));
        }
    }

    #[test]
    fn only_key_ids_that_the_endpoint_has_are_asked_for() {
        let world = World::new(Some(&["a", "cloud"]), 60);
        assert_eq!(world.permit(HERE, 0), Ok(()));
        let other = world.questions.permit(HERE, "b", world.at(0));
        assert_eq!(other, Err(NotAsked::KeyId));
    }

    #[test]
    fn a_source_has_so_many_failures_and_others_their_own() {
        let world = World::new(None, 60);
        for _ in 0..60 {
            assert_eq!(world.permit(HERE, 0), Ok(()));
            world.fail(HERE, 0);
        }
        assert_eq!(world.permit(HERE, 0), Err(NotAsked::TooMany(1_000)));
        assert_eq!(world.permit(ELSEWHERE, 0), Ok(()));
        assert_eq!(world.permit(HERE, 1_000), Ok(()));
        world.fail(HERE, 1_000);
        assert_eq!(world.permit(HERE, 1_000), Err(NotAsked::TooMany(1_000)));
    }

    #[test]
    fn what_does_not_fail_takes_nothing() {
        let world = World::new(None, 1);
        assert!((0..1_000).all(|_| world.permit(HERE, 0).is_ok()));
        let unbounded = World::new(None, 0);
        for _ in 0..1_000 {
            assert_eq!(unbounded.permit(HERE, 0), Ok(()));
            unbounded.fail(HERE, 0);
        }
    }
}
