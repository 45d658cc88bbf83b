//! What shards and the hub tell each other. Neither side knows the other's insides.
//!
//! Both directions are bounded by what they carry: work by the sessions' windows, frames from backends by the credits that
//! the hub granted and that come back as [`ToHub::Release`].

use std::net::SocketAddr;
use std::time::Instant;

use holdfast_proto::link::frames::PushResult;
use holdfast_proto::link::{Class, Command, Incoming};
use holdfast_proto::{ChannelKind, CloseCode, DeviceId, SessionId, Share};

/// One attachment of one backend. Never used twice in a frontend's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// A shard's own number for a frame that it gave the hub for one peer, growing per peer and [`Track`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

/// Frames of one track to one peer go out in the order in which the shard gave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    Requests,
    Lifecycle,
}

/// Up to which ticket a shard's frames had gone out to a peer: those were with it, later ones never were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SentTickets {
    pub requests: Ticket,
    pub lifecycle: Ticket,
}

impl SentTickets {
    pub fn covers(&self, track: Track, ticket: Ticket) -> bool {
        match track {
            Track::Requests => ticket <= self.requests,
            Track::Lifecycle => ticket <= self.lifecycle,
        }
    }

    pub fn note(&mut self, class: Class, ticket: Ticket) {
        match class {
            Class::Requests => self.requests = ticket,
            _ => self.lifecycle = ticket,
        }
    }
}

/// From a shard to the hub.
#[derive(Debug)]
pub enum ToHub {
    /// A frame for one backend.
    Work {
        peer: PeerId,
        ticket: Ticket,
        command: Command,
    },
    /// The credit of a frame that the shard has put where it belongs, or refused.
    Release { peer: PeerId, charge: (Class, u32) },
    /// After this the shard sends no more work to a draining peer.
    Drained { peer: PeerId },
    /// The shard goes by the share that it was last told of this peer.
    ShareTaken { peer: PeerId },
    /// A session is over that was online or tried to be.
    Offline { device: DeviceId, session: SessionId },
    /// The device of a session that is online or about to be is at another address.
    Moved {
        device: DeviceId,
        session: SessionId,
        address: SocketAddr,
    },
    /// How a push to one session ended.
    PushDone { peer: PeerId, result: PushResult },
    /// How a push to all ended in this shard.
    BroadcastDone {
        peer: PeerId,
        number: u64,
        counts: BroadcastCounts,
    },
    /// The shard has closed all its sessions and every LOGOUT was acknowledged, or it gave up waiting.
    Stopped,
}

/// What became of a push to all, in sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BroadcastCounts {
    /// Their sockets took it.
    pub written: u64,
    pub dropped: u64,
    /// Their sockets had not taken it when the wait for them was over, or they ended before it was known.
    pub unconfirmed: u64,
}

impl std::ops::AddAssign for BroadcastCounts {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.dropped += other.dropped;
        self.unconfirmed += other.unconfirmed;
    }
}

/// A session as the device index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    pub device: DeviceId,
    pub session: SessionId,
    pub kind: ChannelKind,
    pub address: SocketAddr,
    /// When the device was let in, before its first message.
    pub admitted: Instant,
    /// When its login took effect, milliseconds since 1970, as the backend said.
    pub since_ms: u64,
}

/// From the hub to a shard.
#[derive(Debug)]
pub enum ToShard {
    /// A backend takes work. `seed` is its part in the rendezvous hash.
    PeerActive { peer: PeerId, seed: u64, share: Share },
    /// Its share has changed; answer with [`ToHub::ShareTaken`].
    PeerShare { peer: PeerId, share: Share },
    /// A backend wants to leave: no new work; answer with [`ToHub::Drained`].
    PeerDraining { peer: PeerId },
    /// A backend is gone; `graceful` when it left with everything done.
    PeerGone {
        peer: PeerId,
        sent: SentTickets,
        graceful: bool,
    },
    /// A frame about one of the shard's sessions, or a push to all.
    Frame { peer: PeerId, incoming: Incoming },
    /// Close this session, if it still is.
    Close { session: SessionId, code: CloseCode },
    /// The frontend stops: close every session and say when the last LOGOUT was acknowledged.
    Stop,
}
