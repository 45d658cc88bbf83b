//! One shard's thread: its state, its tasks and what each turn ends with.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_proto::ShardId;
use rustls::ServerConfig;
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use super::connection::{Connection, ConnectionId, ConnectionTask, Place};
use super::intake::Intake;
use super::udp::{self, Udp, UdpSetup};
use crate::channel::listener::Listener;
use crate::channel::{AnyStream, Budgets, Channel, OutboxLimits, Scratch, WsChannel, WssChannel};
use crate::exchange::{ToHub, ToShard};
use crate::session::{self, SessionKey, ShardConfig, ShardMetrics};

/// How long a connection that was told to go may take to read the rest.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// How long a piece of a push to all waits for the datagrams that are before it.
const LONGEST_TURN: Duration = Duration::from_millis(20);

/// What a shard is made of.
pub struct ShardSetup {
    pub config: ShardConfig,
    pub metrics: ShardMetrics,
    /// Longest message from a device, in bytes.
    pub max_message_bytes: usize,
    /// Bytes that wait for one socket.
    pub outbox_bytes: usize,
    pub budgets: Budgets,
    /// Shared by all shards.
    pub intake: Arc<Intake>,
    pub listeners: Vec<DeviceListener>,
    /// `None` when no device comes over datagrams.
    pub udp: Option<UdpSetup>,
    pub to_hub: mpsc::UnboundedSender<(ShardId, Vec<ToHub>)>,
    pub from_hub: mpsc::UnboundedReceiver<Vec<ToShard>>,
}

/// Where devices of one kind connect.
pub struct DeviceListener {
    pub listener: Listener,
    pub kind: ListenerKind,
}

/// What a connection becomes.
#[derive(Clone)]
pub enum ListenerKind {
    Ws,
    Wss(Arc<ServerConfig>),
}

/// Everything that a shard's tasks share. Never borrowed across an await.
pub struct Shard {
    pub(super) sessions: session::Shard,
    pub(super) scratch: Scratch,
    pub(super) connections: Slab<Connection>,
    pub(super) udp: Option<Box<Udp>>,
    /// By session slot: its connection.
    pub(super) by_slot: Vec<Option<Place>>,
    pub(super) outbox_limits: OutboxLimits,
    intake: Arc<Intake>,
    /// Connections that were told to go, oldest first.
    pub(super) lingering: VecDeque<(Instant, ConnectionId)>,
    wakes: Rc<Wakes>,
    /// When the timer task wakes by itself.
    timer_due: Option<Instant>,
    stopping: bool,
}

#[derive(Default)]
pub(super) struct Wakes {
    /// There are datagrams to send.
    pub(super) datagrams: Notify,
    /// There are none.
    sent: Notify,
    hub: Notify,
    timer: Notify,
    turn: Notify,
}

/// A shard before its tasks are there.
pub struct StartedShard {
    id: ShardId,
    shard: Rc<RefCell<Shard>>,
    wakes: Rc<Wakes>,
    listeners: Vec<DeviceListener>,
    to_hub: mpsc::UnboundedSender<(ShardId, Vec<ToHub>)>,
    from_hub: mpsc::UnboundedReceiver<Vec<ToShard>>,
}

impl StartedShard {
    /// Runs the shard on the current thread's `LocalSet` until the hub hangs up.
    pub async fn run(self) {
        let Self { shard, wakes, .. } = self;
        let accepts = self.listeners.into_iter();
        let mut tasks: Vec<_> = accepts
            .map(|listener| tokio::task::spawn_local(accept(shard.clone(), listener)))
            .collect();
        tasks.extend([
            tokio::task::spawn_local(flush(shard.clone(), wakes.clone(), self.id, self.to_hub)),
            tokio::task::spawn_local(timers(shard.clone(), wakes.clone())),
            tokio::task::spawn_local(turns(shard.clone(), wakes.clone())),
        ]);
        tasks.extend(udp::spawn(&shard, &wakes));
        receive(shard, self.from_hub).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Shard {
    /// Makes a shard of its parts. Needs a tokio runtime.
    ///
    /// # Errors
    /// What the system says of the socket for datagrams.
    pub fn start(setup: ShardSetup) -> std::io::Result<StartedShard> {
        let (id, now) = (setup.config.shard, Instant::now());
        let udp = setup.udp.map(|setup| Udp::new(setup, id, now)).transpose()?;
        let wakes = Rc::new(Wakes::default());
        let shard = Self {
            sessions: session::Shard::new(setup.config, setup.metrics, now),
            scratch: Scratch::within(setup.max_message_bytes, &setup.budgets),
            connections: Slab::new(),
            udp: udp.map(Box::new),
            by_slot: Vec::new(),
            outbox_limits: OutboxLimits {
                connection_bytes: setup.outbox_bytes,
                budget: setup.budgets.output,
            },
            intake: setup.intake,
            lingering: VecDeque::new(),
            wakes: wakes.clone(),
            timer_due: None,
            stopping: false,
        };
        Ok(StartedShard {
            id,
            shard: Rc::new(RefCell::new(shard)),
            wakes,
            listeners: setup.listeners,
            to_hub: setup.to_hub,
            from_hub: setup.from_hub,
        })
    }

    /// Takes a connection; gives the task that moves its bytes.
    fn on_accepted(
        &mut self,
        stream: TcpStream,
        address: SocketAddr,
        kind: &ListenerKind,
    ) -> Option<ConnectionId> {
        let permit = self.intake.enter(address.ip());
        let permit = permit
            .inspect_err(|full| self.sessions.handle_turned_away(full.label()))
            .ok()?;
        let channel = match kind {
            ListenerKind::Ws => AnyStream::Ws(WsChannel::new(&mut self.scratch)),
            ListenerKind::Wss(tls) => AnyStream::Wss(
                WssChannel::new(tls)
                    .inspect_err(|error| tracing::error!(%error, "no TLS session could be made"))
                    .ok()?,
            ),
        };
        let key = self.sessions.accept(Instant::now(), channel.kind(), address)?;
        let id = self
            .connections
            .insert(Connection::new(stream, channel, key, permit));
        let id = ConnectionId(id as u32);
        self.place(key, Place::Stream(id));
        self.end_turn();
        Some(id)
    }

    /// Notes where the session's connection is.
    pub(super) fn place(&mut self, key: SessionKey, place: Place) {
        let slot = key.slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, None);
        }
        self.by_slot[slot] = Some(place);
    }

    /// What follows whatever changed something: other tasks hear of it.
    pub(super) fn end_turn(&mut self) {
        match self.transmit_datagrams() {
            true => self.wakes.datagrams.notify_one(),
            false => self.wakes.sent.notify_one(),
        }
        if self.sessions.has_for_hub() {
            self.wakes.hub.notify_one();
        }
        if self.sessions.has_turn() {
            self.wakes.turn.notify_one();
        }
        let next = self.next_deadline();
        if next.is_some_and(|next| self.timer_due.is_none_or(|due| next < due)) {
            self.wakes.timer.notify_one();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let linger = self.lingering.front().map(|(at, _)| *at);
        let datagrams = self.udp.as_ref().and_then(|udp| udp.next_deadline());
        let deadlines = [self.sessions.poll_timeout(), linger, datagrams];
        deadlines.into_iter().flatten().min()
    }

    fn on_timer(&mut self, now: Instant) {
        self.sessions.handle_timeout(now);
        while self.lingering.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, id)) = self.lingering.pop_front()
        {
            if let Some(connection) = self.connections.get_mut(id.index()) {
                connection.on_linger_over(now);
            }
        }
        self.on_udp_timer(now);
        self.pump(now);
    }

    fn on_hub(&mut self, messages: Vec<ToShard>) {
        let now = Instant::now();
        for message in messages {
            self.stopping |= matches!(message, ToShard::Stop);
            self.sessions.handle_hub(now, message);
        }
        self.pump(now);
        self.end_turn();
    }
}

async fn accept(shard: Rc<RefCell<Shard>>, mut from: DeviceListener) {
    loop {
        match from.listener.accept().await {
            Ok((stream, address)) => {
                let accepted = shard.borrow_mut().on_accepted(stream, address, &from.kind);
                if let Some(id) = accepted {
                    tokio::task::spawn_local(ConnectionTask::new(shard.clone(), id));
                }
                if shard.borrow().stopping {
                    return;
                }
            }
            Err(error) => {
                // Without its listener the shard is of no use: a supervisor starts the process anew.
                tracing::error!(%error, "the device listener failed");
                std::process::exit(70);
            }
        }
    }
}

async fn receive(shard: Rc<RefCell<Shard>>, mut from_hub: mpsc::UnboundedReceiver<Vec<ToShard>>) {
    while let Some(messages) = from_hub.recv().await {
        shard.borrow_mut().on_hub(messages);
    }
}

/// One vector per turn: this task runs after those that were ready before it.
async fn flush(
    shard: Rc<RefCell<Shard>>,
    wakes: Rc<Wakes>,
    id: ShardId,
    to_hub: mpsc::UnboundedSender<(ShardId, Vec<ToHub>)>,
) {
    loop {
        wakes.hub.notified().await;
        let messages = shard.borrow_mut().sessions.take_to_hub(Vec::new());
        if messages.is_empty() {
            continue;
        }
        if to_hub.send((id, messages)).is_err() {
            return;
        }
    }
}

async fn timers(shard: Rc<RefCell<Shard>>, wakes: Rc<Wakes>) {
    loop {
        let next = {
            let mut shard = shard.borrow_mut();
            shard.timer_due = shard.next_deadline();
            shard.timer_due
        };
        let Some(next) = next else {
            wakes.timer.notified().await;
            continue;
        };
        tokio::select! {
            // A process that was stopped may hear its clock before its sockets: devices that spoke are heard first, for yielding
            // polls the sockets and runs whoever they wake.
            () = tokio::time::sleep_until(next.into()) => tokio::task::yield_now().await,
            () = wakes.timer.notified() => continue,
        }
        udp::catch_up(&shard).await;
        let mut shard = shard.borrow_mut();
        shard.on_timer(Instant::now());
        // Known before the turn ends: this task must not wake itself.
        shard.timer_due = shard.next_deadline();
        shard.end_turn();
    }
}

/// Work that takes longer than a turn may, piece by piece. The next piece waits until the datagrams of the one before are sent: else
/// all that devices ask meanwhile would be answered after the last of them.
async fn turns(shard: Rc<RefCell<Shard>>, wakes: Rc<Wakes>) {
    loop {
        if !shard.borrow().sessions.has_turn() {
            wakes.turn.notified().await;
            continue;
        }
        let sent = async {
            while shard.borrow().has_datagrams() {
                wakes.sent.notified().await;
            }
        };
        // In time, if it came to that: where there is always something to send, this is not to wait for ever.
        let _ = tokio::time::timeout(LONGEST_TURN, sent).await;
        {
            let mut shard = shard.borrow_mut();
            let now = Instant::now();
            shard.sessions.handle_turn(now);
            shard.pump(now);
            shard.end_turn();
        }
        tokio::task::yield_now().await;
    }
}
