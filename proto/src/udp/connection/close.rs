//! The end of a connection.

use std::time::Instant;

use super::busy::Closing;
use super::sent::Control;
use super::types::{End, Event, Side};
use super::{CLOSE_LINGER, Connection, State};
use crate::codes::CloseCode;
use crate::secure::MAX_REASON_BYTES;
use crate::udp::{RESET_TOKEN_BYTES, ResetToken};

impl Connection {
    /// Takes no more messages to send, and ends when those taken and the close itself are acknowledged, or 2 s later. Until then
    /// messages from the peer are handed up. A reason over 123 bytes is cut.
    pub fn close(&mut self, now: Instant, code: u16, reason: &str) {
        if self.state != State::Open {
            return;
        }
        if self.side == Side::Server && !self.heard {
            // There is nowhere to send it.
            return self.end(End::ClosedByUs);
        }
        self.begin_close(now, code, reason);
    }

    fn begin_close(&mut self, now: Instant, code: u16, reason: &str) {
        self.state = State::Closing;
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
        let busy = self.busy_mut();
        busy.closing = Some(Box::new(Closing {
            code,
            reason: reason.to_owned(),
            messages: busy.outbox.total(),
            until: now + CLOSE_LINGER,
            is_acknowledged: false,
            is_failure: false,
        }));
        busy.pending.add(Control::CLOSE);
    }

    /// The peer broke the protocol: nothing more goes to it but that, and nothing more is taken from it.
    pub(super) fn fail(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if self.state == State::Open {
            self.begin_close(now, code as u16, reason);
        }
        let busy = self.busy_mut();
        busy.outbox.clear();
        if let Some(closing) = &mut busy.closing {
            closing.is_failure = true;
            // So that the peer does not wait for what does not come.
            closing.messages = 0;
        }
    }

    pub(super) fn is_failed(&self) -> bool {
        let closing = self.busy.as_ref().and_then(|busy| busy.closing.as_ref());
        closing.is_some_and(|closing| closing.is_failure)
    }

    /// Ends at once: the peer is not told.
    pub fn abort(&mut self) {
        self.end(End::ClosedByUs);
    }

    /// Whether this is the token that the server announced: then the connection has ended. Devices only.
    pub fn handle_reset(&mut self, token: &[u8; RESET_TOKEN_BYTES]) -> bool {
        let announced = self.rare.as_ref().and_then(|rare| rare.reset_token.as_ref());
        if self.state == State::Ended || announced != Some(&ResetToken(*token)) {
            return false;
        }
        // Who closes may find that the peer has ended already.
        let end = if self.state == State::Closing {
            End::ClosedByUs
        } else {
            End::Reset
        };
        self.end(end);
        true
    }

    /// Ends when a close of either end has come to its end.
    pub(super) fn check_closed(&mut self, now: Instant) {
        let Some(busy) = &self.busy else { return };
        let is_over = busy
            .closing
            .as_ref()
            .is_some_and(|closing| closing.until <= now || closing.is_acknowledged && busy.outbox.is_empty());
        let is_taken = busy.peer_close.as_ref().is_some_and(|close| {
            close.until <= now || busy.inbox.is_complete(&self.receiving, close.messages)
        });
        if is_over || is_taken && busy.closing.is_some() {
            self.end(End::ClosedByUs);
        } else if is_taken {
            self.end(End::ClosedByPeer);
        }
    }

    /// Only what is to be told remains, and after a close a last acknowledgement.
    pub(super) fn end(&mut self, end: End) {
        if self.state == State::Ended {
            return;
        }
        self.state = State::Ended;
        self.end = Some(end);
        if let Some(busy) = &mut self.busy {
            let is_clean = matches!(end, End::ClosedByUs | End::ClosedByPeer);
            busy.stop(is_clean);
        }
    }

    pub(super) fn poll_end(&mut self) -> Option<Event> {
        let end = self.end.filter(|_| !self.told);
        let Some(end) = end else {
            self.settle();
            return None;
        };
        let close = self.busy.as_mut().and_then(|busy| busy.peer_close.take());
        if let Some(close) = close.filter(|_| end == End::ClosedByPeer) {
            return Some(Event::Closed {
                code: close.code,
                reason: close.reason,
            });
        }
        self.told = true;
        if let Some(busy) = &mut self.busy {
            busy.inbox = Default::default();
        }
        self.settle();
        Some(Event::Ended(end))
    }
}
