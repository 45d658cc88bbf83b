//! Which TCP connections are taken at all: how many of one source, and how many there are descriptors for. Shared by all shards.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_proto::throttle::source_of;

use crate::tally::{Tally, TallyKey};

/// Descriptors that devices' connections leave to the rest: the link's sockets, the tunnel's, the admin listener's, files.
const KEPT_DESCRIPTORS: usize = 512;
/// The same for each shard: its listeners, what its runtime needs, and connections that are only taken to be closed.
const KEPT_PER_SHARD: usize = 16;

/// How many connections there may be when the process may open so many files: all but those kept for the rest, of which there are
/// at most half.
pub(super) fn connections_within(files: u64, shards: usize) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let kept = KEPT_DESCRIPTORS + KEPT_PER_SHARD * shards;
    files.saturating_sub(kept).max(files / 2)
}

/// What is taken.
#[derive(Debug)]
pub struct Intake {
    /// By source: connections that were not let in.
    opening: Tally,
    per_source: u32,
    connections: AtomicUsize,
    most: usize,
}

/// Why a connection is closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Its source has too many that did not ask.
    Source,
    /// What descriptors there are is kept for those who are here.
    Descriptors,
}

impl Full {
    /// The word for it in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Source => "source_full",
            Self::Descriptors => "descriptors_full",
        }
    }
}

/// A connection's place: given back when it is dropped, with the socket.
#[derive(Debug)]
pub(super) struct Permit {
    intake: Arc<Intake>,
    source: TallyKey,
    stand: Stand,
}

/// What a connection counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// For its source: it has not asked to be let in. Next: `Asked`, `Ending`.
    Opening,
    /// Not for its source: what may wait for an answer is bounded by sessions. Next: `LetIn`, `Ending`.
    Asked,
    /// Not for its source, to its end.
    LetIn,
    /// For its source again: it was turned away, and its socket is not closed yet.
    Ending,
}

impl Intake {
    /// At most so many connections of one source that were not let in (0: as many as it likes), and `most` in all. `seed` is random and
    /// secret.
    pub fn new(seed: u128, per_source: u32, most: usize) -> Self {
        Self {
            opening: Tally::new(seed),
            per_source: if per_source == 0 { u32::MAX } else { per_source },
            connections: AtomicUsize::new(0),
            most,
        }
    }

    /// Counts one more.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Permit, Full> {
        let room = |count: usize| (count < self.most).then(|| count + 1);
        let entered = self
            .connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        entered.map_err(|_| Full::Descriptors)?;
        let source = self.opening.key(&[&source_of(address)]);
        if !self.opening.enter(source, self.per_source) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Source);
        }
        Ok(Permit {
            intake: Arc::clone(self),
            source,
            stand: Stand::Opening,
        })
    }
}

impl Permit {
    /// The device asks to be let in.
    pub(super) fn on_asked(&mut self) {
        if self.stand == Stand::Opening {
            self.intake.opening.leave(self.source);
            self.stand = Stand::Asked;
        }
    }

    /// The device is let in.
    pub(super) fn on_let_in(&mut self) {
        self.on_asked();
        self.stand = Stand::LetIn;
    }

    /// Its session is over, and the socket stays for a while. Whoever was not let in counts for his source, also beyond its bound.
    pub(super) fn on_ending(&mut self) {
        match self.stand {
            Stand::Opening => self.stand = Stand::Ending,
            Stand::Asked => {
                self.intake.opening.enter(self.source, u32::MAX);
                self.stand = Stand::Ending;
            }
            Stand::LetIn | Stand::Ending => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if matches!(self.stand, Stand::Opening | Stand::Ending) {
            self.intake.opening.leave(self.source);
        }
        self.intake.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_so_many_that_did_not_ask_and_others_have_theirs() {
        let intake = Arc::new(Intake::new(1, 2, 100));
        let (here, there) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut first = intake.enter(here).unwrap();
        let second = intake.enter(here).unwrap();
        assert_eq!(intake.enter(here).unwrap_err(), Full::Source);
        assert_eq!(
            intake.enter(address("::ffff:192.0.2.1")).unwrap_err(),
            Full::Source
        );
        drop(intake.enter(there).unwrap());
        drop(second);
        let second = intake.enter(here).unwrap();
        assert_eq!(intake.enter(here).unwrap_err(), Full::Source);
        first.on_asked();
        let third = intake.enter(here).unwrap();
        assert_eq!(intake.enter(here).unwrap_err(), Full::Source);
        drop((first, second, third));
        assert_eq!(intake.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let intake = Arc::new(Intake::new(1, 1, 100));
        let _first = intake.enter(address("2001:db8::1")).unwrap();
        assert_eq!(
            intake.enter(address("2001:db8::ffff:1")).unwrap_err(),
            Full::Source
        );
        intake.enter(address("2001:db8:0:1::1")).unwrap();
    }

    #[test]
    fn who_was_turned_away_counts_until_the_socket_is_gone_and_who_was_let_in_does_not() {
        let intake = Arc::new(Intake::new(1, 1, 100));
        let here = address("192.0.2.1");
        let mut first = intake.enter(here).unwrap();
        first.on_asked();
        let mut second = intake.enter(here).unwrap();
        second.on_asked();
        second.on_let_in();
        second.on_ending();
        first.on_ending();
        first.on_ending();
        assert_eq!(intake.enter(here).unwrap_err(), Full::Source);
        drop(first);
        let mut silent = intake.enter(here).unwrap();
        silent.on_ending();
        assert_eq!(intake.enter(here).unwrap_err(), Full::Source);
        drop(silent);
        drop(second);
        drop(intake.enter(here).unwrap());
        assert_eq!(intake.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn there_are_no_more_connections_than_descriptors_for_them() {
        let intake = Arc::new(Intake::new(1, 0, 3));
        let here = address("192.0.2.1");
        let mut taken: Vec<_> = (0..3).map(|_| intake.enter(here).unwrap()).collect();
        taken.iter_mut().for_each(Permit::on_let_in);
        assert_eq!(intake.enter(here).unwrap_err(), Full::Descriptors);
        drop(taken.pop());
        intake.enter(here).unwrap();
    }

    #[test]
    fn some_descriptors_are_kept_whatever_the_limit() {
        assert_eq!(connections_within(20_000, 2), 20_000 - 544);
        assert_eq!(connections_within(1024, 2), 512);
        assert_eq!(connections_within(u64::MAX, 1), usize::MAX - 528);
    }
}
