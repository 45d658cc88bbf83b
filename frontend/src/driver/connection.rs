//! One connection: its socket, its channel, and the small future that moves its bytes.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::MessageKind;
use tokio::net::TcpStream;

use super::intake::Permit;
use super::marks::Marks;
use super::shard::{LINGER, Shard};
use crate::channel::{AnyStream, Channel, ChannelError, ChannelEvent, Outbox, StreamChannel};
use crate::session::SessionKey;

/// A connection's place in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionId(pub(super) u32);

impl ConnectionId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a session's connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Stream(ConnectionId),
    /// In the table of those over datagrams.
    Datagrams(u32),
}

/// Reads that one connection may do before others have their turn.
const READS_PER_TURN: usize = 8;

/// A socket and what its session does not know of it.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) channel: AnyStream,
    pub(super) outbox: Outbox,
    pub(super) marks: Marks,
    /// A message for which the window had no room; nothing is read until it has.
    pub(super) stalled: Option<Box<(MessageKind, Bytes)>>,
    pub(super) waker: Option<Waker>,
    pub(super) stage: Stage,
    pub(super) permit: Permit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Belongs to this session.
    Open(SessionKey),
    /// The upgrade is with a backend; nothing is read until it is answered.
    Binding(SessionKey),
    /// Its session is over: what is queued goes out, then the end of the peer's bytes is awaited, both until `LINGER`.
    Lingering { shut: bool, until: Instant },
    /// Nothing more to do.
    Over,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, channel: AnyStream, key: SessionKey, permit: Permit) -> Self {
        Self {
            stream,
            channel,
            outbox: Outbox::default(),
            marks: Marks::default(),
            stalled: None,
            waker: None,
            stage: Stage::Open(key),
            permit,
        }
    }

    pub(super) fn session(&self) -> Option<SessionKey> {
        match self.stage {
            Stage::Open(key) | Stage::Binding(key) => Some(key),
            Stage::Lingering { .. } | Stage::Over => None,
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    pub(super) fn on_linger_over(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Lingering { until, .. } if until <= now) {
            self.stage = Stage::Over;
            self.wake();
        }
    }
}

/// Moves one connection's bytes. All its state lives in the shard.
pub(super) struct ConnectionTask {
    shard: Rc<RefCell<Shard>>,
    id: ConnectionId,
}

impl ConnectionTask {
    pub(super) fn new(shard: Rc<RefCell<Shard>>, id: ConnectionId) -> Self {
        Self { shard, id }
    }
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut shard = self.shard.borrow_mut();
        let done = shard.poll_connection(self.id, cx);
        if done.is_ready() {
            shard.connections.try_remove(self.id.index());
        }
        shard.end_turn();
        done
    }
}

/// What an idle connection weighs beside its TLS state: the shard's record and the task's future, in bytes.
pub fn connection_sizes() -> (usize, usize) {
    (size_of::<Connection>(), size_of::<ConnectionTask>())
}

pub(super) enum Step {
    Again,
    Over,
}

impl Shard {
    fn poll_connection(&mut self, id: ConnectionId, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if let Some(connection) = self.connections.get_mut(id.index())
            && !connection.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker()))
        {
            connection.waker = Some(cx.waker().clone());
        }
        for _ in 0..READS_PER_TURN {
            let step = ready!(self.poll_step(now, id, cx));
            self.pump(now);
            if matches!(step, Step::Over) {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_step(&mut self, now: Instant, id: ConnectionId, cx: &mut Context<'_>) -> Poll<Step> {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return Poll::Ready(Step::Over);
        };
        // What a peer did not read until then is not waited for.
        if connection.stage == Stage::Over {
            return Poll::Ready(Step::Over);
        }
        if !connection.outbox.is_empty() {
            return match ready!(connection.stream.poll_write_ready(cx)) {
                Ok(()) => Poll::Ready(self.write_pending(now, id)),
                Err(_) => Poll::Ready(self.lost(now, id)),
            };
        }
        match connection.stage {
            Stage::Over => Poll::Ready(Step::Over),
            Stage::Lingering { shut, until } => self.poll_linger(id, (shut, until), cx),
            Stage::Binding(_) => Poll::Pending,
            Stage::Open(_) if connection.stalled.is_some() => Poll::Pending,
            Stage::Open(_) => match ready!(connection.stream.poll_read_ready(cx)) {
                Ok(()) => Poll::Ready(self.read(now, id)),
                Err(_) => Poll::Ready(self.lost(now, id)),
            },
        }
    }

    fn write_pending(&mut self, now: Instant, id: ConnectionId) -> Step {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return Step::Over;
        };
        match connection.stream.try_write(connection.outbox.pending()) {
            Ok(n) => {
                connection.outbox.advance(n);
                let messages = connection.marks.advance(n);
                if let (Some(key), true) = (connection.session(), messages > 0) {
                    self.sessions.handle_written(now, key, messages);
                }
                Step::Again
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::Again,
            Err(_) => self.lost(now, id),
        }
    }

    fn read(&mut self, now: Instant, id: ConnectionId) -> Step {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return Step::Over;
        };
        match connection.stream.try_read(self.scratch.read_target()) {
            Ok(0) => self.lost(now, id),
            Ok(n) => {
                let taken = connection.channel.handle_input(&mut self.scratch, n);
                self.decode(now, id, taken);
                Step::Again
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::Again,
            Err(_) => self.lost(now, id),
        }
    }

    /// Goes through the events of a turn that `handle_input` or `unpark` began, and ends it.
    pub(super) fn decode(&mut self, now: Instant, id: ConnectionId, begun: Result<(), ChannelError>) {
        let mut result = begun;
        while result.is_ok() {
            let Some(connection) = self.connections.get_mut(id.index()) else {
                return;
            };
            let Some(key) = connection.session() else { break };
            match connection.channel.poll_event(&mut self.scratch) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if let ChannelEvent::Upgrade(_) = event {
                        connection.stage = Stage::Binding(key);
                        connection.permit.on_asked();
                    }
                    let over = matches!(event, ChannelEvent::Closed { .. } | ChannelEvent::Lost);
                    let stalled = self.tell_session(now, key, event).err();
                    if over {
                        self.linger(now, id);
                    } else if stalled.is_some() {
                        if let Some(connection) = self.connections.get_mut(id.index()) {
                            connection.stalled = stalled;
                        }
                        break;
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        if let Some(connection) = self.connections.get_mut(id.index()) {
            result = result.and(connection.channel.park(&mut self.scratch));
        }
        self.write_scratch(now, id, 0);
        if let Err(error) = result {
            self.on_channel_error(now, id, &error);
        }
    }

    fn on_channel_error(&mut self, now: Instant, id: ConnectionId, error: &ChannelError) {
        let Some(connection) = self.connections.get(id.index()) else {
            return;
        };
        if let Some(key) = connection.session() {
            self.channel_failed(now, key, error);
        }
    }

    /// The session of this connection is over: what is queued may still go out.
    pub(super) fn linger(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return;
        };
        if let Some(key) = connection.session() {
            self.by_slot[key.slot as usize] = None;
            connection.stage = Stage::Lingering {
                shut: false,
                until: now + LINGER,
            };
            connection.stalled = None;
            connection.permit.on_ending();
            self.lingering.push_back((now + LINGER, id));
            connection.wake();
        }
    }

    /// The socket broke or ended.
    pub(super) fn lost(&mut self, now: Instant, id: ConnectionId) -> Step {
        if let Some(key) = self.let_go(id) {
            self.sessions.handle_closed(now, key, false);
        }
        Step::Over
    }

    /// The channel cannot say anything more.
    pub(super) fn broken(&mut self, now: Instant, id: ConnectionId, error: &ChannelError) {
        if let Some(key) = self.let_go(id) {
            self.sessions.handle_broken(now, key, error.label());
        }
    }

    /// Nothing more is done with the connection. Gives the session that it had.
    fn let_go(&mut self, id: ConnectionId) -> Option<SessionKey> {
        let connection = self.connections.get_mut(id.index())?;
        let key = connection.session()?;
        self.by_slot[key.slot as usize] = None;
        connection.stage = Stage::Over;
        connection.wake();
        Some(key)
    }

    /// Everything was said: ends our side, then waits for the peer's end, so that no reset overtakes the last words.
    fn poll_linger(
        &mut self,
        id: ConnectionId,
        (shut, until): (bool, Instant),
        cx: &mut Context<'_>,
    ) -> Poll<Step> {
        let Some(connection) = self.connections.get_mut(id.index()) else {
            return Poll::Ready(Step::Over);
        };
        if !shut {
            connection.stage = Stage::Lingering { shut: true, until };
            let socket = socket2::SockRef::from(&connection.stream);
            if socket.shutdown(std::net::Shutdown::Write).is_err() {
                return Poll::Ready(Step::Over);
            }
        }
        if ready!(connection.stream.poll_read_ready(cx)).is_err() {
            return Poll::Ready(Step::Over);
        }
        match connection.stream.try_read(self.scratch.read_target()) {
            Ok(n) if n > 0 => Poll::Ready(Step::Again),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Step::Again),
            _ => Poll::Ready(Step::Over),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle connection costs is a promise: it may not grow unnoticed.
    #[test]
    fn an_idle_connection_stays_small() {
        let (record, future) = connection_sizes();
        println!("a connection's record weighs {record} bytes, its task's future {future}");
        assert!(record <= 320, "{record}");
        assert!(future <= 32, "{future}");
    }
}
