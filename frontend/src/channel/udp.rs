//! The `udp` channel: one handshake in datagrams, then packets of ours (`holdfast_proto::udp`).
//!
//! # A turn
//! ```text
//! channel.handle_datagrams(&mut shared, from, …)      // or handle_timeout, or send, ping, close
//! while let Some(event) = channel.poll_event(&mut shared)? { … }      // poll_notice while messages are not taken
//! while let Some(to) = channel.poll_transmit(&shared, &mut out) { … }
//! channel.settle(&mut shared, …)
//! timer.set(channel.poll_timeout())
//! ```
//! What answers the handshake is left in [`UdpShared::answer`]; the driver sends it and keeps it for whoever asks again.
//!
//! Until a packet of the device's was opened, nobody has shown to hold the key, nor to be at the address: nothing but that answer
//! is sent there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::udp::datagram::{Refused, encode_challenge, encode_refused};
use holdfast_proto::udp::{
    self, Connection, ConnectionId, End, Event, Opening, Parameters, PeerCredit, Received, ResetKey,
    SendError, Side, Stats,
};

use super::error::{ChannelError, PeerFault};
use super::{Challenge, Channel, ChannelEvent, ChannelKind, MessageKind, Refusal};

/// What a shard has once for all its udp channels.
#[derive(Debug)]
pub struct UdpShared {
    pub config: udp::Config,
    /// When this turn is.
    pub now: Instant,
    /// The answer to a handshake, of the last `accept` or `refuse`.
    pub answer: Vec<u8>,
    pub reset_key: ResetKey,
    /// What all channels hold.
    held: Held,
    /// How much of it may be input before each has to do with a share.
    max_input: usize,
    /// Since when it is more than that.
    over_since: Option<Instant>,
}

/// Bytes of messages that are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// What devices have sent and no session has taken. It can be refused.
    pub input: usize,
    /// What devices have not acknowledged. Their sessions bound it.
    pub output: usize,
}

/// As [`Held`], of one connection: each is far below 4 GiB.
#[derive(Debug, Clone, Copy, Default)]
struct Charged {
    input: u32,
    output: u32,
}

impl From<Charged> for Held {
    fn from(charged: Charged) -> Self {
        Self {
            input: charged.input as usize,
            output: charged.output as usize,
        }
    }
}

/// What each device may send ahead of its session while all together hold too much: an ordinary request. What is longer waits.
const SHARE_BYTES: usize = 16 * 1024;
/// The same while they hold twice too much: control messages and small requests.
const LEAST_SHARE_BYTES: usize = 1024;
/// How long input may be over its bound before who holds most of what is not complete has to go. Longer than a connection that was
/// closed may take to be forgotten.
const INPUT_PATIENCE: Duration = Duration::from_secs(3);

impl UdpShared {
    /// `max_input`: bytes of input that all channels may hold before each has to do with a share.
    pub fn new(config: udp::Config, reset_key: ResetKey, max_input: usize, now: Instant) -> Self {
        Self {
            config,
            now,
            answer: Vec::new(),
            reset_key,
            held: Held::default(),
            max_input,
            over_since: None,
        }
    }

    /// What all channels hold.
    pub fn held(&self) -> Held {
        self.held
    }

    /// Whether input has been over its bound for so long that somebody has to go. True once per [`INPUT_PATIENCE`].
    pub fn must_relieve(&mut self) -> bool {
        let stuck = self
            .over_since
            .is_some_and(|since| self.now >= since + INPUT_PATIENCE);
        if stuck {
            self.over_since = Some(self.now);
        }
        stuck
    }

    fn count(&mut self, before: Held, after: Held) {
        self.held.input = self.held.input - before.input + after.input;
        self.held.output = self.held.output - before.output + after.output;
        self.config.input_share = match self.held.input {
            few if few <= self.max_input => usize::MAX,
            many if many / 2 <= self.max_input => SHARE_BYTES,
            _ => LEAST_SHARE_BYTES,
        };
        match self.config.input_share {
            usize::MAX => self.over_since = None,
            _ => _ = self.over_since.get_or_insert(self.now),
        }
    }
}

/// One device's connection.
#[derive(Debug)]
pub struct UdpChannel {
    stage: Stage,
    /// What of this connection is counted in [`UdpShared`], in bytes.
    charged: Charged,
    /// A packet was opened since this was last told.
    alive: bool,
}

#[derive(Debug)]
enum Stage {
    /// The device's HELLO is with a backend. Next: `Challenged` (accept), `Closed` (refuse, close).
    Binding(Box<Asked>),
    /// CHALLENGE was sent; nobody has proved anything. Next: `Open` (a packet opens), `Closed` (close).
    Challenged(Connection),
    /// Messages both ways, or what is left of them after a close. Next: `Closed` (it ended).
    Open(Connection),
    /// All was said. A last datagram may have to go out, which the connection that was open has.
    Closed(Option<Box<Connection>>),
}

/// What a device asked with, and as which connection it will be known.
#[derive(Debug)]
struct Asked {
    cid: ConnectionId,
    parameters: Parameters,
    from: SocketAddr,
}

impl UdpChannel {
    /// A channel for a device that asked with these parameters, from an address that may be anybody's.
    pub fn new(cid: ConnectionId, parameters: Parameters, from: SocketAddr) -> Self {
        let asked = Asked {
            cid,
            parameters,
            from,
        };
        Self {
            stage: Stage::Binding(Box::new(asked)),
            charged: Charged::default(),
            alive: false,
        }
    }

    fn connection(&self) -> Option<&Connection> {
        match &self.stage {
            Stage::Challenged(connection) | Stage::Open(connection) => Some(connection),
            Stage::Closed(connection) => connection.as_deref(),
            Stage::Binding(_) => None,
        }
    }

    fn connection_mut(&mut self) -> Option<&mut Connection> {
        match &mut self.stage {
            Stage::Challenged(connection) | Stage::Open(connection) => Some(connection),
            Stage::Closed(connection) => connection.as_deref_mut(),
            Stage::Binding(_) => None,
        }
    }

    /// Where its datagrams go; `None` before the device was let in.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.connection().map(Connection::peer)
    }

    /// The id under which datagrams may come; `None` before the device was let in.
    pub fn cid(&self) -> Option<ConnectionId> {
        self.connection().map(Connection::cid)
    }

    /// Whether the device has shown that it holds its key and is where it says.
    pub fn is_proven(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Whether nothing more will happen, but that a last datagram may go out.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Closed(_))
    }

    /// Takes DATA datagrams that came in a row from one address, and tells of each what became of it. `entropy`: fresh randomness.
    pub fn handle_datagrams<'a>(
        &mut self,
        shared: &UdpShared,
        from: SocketAddr,
        datagrams: impl Iterator<Item = &'a mut [u8]>,
        (entropy, mut tell): (u64, impl FnMut(Received)),
    ) {
        let Some(connection) = self.connection_mut() else {
            return datagrams.for_each(|_| tell(Received::Ended));
        };
        let (mut taken, mut opened) = (false, false);
        let mut run = connection.receive_run(&shared.config, shared.now);
        for datagram in datagrams {
            let received = run.handle_datagram(from, datagram, entropy);
            taken |= matches!(received, Received::Taken | Received::Malformed);
            // One for which there was no room opened, too, and the transport goes by it.
            opened |= taken || received == Received::Refused;
            tell(received);
        }
        self.alive |= taken;
        if opened {
            self.on_proven();
        }
    }

    /// A packet was opened: whoever sent it has the device's keys.
    fn on_proven(&mut self) {
        if let Stage::Challenged(_) = self.stage
            && let Stage::Challenged(connection) = std::mem::replace(&mut self.stage, Stage::Closed(None))
        {
            self.stage = Stage::Open(connection);
        }
    }

    pub fn handle_timeout(&mut self, shared: &UdpShared) {
        if let Some(connection) = self.connection_mut() {
            connection.handle_timeout(&shared.config, shared.now);
        }
    }

    /// As [`poll_event`](Channel::poll_event), but messages stay where they are.
    ///
    /// # Errors
    /// As there.
    pub fn poll_notice(&mut self, shared: &mut UdpShared) -> Result<Option<ChannelEvent>, ChannelError> {
        self.poll(shared, |connection, _| connection.poll_notice())
    }

    fn poll(
        &mut self,
        shared: &mut UdpShared,
        next: impl Fn(&mut Connection, &udp::Config) -> Option<Event>,
    ) -> Result<Option<ChannelEvent>, ChannelError> {
        let Stage::Open(connection) = &mut self.stage else {
            return Ok(None);
        };
        match next(connection, &shared.config) {
            Some(Event::Message(MessageKind::Text, text)) if std::str::from_utf8(&text).is_err() => {
                Err(PeerFault::InvalidUtf8.into())
            }
            Some(Event::Message(kind, payload)) => Ok(Some(ChannelEvent::Message(kind, payload))),
            Some(Event::Delivered(messages)) => Ok(Some(ChannelEvent::Delivered(messages))),
            Some(Event::PeerMoved(address)) => Ok(Some(ChannelEvent::Moved(canonical(address)))),
            Some(Event::Closed { code, .. }) => Ok(Some(ChannelEvent::Closed {
                code: Some(code),
                authentic: true,
            })),
            Some(Event::Ended(end)) => self.on_ended(end),
            None if std::mem::take(&mut self.alive) => Ok(Some(ChannelEvent::Alive)),
            None => Ok(None),
        }
    }

    fn on_ended(&mut self, end: End) -> Result<Option<ChannelEvent>, ChannelError> {
        if let Stage::Open(connection) = std::mem::replace(&mut self.stage, Stage::Closed(None)) {
            self.stage = Stage::Closed(Some(Box::new(connection)));
        }
        match end {
            End::ClosedByPeer => Ok(None),
            // Our session's close has taken it away already; where there is one still, the peer broke the protocol.
            End::ClosedByUs => Err(PeerFault::Packet.into()),
            End::GaveUp | End::Reset | End::TooManyForgeries => Ok(Some(ChannelEvent::Lost)),
        }
    }

    /// Appends the datagrams that are due to `out`, at most `most`, and tells where each goes and how long it is. True when there may
    /// be more.
    pub fn transmit(
        &mut self,
        shared: &UdpShared,
        out: &mut Vec<u8>,
        most: usize,
        mut tell: impl FnMut(SocketAddr, usize),
    ) -> bool {
        let (Stage::Open(_) | Stage::Closed(Some(_))) = self.stage else {
            return false;
        };
        let Some(connection) = self.connection_mut() else {
            return false;
        };
        let mut run = connection.transmit_run(&shared.config, shared.now);
        for _ in 0..most {
            let begin = out.len();
            match run.poll(out) {
                Some(to) => tell(to, out.len() - begin),
                None => return false,
            }
        }
        true
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.connection()?.poll_timeout()
    }

    pub fn stats(&self) -> Stats {
        self.connection().map(Connection::stats).unwrap_or_default()
    }

    /// Counts what this channel holds, and `stalled` bytes that were taken from it and could not be handed on. To be called at the
    /// end of each turn. No channel is closed for what others hold: its session bounds what goes out, and of what comes in each has
    /// to do with a share while all hold too much.
    pub fn settle(&mut self, shared: &mut UdpShared, stalled: usize) {
        let connection = self.connection();
        let bytes = |held| u32::try_from(held).unwrap_or(u32::MAX);
        let charged = Charged {
            input: bytes(connection.map_or(0, Connection::held_input_bytes) + stalled),
            output: bytes(connection.map_or(0, Connection::held_output_bytes)),
        };
        let (before, after) = (self.held(), Held::from(charged));
        self.charged = charged;
        if before != after {
            shared.count(before, after);
        }
    }

    /// What it held when it was last settled.
    pub fn held(&self) -> Held {
        self.charged.into()
    }

    /// What it held is free. To be called before it is dropped.
    pub fn release(&mut self, shared: &mut UdpShared) {
        shared.count(std::mem::take(&mut self.charged).into(), Held::default());
    }
}

/// An address of IPv4 as such, also where a socket of IPv6 names it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Channel for UdpChannel {
    type Shared = UdpShared;

    fn kind(&self) -> ChannelKind {
        ChannelKind::Udp
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    fn poll_event(&mut self, shared: &mut UdpShared) -> Result<Option<ChannelEvent>, ChannelError> {
        self.poll(shared, Connection::poll_event)
    }

    fn accept(
        &mut self,
        shared: &mut UdpShared,
        challenge: Option<Box<Challenge>>,
    ) -> Result<(), ChannelError> {
        let Stage::Binding(asked) = &self.stage else {
            return Err(ChannelError::State("no HELLO to answer"));
        };
        let Some(challenge) = challenge else {
            return Err(ChannelError::State("a device is let in without a challenge"));
        };
        let Ok(message2) = challenge.message.as_ref().try_into() else {
            return Err(ChannelError::State("a challenge of another length"));
        };
        let parameters = &asked.parameters;
        shared.answer.clear();
        encode_challenge(parameters.attempt, asked.cid, message2, &mut shared.answer);
        let opening = Opening {
            cid: asked.cid,
            keys: challenge.keys,
            peer: asked.from,
            peer_max_datagram: parameters.max_datagram,
            peer_credit: PeerCredit {
                messages: parameters.receive_messages.into(),
                bytes: parameters.receive_bytes.into(),
            },
            own_credit: udp::INITIAL_SERVER_CREDIT,
            reset_token: Some(shared.reset_key.token(asked.cid)),
        };
        self.stage = Stage::Challenged(Connection::new(Side::Server, opening, shared.now));
        Ok(())
    }

    fn refuse(&mut self, shared: &mut UdpShared, refusal: &Refusal) -> Result<(), ChannelError> {
        let Stage::Binding(asked) = &self.stage else {
            return Err(ChannelError::State("no HELLO to refuse"));
        };
        write_refused(&mut shared.answer, asked.parameters.attempt, refusal);
        self.stage = Stage::Closed(None);
        Ok(())
    }

    fn send(
        &mut self,
        shared: &mut UdpShared,
        kind: MessageKind,
        payload: &Bytes,
    ) -> Result<(), ChannelError> {
        let Stage::Open(connection) = &mut self.stage else {
            return Err(ChannelError::State("the channel is not open"));
        };
        match connection.send(&shared.config, kind, payload.clone()) {
            Ok(()) => Ok(()),
            Err(SendError::Full(_)) => Err(ChannelError::SlowConsumer),
            Err(SendError::TooBig) => Err(ChannelError::State("a message is longer than any may be")),
            Err(SendError::Closed) => Err(ChannelError::PeerCloses),
        }
    }

    fn ping(&mut self, _: &mut UdpShared) -> Result<(), ChannelError> {
        if let Stage::Open(connection) = &mut self.stage {
            connection.ping();
        }
        Ok(())
    }

    /// Nothing is said to an address that nobody has shown to be at.
    fn close(&mut self, shared: &mut UdpShared, code: u16, reason: &str) -> Result<(), ChannelError> {
        match &mut self.stage {
            Stage::Open(connection) => connection.close(shared.now, code, reason),
            Stage::Binding(_) | Stage::Challenged(_) => self.stage = Stage::Closed(None),
            Stage::Closed(_) => {}
        }
        Ok(())
    }
}

/// Says no to an attempt, in place of what `out` held.
pub(crate) fn write_refused(out: &mut Vec<u8>, attempt: u64, refusal: &Refusal) {
    let millis = |after: Duration| u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    out.clear();
    let refused = Refused {
        attempt,
        status: refusal.status,
        retry_after_ms: refusal.retry_after.map_or(0, millis),
        retryable: refusal.retryable,
        code: &refusal.code,
    };
    encode_refused(&refused, out);
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
