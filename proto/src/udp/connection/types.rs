//! What goes into a connection and comes out of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::MessageKind;
use crate::secure::TrafficKeys;
use crate::udp::{ConnectionId, ResetToken};

/// Longest datagram of all, in bytes of UDP payload: what fits an Ethernet frame with IPv4.
pub const MAX_DATAGRAM_BYTES: u16 = 1_472;
/// Every end takes datagrams of so many bytes.
pub const MIN_DATAGRAM_LIMIT: u16 = 512;

/// What a device may send before it heard how much the server takes.
pub const INITIAL_SERVER_CREDIT: PeerCredit = PeerCredit {
    messages: 8,
    bytes: 16_384,
};

/// What a queued message costs beside its payload, in bytes, in either direction: its place in the queue, and its allocation.
pub const MESSAGE_COST_BYTES: usize = 128;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Device,
    Server,
}

/// How much may be sent, over the whole connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PeerCredit {
    pub messages: u64,
    pub bytes: u64,
}

/// The limits of one end, shared by its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Longest message from the peer, in bytes. A longer one ends the connection with 1009. What is sent is bounded by
    /// `send_bytes`, and by what the peer takes.
    pub max_message_bytes: usize,
    /// How many bytes the peer may send beyond what the application took.
    pub receive_bytes: u32,
    /// How many messages the peer may send beyond those that the application took.
    pub receive_messages: u16,
    /// Longest datagram to send, in bytes of UDP payload; the peer's own limit may be lower.
    pub max_datagram: u16,
    /// The connection is lost when a message, or all that was sent, stays unacknowledged for so long. When this end is called late by
    /// more than a quarter of it, or 8 s, the peer has as long again to answer a probe.
    pub give_up: Duration,
    /// A device that sent nothing for so long (or up to a tenth less) sends a ping. Servers leave it `None`.
    pub keep_alive: Option<Duration>,
    /// Bytes of messages from the peer that one connection may hold: what would make it more is refused as if there were no room, and no
    /// credit beyond it is granted. A driver whose connections together hold too much lowers it for as long as that lasts: it may be
    /// another one with each call. The next message in order is judged by itself, so messages of up to so many bytes always get
    /// through, and a connection may hold twice that. `usize::MAX`: no such bound.
    pub input_share: usize,
    /// How many bytes of messages may wait to be acknowledged, each at [`MESSAGE_COST_BYTES`] more than it is long. One message may
    /// always wait, however long.
    pub send_bytes: usize,
    /// How many messages may wait to be acknowledged.
    pub send_messages: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_message_bytes: 1 << 20,
            receive_bytes: 64 * 1024,
            receive_messages: 64,
            max_datagram: 1_200,
            give_up: Duration::from_secs(60),
            keep_alive: None,
            input_share: usize::MAX,
            send_bytes: 256 * 1024,
            send_messages: 256,
        }
    }
}

/// What the handshake settled.
#[derive(Debug)]
pub struct Opening {
    pub cid: ConnectionId,
    pub keys: TrafficKeys,
    /// Where the peer is. On a server, where the challenge went: as only who got it there can have the keys, this address counts as
    /// validated with the first datagram that opens, whatever that one's source is.
    pub peer: SocketAddr,
    /// The longest datagram that the peer takes, in bytes of UDP payload.
    pub peer_max_datagram: u16,
    /// How much may be sent at first: on a device [`INITIAL_SERVER_CREDIT`], on a server what HELLO says.
    pub peer_credit: PeerCredit,
    /// How much the peer may send at first: on a device what its HELLO said, on a server [`INITIAL_SERVER_CREDIT`].
    pub own_credit: PeerCredit,
    /// A server's, to announce; `None` on a device.
    pub reset_token: Option<ResetToken>,
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Received {
    /// It was accepted, and is going to be acknowledged if it asks for it.
    Taken,
    /// It was accepted before, or is too old to tell.
    Duplicate,
    /// It does not authenticate.
    Forged,
    /// There is no room for what it holds. It is not acknowledged, so it comes again.
    Refused,
    /// It authenticates and breaks the protocol: closing was begun.
    Malformed,
    /// The connection is at its end.
    Ended,
}

/// Why a message was not taken for sending.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the connection is closing or at its end")]
    Closed,
    /// Here it is again: there is room once something was delivered.
    #[error("too much waits to be acknowledged")]
    Full(Bytes),
    #[error("a message has less than 4 GiB")]
    TooBig,
}

/// What an application is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The next message from the peer. By polling it the application took it: the peer may send more.
    Message(MessageKind, Bytes),
    /// So many more of our messages are at the peer, whole: always the oldest of those not reported before.
    Delivered(usize),
    /// The peer is at this address now, which it proved.
    PeerMoved(SocketAddr),
    /// The peer closed the connection; [`Event::Ended`] follows.
    Closed { code: u16, reason: String },
    /// The last event. What was not reported delivered may or may not have arrived.
    Ended(End),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// By [`Connection::close`] or [`Connection::abort`], or because the peer broke the protocol.
    ClosedByUs,
    ClosedByPeer,
    /// The peer did not acknowledge for [`Config::give_up`].
    GaveUp,
    /// The server does not know this connection (any more).
    Reset,
    /// So many datagrams did not authenticate that the keys must not be used any longer.
    TooManyForgeries,
}

/// Numbers about one connection, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Smoothed round-trip time; `None` before the first sample.
    pub srtt: Option<Duration>,
    /// In bytes.
    pub congestion_window: u32,
    /// Datagrams taken for lost.
    pub lost: u32,
    /// Pieces of messages sent again.
    pub retransmitted: u32,
    /// Datagrams that did not authenticate.
    pub forged: u64,
    /// Datagrams that had been accepted before, or were too old to tell.
    pub duplicates: u32,
}

/// That the peer closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerClose {
    pub(super) code: u16,
    pub(super) reason: String,
    /// How many messages it sent in all.
    pub(super) messages: u64,
    /// How long to wait for those that are missing.
    pub(super) until: Instant,
}
