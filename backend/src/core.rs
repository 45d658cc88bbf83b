//! The whole backend but its threads and sockets: links, dispatch, sequencing, pushes and presence, joined.
//!
//! Pure. The binary's link thread drives it, and so does the simulation. One turn is: any inputs, then
//! [`Backend::handle_timeout`], then [`Backend::poll_transmit`] and [`Backend::poll_action`] until both give `None`, then
//! waiting until [`Backend::poll_timeout`] or the next input. Drain the inputs before `handle_timeout`: it judges silence.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod commands;
mod epochs;
mod metrics;
mod operations;
mod owed;
mod report;
mod share;
mod usage;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::Share;
use holdfast_proto::link::{Class, Incoming, LaneStats, Origin};
use tracing::info;

use crate::api::{self, GatewayError};
use crate::auth::{Claimant, Denied, Grant};
use crate::dispatch::{BindId, CallId, Lifecycle, RequestOutput, RequestSettings, Requests};
use crate::link::{Attachment, LinkIndex, LinkSettings, LinkState};
use crate::push::{Ticket, Tracker};
use crate::route::RouteTable;
use crate::route::breaker::BreakerSettings;
use crate::service::{CallOutcome, ServiceRequest};

pub use crate::dispatch::Now;
pub use metrics::CoreMetrics;
pub use operations::{ApiAnswer, ApiRequest};
pub use owed::MAX_OWED_CLOSES;
pub use share::ShareRefused;
pub use usage::BackendUsage;

/// Bytes of replies that wait for their turn or for credit, over all sessions.
pub const MAX_HELD_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Answers to lifecycle frames that wait on a link before the credit of further ones is held back.
const LIFECYCLE_BACKLOG: usize = 1024;

/// Marks of frames that are accounted for until they are sent; the ticket is their payload's size.
const SOURCE_REPLY: u8 = 1;
const SOURCE_PUSH: u8 = 2;
/// Here the ticket is that of the owed CLOSE.
const SOURCE_CLOSE: u8 = 3;

/// What a backend is told at start.
#[derive(Debug, Clone)]
pub struct CoreSettings {
    pub link: LinkSettings,
    /// Number of configured frontends, 1 to 64.
    pub links: usize,
    pub max_in_flight: usize,
    pub last_seen_capacity: usize,
    pub push_timeout: Duration,
    pub query_timeout: Duration,
    pub drain_grace: Duration,
    pub breaker: BreakerSettings,
    /// For jitter.
    pub seed: u64,
}

/// What the owner must do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Check the credential and call [`Backend::handle_authenticated`].
    Authenticate {
        bind: BindId,
        claimant: Claimant,
        credential: Bytes,
    },
    /// Call the service and then [`Backend::handle_call_done`].
    Call {
        call: CallId,
        request: Box<ServiceRequest>,
    },
    /// Drop the call; nothing needs to follow.
    CancelCall(CallId),
    ApiDone {
        ticket: Ticket,
        result: Result<ApiAnswer, GatewayError>,
    },
    /// Drop the link's socket and open a new one under this identity at `at`.
    Reconnect {
        link: LinkIndex,
        attach: u32,
        identity: String,
        at: Instant,
    },
    /// Everything is done: end the process.
    Exit,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Backend {
    settings: CoreSettings,
    links: Vec<Link>,
    requests: Requests,
    lifecycle: Lifecycle,
    tracker: Tracker,
    actions: VecDeque<Action>,
    metrics: CoreMetrics,
    stop: Stop,
    share: Share,
    progress: u64,
    /// Which link the next batch is taken from.
    turn: usize,
    /// The last turn changed something that the next one has to look at without waiting.
    again: Option<Instant>,
    scratch: Vec<Incoming>,
    sent: Vec<Origin>,
}

#[derive(Debug)]
struct Link {
    attachment: Attachment,
    /// Credit of lifecycle frames held back while their answers pile up.
    held_back: VecDeque<(Class, u32)>,
    /// Bytes of pushes that wait for credit.
    push_bytes: usize,
    closes: owed::OwedCloses,
    report: report::LossReport,
    online: u64,
    counted: LaneStats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Draining { until: Instant },
    Exited,
}

impl Backend {
    pub fn new(settings: CoreSettings, table: Arc<RouteTable>, metrics: CoreMetrics, now: Instant) -> Self {
        let request_settings = RequestSettings {
            links: settings.links,
            max_in_flight: settings.max_in_flight,
            max_held_bytes: MAX_HELD_REPLY_BYTES,
            breaker: settings.breaker,
        };
        let shared = Arc::new(settings.link.clone());
        let link = |n: usize| Link {
            attachment: Attachment::new(shared.clone(), settings.seed.wrapping_add(n as u64)),
            held_back: VecDeque::new(),
            push_bytes: 0,
            closes: owed::OwedCloses::default(),
            report: report::LossReport::default(),
            online: 0,
            counted: LaneStats::default(),
        };
        let mut backend = Self {
            links: (0..settings.links).map(link).collect(),
            requests: Requests::new(request_settings, table, metrics.requests.clone()),
            lifecycle: Lifecycle::new(settings.last_seen_capacity, settings.seed),
            tracker: Tracker::default(),
            actions: VecDeque::new(),
            metrics,
            stop: Stop::No,
            share: settings.link.share,
            progress: 0,
            turn: 0,
            again: None,
            scratch: Vec::new(),
            sent: Vec::new(),
            settings,
        };
        for link in backend.link_indexes() {
            backend.metrics.set_link(link, LinkState::Detached);
            backend.reconnect(link, now);
        }
        backend
    }

    /// The socket that the last [`Action::Reconnect`] of this link asked for is connected.
    pub fn handle_connected(&mut self, link: LinkIndex, now: Now) {
        self.links[link.get()].attachment.handle_connected(now.instant);
    }

    /// A batch came. Batches of other epochs are dropped and counted.
    pub fn handle_batch(&mut self, link: LinkIndex, now: Now, batch: Bytes) {
        let mut incoming = std::mem::take(&mut self.scratch);
        let taken = self.links[link.get()]
            .attachment
            .handle_batch(now.instant, batch, &mut incoming);
        match taken {
            Ok(step) => {
                self.on_step(link, step, now);
                let Link {
                    attachment, closes, ..
                } = &mut self.links[link.get()];
                closes.on_acknowledged(attachment.last_acknowledged_frame());
                incoming
                    .drain(..)
                    .for_each(|frame| self.handle_frame(link, frame, now));
            }
            Err(loss) => self.on_loss(link, &loss, now),
        }
        incoming.clear();
        self.scratch = incoming;
        self.after_input();
    }

    /// The link's socket could not be connected, or is gone.
    pub fn handle_disconnected(&mut self, link: LinkIndex, now: Now) {
        if let Some(loss) = self.links[link.get()].attachment.handle_disconnected(now.instant) {
            self.on_loss(link, &loss, now);
        }
    }

    pub fn handle_authenticated(&mut self, bind: BindId, result: Result<Grant, Denied>) {
        if let Some(bound) = self.lifecycle.handle_authenticated(bind, result) {
            self.metrics.count_bind(bound.channel, bound.code);
            self.enqueue(bound.link, bound.answer, None);
        }
    }

    pub fn handle_call_done(&mut self, call: CallId, outcome: CallOutcome, now: Now) {
        self.requests.handle_call_done(call, outcome, now);
        self.after_input();
    }

    pub fn handle_routes(&mut self, table: Arc<RouteTable>, now: Now) {
        self.requests.handle_routes(table, now);
        self.after_input();
    }

    /// Begins to leave: finishes what is under way, then [`Action::Exit`]. Safe to repeat.
    pub fn handle_shutdown(&mut self, now: Instant) {
        if self.stop != Stop::No {
            return;
        }
        info!("draining");
        self.stop = Stop::Draining {
            until: now + self.settings.drain_grace,
        };
        self.links
            .iter_mut()
            .for_each(|link| link.attachment.start_draining());
    }

    /// `progress` grows while the workers work; the frontends watch it. May be called at any time, and must be in each turn.
    pub fn handle_timeout(&mut self, now: Now, progress: u64) {
        self.progress = progress;
        self.again = None;
        for link in self.link_indexes() {
            if let Some(loss) = self.links[link.get()].attachment.handle_timeout(now.instant) {
                self.on_loss(link, &loss, now);
            }
        }
        self.requests.handle_timeout(now);
        self.tracker.handle_timeout(now.instant);
        self.after_input();
        for link in self.link_indexes() {
            self.release_held_back(link);
            self.count_lane(link);
        }
        self.metrics.operations.set(self.tracker.outstanding() as i64);
        let owed: usize = self.links.iter().map(|link| link.closes.len()).sum();
        self.metrics.closes_owed.set(owed as i64);
        self.advance_stop(now);
    }

    /// The next batch to send, and on which link. `None` ends the turn.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(LinkIndex, Bytes)> {
        for offset in 0..self.links.len() {
            let index = (self.turn + offset) % self.links.len();
            let (link, sent) = (&mut self.links[index], &mut self.sent);
            let batch = link
                .attachment
                .poll_transmit(now, self.progress, |_, origin| sent.push(origin));
            let Some(batch) = batch else { continue };
            self.turn = index + 1;
            let link = LinkIndex::new(index);
            self.on_sent(link, now);
            return Some((link, batch));
        }
        None
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When the next turn is due without any input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let stop = match self.stop {
            Stop::Draining { until } => Some(until),
            Stop::No | Stop::Exited => None,
        };
        let links = self
            .links
            .iter()
            .filter_map(|link| link.attachment.poll_timeout());
        let own = [
            self.requests.poll_timeout(),
            self.tracker.poll_timeout(),
            stop,
            self.again,
        ];
        links.chain(own.into_iter().flatten()).min()
    }

    /// Whether at least one frontend is attached and this backend takes work.
    pub fn is_ready(&self) -> bool {
        self.stop == Stop::No
            && self
                .links
                .iter()
                .any(|link| link.attachment.state() == LinkState::Attached)
    }

    pub fn is_draining(&self) -> bool {
        self.stop != Stop::No
    }

    pub fn in_flight(&self) -> usize {
        self.requests.in_flight()
    }

    /// The frontends, for `/v1/stats`.
    pub fn frontends(&self) -> Vec<api::Frontend> {
        let frontend = |link: &Link| api::Frontend {
            id: link.attachment.frontend().map(|f| f.id),
            epoch: link.attachment.frontend().map(|f| f.epoch),
            state: match link.attachment.state() {
                LinkState::Detached if link.attachment.frontend().is_some() => "lost",
                LinkState::Detached | LinkState::Greeting => "connecting",
                LinkState::Attached if link.attachment.is_standby() => "standby",
                LinkState::Attached => "active",
                LinkState::Draining => "draining",
                LinkState::Finished => "finished",
            },
            sessions: link.online,
        };
        self.links.iter().map(frontend).collect()
    }

    pub fn link_state(&self, link: LinkIndex) -> LinkState {
        self.links[link.get()].attachment.state()
    }

    fn link_indexes(&self) -> impl Iterator<Item = LinkIndex> + use<> {
        (0..self.links.len()).map(LinkIndex::new)
    }

    /// Passes on what the parts have put out.
    fn after_input(&mut self) {
        while let Some(output) = self.requests.poll_output() {
            match output {
                RequestOutput::Call { call, request } => {
                    self.actions.push_back(Action::Call { call, request })
                }
                RequestOutput::Cancel(call) => self.actions.push_back(Action::CancelCall(call)),
                RequestOutput::Release { link, charge } => self.links[link.get()].attachment.release(charge),
                RequestOutput::Reply { link, reply } => {
                    let origin = Origin {
                        source: SOURCE_REPLY,
                        ticket: reply.payload.len() as u64,
                    };
                    self.enqueue(link, holdfast_proto::link::Command::Reply(reply), Some(origin));
                }
            }
        }
        while let Some((ticket, outcome)) = self.tracker.poll_done() {
            let result = self.report(outcome);
            self.actions.push_back(Action::ApiDone { ticket, result });
        }
    }

    fn enqueue(
        &mut self,
        link: LinkIndex,
        command: holdfast_proto::link::Command,
        origin: Option<Origin>,
    ) -> bool {
        self.links[link.get()].attachment.enqueue(command, origin)
    }

    fn on_sent(&mut self, link: LinkIndex, now: Instant) {
        for Origin { source, ticket } in self.sent.drain(..) {
            let bytes = ticket as usize;
            match source {
                SOURCE_REPLY => self.requests.on_sent(link, bytes),
                SOURCE_CLOSE => {
                    let state = &mut self.links[link.get()];
                    state.closes.on_sent(ticket, state.attachment.last_frame());
                }
                _ => {
                    let state = &mut self.links[link.get()];
                    state.push_bytes = state.push_bytes.saturating_sub(bytes);
                }
            }
        }
        if self.stop != Stop::No || !self.links[link.get()].held_back.is_empty() {
            self.again = Some(now);
        }
    }

    fn release_held_back(&mut self, link: LinkIndex) {
        let Link {
            attachment,
            held_back,
            ..
        } = &mut self.links[link.get()];
        while attachment.queued(Class::Lifecycle) <= LIFECYCLE_BACKLOG
            && let Some(charge) = held_back.pop_front()
        {
            attachment.release(charge);
        }
    }

    fn count_lane(&mut self, link: LinkIndex) {
        let Link {
            attachment, counted, ..
        } = &mut self.links[link.get()];
        let stats = attachment.stats();
        let m = &self.metrics;
        m.frames_in
            .inc_by(stats.frames_received.saturating_sub(counted.frames_received));
        m.frames_out
            .inc_by(stats.frames_sent.saturating_sub(counted.frames_sent));
        m.batches_in
            .inc_by(stats.batches_received.saturating_sub(counted.batches_received));
        m.batches_out
            .inc_by(stats.batches_sent.saturating_sub(counted.batches_sent));
        m.credit_stalls
            .inc_by(stats.credit_stalls.saturating_sub(counted.credit_stalls));
        *counted = stats;
    }
}

#[cfg(test)]
mod tests;
