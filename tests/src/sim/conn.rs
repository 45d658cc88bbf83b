//! One connection of one device: what TCP and the channel do, as far as sessions can tell.
//!
//! Bytes to the device are a stream with three marks: queued by the frontend, taken by the kernel, read by the device. A
//! device that does not read fills the kernel's buffer, and then nothing is read from it either, as in the driver.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use holdfast_frontend::session::{Refusal, SessionKey};
use holdfast_proto::{ChannelKind, CloseCode, MessageKind, SessionId};

use super::attempts::Origin;
use super::challenge::{Proof, Seal};
use super::queue::Time;
use super::request::Request;

/// A connection of this run; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnId(pub usize);

/// What the device puts on its socket.
#[derive(Debug, Clone, Hash)]
pub(super) enum FromDevice {
    Upgrade(Bytes),
    /// In the clear, as far as records of ours go.
    Message(MessageKind, Bytes),
    Record(Seal, MessageKind, Bytes),
    /// A ping or pong that counts: of the WebSocket on `wss`, in a record on `ws`.
    Alive,
    /// A close frame and the end of the stream.
    Close,
    /// The transport broke.
    Reset,
}

/// What the frontend writes to it.
#[derive(Debug, Clone)]
pub(super) enum ToDevice {
    /// On `ws` with the challenge.
    Admitted(Option<Bytes>),
    Refused(Refusal),
    Message(MessageKind, Bytes),
    Ping,
    Closed(CloseCode),
}

/// As the driver's connection knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// In the listener's backlog.
    Queued,
    Open,
    /// The upgrade is with a backend: nothing is read.
    Binding,
    /// The session is over; what is queued may still go out.
    Lingering,
    Over,
}

/// What the device thinks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Admitted,
    /// Refused, closed, or given up: nothing is sent and nothing is expected.
    Ended,
}

/// Who connects, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) device: usize,
    /// Somebody who only says that he is the device.
    pub(super) stranger: Option<usize>,
    pub(super) kind: ChannelKind,
    pub(super) origin: Origin,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) frontend: usize,
    pub(super) incarnation: u32,
    pub(super) shard: usize,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) device: usize,
    pub(super) stranger: Option<usize>,
    pub(super) kind: ChannelKind,
    pub(super) origin: Origin,
    pub(super) frontend: usize,
    pub(super) incarnation: u32,
    pub(super) shard: usize,
    pub(super) address: SocketAddr,
    pub(super) opened: Time,
    /// How long its shard had been held when it came.
    pub(super) held_before: Time,
    pub(super) key: Option<SessionKey>,
    pub(super) session: Option<SessionId>,
    pub(super) stage: Stage,
    pub(super) proof: Proof,
    pub(super) stalled: Option<(MessageKind, Bytes)>,
    pub(super) inbox: VecDeque<FromDevice>,
    /// When the device's latest bytes reached the frontend's socket.
    pub(super) heard: Time,
    /// When the frontend last asked for a sign of life.
    pub(super) pinged: Option<Time>,
    /// A backend has said so of its session's login; the session itself may not have heard.
    pub(super) welcomed: bool,
    pub(super) online: bool,
    /// What LOGOUT has to say of its end.
    pub(super) end_reason: Option<&'static str>,
    pub(super) logout_reason: Option<String>,
    pub(super) out: Stream,
    // The device's side.
    pub(super) phase: Phase,
    /// Gone without a word: neither reads nor sends.
    pub(super) vanished: bool,
    /// When the device's latest bytes arrive, so that none overtake others.
    pub(super) last_arrival: Time,
    /// It is about to read.
    pub(super) read_due: bool,
    pub(super) reading: bool,
    pub(super) said_hello: bool,
    /// By sequence, less one.
    pub(super) requests: Vec<Request>,
    /// A later request of the domain was answered before an earlier one, which only a poisoned one may excuse.
    pub(super) overtaken: Vec<(u64, u64)>,
    /// The version of the session's state that the device was told last.
    pub(super) updated: u64,
    /// Control messages that the device waits for an answer to.
    pub(super) controls: usize,
}

impl Conn {
    /// `capacity` is the kernel's buffer towards the device, in bytes.
    pub(super) fn new(
        caller: Caller,
        target: Target,
        (now, address, capacity): (Time, SocketAddr, u64),
    ) -> Self {
        Self {
            device: caller.device,
            stranger: caller.stranger,
            kind: caller.kind,
            origin: caller.origin,
            frontend: target.frontend,
            incarnation: target.incarnation,
            shard: target.shard,
            address,
            opened: now,
            held_before: Time::ZERO,
            key: None,
            session: None,
            stage: Stage::Queued,
            proof: Proof::default(),
            stalled: None,
            inbox: VecDeque::new(),
            heard: now,
            pinged: None,
            welcomed: false,
            online: false,
            end_reason: None,
            logout_reason: None,
            out: Stream::new(capacity),
            phase: Phase::Connecting,
            vanished: false,
            last_arrival: now,
            read_due: false,
            reading: true,
            said_hello: false,
            requests: Vec::new(),
            overtaken: Vec::new(),
            updated: 0,
            controls: 0,
        }
    }

    /// Requests whose final reply the device waits for.
    pub(super) fn outstanding(&self) -> usize {
        self.requests
            .iter()
            .filter(|r| r.expects_reply() && r.answered.is_none())
            .count()
    }
}

/// The bytes to a device.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) capacity: u64,
    pub(super) queued: u64,
    pub(super) taken: u64,
    pub(super) read: u64,
    items: VecDeque<(u64, ToDevice)>,
    /// Where a turn's messages end, and how many they are.
    groups: VecDeque<(u64, usize)>,
}

/// What a control message or a handshake costs on the wire, roughly.
const SMALL_BYTES: u64 = 64;
const FRAME_BYTES: u64 = 8;

impl Stream {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            queued: 0,
            taken: 0,
            read: 0,
            items: VecDeque::new(),
            groups: VecDeque::new(),
        }
    }

    pub(super) fn put(&mut self, item: ToDevice) {
        self.queued += match &item {
            ToDevice::Message(_, payload) => payload.len() as u64 + FRAME_BYTES,
            ToDevice::Admitted(_) | ToDevice::Refused(_) | ToDevice::Ping | ToDevice::Closed(_) => {
                SMALL_BYTES
            }
        };
        self.items.push_back((self.queued, item));
    }

    /// The session's `messages` latest messages were put; they count as written together, as one system call's worth.
    pub(super) fn end_group(&mut self, messages: usize) {
        self.groups.push_back((self.queued, messages));
    }

    /// Moves bytes to the kernel. Gives how many messages the session may be told of.
    pub(super) fn advance(&mut self) -> usize {
        self.taken = self.queued.min(self.read + self.capacity).max(self.taken);
        let mut written = 0;
        while let Some((_, messages)) = self.groups.pop_front_if(|(end, _)| *end <= self.taken) {
            written += messages;
        }
        written
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.taken < self.queued
    }

    /// The device has not read all that it was sent.
    pub(super) fn is_behind(&self) -> bool {
        self.read < self.queued
    }

    /// The device reads whatever the kernel has.
    pub(super) fn read_all(&mut self) -> Vec<ToDevice> {
        self.read = self.taken;
        let mut items = Vec::new();
        while let Some((_, item)) = self.items.pop_front_if(|(end, _)| *end <= self.read) {
            items.push(item);
        }
        items
    }

    /// The socket is gone: what the kernel does not have never comes.
    pub(super) fn cut(&mut self) {
        self.queued = self.taken;
        self.items.retain(|(end, _)| *end <= self.taken);
        self.groups.clear();
    }
}
