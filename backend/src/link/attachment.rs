//! One link's life: connect, say Hello, work, drain, end; and again from the start whenever it is lost.
//!
//! Pure. Every socket is a new epoch. What a lost epoch still owed is nobody's business any more: the frontend gives it to
//! another backend, so the owner cancels it and nothing late is sent.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::{Done, Draining, Hello, Sync};
use holdfast_proto::link::{
    Class, Command, Epoch, FEATURE_SHARE, Incoming, Lane, LaneError, LaneStats, LaneUsage, Origin,
    PROTOCOL_VERSIONS, UNKNOWN_EPOCH, common_version, decode_batch, has_feature, read_notice,
};
use holdfast_proto::{FrontendEpoch, FrontendId, Share};

use super::Jitter;
use super::outcome::{Frontend, LinkSettings, LinkState, Loss, LossReason, Step};

/// Longest pause between two attempts to attach.
const MAX_RETRY: Duration = Duration::from_secs(1);
/// Longest pause after a refusal: it usually takes a person to change that.
const MAX_REFUSED_RETRY: Duration = Duration::from_secs(5);

/// See the module's documentation. One turn is: inputs, `handle_timeout`, `poll_transmit` until `None`.
#[derive(Debug)]
pub struct Attachment {
    settings: Arc<LinkSettings>,
    jitter: Jitter,
    /// What READY says, now and after every loss.
    share: Share,
    /// The next socket's number.
    attach: u32,
    state: State,
    /// Lost sockets since the last time that the link was attached.
    failures: u32,
    last_frontend: Option<Frontend>,
    /// When the link was last tried again without a pause.
    last_at_once: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Without a socket. Legal: `handle_connected`. Next: `Greeting`.
    Detached,
    /// Our Hello is out. Legal: `handle_batch`, `handle_timeout`. Next: `Attached`, `Detached`.
    Greeting { lane: Box<Lane>, deadline: Instant },
    /// The frontend's Hello came. Next: `Detached`, `Finished`.
    Attached {
        lane: Box<Lane>,
        drain: Drain,
        ready: Said,
    },
    /// Drained, or stopped before it was attached. Final.
    Finished,
}

/// What the frontend was told of our share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    /// It respects shares. One that does not takes READY for a full member's and never lets go of it.
    shares: bool,
    /// The last READY, if there was one.
    share: Option<Share>,
}

impl Said {
    /// The READY that makes `share` known: none when it is known, or cannot be said.
    fn ready(&mut self, share: Share) -> Option<Command> {
        let known = self.share.unwrap_or(Share::NONE) == share;
        if known || !(self.shares || share.is_full()) {
            return None;
        }
        self.share = Some(share);
        Some(Command::Ready(share.into()))
    }

    fn allows(&self, share: Share) -> bool {
        self.shares || share.is_full() || self.share.is_none()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// DRAINING is out. Next: `Marked`.
    Asked,
    /// Frames up to this one hold the last work. Next: `Done`.
    Marked(u64),
    /// DONE is out; its acknowledgement ends the link.
    Done,
}

impl Attachment {
    pub fn new(settings: Arc<LinkSettings>, seed: u64) -> Self {
        Self {
            share: settings.share,
            settings,
            jitter: Jitter::new(seed),
            attach: 1,
            state: State::Detached,
            failures: 0,
            last_frontend: None,
            last_at_once: None,
        }
    }

    /// The attach number that the next socket must use.
    pub fn next_attach(&self) -> u32 {
        self.attach
    }

    /// The ZeroMQ identity of the next socket: never used twice, so that no old peer is mistaken for it.
    pub fn next_identity(&self) -> String {
        let epoch = Epoch {
            boot: self.settings.boot,
            attach: self.attach,
        };
        format!("{}/{epoch}", self.settings.name)
    }

    pub fn state(&self) -> LinkState {
        match &self.state {
            State::Detached => LinkState::Detached,
            State::Greeting { .. } => LinkState::Greeting,
            State::Attached { drain: Drain::No, .. } => LinkState::Attached,
            State::Attached { .. } => LinkState::Draining,
            State::Finished => LinkState::Finished,
        }
    }

    /// Attached, and the frontend gives it no work: it has no share, or one that the frontend would not respect.
    pub fn is_standby(&self) -> bool {
        matches!(&self.state, State::Attached { ready, drain: Drain::No, .. }
            if ready.share.is_none_or(Share::is_none))
    }

    /// Whether the frontend would respect this share. One that knows no shares keeps a full member full.
    pub fn allows(&self, share: Share) -> bool {
        match &self.state {
            State::Attached { ready, .. } => ready.allows(share),
            State::Detached | State::Greeting { .. } | State::Finished => true,
        }
    }

    /// From now on READY says this; an attached frontend is told unless the link drains.
    pub fn set_share(&mut self, share: Share) {
        self.share = share;
        if let State::Attached {
            lane,
            drain: Drain::No,
            ready,
        } = &mut self.state
            && let Some(command) = ready.ready(share)
        {
            lane.enqueue(command, None);
        }
    }

    /// Whether commands may be sent.
    pub fn is_open(&self) -> bool {
        matches!(&self.state, State::Attached { drain, .. } if *drain != Drain::Done)
    }

    /// The frontend that this link was last attached to.
    pub fn frontend(&self) -> Option<&Frontend> {
        self.last_frontend.as_ref()
    }

    /// Number of the last frame handed out in this epoch.
    pub fn last_frame(&self) -> u64 {
        self.lane().map_or(0, Lane::last_frame)
    }

    /// Number of the last frame of this epoch that the frontend has processed.
    pub fn last_acknowledged_frame(&self) -> u64 {
        self.lane().map_or(0, Lane::last_acknowledged_frame)
    }

    pub fn stats(&self) -> LaneStats {
        self.lane().map(Lane::stats).unwrap_or_default()
    }

    /// How much of its bounds the link uses; nothing while it has no socket.
    pub fn usage(&self) -> LaneUsage {
        self.lane().map(Lane::usage).unwrap_or_default()
    }

    /// Frames of `class` waiting for credit.
    pub fn queued(&self, class: Class) -> usize {
        self.lane().map_or(0, |lane| lane.queued(class))
    }

    /// Sends a command when the link is open. Returns whether it will go.
    pub fn enqueue(&mut self, command: Command, origin: Option<Origin>) -> bool {
        if !self.is_open() {
            return false;
        }
        let State::Attached { lane, .. } = &mut self.state else {
            return false;
        };
        lane.enqueue(command, origin);
        true
    }

    /// Gives back the credit of a received frame.
    pub fn release(&mut self, charge: (Class, u32)) {
        if let Some(lane) = self.lane_mut() {
            lane.release(charge);
        }
    }

    /// A fresh socket is connected under [`Attachment::next_identity`].
    pub fn handle_connected(&mut self, now: Instant) {
        if matches!(self.state, State::Finished) {
            return;
        }
        let local = Epoch {
            boot: self.settings.boot,
            attach: self.attach,
        };
        self.attach += 1;
        let mut lane = Box::new(Lane::new(self.settings.lane, local, UNKNOWN_EPOCH, now));
        lane.enqueue(Command::Hello(self.hello()), None);
        self.state = State::Greeting {
            lane,
            deadline: now + self.settings.lane.timeout,
        };
    }

    /// The socket could not be connected, or is gone.
    pub fn handle_disconnected(&mut self, now: Instant) -> Option<Loss> {
        match self.state {
            State::Finished => None,
            State::Detached => {
                self.attach += 1;
                Some(self.lose(now, LossReason::Disconnected))
            }
            State::Greeting { .. } | State::Attached { .. } => Some(self.lose(now, LossReason::Disconnected)),
        }
    }

    /// Takes a batch; the frames that concern the owner are appended to `out`.
    pub fn handle_batch(
        &mut self,
        now: Instant,
        batch: Bytes,
        out: &mut Vec<Incoming>,
    ) -> Result<Step, Loss> {
        let Some(lane) = self.lane() else {
            return Ok(Step::Stale);
        };
        let local = lane.local();
        let Ok((header, frames)) = decode_batch(batch) else {
            return Err(self.lose(now, LossReason::Lane(LaneError::Malformed)));
        };
        if let Some(notice) = read_notice(local, &header, &frames) {
            return Err(self.on_notice(now, notice));
        }
        if let State::Greeting { lane, .. } = &mut self.state
            && lane.remote() == UNKNOWN_EPOCH
            && header.to.map(Epoch::from) == Some(local)
            && let Some(from) = header.from
        {
            lane.set_remote(from.into());
        }
        let first = out.len();
        let Some(lane) = self.lane_mut() else {
            return Ok(Step::Stale);
        };
        match lane.handle_batch(now, (header, frames), out) {
            Err(error) if error.is_fatal() => return Err(self.lose(now, LossReason::Lane(error))),
            Err(_) => return Ok(Step::Stale),
            Ok(()) => {}
        }
        self.on_frames(now, first, out)
    }

    /// Judges deadlines. Call it after the input was drained.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Loss> {
        let timeout = self.settings.lane.timeout;
        let reason = match &mut self.state {
            State::Detached | State::Finished => return None,
            State::Greeting { lane, deadline } => {
                if now > (*deadline).min(lane.poll_timeout()) + timeout / 2 {
                    lane.restart_clocks(now);
                    *deadline = now + timeout;
                }
                (now >= *deadline).then_some(LossReason::NoAnswer)
            }
            State::Attached { lane, .. } => {
                if now > lane.poll_timeout() + timeout / 2 {
                    lane.restart_clocks(now);
                }
                lane.check(now).map(|_| LossReason::Silent)
            }
        };
        reason.map(|reason| self.lose(now, reason))
    }

    /// When [`Attachment::handle_timeout`] or [`Attachment::poll_transmit`] has something to do at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lane = self.lane()?;
        let mut next = lane.poll_timeout();
        if let State::Greeting { deadline, .. } = &self.state {
            next = next.min(*deadline);
        }
        Some(next)
    }

    /// The next batch to send.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        progress: u64,
        on_sent: impl FnMut(Class, Origin),
    ) -> Option<Bytes> {
        let lane = match &mut self.state {
            State::Greeting { lane, .. } | State::Attached { lane, .. } => lane,
            State::Detached | State::Finished => return None,
        };
        lane.poll_batch(now, progress, on_sent)
            .or_else(|| lane.poll_header(now, progress))
    }

    /// Asks the frontend for no more work. A link that is not attached is finished at once.
    pub fn start_draining(&mut self) {
        match &mut self.state {
            State::Attached {
                lane,
                drain: drain @ Drain::No,
                ..
            } => {
                lane.enqueue(Command::Draining(Draining {}), None);
                *drain = Drain::Asked;
            }
            State::Attached { .. } | State::Finished => {}
            State::Detached | State::Greeting { .. } => self.state = State::Finished,
        }
    }

    /// Goes on with draining. `idle` says that nothing of this link is being worked on.
    pub fn advance_drain(&mut self, idle: bool) {
        let State::Attached { lane, drain, .. } = &mut self.state else {
            return;
        };
        match *drain {
            Drain::Marked(last) if idle && lane.is_flushed() && lane.last_received_frame() >= last => {
                // The frame that says so is itself the last one.
                let last_frame = lane.last_frame() + 1;
                lane.enqueue(Command::Done(Done { last_frame }), None);
                *drain = Drain::Done;
            }
            Drain::Done if lane.is_flushed() && lane.is_acknowledged() => self.state = State::Finished,
            Drain::No | Drain::Asked | Drain::Marked(_) | Drain::Done => {}
        }
    }

    fn on_notice(&mut self, now: Instant, notice: Command) -> Loss {
        match notice {
            Command::Refused(refused) => {
                let clip = |text: String| text.chars().take(200).collect();
                let reason = LossReason::Refused {
                    code: clip(refused.code),
                    reason: clip(refused.reason),
                };
                self.lose(now, reason)
            }
            _ => self.lose(now, LossReason::Fenced),
        }
    }

    /// Takes the frames about the link itself out of what came.
    fn on_frames(&mut self, now: Instant, first: usize, out: &mut Vec<Incoming>) -> Result<Step, Loss> {
        let mut step = Step::Taken;
        for incoming in out.split_off(first) {
            match incoming.command {
                Command::Hello(hello) => {
                    self.on_hello(hello).map_err(|reason| self.lose(now, reason))?;
                    step = Step::Attached;
                }
                _ if matches!(self.state, State::Greeting { .. }) => {
                    return Err(self.lose(now, LossReason::Protocol("a frame before Hello")));
                }
                Command::DrainMark(mark) => self.on_mark(mark.last_frame),
                _ => out.push(incoming),
            }
        }
        Ok(step)
    }

    fn on_hello(&mut self, hello: Hello) -> Result<(), LossReason> {
        if !matches!(self.state, State::Greeting { .. }) {
            return Err(LossReason::Protocol("a second Hello"));
        }
        common_version(&hello).ok_or(LossReason::Protocol("no common protocol version"))?;
        let id =
            u16::try_from(hello.frontend_id).map_err(|_| LossReason::Protocol("a frontend id over 65535"))?;
        let State::Greeting { mut lane, .. } = std::mem::replace(&mut self.state, State::Detached) else {
            return Err(LossReason::Protocol("a second Hello"));
        };
        self.last_frontend = Some(Frontend {
            id: FrontendId(id),
            epoch: FrontendEpoch(hello.frontend_epoch),
            heartbeat_ms: hello.heartbeat_ms,
            max_message_bytes: hello.max_message_bytes,
            window_requests: hello.window_requests,
            build: hello.build.chars().take(64).collect(),
        });
        let mut ready = Said {
            shares: has_feature(&hello, FEATURE_SHARE),
            share: None,
        };
        if let Some(command) = ready.ready(self.share) {
            lane.enqueue(command, None);
        }
        lane.enqueue(Command::Sync(Sync { cursor: 0 }), None);
        self.failures = 0;
        self.state = State::Attached {
            lane,
            drain: Drain::No,
            ready,
        };
        Ok(())
    }

    fn on_mark(&mut self, last_frame: u64) {
        if let State::Attached {
            drain: drain @ Drain::Asked,
            ..
        } = &mut self.state
        {
            *drain = Drain::Marked(last_frame);
        }
    }

    fn lose(&mut self, now: Instant, reason: LossReason) -> Loss {
        let draining = self.state() == LinkState::Draining;
        self.state = if draining {
            State::Finished
        } else {
            State::Detached
        };
        let long = matches!(reason, LossReason::Refused { .. } | LossReason::Protocol(_));
        let at_once = reason == LossReason::Fenced
            && self.last_at_once.is_none_or(|at| now >= at + self.settings.retry);
        if at_once {
            self.last_at_once = Some(now);
            return Loss {
                reason,
                retry_at: now,
            };
        }
        let longest = if long { MAX_REFUSED_RETRY } else { MAX_RETRY };
        let pause = self
            .settings
            .retry
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures += 1;
        Loss {
            reason,
            retry_at: now + self.jitter.spread(pause),
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            version_min: *PROTOCOL_VERSIONS.start(),
            version_max: *PROTOCOL_VERSIONS.end(),
            build: self.settings.build.clone(),
            name: self.settings.name.clone(),
            ..Default::default()
        }
    }

    fn lane(&self) -> Option<&Lane> {
        match &self.state {
            State::Greeting { lane, .. } | State::Attached { lane, .. } => Some(lane),
            State::Detached | State::Finished => None,
        }
    }

    fn lane_mut(&mut self) -> Option<&mut Lane> {
        match &mut self.state {
            State::Greeting { lane, .. } | State::Attached { lane, .. } => Some(lane),
            State::Detached | State::Finished => None,
        }
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
