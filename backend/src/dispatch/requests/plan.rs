//! From a request's header to what is to be done with it.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::{ErrorCode, Sequence};

use super::Requests;
use crate::dispatch::event::{Event, ReplyTo};
use crate::dispatch::lifecycle::POISON_ATTEMPTS;
use crate::route::{Order, Route};
use crate::sequence::Domain;

/// What a request's header led to.
pub(super) struct Plan {
    pub(super) domain: Domain,
    pub(super) silent: bool,
    pub(super) reply_to: ReplyTo,
    pub(super) step: Result<(Arc<Route>, Event), ErrorCode>,
}

impl Requests {
    /// Reads the header, in arrival order, before anything is done. A request that may be poison is not read at all.
    pub(super) fn plan(&self, sequence: Sequence, binary: bool, attempt: u32, payload: &Bytes) -> Plan {
        let reply_to = ReplyTo {
            binary,
            sequence,
            ..ReplyTo::default()
        };
        let failed = |code, reply_to| Plan {
            domain: Domain::Connection,
            silent: false,
            reply_to,
            step: Err(code),
        };
        if attempt >= POISON_ATTEMPTS {
            self.metrics.poison.inc();
            return failed(ErrorCode::BackendFailed, reply_to);
        }
        let Ok(event) = Event::read(binary, payload) else {
            return failed(ErrorCode::BadRequest, reply_to);
        };
        let Event {
            namespace, name, id, ..
        } = event.clone();
        let reply_to = ReplyTo {
            namespace,
            name,
            id,
            ..reply_to
        };
        let Some(route) = self.table.lookup(&event.namespace, &event.name) else {
            return failed(ErrorCode::NoRoute, reply_to);
        };
        let domain = match route.order {
            Order::Connection => Domain::Connection,
            Order::Namespace => Domain::Namespace(event.namespace.as_str().into()),
            Order::None => Domain::Unordered,
        };
        Plan {
            domain,
            silent: route.one_way,
            reply_to,
            step: Ok((route.clone(), event)),
        }
    }
}
