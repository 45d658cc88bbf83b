//! Backends' answers about single sessions.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::link::frames::{self, bound, logged_in};
use holdfast_proto::secure::{TrafficKey, TrafficKeys};
use holdfast_proto::throttle::source_of;
use holdfast_proto::{CloseCode, DeviceId, Sequence};

use super::{Challenge, Goodbye, Output, Refusal, Shard};
use crate::exchange::PeerId;
use crate::session::session::{BlobError, Control, MAX_CONTROL_BYTES, MAX_PRINCIPAL_BYTES, SessionKey};
use crate::session::state::State;
use crate::session::window::{Answer, FinalReply, ReplyError};

/// A blob write that came too late is asked for again this often.
const MAX_BLOB_CONFLICTS: u8 = 3;
/// What a device hears of an update that could not be applied, whatever the backend says of it.
const UPDATE_CONFLICT: &[u8] = br#"@error {"control":"update","code":"state_conflict"}"#;
const UPDATE_TOO_LARGE: &[u8] = br#"@error {"control":"update","code":"state_too_large"}"#;

impl Shard {
    pub(super) fn on_bound(&mut self, now: Instant, peer: PeerId, bound: frames::Bound) {
        let Some(key) = self.find(bound.id) else { return };
        let asked =
            |s: &State| matches!(s, State::Binding(b) if b.delivery.with.is_some_and(|(p, _)| p == peer));
        if !self.get(key).is_some_and(|s| asked(&s.state)) {
            self.metrics.late_frames.inc();
            return;
        }
        match bound.result {
            Some(bound::Result::Admitted(admitted)) => self.on_admitted(now, key, admitted),
            Some(bound::Result::Denied(denied)) => self.on_denied(now, key, denied),
            None => self.refuse_malformed(now, key),
        }
    }

    fn on_admitted(&mut self, now: Instant, key: SessionKey, admitted: frames::Admitted) {
        let Some((kind, ip)) = self.get(key).map(|s| (s.kind, s.address.ip())) else {
            return;
        };
        let device = DeviceId::from_bytes(Bytes::copy_from_slice(&admitted.device));
        let (Ok(device), true) = (device, admitted.principal.len() <= MAX_PRINCIPAL_BYTES) else {
            return self.refuse_malformed(now, key);
        };
        let (challenge, place) = match kind.secure() {
            None => (None, None),
            Some(_) => {
                let Some(challenge) = admitted.challenge.and_then(read_challenge) else {
                    return self.refuse_malformed(now, key);
                };
                let Some(place) = self.config.unfinished.enter(&device, source_of(ip)) else {
                    return self.refuse_unfinished(now, key);
                };
                (Some(challenge), Some(place))
            }
        };
        let Some(session) = self.get(key) else { return };
        if session.state.on_bound(now, place).is_err() {
            return;
        }
        session.device = Some(device);
        session.principal = Bytes::copy_from_slice(&admitted.principal);
        session.heard = now;
        self.set_waiting(self.waiting - 1);
        self.outputs.push_back(Output::Admit { key, challenge });
        self.arm(key.slot);
    }

    fn on_denied(&mut self, now: Instant, key: SessionKey, denied: frames::Denied) {
        let status = u16::try_from(denied.status)
            .ok()
            .filter(|s| (400..600).contains(s))
            .unwrap_or(503);
        let retry = (denied.retry_after_ms > 0).then(|| Duration::from_millis(denied.retry_after_ms.into()));
        let refusal = Refusal {
            status,
            code: denied.code,
            message: denied.message,
            retryable: denied.retryable,
            retry_after: retry.or_else(|| (status == 503).then(|| self.retry_hint())),
        };
        let reason = match status {
            503 => "unavailable",
            429 => "too_many_attempts",
            _ => "denied",
        };
        self.refuse(now, key, refusal, reason);
    }

    fn refuse_unfinished(&mut self, now: Instant, key: SessionKey) {
        let refusal =
            Refusal::too_many_attempts("the device has too many unfinished handshakes", self.retry_hint());
        self.refuse(now, key, refusal, "unfinished_handshakes");
    }

    fn refuse_malformed(&mut self, now: Instant, key: SessionKey) {
        self.metrics.malformed_frames.inc();
        self.refuse_unavailable(now, key);
    }

    /// No backend, or none that answers.
    pub(super) fn refuse_unavailable(&mut self, now: Instant, key: SessionKey) {
        let retry_after = Some(self.retry_hint());
        let refusal = Refusal {
            status: 503,
            code: "unavailable".into(),
            message: "no backend can admit the device now".into(),
            retryable: true,
            retry_after,
        };
        self.refuse(now, key, refusal, "unavailable");
    }

    pub(super) fn on_logged_in(&mut self, now: Instant, peer: PeerId, answer: frames::LoggedIn) {
        let Some(key) = self.find(answer.id) else { return };
        let asked =
            |s: &State| matches!(s, State::LoggingIn(l) if l.delivery.with.is_some_and(|(p, _)| p == peer));
        if !self.get(key).is_some_and(|s| asked(&s.state)) {
            self.metrics.late_frames.inc();
            return;
        }
        match answer.result {
            Some(logged_in::Result::Welcomed(welcomed)) => self.on_welcomed(now, key, welcomed),
            Some(logged_in::Result::Denied(denied)) => {
                let backend_failed = denied.code == CloseCode::BackendFailed.label();
                let code = if backend_failed {
                    CloseCode::BackendFailed
                } else {
                    CloseCode::LoginFailed
                };
                let hint =
                    (denied.retry_after_ms > 0).then(|| Duration::from_millis(denied.retry_after_ms.into()));
                let goodbye = Goodbye {
                    code: denied.code,
                    retry_after: hint,
                    reconnect: denied.reconnect,
                };
                self.close_with(now, key, (code, code.label()), goodbye);
            }
            None => {
                self.metrics.malformed_frames.inc();
                self.close(now, key, CloseCode::TryAgainLater);
            }
        }
    }

    fn on_welcomed(&mut self, now: Instant, key: SessionKey, welcomed: frames::Welcomed) {
        let Some(session) = self.get(key) else { return };
        if session.state.on_welcomed().is_err() {
            return;
        }
        session.heard = now;
        if let Some(write) = welcomed.blob
            && session.write_blob(write).is_err()
        {
            self.metrics.blob_conflicts.inc();
        }
        self.set_waiting(self.waiting - 1);
        self.online += 1;
        self.metrics.online.inc();
        if !welcomed.welcome.is_empty() {
            self.send_other(now, key, Bytes::copy_from_slice(&welcomed.welcome));
        }
        self.arm(key.slot);
        self.deliver(now, key.slot);
    }

    pub(super) fn on_logged_out(&mut self, peer: PeerId, answer: &frames::LoggedOut) {
        let Some(key) = self.find(answer.id) else { return };
        let asked =
            |s: &State| matches!(s, State::Closing(c) if c.delivery.with.is_some_and(|(p, _)| p == peer));
        if self.get(key).is_some_and(|s| asked(&s.state)) {
            self.remove(key.slot);
        } else {
            self.metrics.late_frames.inc();
        }
    }

    pub(super) fn on_reply(&mut self, now: Instant, peer: PeerId, reply: frames::Reply) {
        let kind = reply.kind();
        let frames::Reply {
            id,
            sequence,
            r#final: is_final,
            after,
            silent,
            payload,
            ..
        } = reply;
        let Some(key) = self.find(id) else { return };
        if !is_final {
            // Interim replies need a feature that this build does not announce.
            self.metrics.malformed_frames.inc();
            return;
        }
        let limits = self.config.window;
        let Some(active) = self.get(key).and_then(|s| s.active.as_mut()) else {
            self.metrics.duplicate_replies.inc();
            return;
        };
        let before = active.window.bytes();
        let answer = Answer {
            kind,
            silent,
            payload,
        };
        let reply = FinalReply {
            sequence: Sequence(sequence),
            after: Sequence(after),
            answer,
        };
        let taken = active.window.handle_reply(peer, reply, &limits);
        self.window_bytes -= before - active.window.bytes();
        match taken {
            Ok(()) => {
                self.send_answers(now, key);
                self.deliver_requests_of(now, key);
                self.feed_starved();
            }
            Err(ReplyError::Duplicate) => {
                self.metrics.duplicate_replies.inc();
            }
            Err(ReplyError::Unasked) => {
                self.metrics.late_frames.inc();
            }
            Err(ReplyError::Full) => self.close(now, key, CloseCode::SlowConsumer),
        }
    }

    /// With the last answer of a leaving backend the session moves on.
    fn deliver_requests_of(&mut self, now: Instant, key: SessionKey) {
        if self.get(key).is_some() {
            self.deliver_requests(now, key.slot);
            self.settle(key.slot);
        }
    }

    pub(super) fn on_control_reply(&mut self, now: Instant, peer: PeerId, reply: frames::ControlReply) {
        let Some(key) = self.find(reply.id) else { return };
        if self.waiting_control(key, peer, reply.number).is_none() {
            self.metrics.late_frames.inc();
            return;
        }
        self.on_control_answered(now, key, reply.number, &reply.reply);
    }

    pub(super) fn on_updated(&mut self, now: Instant, peer: PeerId, updated: frames::Updated) {
        let Some(key) = self.find(updated.id) else { return };
        if self.waiting_control(key, peer, updated.number).is_none() {
            self.metrics.late_frames.inc();
            return;
        }
        let written = match (updated.blob, self.get(key)) {
            (Some(write), Some(session)) => session.write_blob(write),
            _ => Ok(()),
        };
        let reply = match written {
            Ok(()) => updated.reply,
            Err(BlobError::TooLarge) => {
                self.metrics.malformed_frames.inc();
                Bytes::from_static(UPDATE_TOO_LARGE)
            }
            Err(BlobError::Conflict) => {
                self.metrics.blob_conflicts.inc();
                if self.ask_again(now, key, peer, updated.number) {
                    return;
                }
                Bytes::from_static(UPDATE_CONFLICT)
            }
        };
        self.on_control_answered(now, key, updated.number, &reply);
    }

    /// The backend worked on a blob that has changed since: it gets the update again, with the blob as it is now.
    fn ask_again(&mut self, now: Instant, key: SessionKey, peer: PeerId, number: u64) -> bool {
        let Some(control) = self.waiting_control(key, peer, number) else {
            return false;
        };
        if control.conflicts >= MAX_BLOB_CONFLICTS {
            return false;
        }
        control.conflicts += 1;
        control.delivery.with = None;
        self.deliver(now, key.slot);
        true
    }

    /// The control message that `peer` was given under this number and has not answered.
    fn waiting_control(&mut self, key: SessionKey, peer: PeerId, number: u64) -> Option<&mut Control> {
        let controls = &mut self.get(key)?.active.as_mut()?.controls;
        let mut given = controls
            .iter_mut()
            .filter(|c| c.delivery.with.is_some_and(|(p, _)| p == peer));
        given.find(|c| c.number == number)
    }

    /// The control message is done with: its place and its bytes are free, and the device hears the answer.
    pub(super) fn on_control_answered(&mut self, now: Instant, key: SessionKey, number: u64, reply: &Bytes) {
        if let Some(active) = self.get(key).and_then(|s| s.active.as_mut())
            && let Some(index) = active.controls.iter().position(|c| c.number == number)
            && let Some(control) = active.controls.remove(index)
        {
            self.window_bytes -= control.text.len();
        }
        self.after_window_moved(key);
        let is_control = reply.first() == Some(&b'@') && reply.len() <= MAX_CONTROL_BYTES;
        if is_control {
            self.send_other(now, key, Bytes::copy_from_slice(reply));
        } else if !reply.is_empty() {
            self.metrics.malformed_frames.inc();
        }
        if self.get(key).is_some() {
            // The next update waited for this one.
            self.deliver(now, key.slot);
            self.settle(key.slot);
        }
        self.feed_starved();
    }

    pub(super) fn on_close(&mut self, now: Instant, close: &frames::Close) {
        let Some(frames::close::Target::Session(id)) = close.target else {
            self.metrics.malformed_frames.inc();
            return;
        };
        let code = u16::try_from(close.code).ok().and_then(CloseCode::from_u16);
        if let Some(key) = self.find(Some(id)) {
            self.close(now, key, code.unwrap_or(CloseCode::ClosedByOperator));
        }
    }
}

/// What a backend sent with its admission, if it is whole.
fn read_challenge(challenge: frames::Challenge) -> Option<Box<Challenge>> {
    let keys = TrafficKeys {
        to_server: TrafficKey::from_bytes(&challenge.to_server)?,
        to_device: TrafficKey::from_bytes(&challenge.to_device)?,
    };
    let message = Bytes::copy_from_slice(&challenge.message);
    (1..=MAX_CONTROL_BYTES)
        .contains(&message.len())
        .then(|| Box::new(Challenge { message, keys }))
}
