//! One end of a connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{ConnectionId, ResetToken};
use crate::MessageKind;
use crate::secure::TrafficKeys;

/// What a device may send before it heard how much the server takes.
pub const INITIAL_SERVER_CREDIT: PeerCredit = PeerCredit {
    messages: 8,
    bytes: 16_384,
};

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
    /// Longest message in either direction, in bytes. A longer one from the peer ends the connection with 1009.
    pub max_message_bytes: usize,
    /// How many bytes the peer may send beyond what the application took.
    pub receive_bytes: u32,
    /// How many messages the peer may send beyond those that the application took.
    pub receive_messages: u16,
    /// Longest datagram to send, in bytes of UDP payload; the peer's own limit may be lower.
    pub max_datagram: u16,
    /// The connection is lost when a message, or all that was sent, stays unacknowledged for so long.
    pub give_up: Duration,
    /// A device that sent nothing for so long (or up to a tenth less) sends a ping. Servers leave it `None`.
    pub keep_alive: Option<Duration>,
    /// How many bytes of messages may wait to be acknowledged. One message may always wait, however long.
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
    /// Where the peer is. A server takes the first datagram's source instead.
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
    #[error("the message is over the limit")]
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

/// One end of a connection.
///
/// After each call of a `handle_*` method or a command, call [`poll_event`](Self::poll_event) and
/// [`poll_transmit`](Self::poll_transmit) until they give `None`, then [`poll_timeout`](Self::poll_timeout): a connection with nothing
/// under way gives its buffers back in these. Also after [`Event::Ended`] there may be a last datagram to send.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    cid: ConnectionId,
    peer: SocketAddr,
    ended: bool,
}

impl Connection {
    /// A server's end sends nothing before the first datagram of the device's was opened.
    pub fn new(side: Side, opening: Opening, _now: Instant) -> Self {
        Self {
            side,
            cid: opening.cid,
            peer: opening.peer,
            ended: false,
        }
    }

    /// Decrypts a DATA datagram in place and takes what it holds. `entropy`: fresh randomness, for a path challenge.
    #[expect(
        clippy::too_many_arguments,
        reason = "a datagram comes with its time, its source and chance"
    )]
    pub fn handle_datagram(
        &mut self,
        config: &Config,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        entropy: u64,
    ) -> Received {
        self.receive_run(config, now)
            .handle_datagram(from, datagram, entropy)
    }

    /// For several datagrams in a row: the key is expanded once.
    pub fn receive_run<'a>(&'a mut self, config: &'a Config, now: Instant) -> ReceiveRun<'a> {
        ReceiveRun {
            connection: self,
            config,
            now,
        }
    }

    /// Whether this is the token that the server announced: then the connection has ended. Devices only.
    pub fn handle_reset(&mut self, _token: &[u8; 16]) -> bool {
        false
    }

    /// Does what is due at `now`. To be called at [`poll_timeout`](Self::poll_timeout); too early does no harm.
    pub fn handle_timeout(&mut self, _config: &Config, _now: Instant) {}

    /// Puts a message into the queue.
    pub fn send(
        &mut self,
        _config: &Config,
        _now: Instant,
        _kind: MessageKind,
        payload: Bytes,
    ) -> Result<(), SendError> {
        Err(SendError::Full(payload))
    }

    /// Has the peer acknowledge something: proof that it lives.
    pub fn ping(&mut self, _now: Instant) {}

    /// Takes no more messages to send, and ends when those taken and the close itself are acknowledged, or 2 s later.
    /// A reason over 123 bytes is cut.
    pub fn close(&mut self, _now: Instant, _code: u16, _reason: &str) {
        self.ended = true;
    }

    /// Ends at once and in silence.
    pub fn abort(&mut self) {
        self.ended = true;
    }

    /// The next event.
    pub fn poll_event(&mut self, config: &Config, now: Instant) -> Option<Event> {
        self.poll_notice(config, now)
    }

    /// The next event but messages, for an application that takes no messages at the moment. What the peer closed in good order is
    /// told after its last message only.
    pub fn poll_notice(&mut self, _config: &Config, _now: Instant) -> Option<Event> {
        std::mem::take(&mut self.ended).then_some(Event::Ended(End::ClosedByUs))
    }

    /// Appends the next datagram to `out`, and says where to send it.
    pub fn poll_transmit(&mut self, config: &Config, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        self.transmit_run(config, now).poll(out)
    }

    /// For several datagrams in a row: the key is expanded once.
    pub fn transmit_run<'a>(&'a mut self, config: &'a Config, now: Instant) -> TransmitRun<'a> {
        TransmitRun {
            connection: self,
            config,
            now,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether nothing is under way: nothing to send, to acknowledge, to hand up or to wait for but a keep-alive.
    pub fn is_idle(&self) -> bool {
        true
    }

    pub fn side(&self) -> Side {
        self.side
    }

    pub fn cid(&self) -> ConnectionId {
        self.cid
    }

    /// Where datagrams go.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Bytes of messages, in both directions, that this connection keeps.
    pub fn held_bytes(&self) -> usize {
        0
    }

    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// Takes several datagrams for one connection.
pub struct ReceiveRun<'a> {
    connection: &'a mut Connection,
    config: &'a Config,
    now: Instant,
}

impl ReceiveRun<'_> {
    /// As [`Connection::handle_datagram`].
    pub fn handle_datagram(&mut self, _from: SocketAddr, _datagram: &mut [u8], _entropy: u64) -> Received {
        let _ = (self.config, self.now);
        match self.connection.ended {
            true => Received::Ended,
            false => Received::Forged,
        }
    }
}

/// Makes several datagrams of one connection.
pub struct TransmitRun<'a> {
    connection: &'a mut Connection,
    config: &'a Config,
    now: Instant,
}

impl TransmitRun<'_> {
    /// As [`Connection::poll_transmit`].
    pub fn poll(&mut self, _out: &mut Vec<u8>) -> Option<SocketAddr> {
        let _ = (&self.connection, self.config, self.now);
        None
    }
}
