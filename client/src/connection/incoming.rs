//! What the server's messages do to a connection.

use std::time::{Duration, Instant};

use holdfast_proto::codes::CloseCode;

use super::end::{End, closed_by_server};
use super::{Connection, Phase};
use crate::channel::{Fault, Received};
use crate::heartbeat::{Beat, Heartbeat};
use crate::message::{self, Incoming};
use crate::state::Counters;
use crate::{Error, Reply, Violation, Welcome};

impl Connection<'_> {
    pub(super) fn handle_received(&mut self, received: Received) {
        if let Phase::Online { heartbeat, .. } = &mut self.link.phase
            && received != Received::Unproven
        {
            let now = Instant::now();
            heartbeat.handle_heard(now);
            if self.channel.acknowledges() {
                heartbeat.handle_sent(now);
            }
        }
        match received {
            Received::Text(text) => self.handle_message(message::decode_text(text)),
            Received::Binary(bytes) => self.handle_message(message::decode_binary(bytes)),
            // The channel may owe a pong.
            Received::Alive | Received::Unproven => self.link.unflushed = true,
            Received::Closing { code, reason } => self.handle_close(code, reason),
            Received::CloseFrame { code, reason, proven } => {
                self.link.unflushed = true;
                self.link.closed_by_peer = true;
                if proven {
                    self.handle_close(code, reason);
                } else if !matches!(self.link.phase, Phase::Ending(_)) {
                    // Anybody can have sent it: it says no more than that the connection is lost.
                    let end = self.broken(&format!("closed with {code} {reason:?}, without proof"));
                    self.start_ending(end, Duration::ZERO);
                }
            }
        }
    }

    /// The end when the socket is gone; otherwise the connection is closed with the reason.
    pub(super) fn handle_fault(&mut self, fault: Fault) -> Result<(), End> {
        match fault {
            Fault::Broken(what) => return Err(self.broken(&what)),
            Fault::Server(code, violation) => self.give_up(code, violation),
            Fault::Disturbed(disturbance) => {
                let end = End::broken(Error::Disturbed(disturbance));
                self.begin_close(disturbance.close_code(), end);
            }
        }
        Ok(())
    }

    fn handle_message(&mut self, incoming: Result<Incoming, String>) {
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
            Ok(Incoming::Pong) => {
                if let Phase::Online { heartbeat, .. } = &mut self.link.phase {
                    heartbeat.handle_answered();
                }
            }
            Ok(Incoming::OtherControl) => {}
            Err(what) => self.give_up(CloseCode::Protocol, Violation::Unreadable(what.into())),
        }
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
                self.give_up(CloseCode::Protocol, violation);
            }
        }
    }

    /// The server broke the protocol: counted, and the connection closed.
    fn give_up(&mut self, code: CloseCode, violation: Violation) {
        Counters::add(&self.observer.counters.violations);
        tracing::debug!(%violation, "protocol error");
        self.begin_close(code, End::broken(Error::Protocol(violation)));
    }

    fn handle_close(&mut self, code: u16, reason: String) {
        if matches!(self.link.phase, Phase::Ending(_)) {
            return;
        }
        let goodbye = self.link.goodbye.take();
        self.start_ending(closed_by_server(code, reason, goodbye), Duration::ZERO);
    }

    pub(super) fn begin_close(&mut self, code: CloseCode, end: End) {
        if matches!(self.link.phase, Phase::Ending(_)) {
            return;
        }
        let wait = self.channel.start_close(code);
        self.link.unflushed = true;
        self.start_ending(end, wait);
    }

    /// `wait`: how long the close itself may take to begin.
    fn start_ending(&mut self, end: End, wait: Duration) {
        self.link.phase = Phase::Ending(end);
        self.link
            .timer
            .as_mut()
            .reset(tokio::time::Instant::now() + wait + CLOSE_GRACE);
    }
}

/// How long the server may take to answer a close frame and hang up.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
