//! Whether a first message is new: a replay is refused before anything on the curve is computed for it.
//!
//! A message names the time at which it was made. Far from ours it is refused, and one that is near is remembered until it is not near
//! any more. Whoever recorded what backends said can thus spend nothing of ours but the few hashes that verify it. Backends' clocks must
//! be right for that, as they must for tokens and devices' clocks anyway.

use std::time::Duration;

use holdfast_proto::recent::Recent;
use holdfast_proto::tunnel::EPHEMERAL_BYTES;

/// How far a backend's clock may be off ours: as much as a device's may be off a backend's, by default.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(120);
/// Messages that are remembered: some 420 KiB at most. Only who has the key makes new ones, and backends make about one a second while they
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
#[derive(Debug)]
pub(super) struct Fresh(Recent<[u8; EPHEMERAL_BYTES]>);

impl Default for Fresh {
    fn default() -> Self {
        // The message of a clock that is ahead of ours by the most that is allowed is near for twice that.
        Self(Recent::new(MAX_REMEMBERED, 2 * SKEW_MS))
    }
}

const SKEW_MS: u64 = MAX_CLOCK_SKEW.as_millis() as u64;

impl Fresh {
    /// Takes a message that verified. `now_ms` is the wall clock's time.
    pub(super) fn check(
        &mut self,
        ephemeral: [u8; EPHEMERAL_BYTES],
        timestamp_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(), Stale> {
        if timestamp_ms.is_none_or(|at| at.abs_diff(now_ms) > SKEW_MS) {
            return Err(Stale::Clock);
        }
        match self.0.insert(ephemeral, now_ms) {
            true => Ok(()),
            false => Err(Stale::Replayed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn message(n: u32) -> [u8; EPHEMERAL_BYTES] {
        let mut ephemeral = [0; EPHEMERAL_BYTES];
        ephemeral[..4].copy_from_slice(&n.to_be_bytes());
        ephemeral
    }

    #[test]
    fn clocks_may_be_off_by_as_much_as_allowed() {
        let mut fresh = Fresh::default();
        for (n, at) in [NOW - SKEW_MS, NOW + SKEW_MS].into_iter().enumerate() {
            assert_eq!(fresh.check(message(n as u32), Some(at), NOW), Ok(()));
        }
        for at in [
            Some(NOW - SKEW_MS - 1),
            Some(NOW + SKEW_MS + 1),
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
        let ahead = Some(NOW + SKEW_MS);
        assert_eq!(fresh.check(message(1), ahead, NOW), Ok(()));
        for now in [NOW, NOW + SKEW_MS, NOW + 2 * SKEW_MS] {
            assert_eq!(fresh.check(message(1), ahead, now), Err(Stale::Replayed));
            assert_eq!(fresh.check(message(now as u32), Some(now), now), Ok(()));
        }
        assert_eq!(
            fresh.check(message(1), ahead, NOW + 2 * SKEW_MS + 1),
            Err(Stale::Clock)
        );
    }
}
