//! Whether a first message is new: a replay is refused before anything on the curve is computed for it.
//!
//! A message names the time at which it was made. Far from ours it is refused, and one that is near is remembered until it is not near
//! any more. Whoever recorded what backends said can thus spend nothing of ours but the few hashes that verify it. Backends' clocks must
//! be right for that, as they must for tokens and devices' clocks anyway.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use holdfast_proto::tunnel::EPHEMERAL_BYTES;

/// How far a backend's clock may be off ours: as much as a device's may be off a backend's, by default.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(120);
/// Messages that are remembered: 320 KiB at most. Only who has the key makes new ones, and backends make about one a second while they
/// get no tunnel. The oldest is forgotten for one that finds no room; saying it again would then cost us one answer.
pub const MAX_REMEMBERED: usize = 4096;

/// Why a message that was made with the key is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stale {
    #[error("its clock is more than {} s off, or it does not tell its time", MAX_CLOCK_SKEW.as_secs())]
    Clock,
    #[error("the message has been here before")]
    Replayed,
}

/// The messages of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    seen: HashSet<[u8; EPHEMERAL_BYTES]>,
    /// In the order in which they came, each with the time until which it could be said again.
    order: VecDeque<(u64, [u8; EPHEMERAL_BYTES])>,
}

impl Fresh {
    /// Takes a message that verified. `now_ms` is the wall clock's time.
    pub(super) fn check(
        &mut self,
        ephemeral: [u8; EPHEMERAL_BYTES],
        timestamp_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(), Stale> {
        let skew = MAX_CLOCK_SKEW.as_millis() as u64;
        if timestamp_ms.is_none_or(|at| at.abs_diff(now_ms) > skew) {
            return Err(Stale::Clock);
        }
        while self.order.front().is_some_and(|(until, _)| *until < now_ms) {
            self.forget_oldest();
        }
        if self.seen.contains(&ephemeral) {
            return Err(Stale::Replayed);
        }
        if self.order.len() >= MAX_REMEMBERED {
            self.forget_oldest();
        }
        self.seen.insert(ephemeral);
        // A clock that is ahead of ours by the most that is allowed is near until then.
        self.order.push_back((now_ms.saturating_add(2 * skew), ephemeral));
        Ok(())
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

    const NOW: u64 = 1_800_000_000_000;
    const SKEW: u64 = 120_000;

    fn message(n: u32) -> [u8; EPHEMERAL_BYTES] {
        let mut ephemeral = [0; EPHEMERAL_BYTES];
        ephemeral[..4].copy_from_slice(&n.to_be_bytes());
        ephemeral
    }

    #[test]
    fn clocks_may_be_off_by_as_much_as_allowed() {
        let mut fresh = Fresh::default();
        for (n, at) in [NOW - SKEW, NOW + SKEW].into_iter().enumerate() {
            assert_eq!(fresh.check(message(n as u32), Some(at), NOW), Ok(()));
        }
        for at in [
            Some(NOW - SKEW - 1),
            Some(NOW + SKEW + 1),
            Some(0),
            Some(u64::MAX),
            None,
        ] {
            assert_eq!(fresh.check(message(9), at, NOW), Err(Stale::Clock));
        }
    }

    #[test]
    fn a_message_is_taken_once_for_as_long_as_its_time_would_be_good() {
        let mut fresh = Fresh::default();
        let ahead = Some(NOW + SKEW);
        assert_eq!(fresh.check(message(1), ahead, NOW), Ok(()));
        for now in [NOW, NOW + SKEW, NOW + 2 * SKEW] {
            assert_eq!(fresh.check(message(1), ahead, now), Err(Stale::Replayed));
            assert_eq!(fresh.check(message(now as u32), Some(now), now), Ok(()));
        }
        assert_eq!(
            fresh.check(message(1), ahead, NOW + 2 * SKEW + 1),
            Err(Stale::Clock)
        );
    }

    #[test]
    fn what_is_remembered_is_bounded_in_time_and_number() {
        let mut fresh = Fresh::default();
        for n in 0..MAX_REMEMBERED as u32 + 10 {
            assert_eq!(fresh.check(message(n), Some(NOW), NOW), Ok(()));
            assert!(fresh.seen.len() <= MAX_REMEMBERED && fresh.order.len() == fresh.seen.len());
        }
        // A replay makes nothing be forgotten.
        for _ in 0..10 {
            assert_eq!(fresh.check(message(10), Some(NOW), NOW), Err(Stale::Replayed));
        }
        assert_eq!(fresh.seen.len(), MAX_REMEMBERED);
        assert_eq!(
            fresh.check(message(9), Some(NOW), NOW),
            Ok(()),
            "forgotten for one on top"
        );
        let later = NOW + 2 * SKEW + 1;
        assert_eq!(fresh.check(message(10), Some(later), later), Ok(()));
        assert_eq!(fresh.seen.len(), 1);
    }
}
