//! One connection from `@hello` to its end: a single poll function over the socket, so that reading never waits for writing
//! (a server whose window is full stops reading, and must still be able to hand over its replies).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use holdfast_proto::codes::CloseCode;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::builder::Builder;
use crate::dial::Socket;
use crate::driver::{CloseSignal, Observer, Outbox, Outgoing, Waiter};
use crate::heartbeat::{Beat, Heartbeat};
use crate::in_flight::InFlight;
use crate::message::{self, Encoded, Goodbye, Incoming};
use crate::state::Counters;
use crate::{Error, Reply, Request, Welcome};

/// Why a connection ended, and what may follow.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) error: Error,
    pub(crate) hint: Option<Duration>,
    pub(crate) may_reconnect: bool,
}

impl End {
    fn broken(error: Error) -> Self {
        Self {
            error,
            hint: None,
            may_reconnect: true,
        }
    }
}

/// Someone who waits for a reply, and the request if it may be sent again.
pub(crate) struct Waiting {
    sender: oneshot::Sender<Result<Reply, Error>>,
    again: Option<Request>,
}

pub(crate) struct Connection<'a> {
    pub(crate) settings: &'a Builder,
    pub(crate) observer: &'a Observer,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) closing: &'a mut CloseSignal,
    pub(crate) socket: Box<Socket>,
    link: Link,
}

/// What changes while a connection lasts.
struct Link {
    phase: Phase,
    in_flight: InFlight<Waiting>,
    timer: Pin<Box<Sleep>>,
    goodbye: Option<Goodbye>,
    unflushed: bool,
    /// The server's close frame came: once ours is flushed there is nothing more to wait for.
    closed_by_peer: bool,
}

enum Phase {
    /// `@hello` was sent. Next: `Online` or `Ending`.
    Greeting,
    /// `@welcome` came. Next: `Ending`.
    Online {
        welcome: Welcome,
        heartbeat: Heartbeat,
        since: Instant,
    },
    /// A close frame was sent or received; over when the server hangs up, or soon.
    Ending(End),
}

impl<'a> Connection<'a> {
    pub(crate) fn new(
        settings: &'a Builder,
        observer: &'a Observer,
        outbox: &'a mut Outbox,
        closing: &'a mut CloseSignal,
        socket: Box<Socket>,
    ) -> Self {
        let link = Link {
            phase: Phase::Greeting,
            in_flight: InFlight::new(settings.expect_order),
            timer: Box::pin(tokio::time::sleep(settings.connect_timeout)),
            goodbye: None,
            unflushed: false,
            closed_by_peer: false,
        };
        Self {
            settings,
            observer,
            outbox,
            closing,
            socket,
            link,
        }
    }

    /// Runs to the end. Also gives how long the device was online.
    pub(crate) async fn run(mut self) -> (End, Duration) {
        let since = |phase: &Phase| match phase {
            Phase::Online { since, .. } => Some(*since),
            _ => None,
        };
        let mut online = None;
        let hello = Message::text(message::hello(&self.settings.instance));
        let end = match self.send(hello) {
            Err(end) => end,
            Ok(()) => {
                poll_fn(|cx| {
                    let polled = self.poll(cx);
                    online = online.or(since(&self.link.phase));
                    polled
                })
                .await
            }
        };
        let will_reconnect = end.may_reconnect && self.settings.reconnect;
        self.settle(will_reconnect);
        (end, online.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Those who still wait hear that the outcome is unknown, or their requests are kept for the next connection.
    fn settle(self, will_reconnect: bool) {
        for waiting in self.link.in_flight.into_waiters() {
            match waiting.again {
                Some(request) if will_reconnect && !waiting.sender.is_closed() => {
                    self.outbox.send_again(Outgoing {
                        request,
                        waiter: Waiter::Reply(waiting.sender),
                    });
                }
                _ => drop(waiting.sender.send(Err(Error::Disconnected))),
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let turn = self
            .read(cx)
            .and_then(|()| self.write(cx))
            .and_then(|()| self.check_clocks(cx))
            .and_then(|()| self.flush(cx));
        match turn {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..READS_PER_TURN {
            match Pin::new(&mut *self.socket).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(message))) => self.handle_message(message)?,
                Poll::Ready(Some(Err(error))) => return Err(self.broken(&error.to_string())),
                Poll::Ready(None) => return Err(self.broken("the server hung up")),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// The end when the socket is gone: as announced, if it was.
    fn broken(&mut self, what: &str) -> End {
        match (&self.link.phase, self.link.goodbye.take()) {
            (Phase::Ending(end), _) => end.clone(),
            (_, Some(goodbye)) => closed_by_server(ABNORMAL_CLOSURE, String::new(), Some(goodbye)),
            (_, None) => End::broken(Error::Connect(format!("the connection broke: {what}"))),
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), End> {
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
            Err(what) => self.give_up(what),
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
        match self.link.in_flight.handle_reply(seq, reply_to) {
            Ok(Some(waiting)) => drop(waiting.sender.send(result)),
            Ok(None) => {}
            Err((violation, waiting)) => {
                let what = violation.to_string();
                if let Some(waiting) = waiting {
                    drop(waiting.sender.send(Err(Error::Protocol(what.clone()))));
                }
                self.give_up(what);
            }
        }
    }

    /// The server broke the protocol: counted, and the connection closed.
    fn give_up(&mut self, what: String) {
        Counters::add(&self.observer.counters.violations);
        tracing::debug!(what, "protocol error");
        self.begin_close(CloseCode::Protocol, End::broken(Error::Protocol(what)));
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

    fn begin_close(&mut self, code: CloseCode, end: End) {
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

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..WRITES_PER_TURN {
            let Phase::Online { welcome, .. } = &self.link.phase else {
                return Ok(());
            };
            let limit = welcome.max_message;
            match Pin::new(&mut *self.socket).poll_ready(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(self.broken(&error.to_string())),
            }
            match self.outbox.poll_next(cx) {
                Poll::Ready(Some(outgoing)) => self.send_request(outgoing, limit)?,
                Poll::Ready(None) | Poll::Pending => return Ok(()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn send_request(&mut self, outgoing: Outgoing, limit: usize) -> Result<(), End> {
        let Outgoing { mut request, waiter } = outgoing;
        if waiter.is_abandoned() {
            return Ok(());
        }
        let id = request.id.take().unwrap_or_else(|| self.outbox.make_id());
        let encoded = message::encode(&request, &id);
        let bytes = encoded.len();
        if bytes > limit {
            waiter.fail(Error::TooLarge { bytes, limit });
            return Ok(());
        }
        let waiting = match waiter {
            Waiter::Sent(sender) => {
                drop(sender.send(Ok(())));
                None
            }
            Waiter::Reply(sender) => {
                request.id = Some(id.clone());
                let again = request.retry_key.is_some().then_some(request);
                Some(Waiting { sender, again })
            }
        };
        self.link.in_flight.handle_sent(&id, bytes, waiting);
        self.link.in_flight.forget(|waiting| waiting.sender.is_closed());
        self.send(match encoded {
            Encoded::Text(text) => Message::text(text),
            Encoded::Binary(bytes) => Message::binary(bytes),
        })
    }

    fn send(&mut self, message: Message) -> Result<(), End> {
        if let Phase::Online { heartbeat, .. } = &mut self.link.phase {
            heartbeat.handle_sent(Instant::now());
        }
        self.link.unflushed = true;
        Pin::new(&mut *self.socket)
            .start_send(message)
            .map_err(|error| self.broken(&error.to_string()))
    }

    fn check_clocks(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if self.closing.poll(cx).is_ready() {
            let end = End {
                error: Error::Closed,
                hint: None,
                may_reconnect: false,
            };
            self.begin_close(CloseCode::Normal, end);
        }
        while self.link.timer.as_mut().poll(cx).is_ready() {
            self.handle_timer(cx)?;
        }
        Ok(())
    }

    fn handle_timer(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let stalled = self.is_stalled();
        let now = Instant::now();
        match &mut self.link.phase {
            Phase::Greeting => Err(End::broken(Error::Connect("no @welcome in time".into()))),
            Phase::Ending(end) => Err(end.clone()),
            Phase::Online { heartbeat, .. } => match heartbeat.poll(now, stalled) {
                Beat::Wait { until } => {
                    self.link.timer.as_mut().reset(until.into());
                    Ok(())
                }
                Beat::Dead => Err(End::broken(Error::HeartbeatTimeout)),
                Beat::SendPing => match Pin::new(&mut *self.socket).poll_ready(cx) {
                    Poll::Ready(Ok(())) => self.send(Message::text(message::PING)),
                    Poll::Ready(Err(error)) => Err(self.broken(&error.to_string())),
                    // Bytes are already under way; a ping behind them would prove nothing more.
                    Poll::Pending => Ok(()),
                },
            },
        }
    }

    /// Whether the server may have stopped reading because its window for us is full.
    fn is_stalled(&self) -> bool {
        let load = self.link.in_flight.awaited();
        match &self.link.phase {
            Phase::Online { welcome, .. } => {
                load.requests >= welcome.window as usize || load.bytes >= SERVER_WINDOW_BYTES
            }
            _ => false,
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if !self.link.unflushed {
            return Ok(());
        }
        match Pin::new(&mut *self.socket).poll_flush(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                self.link.unflushed = false;
                if self.link.closed_by_peer {
                    Err(self.broken("closed"))
                } else {
                    Ok(())
                }
            }
            Poll::Ready(Err(error)) => Err(self.broken(&error.to_string())),
        }
    }
}

/// What a close frame and the `@goodbye` before it mean together.
fn closed_by_server(code: u16, reason: String, goodbye: Option<Goodbye>) -> End {
    let by_code = CloseCode::from_u16(code).is_none_or(CloseCode::may_reconnect);
    let (may, hint, word) = match goodbye {
        Some(goodbye) => (goodbye.reconnect, goodbye.retry_after, goodbye.code),
        None => (true, None, String::new()),
    };
    let reason = if reason.is_empty() { word } else { reason };
    End {
        error: Error::ClosedByServer { code, reason },
        hint,
        may_reconnect: may && by_code,
    }
}

/// Messages handled, and requests sent, before other tasks get their turn.
const READS_PER_TURN: usize = 64;
const WRITES_PER_TURN: usize = 64;
/// How long the server may take to answer a close frame and hang up.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// The server's default window in bytes; `@welcome` does not name it.
const SERVER_WINDOW_BYTES: usize = 256 << 10;
/// RFC 6455 section 7.4.1: no code in the close frame, and no close frame at all.
const NO_CLOSE_CODE: u16 = 1005;
const ABNORMAL_CLOSURE: u16 = 1006;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_goodbyes_say_whether_to_come_back() {
        for (code, may) in [
            (1000, false),
            (1001, true),
            (1013, true),
            (4000, false),
            (4001, false),
            (4004, false),
        ] {
            assert_eq!(
                closed_by_server(code, String::new(), None).may_reconnect,
                may,
                "{code}"
            );
        }
        assert!(closed_by_server(4999, String::new(), None).may_reconnect);
        let goodbye = |reconnect| Goodbye {
            code: "going_away".into(),
            retry_after: Some(Duration::from_secs(3)),
            reconnect,
        };
        assert!(!closed_by_server(1001, String::new(), Some(goodbye(false))).may_reconnect);
        let end = closed_by_server(1001, String::new(), Some(goodbye(true)));
        assert_eq!(
            (end.may_reconnect, end.hint),
            (true, Some(Duration::from_secs(3)))
        );
        assert_eq!(
            end.error,
            Error::ClosedByServer {
                code: 1001,
                reason: "going_away".into()
            }
        );
    }
}
