//! The simulated processes: the cores of the binaries and what their drivers keep beside them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_backend::auth::{Denied, Grant};
use holdfast_backend::core::{ApiRequest, Backend};
use holdfast_backend::dispatch::{BindId, CallId};
use holdfast_backend::push::Ticket;
use holdfast_backend::service::CallOutcome;
use holdfast_frontend::exchange::{PeerId, ToHub, ToShard};
use holdfast_frontend::link::{Hub, LinkMetrics};
use holdfast_frontend::session::{SessionKey, Shard, ShardMetrics};
use holdfast_proto::{ShardId, Share};

use super::attempts::Guards;
use super::conn::ConnId;
use super::pipe::PipeId;
use super::queue::Time;

/// When a loop runs next. A loop that is held executes nothing; what comes meanwhile waits.
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: Option<Time>,
    held_since: Time,
    held_until: Time,
    /// How long it was held in all, and will be.
    held: Time,
}

impl Pace {
    /// Asks for a turn. Gives when it must be put into the queue, if it must.
    pub(super) fn wake(&mut self, at: Time) -> Option<Time> {
        let at = at.max(self.held_until);
        let sooner = self.due.is_none_or(|due| at < due);
        sooner.then(|| *self.due.insert(at))
    }

    pub(super) fn hold(&mut self, now: Time, until: Time) -> Option<Time> {
        self.held += until.saturating_sub(self.held_until.max(now));
        if !self.is_held(now) {
            self.held_since = now;
        }
        self.held_until = self.held_until.max(until);
        self.due = None;
        self.wake(self.held_until)
    }

    /// Whether the turn that was put into the queue for `now` still counts.
    pub(super) fn begin(&mut self, now: Time) -> bool {
        let counts = self.due == Some(now);
        if counts {
            self.due = None;
        }
        counts
    }

    pub(super) fn is_held(&self, now: Time) -> bool {
        now < self.held_until
    }

    /// How long it was held when it was last held, and how long ago that ended.
    pub(super) fn last_hold(&self, now: Time) -> (Time, Time) {
        let length = self.held_until - self.held_since;
        (length, now.saturating_sub(self.held_until))
    }

    /// How long it has been held so far.
    pub(super) fn held(&self, now: Time) -> Time {
        self.held - self.held_until.saturating_sub(now)
    }
}

#[derive(Debug, Default)]
pub(super) struct FrontendNode {
    /// Grows with each start.
    pub(super) incarnation: u32,
    pub(super) life: Option<FrontendLife>,
}

#[derive(Debug)]
pub(super) struct FrontendLife {
    pub(super) hub: Hub,
    pub(super) guards: Guards,
    pub(super) began: Time,
    pub(super) metrics: LinkMetrics,
    pub(super) pace: Pace,
    pub(super) received: VecDeque<(Bytes, Bytes)>,
    /// Identities whose socket is gone, as the monitor tells.
    pub(super) gone: VecDeque<Bytes>,
    pub(super) from_shards: VecDeque<(ShardId, Vec<ToHub>)>,
    /// The last turn moved something: the next one does not wait.
    pub(super) busy: bool,
    pub(super) stop: bool,
    pub(super) stopping: Option<Time>,
    /// ROUTER's table.
    pub(super) sockets: BTreeMap<Bytes, PipeId>,
    pub(super) shards: Vec<ShardNode>,
}

#[derive(Debug)]
pub(super) struct ShardNode {
    pub(super) core: Shard,
    pub(super) metrics: ShardMetrics,
    pub(super) pace: Pace,
    pub(super) from_hub: VecDeque<Vec<ToShard>>,
    pub(super) accepts: VecDeque<ConnId>,
    /// Connections whose task would run.
    pub(super) ready: BTreeSet<ConnId>,
    pub(super) by_slot: Vec<Option<ConnId>>,
    /// Sessions that have asked for their connection's end: nothing may be asked of it any more.
    pub(super) closed: Vec<SessionKey>,
    /// Sessions whose connection ended just now: what was asked of it before may still be among the outputs.
    pub(super) lost: Vec<(SessionKey, ConnId)>,
    /// What it will have for the hub at the end of its turn.
    pub(super) to_hub: Vec<ToHub>,
    /// Backends that do not leave, and what it knows of their shares.
    pub(super) shares: BTreeMap<PeerId, Share>,
    /// Backends of which it has heard that they are gone.
    pub(super) gone: BTreeSet<PeerId>,
    /// When it heard that a backend was lost.
    pub(super) losses: Vec<Time>,
    /// Sessions that it ever had at once.
    pub(super) most_sessions: usize,
    /// When the latest message to it and from it arrives: none overtakes another.
    last_in: Time,
    last_out: Time,
}

impl ShardNode {
    pub(super) fn new(core: Shard, metrics: ShardMetrics) -> Self {
        Self {
            core,
            metrics,
            pace: Pace::default(),
            from_hub: VecDeque::new(),
            accepts: VecDeque::new(),
            ready: BTreeSet::new(),
            by_slot: Vec::new(),
            closed: Vec::new(),
            lost: Vec::new(),
            to_hub: Vec::new(),
            shares: BTreeMap::new(),
            gone: BTreeSet::new(),
            losses: Vec::new(),
            most_sessions: 0,
            last_in: Time::ZERO,
            last_out: Time::ZERO,
        }
    }

    /// When a message that would arrive at the time given arrives, on its way in or out.
    pub(super) fn in_order(&mut self, (at, is_in): (Time, bool)) -> Time {
        let last = if is_in {
            &mut self.last_in
        } else {
            &mut self.last_out
        };
        *last = (*last).max(at);
        *last
    }

    pub(super) fn conn_of(&self, key: SessionKey) -> Option<ConnId> {
        *self.by_slot.get(key.slot as usize)?
    }

    /// The connection of a session that has just lost it.
    pub(super) fn lost_conn(&self, key: SessionKey) -> Option<ConnId> {
        self.lost
            .iter()
            .find(|(lost, _)| *lost == key)
            .map(|(_, conn)| *conn)
    }

    pub(super) fn set_conn(&mut self, key: SessionKey, conn: Option<ConnId>) {
        let slot = key.slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, None);
        }
        self.by_slot[slot] = conn;
    }

    pub(super) fn losses_since(&self, since: Time) -> usize {
        self.losses.iter().filter(|at| **at >= since).count()
    }
}

/// One process, from its start to its end; a successor is another one.
#[derive(Debug)]
pub(super) struct BackendNode {
    /// Which of the wanted backends it stands for.
    pub(super) slot: usize,
    pub(super) boot: u128,
    pub(super) life: Option<BackendLife>,
}

#[derive(Debug)]
pub(super) struct BackendLife {
    pub(super) core: Backend,
    pub(super) pace: Pace,
    /// Which socket of each link counts.
    pub(super) attach: Vec<u32>,
    pub(super) sockets: Vec<Option<PipeId>>,
    pub(super) news: VecDeque<News>,
    pub(super) results: VecDeque<JobResult>,
    pub(super) asks: VecDeque<(Ticket, ApiRequest)>,
    pub(super) running: BTreeSet<CallId>,
    /// What it was last told to take, until it hears of it.
    pub(super) share: Option<Share>,
    pub(super) stop: bool,
    /// The workers stand still until then.
    pub(super) stuck_until: Time,
    pub(super) progress: u64,
    pub(super) exits: bool,
}

#[derive(Debug)]
pub(super) struct News {
    pub(super) link: usize,
    pub(super) attach: u32,
    pub(super) event: NewsEvent,
}

#[derive(Debug)]
pub(super) enum NewsEvent {
    Connected(PipeId),
    Batch(Bytes),
    Disconnected,
}

#[derive(Debug)]
pub(super) enum JobResult {
    Authenticated {
        bind: BindId,
        result: Result<Grant, Denied>,
    },
    CallDone {
        call: CallId,
        outcome: CallOutcome,
    },
}
