//! One end of a connection: messages in, datagrams out, and back.
//!
//! What an idle connection needs is in [`Connection`] itself, 256 bytes; everything that is under way is in one box that goes
//! away with it. `receive` takes datagrams: pieces go to the `inbox`, acknowledgements settle what `sent` knows (`recovery`), and the
//! `outbox` counts what arrived. `transmit` makes datagrams: from the `outbox`, from what is `pending`, and an acknowledgement.
//!
//! Deliberately absent: sockets, the handshake (see [`crate::secure`]), path MTU discovery, explicit congestion notification, pacing
//! (a rest brings the window back to ten datagrams instead) and streams.

mod acks;
mod address;
mod busy;
mod close;
mod congestion;
mod credit;
mod give_up;
mod inbox;
mod outbox;
mod path;
mod ranges;
mod receive;
mod recovery;
mod rtt;
mod sent;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;
mod types;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::address::Address;
use self::busy::Busy;
use self::congestion::Congestion;
use self::credit::{ReceiveCredit, SendCredit};
pub use self::receive::ReceiveRun;
use self::rtt::Rtt;
use self::sent::Control;
pub use self::transmit::{MIN_DEVICE_DATAGRAM_BYTES, TransmitRun};
pub use self::types::{
    Config, End, Event, INITIAL_SERVER_CREDIT, MAX_DATAGRAM_BYTES, MESSAGE_COST_BYTES, MIN_DATAGRAM_LIMIT,
    Opening, PeerCredit, Received, SendError, Side, Stats,
};
use super::protect::{Opener, Sealer};
use super::{ConnectionId, ResetToken};
use crate::MessageKind;
use crate::secure::TrafficKey;

/// How long a close waits for acknowledgements, and its receiver for what is missing.
pub const CLOSE_LINGER: Duration = Duration::from_secs(2);
/// So many datagrams may fail to authenticate: what RFC 9001 section 6.6 allows for AES-GCM, and a margin.
pub const MAX_FORGERIES: u64 = 1 << 36;

/// One end of a connection.
///
/// After each call of a `handle_*` method or a command, call [`poll_event`](Self::poll_event) and
/// [`poll_transmit`](Self::poll_transmit) until they give `None`, then [`poll_timeout`](Self::poll_timeout): a connection with nothing
/// under way gives its buffers back in these. Also after [`Event::Ended`] there may be a last datagram to send.
#[derive(Debug)]
pub struct Connection {
    sealer: Sealer,
    opener: Opener,
    cid: ConnectionId,
    /// When something was last sent that asks for an acknowledgement.
    last_sent: Instant,
    sending: SendCredit,
    receiving: ReceiveCredit,
    /// Everything under way.
    busy: Option<Box<Busy>>,
    /// What few connections have, or none for long.
    rare: Option<Box<Rare>>,
    rtt: Rtt,
    congestion: Congestion,
    /// How long after `last_sent` a ping is sent; 0: never.
    keep_alive_ms: u32,
    peer: Address,
    /// The longest datagram to send: what both ends allow.
    max_datagram: u16,
    side: Side,
    state: State,
    end: Option<End>,
    /// Whether [`Event::Ended`] was given out.
    told: bool,
    /// Servers only: whether anything authentic came.
    heard: bool,
}

/// How far a connection is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// May become any other.
    Open,
    /// We close it; [`Busy::closing`] has the details. Becomes `Ended`.
    Closing,
    /// Nothing is taken or sent but a last acknowledgement; events may wait.
    Ended,
}

#[derive(Debug, Default)]
struct Rare {
    /// The receiving key before the current one, as long as its packets may come.
    previous_key: Option<TrafficKey>,
    /// A device's, to know a reset by.
    reset_token: Option<ResetToken>,
    forged: u64,
    duplicates: u32,
    lost: u32,
    retransmitted: u32,
}

impl Connection {
    /// A server's end sends nothing before the first datagram of the device's was opened.
    pub fn new(side: Side, opening: Opening, now: Instant) -> Self {
        let (sealing, receiving) = match side {
            Side::Device => (opening.keys.to_server, opening.keys.to_device),
            Side::Server => (opening.keys.to_device, opening.keys.to_server),
        };
        let max_datagram = opening
            .peer_max_datagram
            .clamp(MIN_DATAGRAM_LIMIT, MAX_DATAGRAM_BYTES);
        let mut connection = Self {
            sealer: Sealer::new(sealing),
            opener: Opener::new(receiving),
            cid: opening.cid,
            last_sent: now,
            sending: SendCredit::new(opening.peer_credit),
            receiving: ReceiveCredit::new(opening.own_credit),
            busy: None,
            rare: None,
            rtt: Rtt::default(),
            congestion: Congestion::new(max_datagram.into()),
            keep_alive_ms: 0,
            peer: opening.peer.into(),
            max_datagram,
            side,
            state: State::Open,
            end: None,
            told: false,
            heard: false,
        };
        if side == Side::Server {
            connection.announce(opening.reset_token);
        }
        connection
    }

    /// A server's first packet says how much it takes, and how to know a reset.
    fn announce(&mut self, token: Option<ResetToken>) {
        let busy = self.busy_mut();
        busy.pending.add(Control::CREDIT);
        if token.is_some() {
            busy.reset_token = token;
            busy.pending.add(Control::RESET_TOKEN);
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
        ReceiveRun::new(self, config, now)
    }

    /// Puts a message into the queue.
    pub fn send(&mut self, config: &Config, kind: MessageKind, payload: Bytes) -> Result<(), SendError> {
        if !self.takes_messages() {
            return Err(SendError::Closed);
        }
        if u32::try_from(payload.len()).is_err() {
            return Err(SendError::TooBig);
        }
        let outbox = &mut self.busy_mut().outbox;
        let held = outbox.held_bytes() + MESSAGE_COST_BYTES + payload.len();
        let fits = outbox.len() < config.send_messages && held <= config.send_bytes;
        if !fits && !outbox.is_empty() {
            return Err(SendError::Full(payload));
        }
        outbox.push(kind, payload);
        Ok(())
    }

    /// Whether neither end has closed the connection, and it is not lost.
    pub fn takes_messages(&self) -> bool {
        let is_closed = self.busy.as_ref().is_some_and(|busy| busy.peer_close.is_some());
        self.state == State::Open && !is_closed
    }

    /// Has the peer acknowledge something: proof that it lives.
    pub fn ping(&mut self) {
        if self.state != State::Ended {
            self.busy_mut().pending.add(Control::PING);
        }
    }

    /// The next event.
    pub fn poll_event(&mut self, config: &Config) -> Option<Event> {
        if let Some(event) = self.poll_progress() {
            return Some(event);
        }
        if let Some(busy) = &mut self.busy
            && let Some((kind, message)) = busy.inbox.take(&mut self.receiving)
        {
            if self.state != State::Ended {
                self.grow_credit(config);
            }
            return Some(Event::Message(kind, message));
        }
        self.poll_end()
    }

    /// Progress and losses only, for an application that takes no messages at the moment, or has not done with one that it polled. What
    /// was closed in good order is told by [`poll_event`](Self::poll_event) alone: it comes after all messages.
    pub fn poll_notice(&mut self) -> Option<Event> {
        if let Some(event) = self.poll_progress() {
            return Some(event);
        }
        let is_lost = self
            .end
            .is_some_and(|end| !matches!(end, End::ClosedByUs | End::ClosedByPeer));
        if is_lost {
            return self.poll_end();
        }
        self.settle();
        None
    }

    fn poll_progress(&mut self) -> Option<Event> {
        let busy = self.busy.as_mut()?;
        if std::mem::take(&mut busy.moved) {
            return Some(Event::PeerMoved(self.peer.into()));
        }
        match busy.outbox.take_delivered() {
            0 => None,
            delivered => Some(Event::Delivered(delivered)),
        }
    }

    /// Appends the next datagram to `out`, and says where to send it.
    pub fn poll_transmit(&mut self, config: &Config, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        self.busy.as_ref()?;
        self.transmit_run(config, now).poll(out)
    }

    /// For several datagrams in a row: the key is expanded once.
    pub fn transmit_run<'a>(&'a mut self, config: &'a Config, now: Instant) -> TransmitRun<'a> {
        TransmitRun::new(self, config, now)
    }

    /// Whether nothing is under way: nothing to send, to acknowledge, to hand up or to wait for but a keep-alive.
    pub fn is_idle(&self) -> bool {
        self.busy.is_none()
    }

    pub fn side(&self) -> Side {
        self.side
    }

    pub fn cid(&self) -> ConnectionId {
        self.cid
    }

    /// Where datagrams go.
    pub fn peer(&self) -> SocketAddr {
        self.peer.into()
    }

    /// What messages in both directions cost in memory, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_input_bytes() + self.held_output_bytes()
    }

    /// Of messages from the peer that the application did not take yet, or that are not complete: payloads, and
    /// [`MESSAGE_COST_BYTES`] for each.
    pub fn held_input_bytes(&self) -> usize {
        self.busy.as_ref().map_or(0, |busy| busy.inbox.held_bytes())
    }

    /// The same of messages that the peer did not acknowledge yet.
    pub fn held_output_bytes(&self) -> usize {
        self.busy.as_ref().map_or(0, |busy| busy.outbox.held_bytes())
    }

    pub fn stats(&self) -> Stats {
        let blank = Rare::default();
        let rare = self.rare.as_deref().unwrap_or(&blank);
        Stats {
            srtt: self.rtt.is_known().then(|| self.rtt.smoothed()),
            congestion_window: self.congestion.window(),
            lost: rare.lost,
            retransmitted: rare.retransmitted,
            forged: rare.forged,
            duplicates: rare.duplicates,
        }
    }

    fn busy_mut(&mut self) -> &mut Busy {
        let next = self.sending.next_message();
        self.busy.get_or_insert_with(|| Box::new(Busy::new(next)))
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Gives the buffers back when nothing is under way.
    fn settle(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.is_quiet()) {
            self.busy = None;
        }
    }
}
