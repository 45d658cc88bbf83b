//! What sessions want of channels over datagrams.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::{CloseCode, MessageKind};

use super::super::shard::Shard;
use super::Udp;
use crate::channel::{Challenge, Channel, ChannelError, Refusal};
use crate::session::{Goodbye, SessionKey, Stalled};

impl Shard {
    pub(in super::super) fn udp_send(
        &mut self,
        now: Instant,
        at: u32,
        (kind, payload): (MessageKind, &Bytes),
    ) {
        let Some(udp) = &mut self.udp else { return };
        udp.shared.now = now;
        let Some(record) = udp.records.get_mut(at as usize) else {
            return;
        };
        let key = record.session;
        match record.channel.send(&mut udp.shared, kind, payload) {
            Ok(()) => udp.settle(at),
            // What it said before is still being taken, its close comes behind that.
            Err(ChannelError::PeerCloses) => {
                if let Some(key) = key {
                    self.sessions.handle_output_closed(now, key);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a message could not be queued");
                // Without it all that follows would be in a wrong place.
                if let Some(key) = key {
                    self.sessions.close(now, key, error.close_code());
                }
            }
        }
    }

    pub(in super::super) fn udp_admit(&mut self, now: Instant, at: u32, challenge: Option<Box<Challenge>>) {
        let Some(udp) = &mut self.udp else { return };
        udp.shared.now = now;
        let Some(record) = udp.records.get_mut(at as usize) else {
            return;
        };
        let key = record.session;
        match record.channel.accept(&mut udp.shared, challenge) {
            Ok(()) => {
                udp.metrics.attempt("challenged");
                udp.answer_attempt(at);
            }
            Err(error) => {
                tracing::warn!(%error, "a device could not be let in");
                if let Some(key) = key {
                    self.sessions.close(now, key, error.close_code());
                }
            }
        }
    }

    pub(in super::super) fn udp_refuse(&mut self, now: Instant, at: u32, refusal: &Refusal) {
        let Some(udp) = &mut self.udp else { return };
        let Some(record) = udp.records.get_mut(at as usize) else {
            return;
        };
        match record.channel.refuse(&mut udp.shared, refusal) {
            Ok(()) => {
                udp.metrics.attempt("refused");
                udp.answer_attempt(at);
                udp.finish_attempt(now, at);
            }
            Err(error) => tracing::debug!(%error, "a refusal could not be said"),
        }
        self.udp_forget(at);
    }

    pub(in super::super) fn udp_ping(&mut self, now: Instant, at: u32) {
        let Some(udp) = &mut self.udp else { return };
        udp.shared.now = now;
        if let Some(record) = udp.records.get_mut(at as usize)
            && record.channel.ping(&mut udp.shared).is_ok()
        {
            udp.set_ready(at);
        }
    }

    pub(in super::super) fn udp_close(
        &mut self,
        now: Instant,
        at: u32,
        (code, goodbye): (CloseCode, Option<&Goodbye>),
    ) {
        let Some(udp) = &mut self.udp else { return };
        udp.shared.now = now;
        let Some(record) = udp.records.get_mut(at as usize) else {
            return;
        };
        if let Some(goodbye) = goodbye
            && record.channel.is_open()
        {
            let text = Bytes::from(goodbye.render());
            // Best effort: what can still be said is said by `close`.
            let _ = record.channel.send(&mut udp.shared, MessageKind::Text, &text);
        }
        if let Err(error) = record.channel.close(&mut udp.shared, code as u16, code.label()) {
            tracing::debug!(%error, "a close could not be queued");
        }
        match record.channel.is_proven() {
            true => self.udp_linger(now, at),
            // Nobody has shown to be there: nothing is said.
            false => self.udp_forget(at),
        }
    }

    pub(in super::super) fn udp_resume(&mut self, now: Instant, at: u32, key: SessionKey) {
        let Some(udp) = &mut self.udp else { return };
        udp.shared.now = now;
        let Some(record) = udp.records.get_mut(at as usize) else {
            return;
        };
        let Some(stalled) = record.stalled.take() else {
            return;
        };
        let (kind, payload) = *stalled;
        match self.sessions.handle_message(now, key, kind, payload) {
            Ok(()) => self.udp_events(now, at),
            Err(Stalled(payload)) => record.stalled = Some(Box::new((kind, payload))),
        }
    }

    fn udp_forget(&mut self, at: u32) {
        let Some(udp) = &mut self.udp else { return };
        if let Some(key) = udp.session_of(at) {
            self.by_slot[key.slot as usize] = None;
        }
        udp.remove(at);
    }
}

impl Udp {
    /// Sends what answers the attempt of this connection, and keeps it for when the attempt is repeated.
    fn answer_attempt(&mut self, at: u32) {
        let answer = std::mem::take(&mut self.shared.answer);
        if let Some(record) = self.records.get(at as usize)
            && let Some(asked) = &record.asked
        {
            let (to, from) = (asked.from, self.locals.get(record.local));
            self.attempts.answer(asked.attempt, &answer);
            self.answer(to, from, &answer);
        }
        self.shared.answer = answer;
    }

    /// The attempt of this connection needs nothing more; its answer is kept.
    fn finish_attempt(&mut self, now: Instant, at: u32) {
        let record = self.records.get_mut(at as usize);
        if let Some(asked) = record.and_then(|record| record.asked.take()) {
            self.attempts.finish(now, asked.attempt);
        }
    }
}
