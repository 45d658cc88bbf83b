//! What comes from a session's channel.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::{CloseCode, MessageKind, Sequence};

use super::{Goodbye, Output, Refusal, SESSIONS_FULL, Shard, Stalled};
use crate::session::session::{Control, MAX_CONTROL_BYTES, SessionKey};
use crate::session::state::{CloseReason, Delivery, State};

/// The words that the frontend itself understands. All others are the backend's.
const PING: &[u8] = b"@ping";
const HELLO: &[u8] = b"@hello";
const UPDATE: &[u8] = b"@update";
const PONG: &[u8] = b"@pong";
/// No close code, or one that is not ours.
const OTHER_CODE: &str = "other";
/// What ended a session whose upgrade was refused: why is counted by itself.
const REFUSED: &str = "refused";

impl Shard {
    /// The device's upgrade request was read: its credential goes to a backend.
    pub fn handle_upgrade(&mut self, now: Instant, key: SessionKey, credential: Bytes) {
        let full = self.waiting >= self.config.max_waiting;
        let throttled = self.throttled(now, key);
        let Some(session) = self.get(key) else { return };
        if session.state.on_upgrade(now, credential).is_err() {
            return self.close(now, key, CloseCode::Protocol);
        }
        self.set_waiting(self.waiting + 1);
        if let Some(retry_after) = throttled {
            let refusal =
                Refusal::too_many_attempts("this address asks for too many handshakes", retry_after);
            return self.refuse(now, key, refusal, "source_throttled");
        }
        if self.live > self.config.max_sessions {
            let message = "too many devices are connected";
            return self.refuse_overloaded(now, key, (message, SESSIONS_FULL));
        }
        if full {
            let message = "too many devices are waiting to be admitted";
            return self.refuse_overloaded(now, key, (message, "overloaded"));
        }
        self.deliver(now, key.slot);
    }

    fn refuse_overloaded(&mut self, now: Instant, key: SessionKey, (message, reason): (&str, &'static str)) {
        let retry_after = Some(self.retry_hint());
        let refusal = Refusal {
            status: 503,
            code: "overloaded".into(),
            message: message.into(),
            retryable: true,
            retry_after,
        };
        self.refuse(now, key, refusal, reason);
    }

    /// Answers the upgrade with an error; the session is gone.
    pub(super) fn refuse(&mut self, now: Instant, key: SessionKey, refusal: Refusal, reason: &'static str) {
        self.metrics.refused(reason);
        self.outputs.push_back(Output::Refuse { key, refusal });
        self.end_as(now, key, CloseReason::Closed(CloseCode::TryAgainLater), REFUSED);
    }

    /// The channel itself has refused an upgrade that nobody else need judge. It closes the session too.
    pub fn handle_turned_away(&self, reason: &'static str) {
        self.metrics.refused(reason);
    }

    /// Any sign of life that is not a message.
    pub fn handle_alive(&mut self, now: Instant, key: SessionKey) {
        self.on_heard(now, key);
    }

    fn on_heard(&mut self, now: Instant, key: SessionKey) {
        let Some(session) = self.get(key) else { return };
        session.heard = now;
        // The timer is moved only where it was set for the close: to find it early costs less than to move it each time.
        if std::mem::take(&mut session.pinged) {
            self.arm(key.slot);
        }
    }

    /// A whole message. `Err` hands it back when the window has no room: stop reading until [`Output::Resume`].
    pub fn handle_message(
        &mut self,
        now: Instant,
        key: SessionKey,
        kind: MessageKind,
        payload: Bytes,
    ) -> Result<(), Stalled> {
        self.on_heard(now, key);
        let Some(session) = self.get(key) else {
            return Ok(());
        };
        match session.state {
            State::Challenging { .. } => {
                let hello = kind == MessageKind::Text && is_word(&payload, HELLO);
                if !hello && session.kind.secure().is_some() {
                    self.close(now, key, CloseCode::ChallengeFailed);
                    return Ok(());
                }
                if hello && payload.len() > MAX_CONTROL_BYTES {
                    self.close(now, key, CloseCode::TooBig);
                    return Ok(());
                }
                self.greet(now, key, if hello { payload.clone() } else { Bytes::new() });
                if hello {
                    Ok(())
                } else {
                    self.handle_event(now, key, kind, payload)
                }
            }
            State::LoggingIn(_) | State::Online => self.handle_event(now, key, kind, payload),
            State::Accepted { .. } | State::Binding(_) => {
                self.close(now, key, CloseCode::Protocol);
                Ok(())
            }
            State::Closing(_) => Ok(()),
        }
    }

    /// The device said `@hello`, or something else, or nothing for too long: LOGIN.
    pub(super) fn greet(&mut self, now: Instant, key: SessionKey, hello: Bytes) {
        self.leave_unfinished(key);
        let Some(session) = self.get(key) else { return };
        if session.state.on_greeted(now, hello).is_ok() {
            self.set_waiting(self.waiting + 1);
            self.deliver(now, key.slot);
        }
    }

    fn handle_event(
        &mut self,
        now: Instant,
        key: SessionKey,
        kind: MessageKind,
        payload: Bytes,
    ) -> Result<(), Stalled> {
        if kind == MessageKind::Text && payload.first() == Some(&b'@') {
            return self.handle_control(now, key, payload);
        }
        self.handle_request(now, key, kind, payload)
    }

    fn handle_request(
        &mut self,
        now: Instant,
        key: SessionKey,
        kind: MessageKind,
        payload: Bytes,
    ) -> Result<(), Stalled> {
        let place = &mut self.slots[key.slot as usize];
        let Some(session) = place.session.as_mut() else {
            return Ok(());
        };
        let limits = self.config.window;
        let in_session = session
            .active
            .as_ref()
            .is_none_or(|a| a.window.fits(payload.len(), &limits));
        let alone = session.active.as_ref().is_none_or(|a| a.window.is_empty());
        let in_total = alone || self.window_bytes + payload.len() <= self.config.window_total_bytes;
        if !in_session || !in_total {
            return Err(self.stall(key, payload, in_session));
        }
        self.window_bytes += payload.len();
        let next = session.next;
        let active = Self::activate(&mut self.spare, session);
        if active.window.is_empty() {
            active.window.begin(next);
        }
        let sequence = active.window.push(now, kind, payload);
        debug_assert_eq!(sequence, next);
        session.next = Sequence(sequence.0 + 1);
        session.stalled = false;
        self.metrics.requests.inc();
        self.deliver(now, key.slot);
        Ok(())
    }

    /// Hands a message back until there is room: in the session's own window, or in the total of all.
    fn stall(&mut self, key: SessionKey, payload: Bytes, by_total: bool) -> Stalled {
        self.metrics.stalls.inc();
        let mut joins = false;
        if let Some(session) = self.get(key) {
            session.stalled = true;
            joins = by_total && !std::mem::replace(&mut session.starved, true);
        }
        if joins {
            self.starved.push_back(key);
        }
        if self.starved.len() > 2 * self.live as usize {
            self.forget_ended_starved();
        }
        Stalled(payload)
    }

    fn handle_control(&mut self, now: Instant, key: SessionKey, text: Bytes) -> Result<(), Stalled> {
        if text.len() > MAX_CONTROL_BYTES {
            self.close(now, key, CloseCode::TooBig);
            return Ok(());
        }
        if is_word(&text, PING) {
            self.send_other(now, key, Bytes::from_static(PONG));
            return Ok(());
        }
        let place = &mut self.slots[key.slot as usize];
        let Some(session) = place.session.as_mut() else {
            return Ok(());
        };
        let active = Self::activate(&mut self.spare, session);
        if !active.takes_control() {
            self.close(now, key, CloseCode::ControlFlood);
            return Ok(());
        }
        let in_total = self.window_bytes + text.len() <= self.config.window_total_bytes;
        if !active.controls.is_empty() && !in_total {
            return Err(self.stall(key, text, true));
        }
        self.window_bytes += text.len();
        active.next_control += 1;
        let control = Control {
            number: active.next_control,
            update: is_word(&text, UPDATE),
            text,
            delivery: Delivery::default(),
            since: now,
            conflicts: 0,
        };
        active.controls.push_back(control);
        self.deliver(now, key.slot);
        Ok(())
    }

    /// The connection is gone, by the device's close or by a broken transport.
    pub fn handle_closed(&mut self, now: Instant, key: SessionKey, by_device: bool) {
        self.end(
            now,
            key,
            if by_device {
                CloseReason::ByDevice
            } else {
                CloseReason::Lost
            },
        );
    }

    /// Its channel cannot go on, and nothing more can be said on it. `what` is the word for it in metrics.
    pub fn handle_broken(&mut self, now: Instant, key: SessionKey, what: &'static str) {
        self.end_as(now, key, CloseReason::Lost, what);
    }

    /// What a device said when it closed: on `ws` also that somebody disturbed what it was sent.
    pub fn handle_last_word(&self, code: Option<u16>) {
        let reason = code
            .and_then(CloseCode::from_u16)
            .map_or(OTHER_CODE, CloseCode::label);
        self.metrics.device_closed(reason);
    }

    /// Closes the session: the channel says goodbye.
    pub fn close(&mut self, now: Instant, key: SessionKey, code: CloseCode) {
        self.close_as(now, key, code, code.label());
    }

    /// Like [`close`](Shard::close), where another word than the code's says what happened: metrics count it by that.
    pub fn close_as(&mut self, now: Instant, key: SessionKey, code: CloseCode, what: &'static str) {
        let hint = matches!(
            code,
            CloseCode::GoingAway | CloseCode::TryAgainLater | CloseCode::BackendFailed
        )
        .then(|| self.retry_hint());
        let goodbye = Goodbye {
            code: code.label().into(),
            retry_after: hint,
            reconnect: code.may_reconnect(),
        };
        self.close_with(now, key, (code, what), goodbye);
    }

    pub(super) fn close_with(
        &mut self,
        now: Instant,
        key: SessionKey,
        (code, what): (CloseCode, &'static str),
        goodbye: Goodbye,
    ) {
        let Some(session) = self.get(key) else { return };
        let greeted = match session.state {
            State::Closing(_) => return,
            State::Accepted { .. } | State::Binding(_) => false,
            State::Challenging { .. } | State::LoggingIn(_) | State::Online => true,
        };
        self.outputs.push_back(Output::Close {
            key,
            code,
            goodbye: greeted.then_some(goodbye),
        });
        self.end_as(now, key, CloseReason::Closed(code), what);
    }
}

/// Whether a control message's word is this one: it ends with the message or at a space.
fn is_word(text: &[u8], word: &[u8]) -> bool {
    text.strip_prefix(word)
        .is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}
