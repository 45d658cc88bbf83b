//! What is due when.

use std::time::{Duration, Instant};

use super::sent::Control;
use super::types::{Config, Side};
use super::{Connection, State};
use crate::udp::connection::congestion::Congestion;

/// A keep-alive comes up to this part earlier than configured, so that many devices do not beat as one.
const KEEP_ALIVE_JITTER: u64 = 10;

impl Connection {
    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.state == State::Ended || self.side == Side::Server && !self.heard {
            return None;
        }
        let Some(busy) = &self.busy else {
            return self.keep_alive_at();
        };
        let idle = busy.sent.is_empty() && busy.pending.is_empty();
        [
            busy.acks.deadline(),
            busy.loss_at,
            self.probe_at(),
            busy.give_up_at,
            busy.closing.as_ref().map(|closing| closing.until),
            busy.peer_close.as_ref().map(|close| close.until),
            busy.candidate.as_ref().map(|candidate| candidate.deadline()),
            self.keep_alive_at().filter(|_| idle),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due at `now`. To be called at [`poll_timeout`](Self::poll_timeout); too early does no harm.
    pub fn handle_timeout(&mut self, config: &Config, now: Instant) {
        self.begin_turn(config, now);
        self.check_give_up(config, now);
        self.check_closed(now);
        if self.state == State::Ended {
            return;
        }
        let is_loss = self
            .busy
            .as_ref()
            .and_then(|busy| busy.loss_at)
            .is_some_and(|at| at <= now);
        if is_loss {
            self.detect_losses(now);
            self.set_give_up(config);
        }
        // While something may be lost there is no probe. What is left after that may be long due.
        if self.probe_at().is_some_and(|at| at <= now) {
            self.on_probe_timeout();
        }
        self.check_candidate(now);
        let idle = self
            .busy
            .as_ref()
            .is_none_or(|busy| busy.sent.is_empty() && busy.pending.is_empty());
        if idle && self.keep_alive_at().is_some_and(|at| at <= now) {
            self.busy_mut().pending.add(Control::PING);
        }
        self.settle();
    }

    fn check_candidate(&mut self, now: Instant) {
        let wait = self.rtt.probe_timeout(0);
        let Some(busy) = &mut self.busy else { return };
        if let Some(candidate) = &mut busy.candidate {
            candidate.on_starved(now, wait);
        }
        busy.candidate.take_if(|candidate| candidate.is_over(now));
    }

    fn keep_alive_at(&self) -> Option<Instant> {
        let wait = Duration::from_millis(self.keep_alive_ms.into());
        (self.keep_alive_ms > 0).then(|| self.last_sent + wait)
    }

    /// Before anything else is done at `now`: whether this is late, and what of the configuration is needed where it is not at hand.
    pub(super) fn begin_turn(&mut self, config: &Config, now: Instant) {
        self.check_late(config, now);
        if config.max_datagram < self.max_datagram {
            self.max_datagram = config.max_datagram.max(super::MIN_DATAGRAM_LIMIT);
            if self.sealer.next_number() == 0 {
                self.congestion = Congestion::new(self.max_datagram.into());
            }
        }
        if self.keep_alive_ms == 0 {
            self.set_keep_alive(config);
        }
    }

    /// Chooses when the next keep-alive comes.
    pub(super) fn set_keep_alive(&mut self, config: &Config) {
        let Some(longest) = config.keep_alive.filter(|_| self.side == Side::Device) else {
            return;
        };
        let longest = u64::try_from(longest.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, u32::MAX.into());
        // Any spread does; a hash of what differs between devices and between packets (Knuth's multiplier).
        let chance = (self.cid.0 ^ self.sealer.next_number()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let earlier = ((longest / KEEP_ALIVE_JITTER) * chance) >> 32;
        self.keep_alive_ms = (longest - earlier) as u32;
    }
}
