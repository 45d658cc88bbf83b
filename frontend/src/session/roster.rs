//! Which backends take work, and which of them serves a given key.
//!
//! A canary has a range of a fixed hash of the key, as wide as its share: raising a share only adds keys to it. What canaries
//! leave is spread over the full members by rendezvous hashing (Thaler and Ravishankar 1998), so that one that comes or goes
//! moves only its own part.

use holdfast_proto::Share;

use crate::exchange::{PeerId, Ticket, Track};

#[derive(Debug)]
struct Peer {
    id: PeerId,
    seed: u64,
    share: Share,
    draining: bool,
    requests: Ticket,
    lifecycle: Ticket,
}

/// A shard's view of the attached backends: a few, so a list is the fastest map. In the order in which they attached, so that
/// all shards cut the same ranges.
#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: Vec<Peer>,
}

/// How a peer stands to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Active,
    /// Takes nothing new: it leaves, or has no share.
    Idle,
    Gone,
}

impl Peer {
    fn takes_work(&self) -> bool {
        !self.draining && !self.share.is_none()
    }
}

impl Roster {
    pub(super) fn on_active(&mut self, id: PeerId, seed: u64, share: Share) {
        let peer = Peer {
            id,
            seed,
            share,
            draining: false,
            requests: Ticket(0),
            lifecycle: Ticket(0),
        };
        self.peers.retain(|p| p.id != id);
        let place = self.peers.partition_point(|p| p.id < id);
        self.peers.insert(place, peer);
    }

    /// What it has been given stays with it.
    pub(super) fn on_share(&mut self, id: PeerId, share: Share) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) {
            peer.share = share;
        }
    }

    pub(super) fn on_draining(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) {
            peer.draining = true;
        }
    }

    pub(super) fn on_gone(&mut self, id: PeerId) {
        self.peers.retain(|p| p.id != id);
    }

    pub(super) fn standing(&self, id: PeerId) -> Standing {
        match self.peers.iter().find(|p| p.id == id) {
            None => Standing::Gone,
            Some(peer) if peer.takes_work() => Standing::Active,
            Some(_) => Standing::Idle,
        }
    }

    /// The peer that takes work for `key`; `None` when none takes any. Without a full member canaries take all.
    pub(super) fn choose(&self, key: &[u8]) -> Option<PeerId> {
        let mut serving = self.peers.iter().filter(|p| p.takes_work());
        let first = serving.next()?;
        if serving.next().is_none() {
            return Some(first.id);
        }
        let hash = fnv1a(key);
        self.canary(hash)
            .or_else(|| self.heaviest(hash, Share::is_full))
            .or_else(|| self.heaviest(hash, Share::is_canary))
    }

    /// The canary whose range the hash falls into. Ranges lie side by side; what goes beyond the whole is empty.
    fn canary(&self, hash: u64) -> Option<PeerId> {
        let mut canaries = self.peers.iter().filter(|p| !p.draining && p.share.is_canary());
        let first = canaries.next()?;
        let point = (u128::from(mix(hash ^ CANARY_SEED)) * u128::from(Share::FULL.hundredths())) >> 64;
        let mut end = 0;
        let mut holds = |p: &&Peer| {
            end += u128::from(p.share.hundredths());
            point < end
        };
        std::iter::once(first)
            .chain(canaries)
            .find(|p| holds(p))
            .map(|p| p.id)
    }

    /// Of the peers with such a share, the one with the highest weight.
    fn heaviest(&self, hash: u64, wanted: impl Fn(Share) -> bool) -> Option<PeerId> {
        let peers = self.peers.iter().filter(|p| !p.draining && wanted(p.share));
        let weighed = peers.map(|p| (mix(hash ^ p.seed), p.id));
        weighed.max_by_key(|(weight, _)| *weight).map(|(_, id)| id)
    }

    /// The next ticket for a frame to this peer.
    pub(super) fn ticket(&mut self, id: PeerId, track: Track) -> Ticket {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return Ticket(u64::MAX);
        };
        let ticket = match track {
            Track::Requests => &mut peer.requests,
            Track::Lifecycle => &mut peer.lifecycle,
        };
        ticket.0 += 1;
        *ticket
    }
}

/// Fixed, so that a canary's sessions are the same ones on every shard and after a restart; no backend's seed, so that they
/// are drawn from all full members alike.
const CANARY_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a, 64 bits: keys are short and the result is mixed afterwards.
fn fnv1a(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
