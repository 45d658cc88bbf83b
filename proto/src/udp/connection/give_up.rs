//! When a connection is lost because its peer owes an answer for too long.

use std::time::{Duration, Instant};

use super::Connection;
use super::rtt::MAX_PROBE_TIMEOUT;
use super::types::{Config, End};

impl Connection {
    /// The connection is given up when the oldest message, or everything, is without an answer for too long. To be called whenever
    /// something was sent, acknowledged or lost: nobody owes an answer when nothing is in flight.
    pub(super) fn set_give_up(&mut self, config: &Config) {
        if let Some(busy) = &mut self.busy {
            if busy.sent.is_empty() {
                busy.unanswered_since = None;
            }
            let oldest = [busy.outbox.oldest_since(), busy.unanswered_since]
                .into_iter()
                .flatten()
                .min();
            let forgiven = busy.forgiven_until;
            busy.give_up_at = oldest.map(|since| {
                let at = since + config.give_up;
                forgiven.map_or(at, |until| until.max(at))
            });
        }
    }

    /// Notes when a look for losses or a probe is so long overdue that this end was held up, not the peer: its answers may be there,
    /// unread. It gets a probe, and time to answer that.
    pub(super) fn check_late(&mut self, config: &Config, now: Instant) {
        let busy = self.busy.as_ref().filter(|busy| busy.give_up_at.is_some());
        let due = busy.and_then(|busy| busy.loss_at.or_else(|| self.probe_at()));
        if due.is_some_and(|due| due + self.patience(config) < now) {
            self.forgive(config, now);
        }
    }

    /// A connection is given up only when a probe, one that was really sent, had its time.
    pub(super) fn check_give_up(&mut self, config: &Config, now: Instant) {
        let Some(busy) = self.busy.as_ref() else { return };
        if busy.give_up_at.is_none_or(|at| at > now) {
            return;
        }
        let is_silent = busy
            .unanswered_since
            .is_some_and(|since| since + config.give_up <= now);
        if is_silent && busy.expired == 0 {
            self.on_probe_timeout();
            self.forgive(config, now);
        } else {
            self.end(End::GaveUp);
        }
    }

    fn forgive(&mut self, config: &Config, now: Instant) {
        let until = now + self.patience(config);
        if let Some(busy) = &mut self.busy {
            busy.forgiven_until = Some(until);
        }
        self.set_give_up(config);
    }

    /// So late a turn is too late to judge the peer by it, and so long it has after that: at least the time of one probe.
    fn patience(&self, config: &Config) -> Duration {
        (config.give_up / 4)
            .min(MAX_PROBE_TIMEOUT)
            .max(self.rtt.probe_timeout(0))
    }
}
