//! What sessions want their channels to do.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::{CloseCode, MessageKind};

use super::connection::{ConnectionId, Place, Stage};
use super::shard::Shard;
use crate::channel::{Challenge, Channel, Refusal, StreamChannel};
use crate::session::{self, Goodbye, Output, SessionKey, Stalled};

/// Queued bytes at which a turn's messages are written in between.
const WRITE_AT_BYTES: usize = 64 * 1024;

impl Shard {
    /// Carries out everything that the sessions want. Messages for one session that follow each other are written at once.
    pub(super) fn pump(&mut self, now: Instant) {
        let mut next = self.sessions.poll_output();
        while let Some(output) = next.take() {
            match output {
                Output::Send { key, kind, payload } => match self.place_of(key) {
                    Some(Place::Stream(id)) => next = self.on_send(now, (key, id), (kind, payload)),
                    Some(Place::Datagrams(at)) => self.udp_send(now, at, (kind, &payload)),
                    None => {}
                },
                Output::Admit { key, challenge } => self.on_admit(now, key, challenge),
                Output::Refuse { key, refusal } => self.on_refuse(now, key, refusal),
                Output::Ping { key } => self.on_ping(now, key),
                Output::Close { key, code, goodbye } => self.on_close(now, key, code, goodbye.as_ref()),
                Output::Resume { key } => self.on_resume(now, key),
            }
            if next.is_none() {
                next = self.sessions.poll_output();
            }
        }
    }

    fn place_of(&self, key: SessionKey) -> Option<Place> {
        let place = (*self.by_slot.get(key.slot as usize)?)?;
        let session = match place {
            Place::Stream(id) => self.connections.get(id.index())?.session(),
            Place::Datagrams(at) => self.udp.as_ref()?.session_of(at),
        };
        (session == Some(key)).then_some(place)
    }

    /// Sends this message and those for the same session right behind it; gives the first other output.
    fn on_send(
        &mut self,
        now: Instant,
        (key, id): (SessionKey, ConnectionId),
        first: (MessageKind, Bytes),
    ) -> Option<Output> {
        if !self.connections.get(id.index())?.channel.is_open() {
            // The peer broke a rule: of what is still queued for it, only the close is said.
            return None;
        }
        let (mut message, mut queued) = (first, 0);
        loop {
            let connection = self.connections.get_mut(id.index())?;
            if let Err(error) = connection.channel.send(&mut self.scratch, message.0, &message.1) {
                tracing::debug!(%error, "a message could not be queued");
                self.scratch.reset();
                self.broken(now, id, &error);
                return None;
            }
            queued += 1;
            let next = self.sessions.poll_output();
            match next {
                Some(Output::Send {
                    key: same,
                    kind,
                    payload,
                }) if same == key && self.scratch.queued_bytes() < WRITE_AT_BYTES => {
                    message = (kind, payload);
                }
                other => {
                    self.flush_and_write(now, id, queued);
                    return other;
                }
            }
        }
    }

    fn flush_and_write(&mut self, now: Instant, id: ConnectionId, messages: usize) {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        if let Err(error) = connection.channel.flush(&mut self.scratch) {
            tracing::debug!(%error, "a channel could not encrypt");
            self.scratch.reset();
            self.broken(now, id, &error);
            return;
        }
        self.write_scratch(now, id, messages);
    }

    /// Writes what was encrypted for this connection; `messages` of its session's messages end with it.
    pub(super) fn write_scratch(&mut self, now: Instant, id: ConnectionId, messages: usize) {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return self.scratch.clear_outbound();
        };
        let bytes = self.scratch.outbound();
        if bytes.is_empty() {
            return;
        }
        let written = if connection.outbox.is_empty() {
            connection.stream.try_write(bytes).unwrap_or(0)
        } else {
            0
        };
        let left = &bytes[written..];
        if left.is_empty() {
            self.scratch.clear_outbound();
            if let (Some(key), true) = (connection.session(), messages > 0) {
                self.sessions.handle_written(now, key, messages);
            }
            return;
        }
        // A socket that broke says so when it is polled next.
        let kept = connection.outbox.push(left, &self.outbox_limits);
        connection.marks.push(left.len(), messages);
        connection.wake();
        self.scratch.clear_outbound();
        if kept.is_err() {
            self.give_up(now, id);
        }
    }

    /// The peer does not read and its bytes do not fit: nothing more can be said to it.
    fn give_up(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        let key = connection.session();
        connection.stage = Stage::Over;
        connection.outbox = Default::default();
        connection.wake();
        if let Some(key) = key {
            self.by_slot[key.slot as usize] = None;
            self.sessions.close(now, key, CloseCode::SlowConsumer);
        }
    }

    fn on_admit(&mut self, now: Instant, key: SessionKey, challenge: Option<Box<session::Challenge>>) {
        let challenge = challenge.map(|challenge| {
            let session::Challenge { message, keys } = *challenge;
            Box::new(Challenge { message, keys })
        });
        let id = match self.place_of(key) {
            Some(Place::Stream(id)) => id,
            Some(Place::Datagrams(at)) => return self.udp_admit(now, at, challenge),
            None => return,
        };
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        connection.stage = Stage::Open(key);
        connection.permit.on_let_in();
        let accepted = connection.channel.accept(&mut self.scratch, challenge);
        self.flush_and_write(now, id, 0);
        self.go_on(now, id, accepted);
    }

    /// Decodes what waits in the connection, then reads again.
    fn go_on(&mut self, now: Instant, id: ConnectionId, begun: Result<(), crate::channel::ChannelError>) {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        connection.wake();
        connection.channel.unpark(&mut self.scratch);
        self.decode(now, id, begun);
    }

    fn on_refuse(&mut self, now: Instant, key: SessionKey, refusal: session::Refusal) {
        let refusal = Refusal {
            status: refusal.status,
            code: Cow::Owned(refusal.code),
            message: Cow::Owned(refusal.message),
            retry_after: refusal.retry_after,
            retryable: refusal.retryable,
        };
        let id = match self.place_of(key) {
            Some(Place::Stream(id)) => id,
            Some(Place::Datagrams(at)) => return self.udp_refuse(now, at, &refusal),
            None => return,
        };
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        if let Err(error) = connection.channel.refuse(&mut self.scratch, &refusal) {
            tracing::debug!(%error, "a refusal could not be queued");
        }
        self.flush_and_write(now, id, 0);
        self.linger(now, id);
    }

    fn on_ping(&mut self, now: Instant, key: SessionKey) {
        let id = match self.place_of(key) {
            Some(Place::Stream(id)) => id,
            Some(Place::Datagrams(at)) => return self.udp_ping(now, at),
            None => return,
        };
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        if connection.channel.ping(&mut self.scratch).is_ok() {
            self.flush_and_write(now, id, 0);
        }
    }

    fn on_close(&mut self, now: Instant, key: SessionKey, code: CloseCode, goodbye: Option<&Goodbye>) {
        let id = match self.place_of(key) {
            Some(Place::Stream(id)) => id,
            Some(Place::Datagrams(at)) => return self.udp_close(now, at, (code, goodbye)),
            None => return,
        };
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        if let Some(goodbye) = goodbye
            && connection.channel.is_open()
        {
            let text = Bytes::from(goodbye.render());
            // Best effort: what can still be said is said by `close`.
            let _ = connection
                .channel
                .send(&mut self.scratch, MessageKind::Text, &text);
        }
        if let Err(error) = connection
            .channel
            .close(&mut self.scratch, code as u16, code.label())
        {
            tracing::debug!(%error, "a close could not be queued");
        }
        self.flush_and_write(now, id, 0);
        self.linger(now, id);
    }

    fn on_resume(&mut self, now: Instant, key: SessionKey) {
        let id = match self.place_of(key) {
            Some(Place::Stream(id)) => id,
            Some(Place::Datagrams(at)) => return self.udp_resume(now, at, key),
            None => return,
        };
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        let Some(stalled) = connection.stalled.take() else {
            return;
        };
        let (kind, payload) = *stalled;
        match self.sessions.handle_message(now, key, kind, payload) {
            Ok(()) => self.go_on(now, id, Ok(())),
            Err(Stalled(payload)) => connection.stalled = Some(Box::new((kind, payload))),
        }
    }
}
