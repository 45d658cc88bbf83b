//! One shard's sessions. See the parent module.

mod deliver;
mod device;
mod frames_in;
mod peers;
mod push;
mod repeat;
mod source;
mod timers;
mod usage;
mod write;

pub use usage::{SessionUsage, ShardUsage};

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::secure::TrafficKeys;
use holdfast_proto::{ChannelKind, CloseCode, Generation, MessageKind, SessionId, SessionParts, Slot};

use super::config::ShardConfig;
use super::metrics::ShardMetrics;
use super::roster::Roster;
use super::session::{Active, Session, SessionKey};
use super::state::{CloseReason, State};
use super::wheel::{TICK, Wheel};
use crate::exchange::ToHub;

/// What a channel shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Answer the upgrade: the device is admitted, or on channels that we encrypt: challenged.
    Admit {
        key: SessionKey,
        challenge: Option<Box<Challenge>>,
    },
    /// Answer the upgrade with this and end the connection. The session is gone.
    Refuse { key: SessionKey, refusal: Refusal },
    /// Write a message; report it with [`Shard::handle_written`] when the socket took all of it.
    Send {
        key: SessionKey,
        kind: MessageKind,
        payload: Bytes,
    },
    /// Ask the device for a sign of life.
    Ping { key: SessionKey },
    /// Say goodbye and close. The session knows no connection any more: nothing about it may be reported.
    Close {
        key: SessionKey,
        code: CloseCode,
        goodbye: Option<Goodbye>,
    },
    /// The message that was stalled may be tried again.
    Resume { key: SessionKey },
}

/// Why an upgrade is refused, as HTTP says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
    pub retryable: bool,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// Too much from one source or device; come back later.
    pub(crate) fn too_many_attempts(message: &str, retry_after: Duration) -> Self {
        Self {
            status: 429,
            code: "too_many_attempts".into(),
            message: message.into(),
            retryable: true,
            retry_after: Some(retry_after),
        }
    }
}

/// How a device proves that it holds its key: a message in the clear, and what is encrypted with from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub message: Bytes,
    pub keys: TrafficKeys,
}

/// The last message before a close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    pub code: String,
    pub retry_after: Option<Duration>,
    pub reconnect: bool,
}

impl Goodbye {
    /// `@goodbye {…}` as it is sent. `code` is a word of ours or of a backend's, restricted to what needs no escaping.
    pub fn render(&self) -> String {
        let code: String = self
            .code
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            .collect();
        let retry = self
            .retry_after
            .map(|d| format!(",\"retry_after_ms\":{}", d.as_millis()))
            .unwrap_or_default();
        format!(
            "@goodbye {{\"code\":\"{code}\"{retry},\"reconnect\":{}}}",
            self.reconnect
        )
    }
}

/// A message that does not fit the window now: keep it, stop reading, and try again on [`Output::Resume`].
#[derive(Debug)]
pub struct Stalled(pub Bytes);

/// The sessions of one thread.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    metrics: ShardMetrics,
    slots: Vec<Place>,
    free: Vec<u32>,
    roster: Roster,
    wheel: Wheel,
    /// Bytes of unanswered requests and control messages over all sessions.
    window_bytes: usize,
    /// Handed to channels and not yet written, over all sessions.
    out_bytes: usize,
    /// Sessions that wait for a backend before they are online.
    waiting: u32,
    online: u32,
    /// Sessions whose message waits for room in the total of all windows, each at most once, and some that are over.
    starved: VecDeque<SessionKey>,
    broadcasts: VecDeque<push::Broadcast>,
    #[allow(clippy::vec_box, reason = "the boxes themselves are what is reused")]
    spare: Vec<Box<Active>>,
    outputs: VecDeque<Output>,
    /// How often all outputs were taken.
    turn: u32,
    to_hub: Vec<ToHub>,
    live: u32,
    stopping: bool,
    rng: u64,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    session: Option<Session>,
}

/// Sessions beyond the most that there may be, which are taken in only to be told when to come again.
pub const MAX_TO_REFUSE: u32 = 64;

/// Why connections are refused when there are as many sessions as there may be, as metrics say it.
const SESSIONS_FULL: &str = "sessions_full";
/// What ended a connection that never asked to be let in, as metrics say it: it was silent for too long, or gone before.
const NEVER_ASKED: &str = "never_asked";

/// Boxes kept for the next busy session instead of being freed.
const MAX_SPARE: usize = 256;

impl Shard {
    pub fn new(config: ShardConfig, metrics: ShardMetrics, now: Instant) -> Self {
        Self {
            rng: config.seed,
            config,
            metrics,
            slots: Vec::new(),
            free: Vec::new(),
            roster: Roster::default(),
            wheel: Wheel::new(now, TICK),
            window_bytes: 0,
            out_bytes: 0,
            waiting: 0,
            online: 0,
            starved: VecDeque::new(),
            broadcasts: VecDeque::new(),
            spare: Vec::new(),
            outputs: VecDeque::new(),
            turn: 0,
            to_hub: Vec::new(),
            live: 0,
            stopping: false,
        }
    }

    /// A connection was accepted. `None` when the shard is stopping, or so full that it cannot even be refused properly: close it.
    pub fn accept(&mut self, now: Instant, kind: ChannelKind, address: SocketAddr) -> Option<SessionKey> {
        // Who comes over datagrams is told without a session.
        let to_refuse = if kind == ChannelKind::Udp {
            0
        } else {
            MAX_TO_REFUSE
        };
        if self.stopping || self.live >= self.config.max_sessions.saturating_add(to_refuse) {
            let reason = if self.stopping { "stopping" } else { SESSIONS_FULL };
            self.metrics.refused(reason);
            return None;
        }
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        if slot as usize == self.slots.len() {
            self.slots.push(Place {
                generation: 0,
                session: None,
            });
        }
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        let id = SessionId::mint(SessionParts {
            frontend: self.config.frontend,
            epoch: self.config.epoch,
            shard: self.config.shard,
            slot: Slot(slot),
            generation: Generation(place.generation),
        });
        let Ok(id) = id else {
            self.free.push(slot);
            return None;
        };
        let session = Session::new(id, kind, address, now);
        let key = session.key();
        place.session = Some(session);
        self.live += 1;
        self.metrics.accepted.inc();
        self.metrics.sessions.inc();
        self.arm(slot);
        Some(key)
    }

    /// The next thing that a channel shall do.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            self.turn = self.turn.wrapping_add(1);
        }
        output
    }

    /// Everything for the hub since the last call, in order, exchanged for an empty buffer.
    pub fn take_to_hub(&mut self, empty: Vec<ToHub>) -> Vec<ToHub> {
        std::mem::replace(&mut self.to_hub, empty)
    }

    pub fn has_for_hub(&self) -> bool {
        !self.to_hub.is_empty()
    }

    /// Sessions in any state.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// The session's uuid, while it lives.
    pub fn session_id(&self, key: SessionKey) -> Option<SessionId> {
        self.slots
            .get(key.slot as usize)?
            .session
            .as_ref()
            .filter(|s| s.key() == key)
            .map(|s| s.id)
    }

    /// The live session of `key`.
    fn get(&mut self, key: SessionKey) -> Option<&mut Session> {
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation != key.generation {
            return None;
        }
        place.session.as_mut()
    }

    /// The live session that a frame names, if it is of this life of this frontend.
    fn find(&mut self, id: Option<holdfast_proto::link::frames::SessionId>) -> Option<SessionKey> {
        let Ok(id) = holdfast_proto::link::session_id(id) else {
            self.metrics.malformed_frames.inc();
            return None;
        };
        let parts = id.parts();
        let key = SessionKey {
            slot: parts.slot.0,
            generation: parts.generation.0,
        };
        let found = self.get(key).is_some_and(|s| s.id == id);
        if !found {
            self.metrics.late_frames.inc();
        }
        found.then_some(key)
    }

    /// Boxes the busy part of a session, reusing one if there is.
    #[allow(clippy::vec_box, reason = "the boxes themselves are what is reused")]
    fn activate<'a>(spare: &mut Vec<Box<Active>>, session: &'a mut Session) -> &'a mut Active {
        let next = session.next;
        session.active.get_or_insert_with(|| {
            let mut active = spare.pop().unwrap_or_default();
            active.window.begin(next);
            active
        })
    }

    /// Gives the busy part back when nothing is under way.
    fn settle(&mut self, slot: u32) {
        let Some(session) = self.slots[slot as usize].session.as_mut() else {
            return;
        };
        if session.active.as_ref().is_some_and(|a| a.is_idle())
            && let Some(active) = session.active.take()
            && self.spare.len() < MAX_SPARE
        {
            self.spare.push(active);
        }
    }

    fn set_waiting(&mut self, waiting: u32) {
        self.waiting = waiting;
        self.metrics.waiting.set(waiting.into());
    }

    /// Ends a session whose connection is gone or told to go. LOGOUT follows when a backend may know it.
    fn end(&mut self, now: Instant, key: SessionKey, reason: CloseReason) {
        let Some(session) = self.get(key) else { return };
        let what = match session.state {
            State::Accepted { .. } => NEVER_ASKED,
            _ => reason.label(),
        };
        self.end_as(now, key, reason, what);
    }

    /// The same where LOGOUT's reason does not say what happened, as metrics count it.
    fn end_as(&mut self, now: Instant, key: SessionKey, reason: CloseReason, what: &'static str) {
        let Some(session) = self.get(key) else { return };
        if matches!(session.state, State::Closing(_)) {
            return;
        }
        let place = session.state.take_place();
        let before_online = matches!(session.state, State::Binding(_) | State::LoggingIn(_));
        let was_online = matches!(session.state, State::Online);
        let owes_logout = session.state.on_closed(now, reason).unwrap_or(false);
        let (id, device) = (session.id, session.device.clone());
        self.set_waiting(self.waiting - u32::from(before_online));
        self.metrics.closed(what);
        self.drop_active(key.slot, reason);
        if let Some(place) = place {
            self.config.unfinished.leave(place);
        }
        if was_online {
            self.online -= 1;
            self.metrics.online.dec();
        }
        // The hub may know of its login before this shard does.
        if let (true, Some(device)) = (was_online || before_online, device) {
            self.to_hub.push(ToHub::Offline { device, session: id });
        }
        if owes_logout {
            self.wheel.clear(key.slot);
            self.deliver(now, key.slot);
        } else {
            self.remove(key.slot);
        }
    }

    /// The device has proved itself.
    fn leave_unfinished(&mut self, key: SessionKey) {
        if let Some(place) = self.get(key).and_then(|session| session.state.take_place()) {
            self.config.unfinished.leave(place);
        }
    }

    /// Frees the slot. Its next session has another generation.
    fn remove(&mut self, slot: u32) {
        if self.slots[slot as usize].session.take().is_some() {
            self.wheel.clear(slot);
            self.free.push(slot);
            self.live -= 1;
            self.metrics.sessions.dec();
            self.say_if_stopped();
        }
    }

    /// The hub counts shards that stopped: each says so once.
    fn say_if_stopped(&mut self) {
        if self.stopping && self.live == 0 {
            self.to_hub.push(ToHub::Stopped);
        }
    }

    /// A retry hint with jitter, so that those who were refused together do not come back together.
    fn retry_hint(&mut self) -> Duration {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.rng;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let base = self.config.retry_hint;
        base + base.mul_f64(((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
