//! Taking datagrams.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::address::Address;
use super::busy::Busy;
use super::inbox::Refusal;
use super::path::Candidate;
use super::rtt::Rtt;
use super::sent::Control;
use super::types::{Config, End, PeerClose, Received, Side};
use super::{CLOSE_LINGER, Connection, MAX_FORGERIES, State};
use crate::codes::CloseCode;
use crate::udp::packet::{Acknowledgement, Close, MAX_PIECES, Packet};
use crate::udp::protect::{Expanded, OpenError};

/// Takes several datagrams for one connection, in the order in which they came.
///
/// At the latest after 128 of them [`Connection::poll_transmit`] should have its turn: an acknowledgement speaks of the last 256.
pub struct ReceiveRun<'a> {
    connection: &'a mut Connection,
    config: &'a Config,
    now: Instant,
    expanded: Expanded,
}

/// What a packet's contents came to.
enum Contents {
    Fine,
    NoRoom,
    Broken(CloseCode, &'static str),
}

impl<'a> ReceiveRun<'a> {
    pub(super) fn new(connection: &'a mut Connection, config: &'a Config, now: Instant) -> Self {
        connection.begin_turn(config, now);
        Self {
            connection,
            config,
            now,
            expanded: Expanded::default(),
        }
    }

    /// As [`Connection::handle_datagram`].
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], entropy: u64) -> Received {
        if self.connection.state == State::Ended {
            return Received::Ended;
        }
        let size = datagram.len();
        let connection = &mut *self.connection;
        let previous = connection
            .rare
            .as_ref()
            .and_then(|rare| rare.previous_key.as_ref());
        match connection.opener.open(&mut self.expanded, previous, datagram) {
            Ok((number, plain)) => self.take((number, plain), (from.into(), size), entropy),
            Err(OpenError::Duplicate) => {
                let rare = connection.rare_mut();
                rare.duplicates = rare.duplicates.saturating_add(1);
                Received::Duplicate
            }
            Err(OpenError::Forged) => connection.on_forged(),
        }
    }

    fn take(
        &mut self,
        (number, plain): (u64, &[u8]),
        (from, size): (Address, usize),
        entropy: u64,
    ) -> Received {
        let (connection, config, now) = (&mut *self.connection, self.config, self.now);
        let is_newest = connection.opener.largest().is_none_or(|largest| number > largest);
        connection.on_source(now, (from, size), is_newest, entropy);
        let packet = match Packet::decode(plain) {
            Ok(packet) => packet,
            Err(error) => {
                connection.accept(number, now, None);
                connection.fail(now, error.close_code(), "a packet could not be read");
                return Received::Malformed;
            }
        };
        let contents = connection.on_packet(config, now, from, &packet);
        match contents {
            Contents::NoRoom => Received::Refused,
            Contents::Fine => {
                connection.accept(number, now, Some(&packet));
                connection.check_closed(now);
                Received::Taken
            }
            Contents::Broken(code, reason) => {
                connection.accept(number, now, Some(&packet));
                connection.fail(now, code, reason);
                Received::Malformed
            }
        }
    }
}

impl Connection {
    fn on_forged(&mut self) -> Received {
        let rare = self.rare_mut();
        rare.forged += 1;
        if rare.forged >= MAX_FORGERIES {
            self.end(End::TooManyForgeries);
        }
        Received::Forged
    }

    /// Something authentic came from `from`.
    fn on_source(&mut self, now: Instant, (from, size): (Address, usize), is_newest: bool, entropy: u64) {
        if self.side == Side::Device {
            return;
        }
        // Whoever has the keys got the challenge, which went to the peer's first address: that one needs no further proof.
        self.heard = true;
        if from == self.peer {
            return;
        }
        let known = self.busy.as_ref().and_then(|busy| busy.candidate.as_ref());
        if is_newest && known.is_none_or(|candidate| candidate.address != from) {
            self.busy_mut().candidate = Some(Box::new(Candidate::new(from, entropy, now)));
        }
        let candidate = self.busy.as_mut().and_then(|busy| busy.candidate.as_mut());
        if let Some(candidate) = candidate.filter(|candidate| candidate.address == from) {
            candidate.on_received(size);
        }
    }

    /// Everything here may happen twice without harm: a packet that finds no room comes again.
    fn on_packet(&mut self, config: &Config, now: Instant, from: Address, packet: &Packet<'_>) -> Contents {
        if let Some(ack) = &packet.ack
            && let Err(broken) = self.on_ack(config, now, ack)
        {
            return broken;
        }
        if let Some(total) = packet.credit
            && self.sending.update(total).is_err()
        {
            return Contents::Broken(CloseCode::Protocol, "an excessive credit");
        }
        if let Some(token) = packet.reset_token
            && self.side == Side::Device
        {
            self.rare_mut().reset_token = Some(token);
        }
        if let Some(token) = packet.path_challenge {
            self.busy_mut().response = Some(token);
        }
        if let Some(token) = packet.path_response {
            self.on_path_response(config, now, (from, token));
        }
        if let Some(close) = &packet.close {
            self.on_close(now, close);
        }
        self.on_pieces(config, packet)
    }

    fn on_pieces(&mut self, config: &Config, packet: &Packet<'_>) -> Contents {
        debug_assert!(packet.pieces().len() <= MAX_PIECES);
        for piece in packet.pieces() {
            if self.is_failed() {
                return Contents::NoRoom;
            }
            // Not `busy_mut`: the credit is needed beside it.
            let busy = self
                .busy
                .get_or_insert_with(|| Box::new(Busy::new(self.sending.next_message())));
            match busy.inbox.insert(config, &self.receiving, &piece) {
                Ok(()) => {}
                Err(Refusal::NoRoom) => return Contents::NoRoom,
                Err(Refusal::Broken(code, reason)) => return Contents::Broken(code, reason),
            }
        }
        // A ping may be that of a peer that waits for credit.
        if packet.pieces().len() > 0 || packet.ping {
            self.grow_credit(config);
        }
        Contents::Fine
    }

    /// Tells the peer when it may send much more than it knows.
    pub(super) fn grow_credit(&mut self, config: &Config) {
        let busy = self.busy.as_ref();
        let contiguous = busy.map_or(0, |busy| busy.inbox.contiguous(&self.receiving));
        let share = u32::try_from(config.input_share).unwrap_or(u32::MAX);
        let window = (config.receive_messages, config.receive_bytes.min(share));
        if self.receiving.grow(window, contiguous, share) {
            self.busy_mut().pending.add(Control::CREDIT);
        }
    }

    /// `packet` is `None` when it could not be read: it is acknowledged all the same, as it will not get any better.
    fn accept(&mut self, number: u64, now: Instant, packet: Option<&Packet<'_>>) {
        let expected = self.opener.largest().map_or(0, |largest| largest + 1);
        if let Some(previous) = self.opener.accept(number) {
            self.rare_mut().previous_key = Some(previous);
        } else if let Some(rare) = &mut self.rare
            && rare.previous_key.is_some()
            && !self.opener.needs_previous()
        {
            rare.previous_key = None;
        }
        let is_eliciting = packet.is_none_or(|packet| packet.is_eliciting());
        let is_late = number != expected || self.opener.has_gap_before(number);
        // Who asks whether we are there waits for nothing else, and we have nothing to say with it: to wait would cost both a timer, and
        // a device's radio the time.
        let is_question = |packet: &Packet<'_>| packet.ping && packet.pieces().len() == 0;
        let is_urgent = packet.is_none_or(|packet| packet.close.is_some() || is_question(packet));
        if !is_eliciting && self.busy.is_none() {
            return;
        }
        let busy = self.busy_mut();
        if number >= expected {
            busy.acks.on_largest(now);
        }
        if is_eliciting {
            busy.acks.on_eliciting(now, is_late || is_urgent);
        }
    }

    fn on_ack(&mut self, config: &Config, now: Instant, ack: &Acknowledgement<'_>) -> Result<(), Contents> {
        if ack.largest >= self.sealer.next_number() {
            let reason = "an acknowledgement of what was never sent";
            return Err(Contents::Broken(CloseCode::Protocol, reason));
        }
        let Some(busy) = &mut self.busy else {
            return Ok(());
        };
        if busy
            .largest_acknowledged
            .is_none_or(|largest| ack.largest > largest)
        {
            busy.largest_acknowledged = Some(ack.largest);
        }
        self.settle_acknowledged(config, now, ack);
        Ok(())
    }

    fn on_path_response(&mut self, config: &Config, now: Instant, (from, token): (Address, u64)) {
        let datagram = u32::from(self.max_datagram);
        let Some(busy) = &mut self.busy else {
            return;
        };
        let proved = |candidate: &mut Box<Candidate>| candidate.address == from && candidate.token() == token;
        if busy.candidate.take_if(proved).is_none() {
            return;
        }
        self.peer = from;
        self.rtt = Rtt::default();
        self.congestion = super::congestion::Congestion::new(datagram);
        busy.moved = true;
        busy.path_since = Some(now);
        busy.sampled_since = None;
        busy.latest_rtt = Duration::ZERO;
        busy.expired = 0;
        // What went to the old address before now does not shrink the new path's window.
        busy.recovery.begin(now);
        // Acknowledgements went to the old address too, and are not sent again by themselves.
        busy.acks.on_eliciting(now, true);
        self.resend_all(config);
    }

    fn on_close(&mut self, now: Instant, close: &Close<'_>) {
        let busy = self.busy_mut();
        if busy.peer_close.is_none() {
            busy.peer_close = Some(Box::new(PeerClose {
                code: close.code,
                reason: close.reason.to_owned(),
                messages: close.messages,
                until: now + CLOSE_LINGER,
            }));
        }
    }
}
