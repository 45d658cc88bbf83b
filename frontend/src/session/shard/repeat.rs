//! Frames that a backend which is there does not answer: they are taken for lost with it and given to another, or to the same
//! one again. Each is safe to repeat: an answer is taken only from whoever has the frame now, and only once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::CloseCode;

use super::Shard;
use crate::exchange::PeerId;
use crate::session::session::{Control, Session, SessionKey};
use crate::session::state::State;

/// Backends that are asked before a device is told to come back later.
const ASKS: u32 = 2;
/// A LOGOUT that nobody answers is given out after 1, 2, 4 … and at most so many times the usual time: when backends are
/// merely slow, asking must not be what keeps them so.
const MAX_LOGOUT_BACKOFF: u32 = 32;
/// A control message that was lost with so many backends is answered by ourselves: it may have broken them.
const POISON_ATTEMPTS: u32 = 2;
/// Other keys that are tried in search of another backend.
const MAX_SALT: u8 = 32;
/// Bytes of a control message's word that are repeated to the device.
const MAX_WORD_BYTES: usize = 32;

impl Shard {
    /// How long a backend may have a LOGOUT before another is asked.
    pub(super) fn logout_time(&self, attempt: u32) -> Duration {
        let times = 1u32.checked_shl(attempt).unwrap_or(MAX_LOGOUT_BACKOFF);
        self.config.backend_timeout * times.clamp(1, MAX_LOGOUT_BACKOFF)
    }

    /// When the first control message of a session has waited for long enough.
    pub(super) fn control_deadline(&self, session: &Session) -> Option<Instant> {
        let controls = session.active.as_ref()?.controls.iter();
        let given = controls.filter(|c| c.delivery.with.is_some());
        given
            .map(|c| c.since)
            .min()
            .map(|at| at + self.config.backend_timeout)
    }

    /// BIND, LOGIN or LOGOUT got no answer. False when the device has waited for long enough; LOGOUT has no such end.
    pub(super) fn repeat_lifecycle(&mut self, now: Instant, key: SessionKey) -> bool {
        let Some(session) = self.get(key) else { return true };
        let (delivery, since, frame) = match &mut session.state {
            State::Binding(binding) => (&mut binding.delivery, &mut binding.since, "bind"),
            State::LoggingIn(login) => (&mut login.delivery, &mut login.since, "login"),
            State::Closing(closing) => (&mut closing.delivery, &mut closing.since, "logout"),
            State::Accepted { .. } | State::Challenging { .. } | State::Online => return false,
        };
        if frame != "logout" && delivery.attempt + 1 >= ASKS {
            return false;
        }
        let Some(silent) = delivery.on_unanswered() else {
            return false;
        };
        *since = now;
        self.metrics.repeated(frame);
        let session = self.slots[key.slot as usize].session.as_ref();
        if let Some(peer) = session.and_then(|s| self.another_peer(s, silent)) {
            self.deliver_lifecycle(now, key.slot, peer);
        }
        self.arm(key.slot);
        true
    }

    /// Gives control messages that got no answer in time to another backend.
    pub(super) fn repeat_controls(&mut self, now: Instant, key: SessionKey) {
        let answer_time = self.config.backend_timeout;
        let Some(active) = self.get(key).and_then(|s| s.active.as_mut()) else {
            return;
        };
        let overdue = |c: &&mut Control| c.delivery.with.is_some() && now >= c.since + answer_time;
        let (mut repeated, mut silent) = (0, None);
        for control in active.controls.iter_mut().filter(overdue) {
            silent = control.delivery.on_unanswered();
            repeated += 1;
        }
        (0..repeated).for_each(|_| self.metrics.repeated("control"));
        self.fail_poisonous_controls(now, key);
        if silent.is_some() && self.get(key).is_some() {
            self.deliver_controls(now, key.slot, silent);
        }
    }

    /// Answers what was lost with too many backends.
    pub(super) fn fail_poisonous_controls(&mut self, now: Instant, key: SessionKey) {
        let poisonous = |c: &&Control| c.delivery.with.is_none() && c.delivery.attempt >= POISON_ATTEMPTS;
        loop {
            let Some(active) = self.get(key).and_then(|s| s.active.as_ref()) else {
                return;
            };
            let Some(control) = active.controls.iter().find(poisonous) else {
                return;
            };
            let (number, reply) = (control.number, failed_control(&control.text));
            self.on_control_answered(now, key, number, &reply);
        }
    }

    /// An active backend for the session, other than `not` if there is one.
    pub(super) fn another_peer(&self, session: &Session, not: PeerId) -> Option<PeerId> {
        let key = session.hash_key();
        let first = self.roster.choose(key)?;
        let salted = (1..=MAX_SALT).filter_map(|salt| self.roster.choose(&[key, &[salt]].concat()));
        let mut all = std::iter::once(first).chain(salted);
        Some(all.find(|peer| *peer != not).unwrap_or(first))
    }
}

/// `@error {"control":…,"code":"backend_failed"}`; of the word only what needs no escaping.
fn failed_control(text: &[u8]) -> Bytes {
    let word = text.strip_prefix(b"@").unwrap_or(text).iter();
    let word: String = word
        .take_while(|b| b.is_ascii_alphanumeric() || **b == b'_')
        .take(MAX_WORD_BYTES)
        .map(|b| char::from(*b))
        .collect();
    let code = CloseCode::BackendFailed.label();
    format!("@error {{\"control\":\"{word}\",\"code\":\"{code}\"}}").into()
}
