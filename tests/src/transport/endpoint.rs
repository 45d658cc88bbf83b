//! One end of a connection with the application above it, driven as the real drivers do it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::udp::{
    Config, Connection, ConnectionId, End, Event, MESSAGE_COST_BYTES, Received, SendError, Side,
};

use super::Promise;
use super::application::Application;
use super::guard::{Allowance, Spin};
use super::ledger::{Broken, other};
use super::message::Message;
use super::shared::{Packet, Place, Sealed, Shared};
use crate::sim::queue::Time;

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) connection: Connection,
    pub(crate) config: Rc<Config>,
    pub(crate) application: Application,
    /// When it is to be run; an earlier turn of the same time is void.
    pub(crate) armed: Option<Time>,
    /// What the last event said, once it was polled.
    pub(crate) ended: Option<End>,
    /// The first datagram was opened, or (on a device) the handshake.
    pub(crate) opened: bool,
    pub(crate) heard: Time,
    /// Datagrams made so far.
    pub(crate) sent: u64,
    place: Place,
    side: Side,
    cid: ConnectionId,
    allowance: Allowance,
    spin: Spin,
    pinged: bool,
    /// Where the peer was when that was last looked at.
    peer: SocketAddr,
    /// The driver leaves the rest of what is to be sent for its next turn.
    unsent: bool,
}

/// A server pings whom it has not heard for so long.
const SILENCE: Duration = Duration::from_secs(30);
/// How much a driver sends in one turn when it is sluggish.
const FEW: usize = 3;
/// More at one instant than any congestion window allows.
const MAX_DATAGRAMS: usize = 6_000;
const DATA_OVERHEAD: usize = 29;

impl Endpoint {
    pub(crate) fn new(connection: Connection, config: Rc<Config>, place: Place, s: &mut Shared) -> Self {
        let (side, cid) = (connection.side(), connection.cid());
        s.ledger.open(cid);
        Self {
            application: Application::draw(s),
            armed: None,
            ended: None,
            opened: side == Side::Device,
            heard: s.now,
            sent: 0,
            place,
            side,
            cid,
            allowance: Allowance::new(s.now),
            spin: Spin::default(),
            pinged: false,
            peer: connection.peer(),
            unsent: false,
            config,
            connection,
        }
    }

    pub(crate) fn cid(&self) -> ConnectionId {
        self.cid
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn handle_packet(&mut self, s: &mut Shared, packet: &mut Packet) -> Result<(), Broken> {
        let (now, entropy) = (s.instant(), s.rng.next());
        let bytes = &mut packet.bytes;
        let received = self
            .connection
            .handle_datagram(&self.config, now, packet.from, bytes, entropy);
        s.note(("received", self.side, packet.id, received));
        s.saw("received", &format!("{received:?}"));
        if matches!(received, Received::Taken | Received::Refused) {
            self.note_source(s, packet.from)?;
        }
        let meant = packet.sealed.is_some_and(|sealed| {
            sealed.cid == self.cid && sealed.side == other(self.side) && !packet.flipped
        });
        let wrong = match received {
            Received::Taken | Received::Refused | Received::Malformed if !meant => Promise::Private,
            Received::Forged if meant => Promise::NoDrop,
            Received::Malformed => Promise::Protocol,
            Received::Taken if !s.taken.insert(packet.id) => Promise::Once,
            Received::Taken => {
                self.heard = s.now;
                self.pinged = false;
                self.allowance.on_received();
                return Ok(());
            }
            _ => return Ok(()),
        };
        let what = format!(
            "{:?} of {} found {received:?} what is {packet:?}",
            self.side, self.cid
        );
        Err((wrong, what))
    }

    /// Something authentic came: where the peer is may have been proved by it.
    fn note_source(&mut self, s: &mut Shared, from: SocketAddr) -> Result<(), Broken> {
        let before = std::mem::replace(&mut self.peer, self.connection.peer());
        if !self.opened {
            // Whoever has the keys got the challenge, where it went to.
            self.opened = true;
            s.accounts.prove(before);
        }
        if self.peer == before {
            return Ok(());
        }
        if self.side == Side::Device || self.peer != from || s.is_strange(from) {
            let what = format!("moved to {}, which never answered a challenge", self.peer);
            return Err(self.broken(Promise::Private, &what));
        }
        s.accounts.prove(from);
        Ok(())
    }

    /// One turn of the driver. `whole`: it does everything that there is to do.
    pub(crate) fn run(&mut self, s: &mut Shared, whole: bool) -> Result<(), Broken> {
        if !self.spin.turn(s.now) {
            return Err(self.broken(Promise::Quiet, "spins: it is always due again at once"));
        }
        let now = s.instant();
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(&self.config, now);
        }
        if self.side == Side::Server && self.opened && !self.pinged && s.now >= self.heard + SILENCE {
            self.pinged = true;
            self.connection.ping();
        }
        self.application.wake(s.now);
        self.take_events(s)?;
        self.send_messages(s)?;
        self.transmit(s, whole)?;
        self.take_events(s)?;
        let due = self.connection.poll_timeout();
        if !self.unsent && due.is_some_and(|at| at <= now) {
            let what = format!(
                "is due again at once after it did all that there was: {:?}",
                self.connection
            );
            return Err(self.broken(Promise::Quiet, &what));
        }
        if self.connection.is_idle() {
            self.allowance.on_idle();
        }
        self.check_memory(s)
    }

    fn take_events(&mut self, s: &mut Shared) -> Result<(), Broken> {
        while let Some(event) = self.poll() {
            if self.ended.is_some() {
                return Err(self.broken(Promise::Protocol, &format!("has {event:?} after its last event")));
            }
            self.take_event(s, event)?;
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Event> {
        match self.application.stall {
            None => self.connection.poll_event(&self.config),
            Some(stall) if stall.notices => self.connection.poll_notice(),
            Some(_) => None,
        }
    }

    fn take_event(&mut self, s: &mut Shared, event: Event) -> Result<(), Broken> {
        let me = (self.cid, self.side);
        match event {
            Event::Message(kind, content) => {
                s.note(("message", self.cid.0, self.side, content.len()));
                s.summary.messages += 1;
                s.summary.bytes += content.len() as u64;
                if self.application.stall.is_some() {
                    return Err(self.broken(Promise::Protocol, "hands a message to who asked for none"));
                }
                s.ledger.on_taken(me, kind, &content)
            }
            Event::Delivered(count) => {
                s.note(("delivered", self.cid.0, self.side, count));
                self.application.room = true;
                s.ledger.on_delivered(me, count)
            }
            Event::PeerMoved(address) => self.on_moved(s, address),
            Event::Closed { code, reason } => {
                s.note(("closed", self.cid.0, self.side, code));
                s.saw("event", "closed by the peer");
                let said = s.ledger.flow_mut(self.cid, other(self.side)).closed.clone();
                let heard = Some((code, reason));
                (said == heard).then_some(()).ok_or_else(|| {
                    self.broken(
                        Promise::Truthful,
                        &format!("heard a close with {heard:?}, and {said:?} was said"),
                    )
                })
            }
            Event::Ended(end) => self.on_ended(s, end),
        }
    }

    fn on_moved(&mut self, s: &mut Shared, address: SocketAddr) -> Result<(), Broken> {
        s.note(("moved", self.cid.0, address));
        s.saw("event", "peer moved");
        if self.peer != address {
            return Err(self.broken(Promise::Truthful, "says that the peer is where it is not"));
        }
        Ok(())
    }

    fn on_ended(&mut self, s: &mut Shared, end: End) -> Result<(), Broken> {
        s.note(("ended", self.cid.0, self.side, end));
        s.saw("end", &format!("{end:?}"));
        self.ended = Some(end);
        let closed = |side| s.ledger.log(self.cid).flow(side).closed.is_some();
        let is_true = match end {
            End::ClosedByUs => closed(self.side),
            End::ClosedByPeer => closed(other(self.side)),
            End::Reset => self.side == Side::Device,
            End::GaveUp => true,
            End::TooManyForgeries => false,
        };
        if !is_true {
            return Err(self.broken(Promise::Truthful, &format!("says that it ended by {end:?}")));
        }
        let is_lost = !matches!(end, End::ClosedByUs | End::ClosedByPeer);
        if is_lost && self.application.stall.is_some() {
            // Who asks for no messages is told of a loss at once: what was not taken is lost with it.
            self.vanish(s);
            return Ok(());
        }
        s.ledger.on_ended((self.cid, self.side), end)
    }

    fn send_messages(&mut self, s: &mut Shared) -> Result<(), Broken> {
        if self.ended.is_some() {
            return Ok(());
        }
        while let Some((message, content)) = self.application.next(s, self.config.max_message_bytes) {
            match self.connection.send(&self.config, message.kind, content.clone()) {
                Ok(()) => {
                    s.note(("send", self.cid.0, self.side, message.bytes));
                    s.ledger.on_sent(self.cid, self.side, message);
                    self.allowance
                        .on_message(message.bytes, self.config.max_datagram.into());
                    self.application.on_sent(s, message.bytes);
                }
                Err(SendError::Full(back)) => {
                    self.check_full(s, message.bytes)?;
                    if back != content {
                        return Err(self.broken(Promise::Unchanged, "gave another message back"));
                    }
                    self.application.wait(message, content);
                    return Ok(());
                }
                Err(SendError::Closed) => {
                    self.application.stop();
                    return self.check_closed(s);
                }
                Err(SendError::TooBig) => {
                    return Err(self.broken(Promise::Protocol, "finds a message too big that is not"));
                }
            }
        }
        Ok(())
    }

    /// A message may only be given back when others wait.
    fn check_full(&self, s: &Shared, bytes: usize) -> Result<(), Broken> {
        let flow = s.ledger.log(self.cid).flow(self.side);
        let waiting = &flow.sent[flow.delivered..];
        let waiting_bytes: usize = waiting.iter().map(|m| m.bytes + MESSAGE_COST_BYTES).sum();
        let full = waiting.len() >= self.config.send_messages
            || (!waiting.is_empty() && waiting_bytes + bytes + MESSAGE_COST_BYTES > self.config.send_bytes);
        full.then_some(()).ok_or_else(|| {
            let what = format!("is full with {} messages of {waiting_bytes} bytes", waiting.len());
            self.broken(Promise::Progress, &what)
        })
    }

    /// A message may only be refused for good when somebody has closed, or the connection is lost.
    fn check_closed(&mut self, s: &mut Shared) -> Result<(), Broken> {
        let log = s.ledger.log(self.cid);
        let closed = log.flow(self.side).closed.is_some() || log.flow(other(self.side)).closed.is_some();
        if closed || self.application.stall.is_some() || self.side == Side::Device {
            // A stalled application has not yet heard of the end, and a device may have been reset.
            return Ok(());
        }
        Err(self.broken(Promise::NoDrop, "takes no messages though nobody closed it"))
    }

    fn transmit(&mut self, s: &mut Shared, whole: bool) -> Result<(), Broken> {
        let now = s.instant();
        let most = if whole { MAX_DATAGRAMS } else { FEW };
        self.unsent = true;
        for _ in 0..most {
            let mut bytes = Vec::new();
            let Some(to) = self.connection.poll_transmit(&self.config, now, &mut bytes) else {
                self.unsent = false;
                break;
            };
            self.check_datagram(s, &bytes)?;
            self.sent += 1;
            let (cid, side) = (self.cid, self.side);
            s.put_out(self.place, to, bytes, Some(Sealed { cid, side }));
        }
        if self.unsent && whole {
            return Err(self.broken(Promise::Quiet, "never has an end of what it sends"));
        }
        Ok(())
    }

    fn check_datagram(&mut self, s: &Shared, bytes: &[u8]) -> Result<(), Broken> {
        let longest = usize::from(self.config.max_datagram.min(s.device_max_datagram(self.place)));
        if bytes.len() < DATA_OVERHEAD || bytes.len() > longest {
            let what = format!(
                "makes a datagram of {} bytes, the limit is {longest}",
                bytes.len()
            );
            return Err(self.broken(Promise::Bounded, &what));
        }
        if !self.opened {
            return Err(self.broken(Promise::Amplified, "sends before it has heard anything"));
        }
        if !self.allowance.spend(s.now) {
            return Err(self.broken(Promise::Quiet, "sends more than there is cause for"));
        }
        Ok(())
    }

    fn check_memory(&self, s: &Shared) -> Result<(), Broken> {
        let config = &*self.config;
        let held = self.connection.held_bytes();
        let window = (config.receive_bytes as usize).max(16_384);
        // Each message counts with its cost, and each run of bytes out of order with its own; those to be sent are within `send_bytes`.
        let costs = (usize::from(config.receive_messages).max(8) + 1) * MESSAGE_COST_BYTES + window;
        let bound =
            config.send_bytes.max(config.max_message_bytes) + config.max_message_bytes + 3 * window + costs;
        if held > bound {
            let what = format!("holds {held} bytes, and may hold {bound}");
            return Err(self.broken(Promise::Bounded, &what));
        }
        let flow = s.ledger.log(self.cid).flow(other(self.side));
        if self.ended.is_none() && held < flow.owed_bytes {
            let owed = flow.owed_bytes;
            let what = format!("holds {held} bytes of messages: {owed} were reported delivered to it");
            return Err(self.broken(Promise::Truthful, &what));
        }
        let untaken = flow.delivered.saturating_sub(flow.taken);
        if untaken > usize::from(config.receive_messages).max(8) {
            let what = format!(
                "holds {untaken} messages, its window is {}",
                config.receive_messages
            );
            return Err(self.broken(Promise::Bounded, &what));
        }
        Ok(())
    }

    pub(crate) fn close(&mut self, s: &mut Shared, code: u16, reason: &str) {
        s.note(("close", self.cid.0, self.side, code));
        let closed = &mut s.ledger.flow_mut(self.cid, self.side).closed;
        if closed.is_none() && self.ended.is_none() {
            *closed = Some((code, reason.to_owned()));
            self.connection.close(s.instant(), code, reason);
            self.application.stop();
        }
    }

    /// Its application is gone: what it holds is lost, as the process would lose it.
    pub(crate) fn vanish(&self, s: &mut Shared) {
        s.ledger.on_vanished(self.cid, self.side);
    }

    /// When it is to be run next.
    pub(crate) fn due(&mut self, s: &Shared) -> Option<Time> {
        let soon = self.unsent.then(|| s.now + Duration::from_micros(200));
        let timeout = self.connection.poll_timeout().map(|at| s.time_of(at));
        let silent = self.side == Side::Server && self.opened && !self.pinged && self.ended.is_none();
        let ping = silent.then_some(self.heard + SILENCE);
        let application = self.application.due(s.healed).filter(|_| self.ended.is_none());
        [soon, timeout, ping, application].into_iter().flatten().min()
    }

    pub(crate) fn message(&mut self, s: &mut Shared, message: Message) -> Result<bool, Broken> {
        let content: Bytes = message.content();
        let sent = self.connection.send(&self.config, message.kind, content).is_ok();
        if sent {
            s.ledger.on_sent(self.cid, self.side, message);
            self.allowance
                .on_message(message.bytes, self.config.max_datagram.into());
        }
        Ok(sent)
    }

    fn broken(&self, promise: Promise, what: &str) -> Broken {
        (promise, format!("{:?} of {} {what}", self.side, self.cid))
    }
}
