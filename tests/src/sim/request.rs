//! What a device asked, and what became of it: the ledger that every promise about requests is checked against.

use bytes::Bytes;
use holdfast_proto::{ErrorCode, MessageKind};

use super::queue::Time;
use super::service::RouteKind;

/// Where the device meant its request to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Route(RouteKind),
    /// A namespace that no route takes.
    Nowhere,
    /// Its header cannot be read.
    Malformed,
}

/// Which replies it is ordered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Domain {
    Connection,
    Namespace(&'static str),
    Unordered,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) kind: MessageKind,
    pub(super) aim: Aim,
    pub(super) id: Option<String>,
    pub(super) retry_key: Option<String>,
    /// What the service must get.
    pub(super) payload: Bytes,
    pub(super) sent: Time,
    pub(super) answered: Option<Time>,
    /// How often the frontend gave it to a backend.
    pub(super) given: u32,
    pub(super) calls: Vec<Call>,
}

/// One call of a service on behalf of a request.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) attempt: u32,
    /// `None` while it hangs, or for ever.
    pub(super) answer: Option<Result<Bytes, ErrorCode>>,
}

impl Request {
    pub(super) fn route(&self) -> Option<RouteKind> {
        match self.aim {
            Aim::Route(route) => Some(route),
            Aim::Nowhere | Aim::Malformed => None,
        }
    }

    pub(super) fn domain(&self) -> Domain {
        self.route().map_or(Domain::Connection, RouteKind::domain)
    }

    /// One-way requests are answered in silence.
    pub(super) fn expects_reply(&self) -> bool {
        self.route().is_none_or(|route| !route.is_one_way())
    }
}
