//! One connection from `@hello` to its end: a single poll function over the socket, so that reading never waits for writing
//! (a server whose window is full stops reading, and must still be able to hand over its replies).

mod end;
mod incoming;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holdfast_proto::codes::CloseCode;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use self::end::{ABNORMAL_CLOSURE, closed_by_server};
pub(crate) use self::end::{End, LastLoss};
use crate::builder::Builder;
use crate::channel::Channel;
use crate::driver::{CloseSignal, Observer};
use crate::heartbeat::{Beat, Heartbeat};
use crate::in_flight::InFlight;
use crate::message::{self, Encoded, Goodbye};
use crate::outbox::{Outbox, Outgoing, Waiter};
use crate::{Error, Reply, Request, Welcome};

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
    pub(crate) channel: Box<Channel>,
    link: Link,
}

/// What changes while a connection lasts.
struct Link {
    phase: Phase,
    in_flight: InFlight<Waiting>,
    timer: Pin<Box<Sleep>>,
    goodbye: Option<Goodbye>,
    unflushed: bool,
    /// The network took no more when it was last asked to.
    blocked: bool,
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
        channel: Box<Channel>,
    ) -> Self {
        let link = Link {
            phase: Phase::Greeting,
            in_flight: InFlight::new(settings.expect_order),
            timer: Box::pin(tokio::time::sleep(settings.connect_timeout)),
            goodbye: None,
            unflushed: false,
            blocked: false,
            closed_by_peer: false,
        };
        Self {
            settings,
            observer,
            outbox,
            closing,
            channel,
            link,
        }
    }

    /// Runs to the end. Also gives how long the device was online.
    pub(crate) async fn run(mut self, last_loss: &mut LastLoss) -> (End, Duration) {
        let since = |phase: &Phase| match phase {
            Phase::Online { since, .. } => Some(*since),
            _ => None,
        };
        let mut online = None;
        let hello = Encoded::Text(message::hello(&self.settings.instance));
        let mut end = match self.send(hello) {
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
        if let Some(goodbye) = self.link.goodbye.take() {
            end.heed(goodbye);
        }
        // Whether requests are kept hangs on it.
        last_loss.judge(&mut end, Instant::now());
        let will_reconnect = end.may_reconnect && self.settings.reconnect;
        self.settle(will_reconnect);
        (end, online.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Those who still wait hear that the outcome is unknown, or their requests are kept for the next connection.
    fn settle(self, will_reconnect: bool) {
        let mut again = Vec::new();
        for waiting in self.link.in_flight.into_waiters() {
            match waiting.again {
                Some(request) if will_reconnect && !waiting.sender.is_closed() => again.push(Outgoing {
                    request,
                    waiter: Waiter::Reply(waiting.sender),
                }),
                _ => drop(waiting.sender.send(Err(Error::Disconnected))),
            }
        }
        self.outbox.send_again(again);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // The owner's wishes come before reading as well as after: a server that sends without pause uses up the turn's budget,
        // after which nothing else is ever ready. Silence is judged after reading only.
        let turn = self
            .check_wishes(cx)
            .and_then(|()| self.write(cx))
            .and_then(|()| self.read(cx))
            .and_then(|()| self.write(cx))
            .and_then(|()| self.check_timer(cx))
            .and_then(|()| self.flush(cx));
        match turn {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..READS_PER_TURN {
            match self.channel.poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(received)) => self.handle_received(received),
                Poll::Ready(Err(fault)) => self.handle_fault(fault)?,
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// The end when the socket is gone: as announced, if it was.
    fn broken(&mut self, what: &str) -> End {
        if let Phase::Ending(end) = &self.link.phase {
            return end.clone();
        }
        match self.link.goodbye.take() {
            Some(goodbye) => closed_by_server(ABNORMAL_CLOSURE, String::new(), Some(goodbye)),
            None => End::broken(Error::Connect(format!("the connection broke: {what}"))),
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..WRITES_PER_TURN {
            let Phase::Online { welcome, .. } = &self.link.phase else {
                return Ok(());
            };
            let limit = welcome.max_message;
            match self.channel.poll_ready(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(fault)) => return self.handle_fault(fault),
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
        self.send(encoded)
    }

    fn send(&mut self, message: Encoded) -> Result<(), End> {
        if let Phase::Online { heartbeat, .. } = &mut self.link.phase {
            heartbeat.handle_sent(Instant::now());
        }
        self.link.unflushed = true;
        match self.channel.start_send(message) {
            Ok(()) => Ok(()),
            Err(fault) => self.handle_fault(fault),
        }
    }

    /// The owner's close, and the end of a phase that has a fixed one.
    fn check_wishes(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if self.closing.poll(cx).is_ready() {
            let end = End {
                may_reconnect: false,
                ..End::broken(Error::Closed)
            };
            self.begin_close(CloseCode::Normal, end);
        }
        if matches!(self.link.phase, Phase::Online { .. }) {
            return Ok(());
        }
        self.check_timer(cx)
    }

    fn check_timer(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
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
                Beat::SendPing if self.channel.ping() => Ok(()),
                Beat::SendPing => match self.channel.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        heartbeat.handle_asked(now);
                        self.send(Encoded::Text(message::PING.to_owned()))
                    }
                    Poll::Ready(Err(fault)) => self.handle_fault(fault),
                    // Bytes are already under way; a ping behind them would prove nothing more.
                    Poll::Pending => Ok(()),
                },
            },
        }
    }

    /// Whether the server may have stopped reading because its window for us is full, or it cannot have what we say soon because the
    /// network takes no more of what is before it.
    fn is_stalled(&self) -> bool {
        if self.link.blocked {
            return true;
        }
        let load = self.link.in_flight.awaited();
        match &self.link.phase {
            Phase::Online { welcome, .. } => {
                load.requests >= welcome.window as usize || load.bytes >= SERVER_WINDOW_BYTES
            }
            _ => false,
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if !self.link.unflushed && !self.channel.wants_flush() {
            return Ok(());
        }
        let flushed = self.channel.poll_flush(cx);
        self.link.blocked = flushed.is_pending();
        match flushed {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                self.link.unflushed = false;
                if self.link.closed_by_peer {
                    Err(self.broken("closed"))
                } else {
                    Ok(())
                }
            }
            Poll::Ready(Err(fault)) => self.handle_fault(fault),
        }
    }
}

/// Messages handled, and requests sent, before other tasks get their turn.
const READS_PER_TURN: usize = 64;
const WRITES_PER_TURN: usize = 64;
/// The server's default window in bytes; `@welcome` does not name it.
const SERVER_WINDOW_BYTES: usize = 256 << 10;
