//! How much of its bounds a backend uses (P7), for tests and the simulation, which hold it to them.

use holdfast_proto::link::LaneUsage;

use super::Backend;

/// Over all links, and per link in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUsage {
    /// Requests taken and not answered to their link.
    pub in_flight: usize,
    /// Requests left on their credit.
    pub waiting: usize,
    /// Bytes of replies that have not left.
    pub held_bytes: usize,
    /// Pushes, queries and closes under way.
    pub operations: usize,
    pub lanes: Vec<LaneUsage>,
}

impl Backend {
    pub fn usage(&self) -> BackendUsage {
        BackendUsage {
            in_flight: self.requests.in_flight(),
            waiting: self.requests.waiting(),
            held_bytes: self.requests.held_bytes(),
            operations: self.tracker.outstanding(),
            lanes: self.links.iter().map(|link| link.attachment.usage()).collect(),
        }
    }
}
