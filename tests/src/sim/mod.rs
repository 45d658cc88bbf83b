//! The seeded simulation: the very structs of the binaries, joined on one thread and virtual time, while everything around
//! them goes wrong.
//!
//! [`holdfast_frontend::link::Hub`], [`holdfast_frontend::session::Shard`] and [`holdfast_backend::core::Backend`] are driven
//! as their drivers do it. Devices, services, sockets, processes and their deaths are the world, drawn from one seed. After
//! each step the promises (design P1 to P9) are checked as far as a world can see them; in the end all faults heal, and
//! everything that was owed must come within a bounded time.
//!
//! Each device keeps to one kind of channel, `ws` or `wss`; beside those on `ws` strangers repeat what they said.
//!
//! Each end of a link is also judged by what it puts on the link, for the other end would hide most of its mistakes.
//!
//! Not simulated: bytes on sockets (TLS, WebSocket framing, ZeroMQ itself), cryptography (keys and records have stand-ins), threads within one turn, memory, a backend's
//! HTTP client, API server and control socket, reloads of its routes, other versions of the protocol, wall clocks that
//! disagree, who supervises processes and decides about upgrades.

mod attempts;
mod backend;
mod bounds;
mod challenge;
mod channel;
mod closes;
mod conn;
mod device;
mod fairness;
mod faults;
mod hub;
mod ledger;
mod links;
mod message;
mod mutant;
mod nodes;
mod pipe;
mod promises;
mod pushes;
pub(crate) mod queue;
mod request;
pub(crate) mod rng;
mod scenario;
mod service;
mod settle;
mod shard;
mod shares;
mod strangers;
pub(crate) mod trace;
mod world;

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use crate::seeds::{self, Total, add_seen, panic_text};

pub use mutant::Mutant;

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Ends after so many steps, settled or not.
    pub steps: Option<u64>,
    /// Prints everything as it happens.
    pub trace: bool,
    /// Breaks the world on purpose, to see that it is noticed.
    pub mutant: Option<Mutant>,
    /// A short world in which nothing goes wrong but this.
    pub crash: Option<Crash>,
}

/// A process that dies right after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    Backend { step: u64 },
    Frontend { step: u64 },
}

/// What was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    NoDrop,
    InOrder,
    ExactlyOneAnswer,
    Once,
    Arriving,
    Bounded,
    Truthful,
    Logout,
    /// Nobody is given up for a silence that was ours.
    Fair,
    /// Whatever comes from a backend that was declared gone is dropped.
    Fenced,
    /// A backend gets no more than the share that it asked for.
    Shared,
    /// On `ws` only who has answered his challenge logs in (P8), and on `wss` nobody need.
    Proven,
    /// No core's own assertion fails.
    Sound,
    /// A core asked its channel for what is not legal.
    Protocol,
    /// Everything that is owed comes in the end.
    Progress,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub seed: u64,
    pub steps: u64,
    pub virtual_time: Duration,
    /// The same for the same seed.
    pub digest: u64,
    pub connections: u64,
    pub requests: u64,
    pub replies: u64,
    pub errors: u64,
    pub calls: u64,
    pub replays: u64,
    pub pushes: u64,
    pub faults: u64,
    /// Devices that came while one canary was beside full members, hundredths of a percent that it was to get of each, and
    /// how many it got.
    pub canary_draws: u64,
    pub canary_hundredths: u64,
    pub canary_sessions: u64,
    /// How often a mutant bent something.
    pub bent: u64,
    pub defences: Defences,
    /// How often what happened: each kind of fault, close, refusal and error, and what else is worth being sure of.
    pub seen: BTreeMap<String, u64>,
}

/// What the cores themselves refused, over all lives of all processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defences {
    pub fenced: u64,
    pub malformed: u64,
    pub stale_epoch: u64,
    pub duplicate_replies: u64,
    pub late_frames: u64,
}

/// A broken promise.
pub type Failure = seeds::Failure<Promise, Summary>;

/// Which program shows a failure again.
const PROGRAM: &str = "holdfast-simulate";

impl Total for Summary {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        add_seen(&mut self.seen, &other.seen);
    }

    fn seen(&self) -> &BTreeMap<String, u64> {
        &self.seen
    }

    fn counts(&self) -> String {
        format!("{} requests", self.requests)
    }
}

/// Runs one seed to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = world::World::new(seed, options);
    // A core that panics ends its process: no promise allows that, and the seed must not be lost with it.
    let ended = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(payload) = ended {
        world.fail(Promise::Sound, panic_text(&*payload));
    }
    world.finish()
}
