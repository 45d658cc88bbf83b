//! What became of packets: acknowledged, lost (RFC 9002 section 6.1), or to be asked after (6.2).

use std::time::{Duration, Instant};

use super::Connection;
use super::busy::Busy;
use super::credit::SendCredit;
use super::outbox::Part;
use super::sent::{Control, Fate, SentPacket};
use super::types::Config;
use crate::udp::packet::Acknowledgement;

/// A packet is lost when one that was sent so many later is acknowledged.
const PACKET_THRESHOLD: u64 = 3;

/// Datagrams that ask after what is in flight, each time: one of them, or its acknowledgement, may be lost (RFC 9002 section 6.2.4).
const PROBES: u8 = 2;

/// What one look for losses found.
#[derive(Debug, Default)]
struct Losses {
    count: u32,
    /// When the newest lost packet was sent, of those that count for congestion.
    newest: Option<Instant>,
    /// When the first of the present run of lost packets was sent.
    run_began: Option<Instant>,
    /// The longest time over which all packets were lost.
    longest: Duration,
}

impl Losses {
    fn note(&mut self, packet: &SentPacket, sampled_since: Option<Instant>) {
        match packet.fate {
            Fate::Lost if sampled_since.is_some_and(|since| packet.at >= since) => {
                let began = *self.run_began.get_or_insert(packet.at);
                self.longest = self.longest.max(packet.at - began);
            }
            Fate::Lost => {}
            Fate::Acknowledged | Fate::InFlight => self.run_began = None,
        }
    }
}

impl Connection {
    /// Takes an acknowledgement of what was sent.
    pub(super) fn settle_acknowledged(&mut self, config: &Config, now: Instant, ack: &Acknowledgement<'_>) {
        let mut newly = 0;
        let mut sample = None;
        for (low, high) in ack.ranges() {
            let Some(busy) = &self.busy else { return };
            let oldest = busy.sent.get(0).map_or(u64::MAX, |packet| packet.number);
            if high < oldest {
                break;
            }
            let mut index = busy.sent.index_of(low);
            while let Some(packet) = self.busy.as_ref().and_then(|busy| busy.sent.get(index).copied()) {
                if packet.number > high {
                    break;
                }
                if packet.number == ack.largest && packet.fate == Fate::InFlight {
                    sample = Some(packet.at);
                }
                newly += u32::from(self.settle_one(now, index, &packet));
                index += 1;
            }
        }
        if newly == 0 {
            return;
        }
        if let Some(sent) = sample {
            self.sample(now, sent, Duration::from_micros(ack.delay_us.into()));
        }
        self.detect_losses(now);
        if let Some(busy) = &mut self.busy {
            // Probes that are not sent yet have their answer.
            (busy.expired, busy.probes) = (0, 0);
            busy.sent.trim();
            busy.unanswered_since = Some(now);
            self.set_give_up(config);
        }
    }

    /// Whether its fate was not known to be this.
    fn settle_one(&mut self, now: Instant, index: usize, packet: &SentPacket) -> bool {
        let datagram = self.datagram_limit();
        let Some(busy) = &mut self.busy else { return false };
        if packet.fate == Fate::Acknowledged {
            return false;
        }
        busy.sent.settle(index, Fate::Acknowledged);
        let is_path_s = busy.path_since.is_none_or(|since| packet.at >= since);
        let may_grow = busy.window_was_full && is_path_s && !busy.recovery.covers(packet.at);
        if packet.fate == Fate::InFlight && may_grow {
            self.congestion.on_acknowledged(packet.size.into(), datagram);
        }
        for place in busy.sent.parts(index) {
            busy.outbox.on_acknowledged(busy.sent.part(place).part, now);
        }
        if packet.control.has(Control::RESET_TOKEN) {
            busy.reset_token = None;
            busy.pending.remove(Control::RESET_TOKEN);
        }
        if let Some(closing) = busy
            .closing
            .as_mut()
            .filter(|_| packet.control.has(Control::CLOSE))
        {
            closing.is_acknowledged = true;
            busy.pending.remove(Control::CLOSE);
        }
        true
    }

    fn sample(&mut self, now: Instant, sent: Instant, ack_delay: Duration) {
        let Some(busy) = &mut self.busy else { return };
        if busy.path_since.is_some_and(|since| sent < since) {
            return;
        }
        busy.latest_rtt = now.saturating_duration_since(sent);
        self.rtt.update(busy.latest_rtt, ack_delay);
        busy.sampled_since.get_or_insert(now);
    }

    /// Declares lost what is too far, or too long, behind what was acknowledged.
    pub(super) fn detect_losses(&mut self, now: Instant) {
        let Some(busy) = &mut self.busy else { return };
        busy.loss_at = None;
        let Some(largest) = busy.largest_acknowledged else {
            return;
        };
        let delay = self.rtt.loss_delay(busy.latest_rtt);
        let mut losses = Losses::default();
        let mut index = 0;
        while let Some(packet) = busy
            .sent
            .get(index)
            .copied()
            .filter(|packet| packet.number < largest)
        {
            let due = packet.at + delay;
            if packet.fate == Fate::InFlight {
                if largest - packet.number >= PACKET_THRESHOLD || due <= now {
                    busy.lose(index, &packet);
                    losses.count += 1;
                    losses.newest = Some(packet.at);
                } else {
                    busy.loss_at = Some(busy.loss_at.map_or(due, |at| at.min(due)));
                }
            }
            if let Some(packet) = busy.sent.get(index) {
                losses.note(packet, busy.sampled_since);
            }
            index += 1;
        }
        self.on_losses(now, &losses);
    }

    fn on_losses(&mut self, now: Instant, losses: &Losses) {
        let datagram = self.datagram_limit();
        let Some(newest) = losses.newest else { return };
        let rare = self.rare_mut();
        rare.lost = rare.lost.saturating_add(losses.count);
        let Some(busy) = &mut self.busy else { return };
        if !busy.recovery.covers(newest) {
            busy.recovery.begin(now);
            self.congestion.on_loss(datagram);
        }
        if losses.longest >= self.rtt.persistent_congestion() {
            busy.recovery.end();
            self.congestion.on_persistent_congestion(datagram);
        }
        busy.sent.trim();
    }

    /// Everything in flight is to be sent again: it went to an address where the peer no longer is.
    pub(super) fn resend_all(&mut self, config: &Config) {
        let Some(busy) = &mut self.busy else { return };
        let mut index = 0;
        while let Some(packet) = busy.sent.get(index).copied() {
            if packet.fate == Fate::InFlight {
                busy.lose(index, &packet);
            }
            index += 1;
        }
        busy.loss_at = None;
        busy.sent.trim();
        self.set_give_up(config);
    }

    /// When to ask after what is in flight, or whether the peer that grants nothing is still there: the next probe.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        let busy = self.busy.as_ref()?;
        if busy.sent.is_empty() {
            let since = busy
                .blocked_since
                .filter(|_| busy.waits_for_credit(&self.sending))?;
            let wait = self.rtt.probe_timeout(busy.blocked_probes.into());
            return Some(since.max(self.last_sent) + wait);
        }
        // Who has just acknowledged something is not asked at once.
        let since = busy
            .unanswered_since
            .map_or(self.last_sent, |since| since.max(self.last_sent));
        busy.loss_at
            .is_none()
            .then(|| since + self.rtt.probe_timeout(busy.expired))
    }

    /// Notes when only the peer's credit is left to wait for. Its probes come less and less often, also when they are answered.
    pub(super) fn note_blocked(&mut self, now: Instant) {
        let Some(busy) = &mut self.busy else { return };
        if busy.sent.is_empty() && busy.waits_for_credit(&self.sending) {
            busy.blocked_since.get_or_insert(now);
        }
    }

    /// Nothing was acknowledged for too long: the next datagrams go out whatever the window says, with the oldest of what is in
    /// flight. Where nothing is, a ping asks whether the peer that grants no more is there.
    pub(super) fn on_probe_timeout(&mut self) {
        let Some(busy) = &mut self.busy else { return };
        if busy.sent.is_empty() {
            busy.blocked_probes = busy.blocked_probes.saturating_add(1);
            busy.pending.add(Control::PING);
            return;
        }
        busy.expired += 1;
        busy.probes = PROBES;
        if let Some(oldest) = busy.sent.oldest().and_then(|index| busy.sent.get(index)) {
            busy.pending.add(oldest.control);
        }
    }
}

impl Busy {
    /// Whether there is something to send, and the peer's credit is what forbids it.
    fn waits_for_credit(&self, credit: &SendCredit) -> bool {
        !self.outbox.is_empty() && !self.outbox.is_ready(credit)
    }

    /// What it carried is to be sent again, unless another packet answers for it.
    fn lose(&mut self, index: usize, packet: &SentPacket) {
        self.sent.settle(index, Fate::Lost);
        for place in self.sent.parts(index) {
            let sent = self.sent.part(place);
            if !sent.is_copy {
                self.outbox.on_lost(sent.part);
            }
        }
        let control = packet.control;
        if control.has(Control::CREDIT) && packet.number == self.credit_packet {
            self.pending.add(Control::CREDIT);
        }
        if control.has(Control::RESET_TOKEN) && self.reset_token.is_some() {
            self.pending.add(Control::RESET_TOKEN);
        }
        if control.has(Control::CLOSE)
            && self
                .closing
                .as_ref()
                .is_some_and(|closing| !closing.is_acknowledged)
        {
            self.pending.add(Control::CLOSE);
        }
    }

    /// The oldest parts in flight that still matter.
    pub(super) fn oldest_parts(&self) -> impl Iterator<Item = Part> {
        let in_flight = (0..).map_while(|index| Some((index, self.sent.get(index)?)));
        in_flight
            .filter(|(_, packet)| packet.fate == Fate::InFlight)
            .flat_map(|(index, _)| self.sent.parts(index))
            .map(|place| self.sent.part(place).part)
            .filter(|part| self.outbox.is_missing(*part))
    }
}
