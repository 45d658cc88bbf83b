//! The seeded simulation of the transport over UDP: both real ends on virtual time, and between them a network that does what
//! networks do.
//!
//! Devices run [`holdfast_proto::udp::Dial`] and [`holdfast_proto::udp::Connection`], the server takes datagrams apart, asks for
//! cookies, answers HELLOs and holds its connections as the frontend does. The paths between them, strangers that repeat or make up
//! datagrams, restarts and applications that do not listen are the world, drawn from one seed. After each step the promises of
//! PROTOCOL.md's chapter on udp are checked as far as a world can see them; in the end all faults heal, and what is still connected
//! must finish, come to rest and close in good order.
//!
//! Not simulated: sockets and their batches, a kernel that is short of memory, clocks that run at different speeds, path MTUs that
//! stay below what was agreed on.
//!
//! [`figures`] asks how fast the transport is, over the same network.

mod application;
mod device;
mod endpoint;
mod faults;
pub mod figures;
mod guard;
mod ledger;
mod message;
mod net;
mod server;
mod settle;
mod shared;
mod strangers;
mod world;

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use crate::seeds::{self, Total, add_seen, panic_text};

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Prints everything as it happens.
    pub trace: bool,
}

/// What was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// No message is handed up twice, and no datagram accepted twice.
    Once,
    InOrder,
    Unchanged,
    /// What is reported is what happened: delivered, closed, moved, ended.
    Truthful,
    /// A connection that can go on goes on.
    NoDrop,
    /// An address that has proved nothing gets no more than it sent.
    Amplified,
    /// What was not sealed for a connection changes nothing in it.
    Private,
    Bounded,
    /// Who has nothing to say falls silent, and is not run for nothing.
    Quiet,
    /// Who asks gets in.
    Arriving,
    /// Everything that is owed comes in the end.
    Progress,
    /// A connection with nothing under way gives its memory back.
    Idle,
    /// What one end does the other takes for legal.
    Protocol,
    /// No assertion of the core's fails.
    Sound,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub seed: u64,
    pub steps: u64,
    pub virtual_time: Duration,
    /// The same for the same seed.
    pub digest: u64,
    pub dials: u64,
    pub connections: u64,
    /// Handed up, in both directions.
    pub messages: u64,
    pub bytes: u64,
    /// Put on the network by both ends.
    pub datagrams: u64,
    pub faults: u64,
    /// How often what happened.
    pub seen: BTreeMap<String, u64>,
}

/// A broken promise.
pub type Failure = seeds::Failure<Promise, Summary>;

/// Which program shows a failure again.
const PROGRAM: &str = "holdfast-simulate-udp";

impl Total for Summary {
    fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.datagrams += other.datagrams;
        add_seen(&mut self.seen, &other.seen);
    }

    fn seen(&self) -> &BTreeMap<String, u64> {
        &self.seen
    }

    fn counts(&self) -> String {
        format!("{} messages in {} datagrams", self.messages, self.datagrams)
    }
}

/// Runs one seed to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = world::World::new(seed, options);
    // An end that panics takes its process along: no promise allows that, and the seed must not be lost with it.
    let ended = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let broken = match ended {
        Ok(Ok(())) => None,
        Ok(Err(broken)) => Some(broken),
        Err(payload) => Some((Promise::Sound, panic_text(&*payload))),
    };
    world.finish(broken)
}
