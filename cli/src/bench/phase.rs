//! What goes on while requests are sent: quiet time, then for each event the event itself and the rest after it. Pure, but
//! for the one atomic by which all threads see the present phase.

#![deny(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, Ordering};

use clap::ValueEnum;
use serde::Serialize;

/// What is done to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Replaced by a graceful upgrade.
    Upgrade,
    /// Replaced by way of a canary.
    Canary,
    /// A bad binary is tried as a canary, crashes, and is rolled back.
    Rollback,
    /// Killed with SIGKILL.
    Kill,
    /// Stopped with SIGSTOP, and woken later.
    Hang,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Upgrade,
        Self::Canary,
        Self::Rollback,
        Self::Kill,
        Self::Hang,
    ];

    /// Whether no backend dies or hangs in it: then each request must reach its service once (P4).
    pub(crate) fn is_graceful(self) -> bool {
        matches!(self, Self::Upgrade | Self::Canary)
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Canary => "canary",
            Self::Rollback => "rollback",
            Self::Kill => "kill",
            Self::Hang => "hang",
        }
    }
}

/// Where latencies are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Before the figures count: caches, pools and congestion windows fill.
    Warmup,
    /// Before the first event.
    Quiet,
    /// From the event's begin until the gateway has recovered and what was in flight is answered.
    During(Kind),
    /// From there to the next event.
    After(Kind),
}

/// A stage and its place among all that were; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) number: u32,
    pub(crate) stage: Stage,
}

impl Phase {
    pub(crate) const FIRST: Self = Self {
        number: 0,
        stage: Stage::Warmup,
    };

    pub(crate) fn next(self, stage: Stage) -> Self {
        Self {
            number: self.number.wrapping_add(1),
            stage,
        }
    }

    /// Where a request belongs that was due in `self` and answered in `answered`: to the event that it met.
    pub(crate) fn attribute(self, answered: Self) -> Self {
        match answered.stage {
            _ if self.number == answered.number => answered,
            Stage::After(kind) => Self {
                number: answered.number.wrapping_sub(1),
                stage: Stage::During(kind),
            },
            Stage::During(_) => answered,
            Stage::Warmup | Stage::Quiet => self,
        }
    }

    fn pack(self) -> u64 {
        let kind = |kind: Kind| kind as u64;
        let code = match self.stage {
            Stage::Warmup => 0,
            Stage::Quiet => 1,
            Stage::During(of) => 2 + 2 * kind(of),
            Stage::After(of) => 3 + 2 * kind(of),
        };
        u64::from(self.number) << 8 | code
    }

    fn unpack(packed: u64) -> Self {
        let code = packed & 0xff;
        let kind = || Kind::ALL[((code - 2) / 2) as usize];
        let stage = match code {
            0 => Stage::Warmup,
            1 => Stage::Quiet,
            even if even % 2 == 0 => Stage::During(kind()),
            _ => Stage::After(kind()),
        };
        Self {
            number: (packed >> 8) as u32,
            stage,
        }
    }
}

/// The present phase.
#[derive(Debug)]
pub(crate) struct Now(AtomicU64);

impl Now {
    pub(crate) fn new(phase: Phase) -> Self {
        Self(AtomicU64::new(phase.pack()))
    }

    pub(crate) fn get(&self) -> Phase {
        Phase::unpack(self.0.load(Ordering::Acquire))
    }

    /// Only ever called by the one that conducts.
    pub(crate) fn enter(&self, stage: Stage) -> Phase {
        let next = self.get().next(stage);
        self.0.store(next.pack(), Ordering::Release);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_survive_packing() {
        let mut stages = vec![Stage::Warmup, Stage::Quiet];
        stages.extend(Kind::ALL.map(Stage::During));
        stages.extend(Kind::ALL.map(Stage::After));
        let now = Now::new(Phase::FIRST);
        for (n, stage) in (1..).zip(stages) {
            assert_eq!(now.enter(stage), Phase { number: n, stage });
            assert_eq!(now.get(), Phase { number: n, stage });
        }
    }

    #[test]
    fn a_request_belongs_to_the_event_that_it_met() {
        let quiet = Phase::FIRST.next(Stage::Quiet);
        let during = quiet.next(Stage::During(Kind::Kill));
        let after = during.next(Stage::After(Kind::Kill));
        let next = after.next(Stage::During(Kind::Hang));
        assert_eq!(quiet.attribute(quiet), quiet);
        assert_eq!(quiet.attribute(during), during, "in flight when it began");
        assert_eq!(during.attribute(after), during, "answered just after its end");
        assert_eq!(quiet.attribute(after), during, "through the whole of it");
        assert_eq!(after.attribute(after), after);
        assert_eq!(after.attribute(next), next);
    }
}
