//! Making datagrams.

use std::net::SocketAddr;
use std::time::Instant;

use super::busy::Busy;
use super::outbox::Part;
use super::path::CHALLENGE_DATAGRAM_BYTES;
use super::sent::Control;
use super::types::{Config, Side};
use super::{Connection, State};
use crate::udp::packet::{
    Close, MAX_PIECES, piece_len, push_ack, push_challenge, push_close, push_credit, push_padding,
    push_piece, push_ping, push_reset_token, push_response,
};
use crate::udp::protect::{Expanded, HEADER_BYTES, OVERHEAD_BYTES};

/// A device's datagram that asks for an acknowledgement has at least so many bytes: a challenge to a new address of the device's
/// is then never longer than what came from there.
pub const MIN_DEVICE_DATAGRAM_BYTES: usize = 48;

/// No piece is begun in less room than this, in bytes.
const MIN_ROOM_BYTES: usize = 8;

/// Makes several datagrams of one connection.
pub struct TransmitRun<'a> {
    connection: &'a mut Connection,
    config: &'a Config,
    now: Instant,
    expanded: Expanded,
}

impl<'a> TransmitRun<'a> {
    pub(super) fn new(connection: &'a mut Connection, config: &'a Config, now: Instant) -> Self {
        connection.begin_turn(config, now);
        Self {
            connection,
            config,
            now,
            expanded: Expanded::default(),
        }
    }

    /// As [`Connection::poll_transmit`].
    pub fn poll(&mut self, out: &mut Vec<u8>) -> Option<SocketAddr> {
        let connection = &mut *self.connection;
        if connection.busy.is_none() || !connection.may_speak() {
            return None;
        }
        if let Some(address) = connection.challenge(self.now, &mut self.expanded, out) {
            return Some(address);
        }
        let sent = connection.transmit(self.config, self.now, (&mut self.expanded, out));
        if !sent {
            connection.note_blocked(self.now);
            connection.settle();
        }
        sent.then(|| connection.peer.into())
    }
}

/// A datagram in the making.
struct Draft<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    /// Where its plaintext must end.
    limit: usize,
    control: Control,
}

impl Draft<'_> {
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.out.len())
    }

    fn is_empty(&self) -> bool {
        self.out.len() == self.start + HEADER_BYTES
    }
}

impl Connection {
    /// A server says nothing before the device's first datagram came: until then its address is not known to be its own.
    fn may_speak(&self) -> bool {
        self.heard || self.side == Side::Device
    }

    /// The longest datagram to send.
    pub(super) fn datagram_limit(&self) -> u32 {
        self.max_datagram.into()
    }

    /// A challenge to the address that the peer may have now.
    fn challenge(&mut self, now: Instant, expanded: &mut Expanded, out: &mut Vec<u8>) -> Option<SocketAddr> {
        let wait = self.rtt.probe_timeout(0);
        let candidate = self.busy.as_mut()?.candidate.as_mut()?;
        if !candidate.is_due(now) {
            return None;
        }
        let (start, token, address) = (out.len(), candidate.token(), candidate.address);
        candidate.on_sent(CHALLENGE_DATAGRAM_BYTES as usize, now, wait);
        self.sealer.begin(self.cid, out);
        push_challenge(out, token);
        self.sealer.seal(expanded, out, start);
        debug_assert_eq!(out.len() - start, CHALLENGE_DATAGRAM_BYTES as usize);
        Some(address.into())
    }

    /// The next datagram to the peer, if there is one.
    fn transmit(
        &mut self,
        config: &Config,
        now: Instant,
        (expanded, out): (&mut Expanded, &mut Vec<u8>),
    ) -> bool {
        let may_elicit = self.may_elicit(now);
        if !self.has_something(now, may_elicit) {
            return false;
        }
        let start = out.len();
        self.sealer.begin(self.cid, out);
        let mut draft = Draft {
            limit: start + self.max_datagram as usize - (OVERHEAD_BYTES - HEADER_BYTES),
            out,
            start,
            control: Control::default(),
        };
        let acked = self.write_ack(now, &mut draft);
        let answered = self.write_response(&mut draft);
        if may_elicit {
            self.write_control(&mut draft);
            self.write_pieces(now, &mut draft);
        }
        let is_eliciting = self.is_eliciting(&draft);
        let only_ack = acked && !answered && !is_eliciting && !self.ack_is_due(now);
        if draft.is_empty() || only_ack {
            out.truncate(start);
            return false;
        }
        if is_eliciting && self.side == Side::Device {
            let short = (MIN_DEVICE_DATAGRAM_BYTES - OVERHEAD_BYTES)
                .saturating_sub(draft.out.len() - start - HEADER_BYTES);
            if short > 0 {
                push_padding(draft.out, short);
            }
        }
        let control = draft.control;
        let number = self.sealer.seal(expanded, out, start);
        let size = (out.len() - start) as u16;
        self.on_sent(config, now, (number, size), (control, is_eliciting));
        true
    }

    /// Whether the congestion window has room for a datagram, or a probe is due.
    fn may_elicit(&mut self, now: Instant) -> bool {
        let datagram = self.datagram_limit();
        let Some(busy) = &mut self.busy else { return false };
        if busy.sent.is_empty() && now >= self.last_sent + self.rtt.probe_timeout(0) {
            self.congestion.on_rest(datagram);
        }
        busy.probes > 0 || busy.sent.in_flight() + datagram <= self.congestion.window()
    }

    fn has_something(&mut self, now: Instant, may_elicit: bool) -> bool {
        let Some(busy) = &mut self.busy else { return false };
        let waits = !busy.pending.is_empty() || busy.outbox.is_ready(&self.sending);
        busy.window_was_full = waits && (busy.window_was_full || !may_elicit);
        busy.acks.is_due(now) || busy.response.is_some() || may_elicit && (waits || busy.probes > 0)
    }

    fn ack_is_due(&self, now: Instant) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.acks.is_due(now))
    }

    /// An acknowledgement goes along whenever one is owed. Whether it was.
    fn write_ack(&mut self, now: Instant, draft: &mut Draft<'_>) -> bool {
        let Some(busy) = self.busy.as_ref().filter(|busy| busy.acks.is_waiting()) else {
            return false;
        };
        let Some((largest, ranges)) = self.opener.acknowledge() else {
            return false;
        };
        let delay = u32::try_from(busy.acks.delay(now).as_micros()).unwrap_or(u32::MAX);
        push_ack(draft.out, largest, delay, &ranges);
        true
    }

    /// Whether there was a challenge to answer.
    fn write_response(&mut self, draft: &mut Draft<'_>) -> bool {
        let token = self.busy.as_mut().and_then(|busy| busy.response.take());
        if let Some(token) = token {
            push_response(draft.out, token);
        }
        token.is_some()
    }

    fn write_control(&mut self, draft: &mut Draft<'_>) {
        let Some(busy) = &mut self.busy else { return };
        let pending = std::mem::take(&mut busy.pending);
        if pending.has(Control::CREDIT) {
            push_credit(draft.out, self.receiving.total());
            draft.control.add(Control::CREDIT);
        }
        if let Some(token) = busy
            .reset_token
            .as_ref()
            .filter(|_| pending.has(Control::RESET_TOKEN))
        {
            push_reset_token(draft.out, token);
            draft.control.add(Control::RESET_TOKEN);
        }
        if let Some(closing) = busy.closing.as_ref().filter(|_| pending.has(Control::CLOSE)) {
            let close = Close {
                code: closing.code,
                reason: &closing.reason,
                messages: closing.messages,
            };
            push_close(draft.out, &close);
            draft.control.add(Control::CLOSE);
        }
        if pending.has(Control::PING) {
            push_ping(draft.out);
            draft.control.add(Control::PING);
        }
    }

    fn write_pieces(&mut self, now: Instant, draft: &mut Draft<'_>) {
        let Some(busy) = &mut self.busy else { return };
        let is_probe = busy.probes > 0;
        let mut again = 0;
        while busy.has_place(draft)
            && let Some(part) = busy.outbox.next_lost(draft.room())
        {
            busy.write_part(draft, part, false);
            again += 1;
        }
        if is_probe {
            again += busy.write_copies(draft);
        }
        while busy.has_place(draft)
            && let Some(part) = busy.outbox.next_fresh(&mut self.sending, draft.room(), now)
        {
            busy.write_part(draft, part, false);
            (busy.blocked_since, busy.blocked_probes) = (None, 0);
        }
        if is_probe && busy.sent.open_parts() == 0 && draft.control.is_empty() {
            push_ping(draft.out);
            draft.control.add(Control::PING);
        }
        if again > 0 {
            let rare = self.rare_mut();
            rare.retransmitted = rare.retransmitted.saturating_add(again);
        }
    }

    fn is_eliciting(&self, draft: &Draft<'_>) -> bool {
        !draft.control.is_empty() || self.busy.as_ref().is_some_and(|busy| busy.sent.open_parts() > 0)
    }

    fn on_sent(
        &mut self,
        config: &Config,
        now: Instant,
        (number, size): (u64, u16),
        (control, is_eliciting): (Control, bool),
    ) {
        let state = self.state;
        let Some(busy) = &mut self.busy else { return };
        busy.acks.on_sent();
        if !is_eliciting || state == State::Ended {
            return;
        }
        if control.has(Control::CREDIT) {
            busy.credit_packet = number;
        }
        busy.sent.push(number, now, size, control);
        busy.probes = busy.probes.saturating_sub(1);
        busy.unanswered_since.get_or_insert(now);
        if self.rtt.is_known() && busy.path_since.is_none() {
            busy.sampled_since.get_or_insert(now);
        }
        self.last_sent = now;
        self.set_keep_alive(config);
        self.set_give_up(config);
    }
}

impl Busy {
    fn has_place(&self, draft: &Draft<'_>) -> bool {
        self.sent.open_parts() < MAX_PIECES && draft.room() >= MIN_ROOM_BYTES
    }

    fn write_part(&mut self, draft: &mut Draft<'_>, part: Part, is_copy: bool) {
        if let Some(piece) = self.outbox.piece(part) {
            push_piece(draft.out, &piece);
            self.sent.push_part(part, is_copy);
        }
    }

    /// Fills the datagram with what is oldest in flight. How many parts that was.
    fn write_copies(&mut self, draft: &mut Draft<'_>) -> u32 {
        let mut room = draft.room();
        let mut fitting = [Part {
            message: 0,
            offset: 0,
            length: 0,
        }; MAX_PIECES];
        let mut count = 0;
        let places = MAX_PIECES - self.sent.open_parts();
        for part in self.oldest_parts().take(places) {
            let Some(cut) = self.outbox.cut(part, room) else {
                break;
            };
            let cost = self.outbox.piece(cut).map_or(0, |piece| piece_len(&piece));
            room = room.saturating_sub(cost);
            fitting[count] = cut;
            count += 1;
        }
        for part in &fitting[..count] {
            self.write_part(draft, *part, true);
        }
        count as u32
    }
}
