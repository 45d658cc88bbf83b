//! What the nodes of one world share: the clock, chance, the ledger, and the datagrams that they put out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::Instant;

use holdfast_proto::udp::{ConnectionId, Side};

use super::Summary;
use super::guard::Accounts;
use super::ledger::Ledger;
use crate::sim::queue::Time;
use crate::sim::rng::Rng;
use crate::sim::trace::Trace;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) base: Instant,
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    pub(crate) trace: Trace,
    pub(crate) ledger: Ledger,
    pub(crate) accounts: Accounts,
    /// Datagrams that an end has accepted.
    pub(crate) taken: BTreeSet<u64>,
    pub(crate) outbox: Vec<Packet>,
    pub(crate) summary: Summary,
    /// Bytes that each application has to say.
    pub(crate) volume: usize,
    /// Longest message, in bytes: both ends agree on it.
    pub(crate) longest: usize,
    /// Nothing goes wrong any more, and nobody has anything new to say.
    pub(crate) healed: bool,
    /// The longest datagram that each device takes.
    pub(crate) max_datagrams: Vec<u16>,
    next_packet: u64,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Device(usize),
    /// The server, to this device.
    Server(usize),
}

/// A datagram.
#[derive(Clone)]
pub(crate) struct Packet {
    /// Copies have the same.
    pub(crate) id: u64,
    pub(crate) place: Option<Place>,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sealed: Option<Sealed>,
    pub(crate) flipped: bool,
}

/// Whose keys a datagram was sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) cid: ConnectionId,
    pub(crate) side: Side,
}

impl Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.bytes.first().copied().unwrap_or_default();
        write!(
            f,
            "datagram {} ({kind:#04x}, {} bytes, {} to {}, {:?}{})",
            self.id,
            self.bytes.len(),
            self.from,
            self.to,
            self.sealed,
            if self.flipped { ", flipped" } else { "" }
        )
    }
}

/// Addresses from which nobody honest sends begin like that.
const STRANGE: u8 = 203;

impl Shared {
    pub(crate) fn new(rng: Rng, trace: Trace, summary: Summary) -> Self {
        Self {
            base: Instant::now(),
            now: Time::ZERO,
            rng,
            trace,
            ledger: Ledger::default(),
            accounts: Accounts::default(),
            taken: BTreeSet::new(),
            outbox: Vec::new(),
            summary,
            volume: 0,
            longest: 0,
            healed: false,
            max_datagrams: Vec::new(),
            next_packet: 0,
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// An instant of the cores on the run's clock.
    pub(crate) fn time_of(&self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.base)
    }

    pub(crate) fn note<N: Debug + Hash + 'static>(&mut self, note: N) {
        self.trace.note(self.now, note);
    }

    /// Counts something that a run has seen.
    pub(crate) fn saw(&mut self, kind: &str, what: &str) {
        let seen: &mut BTreeMap<String, u64> = &mut self.summary.seen;
        *seen.entry(format!("{kind} {what}")).or_default() += 1;
    }

    pub(crate) fn stranger(&mut self) -> SocketAddr {
        let port = self.rng.range(1024..=60_000) as u16;
        SocketAddr::from(([STRANGE, 0, 113, self.rng.below(4) as u8], port))
    }

    pub(crate) fn is_strange(&self, address: SocketAddr) -> bool {
        matches!(address, SocketAddr::V4(v4) if v4.ip().octets()[0] == STRANGE)
    }

    pub(crate) fn device_max_datagram(&self, place: Place) -> u16 {
        match place {
            Place::Device(_) => u16::MAX,
            Place::Server(device) => self.max_datagrams[device],
        }
    }

    /// The sender's address is filled in by the world, which knows it.
    pub(crate) fn put_out(&mut self, place: Place, to: SocketAddr, bytes: Vec<u8>, sealed: Option<Sealed>) {
        let packet = self.packet(Some(place), (to, to), bytes, sealed);
        self.outbox.push(packet);
    }

    pub(crate) fn packet(
        &mut self,
        place: Option<Place>,
        (from, to): (SocketAddr, SocketAddr),
        bytes: Vec<u8>,
        sealed: Option<Sealed>,
    ) -> Packet {
        self.next_packet += 1;
        Packet {
            id: self.next_packet,
            place,
            from,
            to,
            bytes,
            sealed,
            flipped: false,
        }
    }
}
