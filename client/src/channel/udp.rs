//! A connection over datagrams: a socket and two deadlines for the transport, which is pure ([`holdfast_proto::udp`]).
//!
//! Data flows on one task. [`UdpChannel::poll_next`] gives datagrams to the transport and its events to the connection;
//! [`UdpChannel::poll_flush`], at the end of each turn, sends what the transport wants sent and keeps its deadline.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::codes::CloseCode;
use holdfast_proto::udp::{self, Config, Connection, Datagram, Event, MAX_DATAGRAM_BYTES, SendError};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::time::Sleep;

use super::{Fault, Received};
use crate::message::Encoded;
use crate::{Disturbance, Violation};

/// What a channel is made of.
pub(crate) struct Transport {
    /// Not connected, so that the system chooses the source of each datagram anew: a change of this machine's addresses needs nothing.
    pub(crate) socket: UdpSocket,
    pub(crate) connection: Box<Connection>,
    pub(crate) config: Arc<Config>,
}

/// An open connection. It owns the transport until its end.
pub(crate) struct UdpChannel {
    socket: UdpSocket,
    server: SocketAddr,
    connection: Box<Connection>,
    config: Arc<Config>,
    deadline: Pin<Box<Sleep>>,
    /// What `deadline` is set to.
    armed: Option<Instant>,
    /// A datagram that the socket has not taken yet.
    outgoing: Vec<u8>,
    /// A message that found the transport's queue full: until it is in there the channel is not ready.
    held: Option<(MessageKind, Bytes)>,
    /// Messages in there that the server has not acknowledged.
    undelivered: usize,
    /// The close that waits for these, and until when.
    closing: Option<(CloseCode, Instant)>,
    /// Something authentic came that has not been told of.
    heard: bool,
    /// Nothing that comes counts any more: there was a fault.
    input_ended: bool,
    ended: Option<udp::End>,
    /// What the system last said of a datagram that it did not take or carry.
    trouble: Option<io::Error>,
}

impl UdpChannel {
    pub(crate) fn new(transport: Transport) -> Self {
        let Transport {
            socket,
            connection,
            config,
        } = transport;
        Self {
            socket,
            server: connection.peer(),
            connection,
            config,
            deadline: Box::pin(tokio::time::sleep(Duration::ZERO)),
            armed: None,
            outgoing: Vec::new(),
            held: None,
            undelivered: 0,
            closing: None,
            heard: false,
            input_ended: false,
            ended: None,
            trouble: None,
        }
    }

    /// As the other channels': one thing that came. It says that the server lives once per datagram that nobody else can have made,
    /// unless that brought a message.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, Fault>> {
        loop {
            while let Some(event) = self.connection.poll_event(&self.config) {
                if let Some(received) = self.handle_event(event) {
                    self.heard = false;
                    self.input_ended |= received.is_err();
                    return Poll::Ready(received);
                }
            }
            if std::mem::take(&mut self.heard) {
                return Poll::Ready(Ok(Received::Alive));
            }
            match self.ended {
                // It was told as a close, whose acknowledgement may still have to be flushed.
                Some(udp::End::ClosedByPeer) => return Poll::Pending,
                Some(end) => return Poll::Ready(Err(Fault::Broken(self.describe(end)))),
                None => {}
            }
            if let Err(fault) = ready!(self.poll_datagram(cx)) {
                self.input_ended = true;
                return Poll::Ready(Err(fault));
            }
            if !self.heard {
                // It counts as input for whoever bounds the work of a turn.
                return Poll::Ready(Ok(Received::Unproven));
            }
        }
    }

    /// Pending while more waits to be acknowledged than the transport keeps. What comes next makes room, so the task is woken by it.
    /// Pending, too, when the server takes nothing more: why, and whether to come back, is in what of it has still to arrive.
    pub(super) fn poll_ready(&mut self) -> Poll<Result<(), Fault>> {
        if !self.connection.takes_messages() {
            return Poll::Pending;
        }
        let Some((kind, payload)) = self.held.take() else {
            return Poll::Ready(Ok(()));
        };
        match self.put(kind, payload) {
            Ok(()) if self.held.is_some() => Poll::Pending,
            result => Poll::Ready(result),
        }
    }

    pub(super) fn start_send(&mut self, message: Encoded) -> Result<(), Fault> {
        match message {
            Encoded::Text(text) => self.put(MessageKind::Text, text.into()),
            Encoded::Binary(bytes) => self.put(MessageKind::Binary, bytes),
        }
    }

    /// Whoever sent something was told that it is on its way: the close comes when the server has it all, or has had
    /// [`DELIVERY_GRACE`] for it. A close that says what went wrong does not wait. Tells how long it may take to begin.
    pub(super) fn start_close(&mut self, code: CloseCode) -> Duration {
        let now = Instant::now();
        let grace = match code {
            CloseCode::Normal if !self.is_delivered() => DELIVERY_GRACE,
            _ => Duration::ZERO,
        };
        self.closing = Some((code, now + grace));
        self.go_on_closing(now);
        grace
    }

    fn go_on_closing(&mut self, now: Instant) {
        let Some((code, until)) = self.closing else {
            return;
        };
        // What is in there is on its way to the same end.
        let _ = self.poll_ready();
        if now < until && !self.is_delivered() {
            return;
        }
        self.closing = None;
        self.held = None;
        self.connection.close(now, code as u16, code.label());
    }

    fn is_delivered(&self) -> bool {
        self.held.is_none() && self.undelivered == 0
    }

    pub(super) fn ping(&mut self) {
        self.connection.ping();
    }

    /// Ready when the system has taken all that may be sent at the moment.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let flushed = self.poll_transmit(cx);
        self.keep_deadline(cx);
        flushed
    }

    fn put(&mut self, kind: MessageKind, payload: Bytes) -> Result<(), Fault> {
        let sent = self.connection.send(&self.config, kind, payload);
        match sent {
            Ok(()) => {
                self.undelivered += 1;
                Ok(())
            }
            Err(SendError::Full(payload)) => {
                self.held = Some((kind, payload));
                Ok(())
            }
            Err(error @ (SendError::Closed | SendError::TooBig)) => Err(Fault::Broken(error.to_string())),
        }
    }

    /// Gives one datagram to the transport.
    fn poll_datagram(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        // A byte more than any datagram has shows that one was cut.
        let mut bytes = [0; MAX_DATAGRAM_BYTES as usize + 1];
        let mut datagram = ReadBuf::new(&mut bytes);
        match ready!(self.socket.poll_recv_from(cx, &mut datagram)) {
            Ok(from) if (from.ip(), from.port()) == (self.server.ip(), self.server.port()) => {
                Poll::Ready(self.handle_datagram(datagram.filled_mut()))
            }
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => {
                // Anybody can have brought it about. It is the transport that judges silence.
                self.trouble = Some(error);
                Poll::Ready(Ok(()))
            }
        }
    }

    fn handle_datagram(&mut self, datagram: &mut [u8]) -> Result<(), Fault> {
        let own = self.connection.cid();
        match udp::parse(datagram) {
            Ok(Datagram::Data { cid, .. }) if cid == own => {}
            Ok(Datagram::Reset { cid, token }) if cid == own => {
                self.connection.handle_reset(token);
                return Ok(());
            }
            // Among them the answers to a HELLO that went out more than once.
            Ok(_) | Err(_) => return Ok(()),
        }
        // Only a server challenges paths, and needs chance for it.
        let (now, entropy) = (Instant::now(), 0);
        let received = self
            .connection
            .handle_datagram(&self.config, now, self.server, datagram, entropy);
        match received {
            udp::Received::Taken | udp::Received::Refused => self.heard = true,
            udp::Received::Malformed => {
                let what = unreadable("a packet that no server may send");
                return Err(Fault::Server(CloseCode::Protocol, what));
            }
            udp::Received::Duplicate | udp::Received::Forged | udp::Received::Ended => {}
        }
        Ok(())
    }

    fn handle_event(&mut self, event: Event) -> Option<Result<Received, Fault>> {
        match event {
            Event::Message(..) if self.input_ended => Some(Ok(Received::Unproven)),
            Event::Message(MessageKind::Binary, bytes) => Some(Ok(Received::Binary(bytes))),
            Event::Message(MessageKind::Text, text) if std::str::from_utf8(&text).is_err() => {
                let what = unreadable("text that is not UTF-8");
                Some(Err(Fault::Server(CloseCode::InvalidPayload, what)))
            }
            Event::Message(MessageKind::Text, text) => Some(Ok(Received::Text(text))),
            Event::Delivered(messages) => {
                self.undelivered = self.undelivered.saturating_sub(messages);
                self.go_on_closing(Instant::now());
                None
            }
            Event::PeerMoved(_) => None,
            Event::Closed { code, reason } => Some(Ok(Received::CloseFrame {
                code,
                reason,
                proven: true,
            })),
            Event::Ended(end) => {
                self.ended = Some(end);
                (end == udp::End::TooManyForgeries).then_some(Err(Fault::Disturbed(Disturbance::Record)))
            }
        }
    }

    fn describe(&self, end: udp::End) -> String {
        let what = match end {
            udp::End::ClosedByUs => "closed".into(),
            udp::End::ClosedByPeer => "closed by the server".into(),
            udp::End::GaveUp => format!("nothing was acknowledged for {:?}", self.config.give_up),
            udp::End::Reset => "the server does not know this connection any more".into(),
            udp::End::TooManyForgeries => "too many datagrams were not authentic".into(),
        };
        match &self.trouble {
            Some(trouble) if end == udp::End::GaveUp => format!("{what}; the system says: {trouble}"),
            _ => what,
        }
    }

    fn poll_transmit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..DATAGRAMS_PER_TURN {
            if self.outgoing.is_empty() {
                let now = Instant::now();
                let to = self
                    .connection
                    .poll_transmit(&self.config, now, &mut self.outgoing);
                if to.is_none() {
                    self.save_memory();
                    return Poll::Ready(());
                }
            }
            let sent = ready!(self.socket.poll_send_to(cx, &self.outgoing, self.server));
            // A datagram that is not carried is a lost one: it may be that there is no network for a while.
            self.trouble = sent.err();
            self.outgoing.clear();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One process of a load test holds 15,000 devices, of which few send at any moment.
    fn save_memory(&mut self) {
        if self.connection.is_idle() {
            self.outgoing = Vec::new();
        }
    }

    fn keep_deadline(&mut self, cx: &mut Context<'_>) {
        if !self.outgoing.is_empty() {
            // The socket takes nothing. What is due now cannot go out either, and would be due again at once.
            return;
        }
        let close = self.closing.map(|(_, until)| until);
        let Some(at) = [self.connection.poll_timeout(), close]
            .into_iter()
            .flatten()
            .min()
        else {
            return;
        };
        if self.armed != Some(at) {
            self.deadline.as_mut().reset(at.into());
            self.armed = Some(at);
        }
        if self.deadline.as_mut().poll(cx).is_ready() {
            self.armed = None;
            let now = Instant::now();
            self.connection.handle_timeout(&self.config, now);
            self.go_on_closing(now);
            // What follows from it is for another turn.
            cx.waker().wake_by_ref();
        }
    }
}

fn unreadable(what: &str) -> Violation {
    Violation::Unreadable(what.into())
}

/// How long a close waits for what was sent before it.
const DELIVERY_GRACE: Duration = Duration::from_secs(3);
/// Datagrams sent before other tasks get their turn.
const DATAGRAMS_PER_TURN: usize = 64;
