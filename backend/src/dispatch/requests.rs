//! Requests: from a frame to a call to a reply, in order and within bounds.
//!
//! A request is taken while fewer than `max_in_flight` are under way, of which each link has its share; others stay on their
//! credit, so that the frontend stops sending. Once taken it gets exactly one answer, unless its link is lost: then it is somebody else's.

mod plan;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames;
use holdfast_proto::link::{Class, session_id};
use holdfast_proto::{DeviceId, ErrorCode, Sequence};
use rustc_hash::FxHashMap;

use super::arrival::{Arrival, SMALL_PAYLOAD_BYTES, reply_frame};
use super::event::ReplyTo;
use super::metrics::RequestMetrics;
use super::routes::{Ending, Place, RouteStates};
use super::shares::{Room, Shares};
use super::{Malformed, Now};
use crate::link::LinkIndex;
use crate::route::breaker::{Admission, BreakerSettings};
use crate::route::{Route, RouteKey, RouteTable};
use crate::sequence::{Answer, RequestKey, Sequencer};
use crate::service::{CallOutcome, ServiceRequest};

/// A call to a service, or one that waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// The bounds of [`Requests`].
#[derive(Debug, Clone, Copy)]
pub struct RequestSettings {
    pub links: usize,
    /// Requests taken and not answered to the link.
    pub max_in_flight: usize,
    /// Bytes of replies that wait for order or credit.
    pub max_held_bytes: usize,
    pub breaker: BreakerSettings,
}

/// What is to be done, in this order.
#[derive(Debug, Clone)]
pub enum RequestOutput {
    Call {
        call: CallId,
        request: Box<ServiceRequest>,
    },
    Cancel(CallId),
    Reply {
        link: LinkIndex,
        reply: frames::Reply,
    },
    /// The credit of a frame returns.
    Release {
        link: LinkIndex,
        charge: (Class, u32),
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Requests {
    shares: Shares,
    table: Arc<RouteTable>,
    states: RouteStates,
    sequencer: Sequencer,
    calls: FxHashMap<CallId, Call>,
    deadlines: BTreeSet<(Instant, CallId)>,
    last_call: u64,
    /// Per link; bounded by the credit of requests.
    backlog: Vec<VecDeque<Arrival>>,
    turn: usize,
    output: VecDeque<RequestOutput>,
    metrics: RequestMetrics,
}

#[derive(Debug)]
struct Call {
    key: RequestKey,
    reply_to: ReplyTo,
    arrived: Instant,
    route: Arc<Route>,
    deadline: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waiting(Box<ServiceRequest>),
    Running { admission: Admission, since: Instant },
}

impl Requests {
    pub fn new(settings: RequestSettings, table: Arc<RouteTable>, metrics: RequestMetrics) -> Self {
        Self {
            shares: Shares::new(settings.max_in_flight, settings.links),
            table,
            states: RouteStates::new(settings.breaker),
            sequencer: Sequencer::new(settings.links, settings.max_held_bytes),
            calls: FxHashMap::default(),
            deadlines: BTreeSet::new(),
            last_call: 0,
            backlog: (0..settings.links).map(|_| VecDeque::new()).collect(),
            turn: 0,
            output: VecDeque::new(),
            metrics,
        }
    }

    /// Takes a request, or leaves it on its credit when too many are under way.
    pub fn handle_arrival(&mut self, link: LinkIndex, mut arrival: Arrival, now: Now) {
        if arrival.request.payload.len() <= SMALL_PAYLOAD_BYTES {
            arrival.request.payload = Bytes::copy_from_slice(&arrival.request.payload);
        }
        if !self.room().allows(self.sequencer.in_flight(link))
            || self.backlog.iter().any(|waiting| !waiting.is_empty())
        {
            if let Some(session) = &mut arrival.request.session {
                session.device = Bytes::copy_from_slice(&session.device);
                (session.principal, session.blob) = (Bytes::new(), Bytes::new());
            }
            self.backlog[link.get()].push_back(arrival);
        } else {
            self.take(link, arrival, now);
        }
    }

    /// A call ended. One that was cancelled or timed out meanwhile is ignored.
    pub fn handle_call_done(&mut self, id: CallId, outcome: CallOutcome, now: Now) {
        let Some(call) = self.remove_call(id) else { return };
        let ending = match &outcome {
            CallOutcome::Failed {
                transport_failure: true,
                ..
            } => Ending::Unreachable,
            _ => Ending::Answered,
        };
        if let Stage::Running { admission, .. } = call.stage {
            self.states.leave(&call.route.key, admission, ending, now.instant);
        }
        let body = match outcome {
            CallOutcome::Reply(body) => Ok(body),
            CallOutcome::Empty => Ok(Bytes::new()),
            CallOutcome::Failed { code, .. } => Err(code),
        };
        self.answer_call(&call, body, now.instant);
        self.advance(&call.route.key, now.instant);
    }

    /// From now on this table holds; calls under way and waiting keep the route that they have.
    pub fn handle_routes(&mut self, table: Arc<RouteTable>, now: Now) {
        let keys = self.states.handle_table(&table);
        self.table = table;
        keys.iter().for_each(|key| self.advance(key, now.instant));
    }

    /// Ends calls whose time is up and takes requests that there is room for now.
    pub fn handle_timeout(&mut self, now: Now) {
        self.expire_calls(now.instant);
        self.drain_backlog(now);
        self.metrics
            .in_flight
            .set(self.sequencer.total_in_flight() as i64);
        self.metrics.held_bytes.set(self.sequencer.held_bytes() as i64);
        self.metrics
            .waiting
            .set(self.backlog.iter().map(VecDeque::len).sum::<usize>() as i64);
    }

    /// A reply with a payload of so many bytes was handed to its socket.
    pub fn on_sent(&mut self, link: LinkIndex, bytes: usize) {
        self.sequencer.on_sent(link, bytes);
    }

    /// Cancels everything of a lost link.
    pub fn remove_link(&mut self, link: LinkIndex, now: Now) {
        let of_link = self.calls.iter().filter(|(_, call)| call.key.link == link);
        let mut ids: Vec<CallId> = of_link.map(|(id, _)| *id).collect();
        ids.sort();
        self.metrics.cancelled.inc_by(ids.len() as u64);
        for id in ids {
            if let Some(call) = self.remove_call(id) {
                self.give_up(id, &call, Ending::Abandoned, now.instant);
            }
        }
        self.sequencer.remove_link(link);
        self.backlog[link.get()].clear();
        self.output.retain(|output| match output {
            RequestOutput::Reply { link: of, .. } | RequestOutput::Release { link: of, .. } => *of != link,
            RequestOutput::Call { .. } | RequestOutput::Cancel(_) => true,
        });
        self.states
            .keys()
            .iter()
            .for_each(|key| self.advance(key, now.instant));
    }

    pub fn poll_output(&mut self) -> Option<RequestOutput> {
        self.output.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let call = self.deadlines.first().map(|(deadline, _)| *deadline);
        let (room, for_expired) = (self.room(), self.room_for_expired());
        let backlog = (0..self.backlog.len()).filter_map(|n| {
            let in_flight = self.sequencer.in_flight(LinkIndex::new(n));
            let arrival = self.backlog[n].front()?;
            if room.allows(in_flight) {
                Some(arrival.at)
            } else if for_expired.allows(in_flight) {
                arrival.expires()
            } else {
                None
            }
        });
        call.into_iter().chain(backlog).min()
    }

    /// Whether nothing of this link is left to answer or to hand to its socket.
    pub fn is_idle(&self, link: LinkIndex) -> bool {
        self.sequencer.in_flight(link) == 0 && self.backlog[link.get()].is_empty()
    }

    pub fn in_flight(&self) -> usize {
        self.sequencer.total_in_flight()
    }

    /// Requests left on their credit.
    pub fn waiting(&self) -> usize {
        self.backlog.iter().map(VecDeque::len).sum()
    }

    /// Bytes of replies that have not left.
    pub fn held_bytes(&self) -> usize {
        self.sequencer.held_bytes()
    }

    fn room(&self) -> Room {
        self.shares.room(|of| self.sequencer.in_flight(of))
    }

    /// What has expired is answered although nothing else is taken; but not when the answers do not leave either.
    fn room_for_expired(&self) -> Room {
        self.shares.doubled().room(|of| self.sequencer.in_flight(of))
    }

    /// All that is due ends before places are given on: a waiting call that is due as well is not started for nothing.
    fn expire_calls(&mut self, now: Instant) {
        let mut keys: Vec<RouteKey> = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            let Some(call) = self.remove_call(id) else {
                continue;
            };
            let ran_long = |since: Instant| now >= since + call.route.timeout / 2;
            let ending = match &call.stage {
                Stage::Running { since, .. } if ran_long(*since) => Ending::Unreachable,
                _ => Ending::Abandoned,
            };
            self.give_up(id, &call, ending, now);
            self.answer_call(&call, Err(ErrorCode::UpstreamTimeout), now);
            if keys.last() != Some(&call.route.key) {
                keys.push(call.route.key.clone());
            }
        }
        keys.iter().for_each(|key| self.advance(key, now));
    }

    fn drain_backlog(&mut self, now: Now) {
        while let Some(link) = self.next_link(now.instant)
            && let Some(arrival) = self.backlog[link.get()].pop_front()
        {
            self.turn = link.get() + 1;
            self.take(link, arrival, now);
        }
    }

    /// Of the links whose next request may be taken the one with the fewest under way; in turn when there are several.
    fn next_link(&self, now: Instant) -> Option<LinkIndex> {
        let links = self.backlog.len();
        let in_turn = (0..links).map(|offset| LinkIndex::new((self.turn + offset) % links));
        let (room, for_expired) = (self.room(), self.room_for_expired());
        let may_be_taken = |link: &LinkIndex| {
            let in_flight = self.sequencer.in_flight(*link);
            self.backlog[link.get()].front().is_some_and(|arrival| {
                let expired = arrival.expires().is_some_and(|at| now >= at);
                room.allows(in_flight) || expired && for_expired.allows(in_flight)
            })
        };
        in_turn
            .filter(may_be_taken)
            .min_by_key(|link| self.sequencer.in_flight(*link))
    }

    fn take(&mut self, link: LinkIndex, arrival: Arrival, now: Now) {
        let release = arrival
            .charge
            .map(|charge| RequestOutput::Release { link, charge });
        self.output.extend(release);
        if self.begin(link, arrival, now).is_err() {
            self.metrics.malformed.inc();
        }
    }

    fn begin(&mut self, link: LinkIndex, arrival: Arrival, now: Now) -> Result<(), Malformed> {
        let remaining = arrival.remaining(now.instant);
        let age = arrival.age(now.instant);
        let (arrived, took) = (arrival.at, now.instant.saturating_duration_since(arrival.at));
        let Arrival { request, binary, .. } = arrival;
        let session = request.session.ok_or(Malformed)?;
        let sequence = Sequence(request.sequence);
        let key = RequestKey {
            link,
            session: session_id(session.id)?,
            sequence,
        };
        let device = DeviceId::from_bytes(session.device)?;
        if sequence == Sequence(0) {
            return Err(Malformed);
        }
        let expired = remaining == Some(Duration::ZERO);
        let plan = self.plan(sequence, binary, request.attempt, &request.payload);
        if self
            .sequencer
            .admit(key, Sequence(request.floor), plan.domain)
            .is_err()
        {
            self.metrics.duplicates.inc();
            return Ok(());
        }
        self.metrics.replays.inc_by(u64::from(request.attempt > 0));
        let (route, event) = match plan.step {
            Ok(_) if expired => {
                let late = Err(ErrorCode::DeadlineExceeded);
                self.answer((key, took), &plan.reply_to, plan.silent, late);
                return Ok(());
            }
            Ok(step) => step,
            Err(code) => {
                self.answer((key, took), &plan.reply_to, plan.silent, Err(code));
                return Ok(());
            }
        };
        let limit = remaining.map_or(route.timeout, |left| left.min(route.timeout));
        let service_request = ServiceRequest {
            route: route.clone(),
            namespace: event.namespace,
            name: event.name,
            event_id: event.id,
            device: device.to_owned_bytes(),
            session: key.session,
            sequence,
            attempt: request.attempt,
            binary,
            payload: event.payload,
            retry_key: event.retry_key,
            received_at: now.wall_before(age),
        };
        let stage = Stage::Waiting(Box::new(service_request));
        self.enter(
            Call {
                key,
                reply_to: plan.reply_to,
                arrived,
                route,
                deadline: now.instant + limit,
                stage,
            },
            now.instant,
        );
        Ok(())
    }

    fn enter(&mut self, call: Call, now: Instant) {
        self.last_call += 1;
        let id = CallId(self.last_call);
        let place = self.states.enter(&call.route, id, now);
        if let Place::Refused(code) = place {
            self.answer_call(&call, Err(code), now);
            return;
        }
        self.deadlines.insert((call.deadline, id));
        self.calls.insert(id, call);
        if let Place::Call(admission) = place {
            self.start(id, admission, now);
        }
    }

    fn start(&mut self, id: CallId, admission: Admission, now: Instant) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let running = Stage::Running {
            admission,
            since: now,
        };
        if let Stage::Waiting(request) = std::mem::replace(&mut call.stage, running) {
            self.output.push_back(RequestOutput::Call { call: id, request });
        }
    }

    /// Gives free places of a route to those that wait for them.
    fn advance(&mut self, route: &RouteKey, now: Instant) {
        while let Some((id, admission)) = self.states.next(route, now) {
            if let Some(admission) = admission {
                self.start(id, admission, now);
            } else if let Some(call) = self.remove_call(id) {
                self.answer_call(&call, Err(ErrorCode::UpstreamUnavailable), now);
            }
        }
    }

    fn remove_call(&mut self, id: CallId) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        self.deadlines.remove(&(call.deadline, id));
        Some(call)
    }

    fn give_up(&mut self, id: CallId, call: &Call, ending: Ending, now: Instant) {
        match call.stage {
            Stage::Waiting(_) => self.states.remove_waiting(&call.route.key, id),
            Stage::Running { admission, .. } => {
                self.states.leave(&call.route.key, admission, ending, now);
                self.output.push_back(RequestOutput::Cancel(id));
            }
        }
    }

    fn answer_call(&mut self, call: &Call, body: Result<Bytes, ErrorCode>, now: Instant) {
        let took = now.saturating_duration_since(call.arrived);
        self.answer((call.key, took), &call.reply_to, call.route.one_way, body);
    }

    fn answer(
        &mut self,
        (key, took): (RequestKey, Duration),
        reply_to: &ReplyTo,
        silent: bool,
        body: Result<Bytes, ErrorCode>,
    ) {
        let binary = reply_to.binary;
        let payload = match &body {
            _ if silent => Bytes::new(),
            Ok(body) => reply_to.reply(body),
            Err(code) => reply_to.error(*code),
        };
        let mut outcome = body.map(|_| silent);
        let mut out = Vec::new();
        if self
            .sequencer
            .finish(
                key,
                Answer {
                    binary,
                    silent,
                    payload,
                },
                &mut out,
            )
            .is_err()
        {
            outcome = Err(ErrorCode::Overloaded);
            let short = Answer {
                binary,
                silent,
                payload: reply_to.error(ErrorCode::Overloaded),
            };
            let taken = self.sequencer.finish(key, short, &mut out);
            debug_assert!(taken.is_ok(), "an error reply is short");
        }
        self.metrics.count(outcome);
        self.metrics.durations.observe(took);
        self.output
            .extend(out.into_iter().map(|release| RequestOutput::Reply {
                link: release.key.link,
                reply: reply_frame(release),
            }));
    }
}

#[cfg(test)]
pub(super) mod tests;
