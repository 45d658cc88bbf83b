//! How much of its bounds the hub uses (P7), for tests and the simulation, which hold it to them.

use holdfast_proto::link::{Epoch, LaneUsage};

use super::Hub;

/// Of one attached backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerUsage {
    pub epoch: Epoch,
    pub lane: LaneUsage,
    /// Pushes to all whose shards have not all reported.
    pub broadcasts: usize,
}

/// Of the hub itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubUsage {
    pub peers: Vec<PeerUsage>,
    /// Notices that wait to go out.
    pub notices: usize,
    /// Messages that wait for shards.
    pub to_shards: usize,
}

impl Hub {
    pub fn usage(&self) -> HubUsage {
        let peer = |p: &crate::link::peer::Peer| PeerUsage {
            epoch: p.lane.remote(),
            lane: p.lane.usage(),
            broadcasts: p.broadcasts.len(),
        };
        HubUsage {
            peers: self.peers.iter().map(peer).collect(),
            notices: self.notices.len(),
            to_shards: self.to_shards.len(),
        }
    }
}
