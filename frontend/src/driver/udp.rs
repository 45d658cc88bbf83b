//! Devices over datagrams: one socket per shard, all their connections in a table, no task and no descriptor of their own.
//!
//! ```text
//! recvmmsg ─► HELLO: attempts, cookies ─► session ─► BIND …          CHALLENGE, REFUSED, RETRY ─┐
//!          └► DATA: slot of the connection id ─► channel ─► session      RESET ─────────────────┤
//!                                                   │ ready                                     ▼
//!             timers: a wheel of 1 ms ──────────────┴─► transmit: what each has to say ─► batch ─► sendmmsg
//! ```
//! A connection that may have something to say is *ready*: at the end of the turn its datagrams are made and go into the batch. When
//! the socket takes no more, it stays ready and they are not made: nothing waits encrypted but one batch.

mod allowance;
mod attempts;
mod data;
mod hello;
mod locals;
mod metrics;
mod output;
#[allow(unsafe_code, reason = "one system call that no crate makes as needed")]
mod send;
mod socket;
mod tasks;
mod transmit;

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::throttle::Throttle;
use holdfast_proto::udp::{self, ConnectionId, Cookies, ResetKey};
use holdfast_proto::{MessageKind, ShardId};
use slab::Slab;

pub use metrics::UdpMetrics;
pub(super) use socket::granted;
pub use socket::{SocketBuffers, bind_group};
pub(super) use tasks::{catch_up, spawn};

use self::allowance::Allowance;
use self::attempts::{AttemptKey, Attempts};
use self::locals::{LocalId, Locals};
use self::socket::DatagramSocket;
use self::transmit::TransmitQueue;
use crate::channel::{UdpChannel, UdpShared};
use crate::session::{SessionKey, Wheel};

/// What timers of connections are rounded up to.
const TICK: Duration = Duration::from_millis(1);
/// Datagrams of unknown connections that a shard answers in the long run, and at once: after a restart of the frontend each device needs
/// one answer, and a stranger gets no more than he sends.
const RESETS_PER_SECOND: u32 = 5_000;
/// Connections that have still something to say although their session is over. Beyond it the oldest are dropped that have had their
/// turn to say it.
const MAX_LINGERING: usize = 65_536;

/// What a shard's datagrams are made of.
pub struct UdpSetup {
    pub socket: UdpSocket,
    pub config: udp::Config,
    pub reset_key: ResetKey,
    pub admission: Admission,
    /// Shards of this frontend: a connection id that names another one belongs to it.
    pub shards: u16,
    /// Bytes that the shard's connections may hold of messages that their sessions have not taken, before each has to do with a share.
    pub max_input_bytes: usize,
    pub metrics: UdpMetrics,
}

/// When a device must show that it is where it says, the same for all shards.
#[derive(Debug, Clone)]
pub struct Admission {
    pub cookies: Cookies,
    /// What all shards count time from.
    pub born: Instant,
    /// Each must.
    pub always: bool,
    /// Each must while more handshakes of the shard are unfinished.
    pub above: usize,
    /// How often one source may ask without.
    pub unproven: Arc<Throttle>,
    /// How often all together may, per shard and second, and at once.
    pub unproven_per_second: u32,
    /// How often one source is told that a connection is not here.
    pub resets: Arc<Throttle>,
}

/// The datagrams of one shard.
pub(super) struct Udp {
    shared: UdpShared,
    socket: Rc<DatagramSocket>,
    records: Slab<Record>,
    admission: Admission,
    attempts: Attempts,
    locals: Locals,
    queue: TransmitQueue,
    wheel: Wheel,
    /// Connections whose session is over, oldest first, and when they are dropped. Some are gone already.
    lingering: VecDeque<(Instant, u32, Option<ConnectionId>)>,
    /// The socket may hold more than was read.
    is_behind: bool,
    resets: Allowance,
    /// Handshakes that may begin without a cookie.
    unproven: Allowance,
    shard: ShardId,
    shards: u16,
    metrics: UdpMetrics,
}

/// One connection.
struct Record {
    channel: UdpChannel,
    /// `None` when its session is over.
    session: Option<SessionKey>,
    /// A message for which the window had no room; none is taken until it has.
    stalled: Option<Box<(MessageKind, Bytes)>>,
    /// Until the device has shown that it holds its key.
    asked: Option<Box<Asked>>,
    /// Lost datagrams and repeated pieces that were counted already.
    counted: (u32, u32),
    /// Where the device writes to, and where who may be the device at another address does.
    local: LocalId,
    candidate_local: LocalId,
    /// The low half of the number of the newest packet.
    newest: u32,
    /// It is among those that are ready.
    ready: bool,
}

impl Record {
    fn settle(&mut self, shared: &mut UdpShared) {
        let stalled = self.stalled.as_ref().map_or(0, |stalled| stalled.1.len());
        self.channel.settle(shared, stalled);
    }
}

/// Which attempt a connection came from, and where its answer goes.
struct Asked {
    attempt: AttemptKey,
    from: SocketAddr,
}

/// What an idle connection weighs beside its session: its record and its place in the wheel, in bytes.
pub fn udp_record_bytes() -> usize {
    size_of::<Record>() + Wheel::TIMER_BYTES
}

impl Udp {
    /// # Errors
    /// What the system says of the socket. Needs a tokio runtime.
    pub(super) fn new(setup: UdpSetup, shard: ShardId, now: Instant) -> std::io::Result<Self> {
        let socket = DatagramSocket::new(setup.socket)?;
        let unproven = setup.admission.unproven_per_second;
        Ok(Self {
            locals: Locals::new(socket.local_addr()?),
            socket: Rc::new(socket),
            shared: UdpShared::new(setup.config, setup.reset_key, setup.max_input_bytes, now),
            records: Slab::new(),
            admission: setup.admission,
            attempts: Attempts::new(rand::random()),
            queue: TransmitQueue::default(),
            wheel: Wheel::new(now, TICK),
            lingering: VecDeque::new(),
            is_behind: false,
            resets: Allowance::new(RESETS_PER_SECOND, RESETS_PER_SECOND, now),
            unproven: Allowance::new(unproven, unproven, now),
            shard,
            shards: setup.shards,
            metrics: setup.metrics,
        })
    }

    /// The session that a connection belongs to.
    pub(super) fn session_of(&self, at: u32) -> Option<SessionKey> {
        self.records.get(at as usize)?.session
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let linger = self.lingering.front().map(|(until, ..)| *until);
        [self.wheel.next_deadline(), linger].into_iter().flatten().min()
    }

    /// Drops a connection, and all that was kept for it.
    fn remove(&mut self, at: u32) {
        let Some(mut record) = self.records.try_remove(at as usize) else {
            return;
        };
        record.channel.release(&mut self.shared);
        self.wheel.clear(at);
        self.metrics.connections.dec();
        if let Some(asked) = record.asked {
            self.attempts.forget(asked.attempt);
        }
        self.show();
    }

    /// Its session is over: what is queued may still go out, for as long as `until`.
    fn linger(&mut self, at: u32, until: Instant) {
        let Some(record) = self.records.get_mut(at as usize) else {
            return;
        };
        record.session = None;
        record.stalled = None;
        self.lingering.push_back((until, at, record.channel.cid()));
        let has_spoken = |at: u32| self.records.get(at as usize).is_none_or(|record| !record.ready);
        if self.lingering.len() > MAX_LINGERING
            && self.lingering.front().is_some_and(|(_, at, _)| has_spoken(*at))
        {
            self.drop_oldest_lingering();
        }
    }

    fn drop_oldest_lingering(&mut self) {
        let Some((_, at, cid)) = self.lingering.pop_front() else {
            return;
        };
        // Another connection may have its place by now.
        let same = |record: &Record| record.session.is_none() && record.channel.cid() == cid;
        if self.records.get(at as usize).is_some_and(same) {
            self.remove(at);
        }
    }

    fn drop_lingering(&mut self, now: Instant) {
        while self.lingering.front().is_some_and(|(until, ..)| *until <= now) {
            self.drop_oldest_lingering();
        }
    }

    /// Counts what the connection holds. Whatever it has to say is due.
    fn settle(&mut self, at: u32) {
        self.set_ready(at);
        if let Some(record) = self.records.get_mut(at as usize) {
            record.settle(&mut self.shared);
        }
    }

    /// Whose session is closed when all have held too much input for too long: who holds most of what is not complete. One whose
    /// messages are complete waits for a backend, and is none of them.
    fn largest_unfinished(&self) -> Option<SessionKey> {
        let waits_for_device = |record: &&Record| record.session.is_some() && record.stalled.is_none();
        let records = self.records.iter().map(|(_, record)| record);
        let largest = records
            .filter(waits_for_device)
            .max_by_key(|record| record.channel.held().input)?;
        largest.session.filter(|_| largest.channel.held().input > 0)
    }

    /// Brings the gauges up to date.
    fn show(&self) {
        self.metrics.unfinished.set(self.attempts.unfinished() as i64);
        let held = self.shared.held();
        self.metrics.held_bytes.set((held.input + held.output) as i64);
    }
}

#[cfg(test)]
mod tests;
