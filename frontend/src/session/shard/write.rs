//! What goes to a session's channel, and what follows when it was written.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::link::frames::{PushResult, PushStatus};
use holdfast_proto::{CloseCode, MessageKind};

use super::{Output, Shard};
use crate::exchange::ToHub;
use crate::session::session::{Outgoing, SessionKey, Written};

/// The part of its own bound that a session may hold when others have used up the total: those who do not read must not
/// get those closed who do, whose bytes are only on their way to the socket. What really waits there has the channel's bound.
const SHARE_OF_OWN: usize = 64;

impl Shard {
    /// Hands a message to the channel. False when the session's output, or that of all, is full.
    pub(super) fn send(&mut self, key: SessionKey, kind: MessageKind, payload: Bytes, what: Written) -> bool {
        let place = &mut self.slots[key.slot as usize];
        let Some(session) = place.session.as_mut() else {
            return false;
        };
        let bytes = payload.len();
        let active = Self::activate(&mut self.spare, session);
        let alone = active.outbox.is_empty();
        let own = active.out_bytes + bytes;
        let in_total = self.out_bytes + bytes <= self.config.output_total_bytes
            || own <= self.config.output_bytes / SHARE_OF_OWN;
        let fits = own <= self.config.output_bytes && in_total;
        if !alone && !fits {
            return false;
        }
        active.out_bytes += bytes;
        self.out_bytes += bytes;
        active.outbox.push_back(Outgoing { bytes, what });
        self.outputs.push_back(Output::Send { key, kind, payload });
        true
    }

    /// A control message of ours; a device that does not even read those is closed.
    pub(super) fn send_other(&mut self, now: Instant, key: SessionKey, payload: Bytes) {
        if !self.send(key, MessageKind::Text, payload, Written::Other) {
            self.close(now, key, CloseCode::SlowConsumer);
        }
    }

    /// Hands the channel every reply whose turn it is.
    pub(super) fn send_answers(&mut self, now: Instant, key: SessionKey) {
        loop {
            let Some(active) = self.get(key).and_then(|s| s.active.as_mut()) else {
                return;
            };
            let Some((sequence, answer)) = active.window.poll_answer() else {
                return;
            };
            if answer.silent {
                active.window.on_written(sequence);
            }
            self.metrics.replies.inc();
            if answer.silent {
                self.after_window_moved(key);
            } else if !self.send(key, answer.kind, answer.payload, Written::Reply(sequence)) {
                return self.close(now, key, CloseCode::SlowConsumer);
            }
        }
    }

    /// The session's next `messages` messages are written: the socket took them, or where the channel sends again what was lost, the
    /// device has them.
    pub fn handle_written(&mut self, now: Instant, key: SessionKey, messages: usize) {
        self.on_outgoing_done(now, key, (messages, None));
    }

    /// The device takes nothing more, although not all that it said was taken yet: what waits for it is dropped, so that the rest of
    /// its requests finds room.
    pub fn handle_output_closed(&mut self, now: Instant, key: SessionKey) {
        self.on_outgoing_done(now, key, (usize::MAX, Some("closed")));
    }

    fn on_outgoing_done(
        &mut self,
        now: Instant,
        key: SessionKey,
        (messages, dropped): (usize, Option<&'static str>),
    ) {
        let mut moved = false;
        for _ in 0..messages {
            let Some(session) = self.get(key) else { return };
            let id = session.id;
            let Some(active) = session.active.as_mut() else {
                break;
            };
            let Some(Outgoing { bytes, what }) = active.outbox.pop_front() else {
                break;
            };
            active.out_bytes -= bytes;
            match what {
                Written::Reply(sequence) => {
                    active.window.on_written(sequence);
                    moved = true;
                }
                Written::Push { .. } | Written::Broadcast { .. } => active.pushes -= 1,
                Written::Other => {}
            }
            self.out_bytes -= bytes;
            self.report_push(what, id, dropped);
        }
        if moved {
            self.after_window_moved(key);
            self.deliver_requests(now, key.slot);
        }
        self.settle(key.slot);
    }

    /// Tells whoever pushed how it ended; `dropped` names why it was not written.
    pub(super) fn report_push(
        &mut self,
        what: Written,
        session: holdfast_proto::SessionId,
        dropped: Option<&'static str>,
    ) {
        match what {
            Written::Push { peer, number } => {
                let status = if dropped.is_some() {
                    PushStatus::Dropped
                } else {
                    PushStatus::Written
                };
                let result = PushResult {
                    number,
                    status: status as i32,
                    session: Some(session.into()),
                    reason: dropped.unwrap_or_default().into(),
                    ..Default::default()
                };
                self.to_hub.push(ToHub::PushDone { peer, result });
            }
            Written::Broadcast { peer, number } => self.count_broadcast(peer, number, dropped.is_none()),
            Written::Reply(_) | Written::Other => return,
        }
        match dropped {
            None => {
                self.metrics.pushes_written.inc();
            }
            Some(reason) => self.metrics.push_dropped(reason),
        }
    }

    /// A request or a control message left the session: what waits for its room may try again.
    pub(super) fn after_window_moved(&mut self, key: SessionKey) {
        if let Some(session) = self.get(key)
            && std::mem::take(&mut session.stalled)
        {
            self.outputs.push_back(Output::Resume { key });
        }
    }

    /// Bytes left the total of all windows: a session that starved may try again.
    pub(super) fn feed_starved(&mut self) {
        while self.window_bytes < self.config.window_total_bytes
            && let Some(key) = self.starved.pop_front()
        {
            if let Some(session) = self.get(key)
                && std::mem::take(&mut session.starved)
                && std::mem::take(&mut session.stalled)
            {
                self.outputs.push_back(Output::Resume { key });
                return;
            }
        }
    }

    /// Devices that come, starve and go must not make the queue grow.
    pub(super) fn forget_ended_starved(&mut self) {
        let slots = &self.slots;
        self.starved.retain(|key| {
            let session = slots.get(key.slot as usize).and_then(|p| p.session.as_ref());
            session.is_some_and(|s| s.key() == *key && s.starved)
        });
    }

    /// Forgets everything under way of a session that ends.
    pub(super) fn drop_active(&mut self, slot: u32) {
        let Some(session) = self.slots[slot as usize].session.as_mut() else {
            return;
        };
        let id = session.id;
        session.starved = false;
        let Some(mut active) = session.active.take() else {
            return;
        };
        self.window_bytes -= active.window.clear();
        self.window_bytes -= active.controls.iter().map(|c| c.text.len()).sum::<usize>();
        self.out_bytes -= active.out_bytes;
        active.out_bytes = 0;
        active.pushes = 0;
        active.controls.clear();
        active.next_control = 0;
        for outgoing in std::mem::take(&mut active.outbox) {
            self.report_push(outgoing.what, id, Some("closed"));
        }
        if self.spare.len() < super::MAX_SPARE {
            self.spare.push(active);
        }
        self.feed_starved();
    }
}
