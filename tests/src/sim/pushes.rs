//! What the HTTP API would ask of a backend: pushes, presence and closes, and whether the answers are true (P9).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use holdfast_backend::api::{GatewayError, PresenceState, PushMessage, PushReport, PushStatus, PushTarget};
use holdfast_backend::core::{ApiAnswer, ApiRequest};
use holdfast_backend::push::Ticket;
use holdfast_proto::DeviceId;
use holdfast_proto::event::{PushHeader, render_push_text};

use super::Promise;
use super::conn::ConnId;
use super::queue::Time;
use super::scenario::PUSH_TIMEOUT;
use super::world::{Actor, Event, World};

/// No route has this namespace: what bears it is a push.
pub(super) const NAMESPACE: &str = "Push";
const PREFIX: &[u8] = b"{\"header\":{\"namespace\":\"Push\",\"name\":\"Mark\",\"id\":\"";
/// What an answer may be late beyond its own timeout.
const SLACK: Duration = Duration::from_millis(300);

/// Everything that was asked.
#[derive(Debug, Default)]
pub(super) struct Asks {
    last: u64,
    open: BTreeMap<Ticket, Ask>,
    done: BTreeSet<Ticket>,
    /// By mark: to which connections a push went, and where in their stream it ends.
    pushed: BTreeMap<u64, Vec<(ConnId, u64)>>,
    closes: BTreeSet<usize>,
}

#[derive(Debug)]
struct Ask {
    backend: usize,
    asked: Time,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Push { mark: u64 },
    Presence { device: usize },
    Close,
}

impl Asks {
    /// Nobody answers for a process that is gone.
    pub(super) fn forget(&mut self, backend: usize) {
        self.open.retain(|_, ask| ask.backend != backend);
    }

    pub(super) fn was_close_asked(&self, device: usize) -> bool {
        self.closes.contains(&device)
    }

    /// False when it went to this connection before.
    pub(super) fn note_push(&mut self, mark: u64, conn: ConnId, end: u64) -> bool {
        let conns = self.pushed.entry(mark).or_default();
        let first = conns.iter().all(|(known, _)| *known != conn);
        conns.push((conn, end));
        first
    }

    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty()
    }
}

/// The mark of a push, if the message is one.
pub(super) fn mark_of(payload: &Bytes) -> Option<u64> {
    let rest = payload.strip_prefix(PREFIX)?;
    let end = rest.iter().position(|b| *b == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

impl World {
    /// Somebody asks something of some backend.
    pub(super) fn ask(&mut self) {
        if !self.is_asking() {
            return;
        }
        let pause = self.rng.around(Duration::from_millis(250));
        self.queue.push(self.now + pause, Event::Ask);
        let alive: Vec<usize> = (0..self.backends.len())
            .filter(|b| self.backends[*b].life.is_some())
            .collect();
        if alive.is_empty() || self.devices.is_empty() {
            return;
        }
        let (backend, device) = (self.rng.pick(&alive), self.rng.below(self.devices.len()));
        let Ok(name) = self.devices[device].name.parse::<DeviceId>() else {
            return;
        };
        self.asks.last += 1;
        let mark = self.asks.last;
        let session = self.devices[device]
            .conn
            .and_then(|conn| self.conns[conn.0].session);
        let (what, request) =
            match self
                .rng
                .weighted(&[50, 15, 15, 17, if self.healed.is_none() { 3 } else { 0 }])
            {
                0 => push(mark, PushTarget::Device(name)),
                1 => push(
                    mark,
                    session.map_or(PushTarget::Device(name), PushTarget::Session),
                ),
                2 => push(mark, PushTarget::All),
                3 => (What::Presence { device }, ApiRequest::Presence(name)),
                _ => {
                    self.asks.closes.insert(device);
                    (What::Close, ApiRequest::Close(name))
                }
            };
        self.trace
            .note(self.now, ("asks", backend, mark, format!("{what:?}")));
        let ticket = Ticket(mark);
        self.asks.open.insert(
            ticket,
            Ask {
                backend,
                asked: self.now,
                what,
            },
        );
        if let Some(life) = self.life_of_backend(backend) {
            life.asks.push_back((ticket, request));
            self.wake_soon(Actor::Backend(backend));
        }
    }

    pub(super) fn on_api_done(&mut self, ticket: Ticket, result: Result<ApiAnswer, GatewayError>) {
        self.trace
            .note(self.now, ("answered", ticket.0, format!("{result:?}")));
        let Some(ask) = self
            .asks
            .open
            .remove(&ticket)
            .filter(|_| self.asks.done.insert(ticket))
        else {
            return self.fail(Promise::Truthful, format!("{ticket:?} is answered twice"));
        };
        let held = self.backends[ask.backend]
            .life
            .as_ref()
            .map_or(Time::ZERO, |life| life.pace.held(self.now));
        if self.now > ask.asked + PUSH_TIMEOUT + SLACK + held {
            let waited = self.now - ask.asked;
            return self.fail(
                Promise::Truthful,
                format!("{ticket:?} is answered after {waited:?}"),
            );
        }
        let Ok(answer) = result else { return };
        if let ApiAnswer::Push(PushReport::Results(results)) = &answer {
            results
                .iter()
                .for_each(|r| self.saw("push", &format!("{:?}", r.status)));
        }
        self.summary.pushes += u64::from(matches!(answer, ApiAnswer::Push(_)));
        if !self.is_true(ask.what, &answer) {
            self.fail(
                Promise::Truthful,
                format!("{:?} is answered with {answer:?}", ask.what),
            );
        }
    }

    fn is_true(&self, what: What, answer: &ApiAnswer) -> bool {
        match (what, answer) {
            (What::Push { mark }, ApiAnswer::Push(PushReport::Results(results))) => {
                let claimed = results.iter().filter(|r| r.status == PushStatus::Written).count();
                claimed <= self.taken(mark)
            }
            (What::Push { mark }, ApiAnswer::Push(PushReport::Counts(counts))) => {
                counts.written as usize <= self.taken(mark)
            }
            (What::Presence { device }, ApiAnswer::Presence(presence)) => {
                let ever = self.conns.iter().any(|c| c.device == device && c.welcomed);
                ever || presence.presence != PresenceState::Online
            }
            (What::Close, ApiAnswer::Closed(_)) => true,
            _ => false,
        }
    }

    /// How many sockets took this push.
    fn taken(&self, mark: u64) -> usize {
        let conns = self.asks.pushed.get(&mark).map(Vec::as_slice).unwrap_or_default();
        conns
            .iter()
            .filter(|(conn, end)| self.conns[conn.0].out.taken >= *end)
            .count()
    }
}

fn push(mark: u64, target: PushTarget) -> (What, ApiRequest) {
    let id = mark.to_string();
    let header = PushHeader {
        namespace: NAMESPACE,
        name: "Mark",
        id: &id,
    };
    let message = PushMessage::Text(render_push_text(&header, b"{}").into());
    (What::Push { mark }, ApiRequest::Push { target, message })
}
