//! Deadlines: one timer per session, set to the earliest thing that its state waits for.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::CloseCode;

use super::{NEVER_ASKED, Output, Shard};
use crate::session::ShardConfig;
use crate::session::session::{Session, SessionKey};
use crate::session::state::State;

impl Shard {
    /// When to call [`Shard::handle_timeout`] at the latest; early calls do no harm.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = [self.wheel.next_deadline(), self.straggler_deadline()];
        deadlines.into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.give_up_stragglers(now);
        if self.is_late(now) {
            self.restart_clocks(now);
        }
        while let Some(slot) = self.wheel.poll(now) {
            let Some(key) = self.slots[slot as usize].session.as_ref().map(|s| s.key()) else {
                continue;
            };
            match self.deadline(slot) {
                Some(at) if at <= now => self.on_deadline(now, key),
                // The state moved on, or the wheel's horizon was nearer than the deadline.
                Some(at) => self.wheel.set(slot, at),
                None => {}
            }
        }
    }

    /// This thread was held up for so long that a device had no fair chance to be heard.
    fn is_late(&self, now: Instant) -> bool {
        let answer_time = self.config.close_after.saturating_sub(self.config.ping_after);
        let due = self.wheel.next_deadline();
        due.is_some_and(|due| now > due + answer_time / 2)
    }

    /// What devices said meanwhile is still on its way to us: a paused machine must not take them all for gone. Visits every
    /// slot: this thread is seldom late.
    fn restart_clocks(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let session = self.slots[slot].session.as_mut();
            if let Some(session) = session.filter(|s| matches!(s.state, State::Online)) {
                session.heard = now;
                session.pinged = false;
                self.arm(slot as u32);
            }
        }
    }

    /// Sets the session's timer.
    pub(super) fn arm(&mut self, slot: u32) {
        match self.deadline(slot) {
            Some(at) => self.wheel.set(slot, at),
            None => self.wheel.clear(slot),
        }
    }

    pub(super) fn deadline(&self, slot: u32) -> Option<Instant> {
        let session = self.slots[slot as usize].session.as_ref()?;
        let config = &self.config;
        let with_backend = |sent: bool| {
            if sent {
                config.backend_timeout
            } else {
                config.wait_limit
            }
        };
        Some(match &session.state {
            State::Accepted { since } => *since + config.accept_timeout,
            State::Binding(binding) => binding.since + with_backend(binding.delivery.with.is_some()),
            State::Challenging { since, .. } => {
                *since
                    + match session.kind.secure() {
                        Some(_) => config.challenge_timeout,
                        None => config.hello_timeout,
                    }
            }
            State::LoggingIn(login) => login.since + with_backend(login.delivery.with.is_some()),
            State::Online => {
                let heard = heartbeat_deadline(session, config);
                self.control_deadline(session).map_or(heard, |at| at.min(heard))
            }
            // Without a backend it waits for one to come.
            State::Closing(closing) => {
                closing.delivery.with?;
                closing.since + self.logout_time(closing.delivery.attempt)
            }
        })
    }

    fn on_deadline(&mut self, now: Instant, key: SessionKey) {
        let Some(session) = self.get(key) else { return };
        match &session.state {
            State::Accepted { .. } => self.close_as(now, key, CloseCode::Protocol, NEVER_ASKED),
            State::Binding(_) => {
                if !self.repeat_lifecycle(now, key) {
                    self.refuse_unavailable(now, key);
                }
            }
            State::Challenging { .. } if session.kind.secure().is_some() => {
                self.close(now, key, CloseCode::ChallengeFailed);
            }
            State::Challenging { .. } => self.greet(now, key, Bytes::new()),
            State::LoggingIn(_) => {
                if !self.repeat_lifecycle(now, key) {
                    self.close(now, key, CloseCode::TryAgainLater);
                }
            }
            State::Online => {
                self.repeat_controls(now, key);
                self.judge_silence(now, key);
            }
            State::Closing(_) => {
                self.repeat_lifecycle(now, key);
            }
        }
    }

    /// Pings or closes an online session, if that is what its timer was for.
    fn judge_silence(&mut self, now: Instant, key: SessionKey) {
        let config = &self.config;
        let place = &mut self.slots[key.slot as usize];
        let online = |s: &&mut Session| s.key() == key && matches!(s.state, State::Online);
        let Some(session) = place.session.as_mut().filter(online) else {
            return;
        };
        if now < heartbeat_deadline(session, config) {
            return self.arm(key.slot);
        }
        let held_up = session.stalled || session.active.as_ref().is_some_and(|a| !a.outbox.is_empty());
        if held_up && !session.kind.hears_while_stalled() {
            // We do not read, so we cannot hear: the device's clock stands still. A peer that vanished meanwhile is
            // reclaimed by TCP_USER_TIMEOUT.
            session.heard = now;
            session.pinged = false;
        } else if session.pinged {
            return self.close(now, key, CloseCode::HeartbeatTimeout);
        } else {
            session.pinged = true;
            // However late this is asked, the time to answer is the same.
            session.heard = now - config.ping_after;
            self.outputs.push_back(Output::Ping { key });
        }
        self.arm(key.slot);
    }
}

/// When an online session is pinged or, if it was, closed.
fn heartbeat_deadline(session: &Session, config: &ShardConfig) -> Instant {
    let silence = if session.pinged {
        config.close_after
    } else {
        config.ping_after
    };
    session.heard + silence
}
