//! Which backends take work, and which of them serves a given key: rendezvous hashing (Thaler and Ravishankar 1998), so
//! that a backend that comes or goes moves only its own share.

use crate::exchange::{PeerId, Ticket, Track};

#[derive(Debug)]
struct Peer {
    id: PeerId,
    seed: u64,
    draining: bool,
    requests: Ticket,
    lifecycle: Ticket,
}

/// A shard's view of the attached backends: a few, so a list is the fastest map.
#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: Vec<Peer>,
}

/// How a peer stands to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Active,
    Draining,
    Gone,
}

impl Roster {
    pub(super) fn on_active(&mut self, id: PeerId, seed: u64) {
        let peer = Peer {
            id,
            seed,
            draining: false,
            requests: Ticket(0),
            lifecycle: Ticket(0),
        };
        self.peers.retain(|p| p.id != id);
        self.peers.push(peer);
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
            Some(peer) if peer.draining => Standing::Draining,
            Some(_) => Standing::Active,
        }
    }

    /// The active peer with the highest weight for `key`; `None` when none is active.
    pub(super) fn choose(&self, key: &[u8]) -> Option<PeerId> {
        let mut active = self.peers.iter().filter(|p| !p.draining);
        let first = active.next()?;
        let Some(second) = active.next() else {
            return Some(first.id);
        };
        let hash = fnv1a(key);
        let rest = std::iter::once(second).chain(active);
        let best = rest.fold(first, |best, p| {
            if mix(hash ^ p.seed) > mix(hash ^ best.seed) {
                p
            } else {
                best
            }
        });
        Some(best.id)
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
mod tests {
    use super::*;

    fn keys() -> impl Iterator<Item = Vec<u8>> {
        (0..3000).map(|n| format!("device-{n}").into_bytes())
    }

    #[test]
    fn shares_are_even_and_only_the_leavers_share_moves() {
        let mut roster = Roster::default();
        assert_eq!(roster.choose(b"x"), None);
        for (id, seed) in [(1, 0x1111), (2, 0x2222), (3, 0x3333)] {
            roster.on_active(PeerId(id), seed);
        }
        let before: Vec<PeerId> = keys().filter_map(|k| roster.choose(&k)).collect();
        for id in 1..=3 {
            let share = before.iter().filter(|p| p.0 == id).count();
            assert!((800..1200).contains(&share), "peer {id} got {share} of 3000");
        }
        roster.on_draining(PeerId(2));
        assert_eq!(roster.standing(PeerId(2)), Standing::Draining);
        for (key, old) in keys().zip(&before) {
            let new = roster.choose(&key).unwrap();
            assert!(new != PeerId(2));
            assert!(new == *old || *old == PeerId(2));
        }
        roster.on_gone(PeerId(2));
        assert_eq!(roster.standing(PeerId(2)), Standing::Gone);
    }

    #[test]
    fn tickets_grow_per_peer_and_track() {
        let mut roster = Roster::default();
        roster.on_active(PeerId(1), 0);
        assert_eq!(roster.ticket(PeerId(1), Track::Requests), Ticket(1));
        assert_eq!(roster.ticket(PeerId(1), Track::Requests), Ticket(2));
        assert_eq!(roster.ticket(PeerId(1), Track::Lifecycle), Ticket(1));
    }
}
