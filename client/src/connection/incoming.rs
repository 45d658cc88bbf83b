//! What the server's messages do to a connection.

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Sink;
use holdfast_proto::codes::CloseCode;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::end::{End, NO_CLOSE_CODE, closed_by_server};
use super::{Connection, Phase};
use crate::heartbeat::{Beat, Heartbeat};
use crate::message::{self, Incoming};
use crate::state::Counters;
use crate::{Error, Reply, Violation, Welcome};

impl Connection<'_> {
    pub(super) fn handle_message(&mut self, message: Message) -> Result<(), End> {
        if let Phase::Online { heartbeat, .. } = &mut self.link.phase {
            heartbeat.handle_heard(Instant::now());
        }
        let incoming = match message {
            Message::Text(text) => message::decode_text(Bytes::from(text)),
            Message::Binary(bytes) => message::decode_binary(bytes),
            Message::Close(frame) => {
                self.handle_close(frame);
                return Ok(());
            }
            // tungstenite has queued the pong.
            Message::Ping(_) => {
                self.link.unflushed = true;
                return Ok(());
            }
            Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        match incoming {
            Ok(Incoming::Reply(reply)) => {
                let (seq, reply_to) = (reply.seq, reply.reply_to.clone());
                self.handle_reply(seq, reply_to.as_deref(), Ok(reply))
            }
            Ok(Incoming::Failure { seq, reply_to, error }) => {
                self.handle_reply(seq, reply_to.as_deref(), Err(error))
            }
            Ok(Incoming::Push(push)) => self.observer.handle_push(push),
            Ok(Incoming::Welcome(welcome)) => self.handle_welcome(welcome),
            Ok(Incoming::Goodbye(goodbye)) => self.link.goodbye = Some(goodbye),
            Ok(Incoming::OtherControl) => {}
            Err(what) => self.give_up(Violation::Unreadable(what.into())),
        }
        Ok(())
    }

    fn handle_welcome(&mut self, welcome: Welcome) {
        if !matches!(self.link.phase, Phase::Greeting) {
            return;
        }
        let now = Instant::now();
        let mut heartbeat = Heartbeat::new(welcome.heartbeat, now);
        if let Beat::Wait { until } = heartbeat.poll(now, false) {
            self.link.timer.as_mut().reset(until.into());
        }
        self.observer.handle_online(welcome.clone());
        self.link.phase = Phase::Online {
            welcome,
            heartbeat,
            since: now,
        };
    }

    fn handle_reply(&mut self, seq: u64, reply_to: Option<&str>, result: Result<Reply, Error>) {
        if let Some(handler) = &self.settings.on_reply {
            handler(seq);
        }
        match self.link.in_flight.handle_reply(seq, reply_to) {
            Ok(Some(waiting)) => drop(waiting.sender.send(result)),
            Ok(None) => {}
            Err((violation, waiting)) => {
                if let Some(waiting) = waiting {
                    drop(waiting.sender.send(Err(Error::Protocol(violation.clone()))));
                }
                self.give_up(violation);
            }
        }
    }

    /// The server broke the protocol: counted, and the connection closed.
    fn give_up(&mut self, violation: Violation) {
        Counters::add(&self.observer.counters.violations);
        tracing::debug!(%violation, "protocol error");
        self.begin_close(CloseCode::Protocol, End::broken(Error::Protocol(violation)));
    }

    fn handle_close(&mut self, frame: Option<CloseFrame>) {
        self.link.unflushed = true;
        self.link.closed_by_peer = true;
        if matches!(self.link.phase, Phase::Ending(_)) {
            return;
        }
        let (code, reason) = frame.map_or((NO_CLOSE_CODE, String::new()), |frame| {
            (frame.code.into(), frame.reason.to_string())
        });
        let goodbye = self.link.goodbye.take();
        self.start_ending(closed_by_server(code, reason, goodbye));
    }

    pub(super) fn begin_close(&mut self, code: CloseCode, end: End) {
        if matches!(self.link.phase, Phase::Ending(_)) {
            return;
        }
        let frame = CloseFrame {
            code: (code as u16).into(),
            reason: code.label().into(),
        };
        // A socket that takes no close frame is closed by dropping it.
        let _ = Pin::new(&mut *self.socket).start_send(Message::Close(Some(frame)));
        self.link.unflushed = true;
        self.start_ending(end);
    }

    fn start_ending(&mut self, end: End) {
        self.link.phase = Phase::Ending(end);
        self.link
            .timer
            .as_mut()
            .reset(tokio::time::Instant::now() + CLOSE_GRACE);
    }
}

/// How long the server may take to answer a close frame and hang up.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
