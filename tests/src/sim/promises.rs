//! What is promised about requests and replies (P2, P3, P4), checked as services are called and devices read.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use holdfast_backend::dispatch::CallId;
use holdfast_backend::service::{CallOutcome, ServiceRequest};
use holdfast_proto::link::{Command, session_id};
use holdfast_proto::{ErrorCode, MessageKind};

use super::Promise;
use super::conn::ConnId;
use super::ledger::Parcel;
use super::message::{self, Heard};
use super::request::{Aim, Call, Domain, Request};
use super::service::{self, RouteKind};
use super::world::{Event, World};

/// A request that was lost with so many backends is not called again.
pub(super) const POISON_ATTEMPTS: u32 = 2;
/// Clocks on the link count in milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// An event as it came to a device.
struct Reply {
    namespace: String,
    name: String,
    id: String,
    reply_to: String,
    seq: u64,
    payload: Bytes,
}

impl World {
    /// A backend calls a service.
    pub(super) fn begin_call(&mut self, backend: usize, call: CallId, request: &ServiceRequest) {
        let found = self.sessions.get(&request.session.as_u128()).copied();
        let Some(conn) = found else {
            return self.fail(
                Promise::Once,
                format!("a call for {}, which never was", request.session),
            );
        };
        let about = (conn, request.sequence.0, request.attempt, backend);
        self.trace.note(self.now, ("call", about));
        self.note_call((conn, request.sequence.0), (backend, call));
        for _ in 0..self.times_called() {
            self.call((about, call), request);
        }
    }

    fn call(&mut self, (about, call): ((ConnId, u64, u32, usize), CallId), request: &ServiceRequest) {
        let (conn, _, _, backend) = about;
        if let Err(what) = self.judge_call(about, request) {
            let what = format!(
                "request {} of {conn:?}, attempt {}: {what}",
                request.sequence, request.attempt
            );
            return self.fail(Promise::Once, what);
        }
        self.summary.calls += 1;
        self.summary.replays += u64::from(request.attempt > 0);
        if self.conns[conn.0].requests[request.sequence.0 as usize - 1]
            .answered
            .is_some()
        {
            self.saw("call", "after the answer");
        }
        let sequence = request.sequence.0 as usize;
        let Some(route) = self.conns[conn.0].requests[sequence - 1].route() else {
            return;
        };
        let answer = service::answer(&mut self.rng, self.mood, route, request);
        let outcome = answer.as_ref().map(|(_, outcome)| match outcome {
            CallOutcome::Reply(body) => Ok(body.clone()),
            CallOutcome::Empty => Ok(Bytes::new()),
            CallOutcome::Failed { code, .. } => Err(*code),
        });
        let record = Call {
            attempt: request.attempt,
            answer: outcome,
        };
        self.conns[conn.0].requests[sequence - 1].calls.push(record);
        if let Some((delay, outcome)) = answer {
            self.queue.push(
                self.now + delay,
                Event::CallDone {
                    backend,
                    call,
                    outcome,
                },
            );
        }
    }

    fn judge_call(
        &self,
        (conn, sequence, attempt, backend): (ConnId, u64, u32, usize),
        request: &ServiceRequest,
    ) -> Result<(), &'static str> {
        let c = &self.conns[conn.0];
        let known = c
            .requests
            .get((sequence as usize).wrapping_sub(1))
            .ok_or("the device never sent it")?;
        let route = known.route().ok_or("it has no route")?;
        let intact = known.payload == request.payload
            && (known.kind == MessageKind::Binary) == request.binary
            && (known.id.as_deref(), known.retry_key.as_deref())
                == (request.event_id.as_deref(), request.retry_key.as_deref())
            && (request.namespace.as_str(), request.name.as_str()) == (route.namespace(), "Do")
            && request.device.as_str() == self.devices[c.device].name;
        if !intact {
            return Err("the service gets something else than the device sent");
        }
        if attempt >= POISON_ATTEMPTS {
            return Err("it was lost with two backends and is called again");
        }
        if known.calls.iter().any(|call| call.attempt == attempt) {
            return Err("it was called in this attempt before");
        }
        if attempt > 0 && self.is_graceful() {
            return Err("it is repeated although every backend left gracefully");
        }
        if attempt as usize > self.losses_since(conn, known.sent) {
            return Err("it counts more lost backends than there were");
        }
        if known.answered.is_some() && self.is_attached(backend, c.frontend) {
            return Err("it was answered already, and this backend is not a lost one");
        }
        Ok(())
    }

    /// The frontend gives requests to a backend: each says with how many it was lost before.
    pub(super) fn judge_work(&mut self, parcel: &Parcel) {
        for command in parcel.commands() {
            let (Command::TextMessage(request) | Command::BinaryMessage(request)) = command else {
                continue;
            };
            let id = session_id(request.session.as_ref().and_then(|s| s.id)).ok();
            let Some(conn) = id.and_then(|id| self.sessions.get(&id.as_u128()).copied()) else {
                continue;
            };
            let position = (request.sequence as usize).wrapping_sub(1);
            let Some(known) = self.conns[conn.0].requests.get_mut(position) else {
                continue;
            };
            let given = known.given;
            known.given += 1;
            if request.attempt != given {
                let (sequence, attempt) = (request.sequence, request.attempt);
                let what =
                    format!("request {sequence} of {conn:?} has attempt {attempt} after {given} losses");
                return self.fail(Promise::Once, what);
            }
        }
    }

    /// Backends lost, as the connection's shard has heard.
    pub(super) fn losses_since(&self, conn: ConnId, since: Duration) -> usize {
        let c = &self.conns[conn.0];
        let node = &self.frontends[c.frontend];
        let life = node.life.as_ref().filter(|_| node.incarnation == c.incarnation);
        life.map_or(usize::MAX, |life| life.shards[c.shard].losses_since(since))
    }

    /// Whether the frontend counts this backend's current epoch as attached.
    fn is_attached(&self, backend: usize, frontend: usize) -> bool {
        let (Some(hub), Some(life)) = (self.hub(frontend), self.backends[backend].life.as_ref()) else {
            return false;
        };
        let epoch = (self.backends[backend].boot, life.attach[frontend]);
        hub.usage()
            .peers
            .iter()
            .any(|peer| (peer.epoch.boot, peer.epoch.attach) == epoch)
    }

    /// A device reads a message.
    pub(super) fn on_message(&mut self, conn: ConnId, kind: MessageKind, message: &Bytes) {
        match message::read(kind, message) {
            Heard::Control(text) => self.on_control(conn, &text),
            Heard::Event { namespace, .. } if namespace == super::pushes::NAMESPACE => {}
            Heard::Event {
                namespace,
                name,
                id,
                reply_to,
                seq,
                payload,
            } => {
                self.trace.note(self.now, ("reply", conn, seq, name.clone()));
                let reply = Reply {
                    namespace,
                    name,
                    id,
                    reply_to,
                    seq,
                    payload,
                };
                self.on_reply(conn, kind, &reply);
            }
            Heard::Unreadable => self.fail(
                Promise::ExactlyOneAnswer,
                format!("{conn:?} got an unreadable message"),
            ),
        }
    }

    fn on_control(&mut self, conn: ConnId, text: &str) {
        let c = &mut self.conns[conn.0];
        if text.starts_with("@updated") || text.starts_with("@error") {
            c.controls = c.controls.saturating_sub(1);
        }
        let version = text
            .strip_prefix("@updated {\"version\":")
            .and_then(|rest| rest.strip_suffix('}'));
        if let Some(version) = version.and_then(|version| version.parse::<u64>().ok()) {
            let known = std::mem::replace(&mut c.updated, version);
            if version != known + 1 {
                let what = format!("{conn:?} is told of version {version} after {known}: a write was lost");
                return self.fail(Promise::Truthful, what);
            }
        }
        if text.contains("state_conflict") {
            let what = format!("an update of {conn:?} is given up though nobody else writes its state");
            return self.fail(Promise::Truthful, what);
        }
        let c = &self.conns[conn.0];
        let session = c.session.map(|id| id.to_string()).unwrap_or_default();
        let wrong = text.starts_with("@welcome") && (!c.said_hello || !text.contains(&session));
        if wrong {
            self.fail(Promise::Protocol, format!("{conn:?} got {text}"));
        }
    }

    fn on_reply(&mut self, conn: ConnId, kind: MessageKind, reply: &Reply) {
        let position = (reply.seq as usize).wrapping_sub(1);
        let c = &self.conns[conn.0];
        let Some(request) = c.requests.get(position) else {
            let what = format!("{conn:?} got a reply to {}, which it never sent", reply.seq);
            return self.fail(Promise::ExactlyOneAnswer, what);
        };
        let code = (reply.namespace == "System" && reply.name == "Error")
            .then(|| message::error_code(&reply.payload));
        let judged = match &code {
            None => judge_reply(request, kind, reply),
            Some(code) => self.judge_error(
                (conn, request),
                code.as_deref().unwrap_or_default(),
                (kind, reply),
            ),
        };
        if let Err(what) = judged {
            let what = format!("reply {} of {conn:?} ({code:?}): {what}", reply.seq);
            return self.fail(Promise::ExactlyOneAnswer, what);
        }
        if let Some(Some(code)) = &code {
            self.saw("error", code);
        }
        let poisoned = code.flatten().as_deref() == Some(ErrorCode::BackendFailed.label());
        self.check_order(conn, position, poisoned);
        self.conns[conn.0].requests[position].answered = Some(self.now);
        self.summary.replies += 1;
        self.summary.errors += u64::from(reply.namespace == "System");
    }

    /// All earlier requests of the domain must have been answered. A poisoned request is not read again, and so belongs to
    /// the connection's domain: it may be overtaken in its own.
    fn check_order(&mut self, conn: ConnId, position: usize, poisoned: bool) {
        let c = &self.conns[conn.0];
        let domain = c.requests[position].domain();
        let mut late: BTreeSet<usize> = BTreeSet::new();
        if domain != Domain::Unordered && !(poisoned && domain != Domain::Connection) {
            let earlier = c.requests[..position].iter().enumerate();
            let open =
                earlier.filter(|(_, r)| r.expects_reply() && r.answered.is_none() && r.domain() == domain);
            late.extend(open.map(|(index, _)| index));
        }
        let excusable = domain != Domain::Connection && !poisoned;
        if !excusable && let Some(index) = late.first() {
            let what = format!(
                "reply {} of {conn:?} came before reply {}",
                position + 1,
                index + 1
            );
            return self.fail(Promise::InOrder, what);
        }
        let at = position as u64;
        self.conns[conn.0]
            .overtaken
            .extend(late.into_iter().map(|index| (index as u64, at)));
        let c = &mut self.conns[conn.0];
        let Some((_, later)) = c.overtaken.iter().find(|(index, _)| *index == at).copied() else {
            return;
        };
        c.overtaken.retain(|(index, _)| *index != at);
        if !poisoned {
            let what = format!(
                "reply {} of {conn:?} came after reply {}",
                position + 1,
                later + 1
            );
            self.fail(Promise::InOrder, what);
        }
    }

    fn judge_error(
        &self,
        (conn, request): (ConnId, &Request),
        code: &str,
        (kind, reply): (MessageKind, &Reply),
    ) -> Result<(), &'static str> {
        let code = ErrorCode::ALL
            .into_iter()
            .find(|known| known.label() == code)
            .ok_or("an unknown code")?;
        let age = self.now.saturating_sub(request.sent) + ROUNDING;
        let called = |wanted: ErrorCode| request.calls.iter().any(|call| call.answer == Some(Err(wanted)));
        let route = request.route();
        let fits = match code {
            ErrorCode::BadRequest => request.aim == Aim::Malformed,
            ErrorCode::NoRoute => request.aim == Aim::Nowhere,
            ErrorCode::Overloaded | ErrorCode::UpstreamUnavailable => route.is_some(),
            ErrorCode::UpstreamTimeout => {
                route.is_some_and(|r| age >= r.timeout().min(self.scenario.shard.request_deadline))
            }
            ErrorCode::UpstreamError | ErrorCode::BadReply | ErrorCode::ReplyTooLarge => called(code),
            ErrorCode::DeadlineExceeded => route.is_some() && age >= self.scenario.shard.request_deadline,
            ErrorCode::BackendFailed => self.losses_since(conn, request.sent) >= POISON_ATTEMPTS as usize,
        };
        if !fits {
            return Err("the error is not what happened");
        }
        let unread = matches!(code, ErrorCode::BadRequest | ErrorCode::BackendFailed);
        let named = reply.reply_to == request.id.as_deref().unwrap_or_default();
        if kind != request.kind || !(named || unread && reply.reply_to.is_empty()) {
            return Err("the error is not in the request's form");
        }
        if !request.expects_reply() && code != ErrorCode::BackendFailed {
            return Err("a one-way request is answered");
        }
        if request.answered.is_some() {
            return Err("the request was answered before");
        }
        Ok(())
    }
}

fn judge_reply(request: &Request, kind: MessageKind, reply: &Reply) -> Result<(), &'static str> {
    let route = request
        .route()
        .filter(|route| *route != RouteKind::Log)
        .ok_or("a reply where none can be")?;
    if request.answered.is_some() {
        return Err("the request was answered before");
    }
    let header = kind == request.kind
        && reply.namespace == route.namespace()
        && reply.name == "Do.Reply"
        && reply.id == format!("r-{}", reply.seq)
        && reply.reply_to == request.id.as_deref().unwrap_or_default();
    if !header {
        return Err("its header is not the request's");
    }
    let said = |call: &Call| match &call.answer {
        Some(Ok(body)) if body.is_empty() && kind == MessageKind::Text => reply.payload == "null",
        Some(Ok(body)) => *body == reply.payload,
        Some(Err(_)) | None => false,
    };
    if request.calls.iter().any(said) {
        Ok(())
    } else {
        Err("no service has said this to this request")
    }
}
