//! What goes to a session's channel, and what follows when it was written.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::link::frames::{PushResult, PushStatus};
use holdfast_proto::{CloseCode, MessageKind};

use super::{Output, Shard};
use crate::exchange::ToHub;
use crate::session::session::{Outgoing, SessionKey, Written};
use crate::session::state::CloseReason;

/// The part of its own bound that a session may hold when others have used up the total: those who do not read must not
/// get those closed who do, whose bytes are only on their way to the socket. What really waits there has the channel's bound.
const SHARE_OF_OWN: usize = 64;

/// Payloads that are copied rather than keep the batch that they came in, which is not much larger than the longest of them: while
/// they wait for a device only their own bytes are counted.
const MAX_COPIED_BYTES: usize = 32 * 1024;

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Written,
    /// It was not, for this reason.
    Dropped(&'static str),
    /// The session ended before it was known.
    Unknown,
}

/// The payload in a buffer of its own.
pub(super) fn own_copy(payload: Bytes) -> Bytes {
    if payload.len() <= MAX_COPIED_BYTES {
        Bytes::copy_from_slice(&payload)
    } else {
        payload
    }
}

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
        let turn = self.turn;
        active.outbox.push_back(Outgoing { bytes, turn, what });
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
            let Some((sequence, mut answer)) = active.window.poll_answer() else {
                return;
            };
            if answer.silent {
                active.window.on_written(sequence);
            }
            self.metrics.replies.inc();
            if self.get(key).is_some_and(|session| session.kind.acknowledges()) {
                answer.payload = own_copy(answer.payload);
            }
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
        self.on_outgoing_done(now, key, (messages, Fate::Written));
    }

    /// The device takes nothing more, although not all that it said was taken yet: what waits for it is dropped, so that the rest of
    /// its requests finds room.
    pub fn handle_output_closed(&mut self, now: Instant, key: SessionKey) {
        self.on_outgoing_done(now, key, (usize::MAX, Fate::Unknown));
    }

    fn on_outgoing_done(&mut self, now: Instant, key: SessionKey, (messages, fate): (usize, Fate)) {
        let mut moved = false;
        for _ in 0..messages {
            let Some(session) = self.get(key) else { return };
            let id = session.id;
            let Some(active) = session.active.as_mut() else {
                break;
            };
            let Some(Outgoing { bytes, what, .. }) = active.outbox.pop_front() else {
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
            self.report_push(what, id, fate);
        }
        if moved {
            self.after_window_moved(key);
            self.deliver_requests(now, key.slot);
        }
        self.settle(key.slot);
    }

    /// Tells whoever pushed how it ended.
    pub(super) fn report_push(&mut self, what: Written, session: holdfast_proto::SessionId, fate: Fate) {
        match what {
            Written::Push { peer, number } => {
                let (status, reason) = match fate {
                    Fate::Written => (PushStatus::Written, ""),
                    Fate::Dropped(reason) => (PushStatus::Dropped, reason),
                    Fate::Unknown => (PushStatus::Unconfirmed, ""),
                };
                let result = PushResult {
                    number,
                    status: status as i32,
                    session: Some(session.into()),
                    reason: reason.into(),
                    ..Default::default()
                };
                self.to_hub.push(ToHub::PushDone { peer, result });
            }
            Written::Broadcast { peer, number } => {
                if !self.count_broadcast(peer, number, fate) {
                    return;
                }
            }
            Written::Reply(_) | Written::Other => return,
        }
        match fate {
            Fate::Written => {
                self.metrics.pushes_written.inc();
            }
            Fate::Dropped(reason) => self.metrics.push_dropped(reason),
            Fate::Unknown => {
                self.metrics.pushes_unconfirmed.inc();
            }
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
    pub(super) fn drop_active(&mut self, slot: u32, reason: CloseReason) {
        let Some(session) = self.slots[slot as usize].session.as_mut() else {
            return;
        };
        let (id, kind) = (session.id, session.kind);
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
            // Only a stream that broke takes what its socket did not with it. Else what waits still goes out for a while, and what a
            // channel kept to send it again may have arrived.
            let is_gone = reason == CloseReason::Lost && outgoing.turn != self.turn;
            let fate = match is_gone && !kind.acknowledges() {
                true => Fate::Dropped("closed"),
                false => Fate::Unknown,
            };
            self.report_push(outgoing.what, id, fate);
        }
        if self.spare.len() < super::MAX_SPARE {
            self.spare.push(active);
        }
        self.feed_starved();
    }
}
