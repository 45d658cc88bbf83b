//! One thread's devices: connects them, sends what is due, judges what comes back.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use holdfast_client::{Builder, Device, Error, PendingReply, Reply, Request, State};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};

use super::pace::Pace;
use super::ticker::Ticker;
use super::{Load, Note, Shared, Wish};
use crate::bench::channel::Dialler;
use crate::bench::order::{Arrival, Order};
use crate::bench::payload::RequestId;
use crate::bench::tally::{Outcome, Sent};

/// Which part of the load a thread carries.
#[derive(Debug, Clone)]
pub(super) struct Share {
    thread: u32,
    devices: Vec<u32>,
    per_second: f64,
}

impl Share {
    pub(super) fn new(load: Load, thread: u32) -> Self {
        let devices: Vec<u32> = (thread..load.devices).step_by(load.threads as usize).collect();
        let per_second = load.rate * devices.len() as f64 / f64::from(load.devices);
        Self {
            thread,
            devices,
            per_second,
        }
    }
}

/// From connecting to the last close. The error is for the user.
pub(super) async fn play(
    share: &Share,
    dialler: &Dialler,
    shared: &Arc<Shared>,
    (mut wishes, notes): (watch::Receiver<Wish>, &mpsc::Sender<Note>),
) -> Result<()> {
    let seats = connect(share, dialler, shared).await?;
    let _ = notes.send(Note::Connected).await;
    let Some(from) = wait_for(&mut wishes, |wish| match wish {
        Wish::Send { from } => Some(Some(*from)),
        Wish::Stop { .. } => Some(None),
        Wish::Connect => None,
    })
    .await
    .flatten() else {
        return Ok(());
    };
    let mut worker = Worker {
        shared: shared.clone(),
        thread: share.thread as usize,
        seats,
        pace: Pace::new(from, share.per_second),
        next_place: 0,
        overdue: 0,
        pending: FuturesUnordered::new(),
    };
    let patience = worker.send(&mut wishes).await?;
    worker.drain(patience).await;
    worker.close().await;
    Ok(())
}

/// `None` when there is nobody left who could wish.
async fn wait_for<T>(wishes: &mut watch::Receiver<Wish>, wanted: impl Fn(&Wish) -> Option<T>) -> Option<T> {
    let mut found = None;
    let seen = wishes.wait_for(|wish| {
        found = wanted(wish);
        found.is_some()
    });
    seen.await.ok()?;
    found
}

async fn connect(share: &Share, dialler: &Dialler, shared: &Arc<Shared>) -> Result<Vec<Seat>> {
    let dials = share.devices.iter().map(|&index| {
        let builder = dialler.builder(index).map(|builder| watch(builder, shared));
        async move {
            let connected = Box::pin(builder?.connect()).await;
            let device = connected.map_err(|e| anyhow!("device {index} cannot connect: {e}"))?;
            Ok::<_, anyhow::Error>(Seat {
                device,
                index,
                due: 0,
                sent: 0,
            })
        }
    });
    let mut dials = futures_util::stream::iter(dials).buffered(CONNECTING);
    let mut seats = Vec::with_capacity(share.devices.len());
    while let Some(seat) = dials.next().await {
        seats.push(seat?);
        shared.connected.fetch_add(1, Ordering::Relaxed);
    }
    Ok(seats)
}

/// Counts the ends of connections that were online, and judges the order of replies as they are read.
fn watch(builder: Builder, shared: &Arc<Shared>) -> Builder {
    let order = Arc::new(Mutex::new(Order::default()));
    let of_connection = order.clone();
    let (is_online, on_state) = (AtomicBool::new(false), shared.clone());
    let (on_reply, on_push) = (shared.clone(), shared.clone());
    builder
        .on_state(move |state| {
            let is_online_now = matches!(state, State::Online(_));
            let was_online = is_online.swap(is_online_now, Ordering::Relaxed);
            if is_online_now {
                *lock(&of_connection) = Order::default();
            }
            if let State::Waiting { error, .. } | State::Closed(error) = state
                && was_online
                // Which is how only our own close is told.
                && *error != Error::Closed
            {
                on_state.tally().handle_drop(error);
            }
        })
        .on_push(move |_| on_push.tally().handle_push())
        .on_reply(move |seq| {
            let arrival = lock(&order).handle_reply(seq);
            if arrival != Arrival::InOrder {
                on_reply.tally().handle_arrival(arrival);
            }
        })
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device, and what it owes.
struct Seat {
    device: Device,
    index: u32,
    /// Requests due so far.
    due: u64,
    /// Requests sent so far.
    sent: u64,
}

struct Worker {
    shared: Arc<Shared>,
    thread: usize,
    seats: Vec<Seat>,
    pace: Pace,
    /// In the thread's schedule: round after round over all seats.
    next_place: u64,
    overdue: u64,
    pending: FuturesUnordered<InFlight>,
}

/// A request that was sent, until its answer comes.
struct InFlight {
    seat: usize,
    number: u64,
    sent: Sent,
    reply: PendingReply,
}

struct Answered {
    seat: usize,
    number: u64,
    sent: Sent,
    result: Result<Reply, Error>,
}

impl Future for InFlight {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        let result = ready!(Pin::new(&mut self.reply).poll(cx));
        Poll::Ready(Answered {
            seat: self.seat,
            number: self.number,
            sent: self.sent,
            result,
        })
    }
}

impl Worker {
    /// Until told to stop; gives how long to wait for what is unanswered.
    async fn send(&mut self, wishes: &mut watch::Receiver<Wish>) -> Result<Duration> {
        let mut ticker = Ticker::new()?;
        loop {
            let due = self.pace.due(self.next_place);
            let time = due.saturating_sub(self.shared.clock.now());
            let stop = wait_for(wishes, |wish| match wish {
                Wish::Stop { patience } => Some(*patience),
                _ => None,
            });
            tokio::select! {
                // Without a conductor nobody waits for what is unanswered.
                patience = stop => return Ok(patience.unwrap_or_default()),
                ticked = ticker.wait(time) => {
                    ticked?;
                    self.send_due();
                    // A thread that is behind must still let its connections work.
                    tokio::task::yield_now().await;
                }
                Some(answered) = self.pending.next() => self.handle_answers(answered),
            }
        }
    }

    fn send_due(&mut self) {
        for _ in 0..SENDS_PER_TURN {
            if self.pace.due(self.next_place) > self.shared.clock.now() {
                break;
            }
            let seat = (self.next_place % self.seats.len() as u64) as usize;
            self.next_place += 1;
            self.overdue += 1;
            self.seats[seat].due += 1;
            self.send_from(seat);
        }
        self.shared.overdue[self.thread].store(self.overdue, Ordering::Relaxed);
    }

    /// Sends what is due on one device, as far as it may have more in flight.
    fn send_from(&mut self, place: usize) {
        let seats = self.seats.len() as u64;
        let seat = &mut self.seats[place];
        while seat.sent < seat.due {
            let number = seat.sent;
            let was_held_back = seat.due - seat.sent > 1;
            let id = RequestId {
                device: seat.index,
                number,
            };
            // It is tried again when a reply comes, and when the next is due.
            let Ok(reply) = seat.device.send(request(&self.shared, id)) else {
                return;
            };
            seat.sent += 1;
            self.overdue -= 1;
            let due = self.pace.due(number * seats + place as u64);
            let sent = Sent {
                due,
                phase: self.shared.phase.get(),
                mark: self.shared.mark.load(Ordering::Relaxed),
            };
            let late = (!was_held_back).then(|| self.shared.clock.now().saturating_sub(due));
            self.shared.tally().handle_sent(&sent, late);
            self.pending.push(InFlight {
                seat: place,
                number,
                sent,
                reply,
            });
        }
    }

    fn handle_answers(&mut self, first: Answered) {
        let mut next = Some(first);
        for _ in 0..ANSWERS_PER_TURN {
            let Some(answered) = next else {
                break;
            };
            let seat = answered.seat;
            self.handle_answer(answered);
            if self.seats[seat].sent < self.seats[seat].due {
                self.send_from(seat);
            }
            next = self.pending.next().now_or_never().flatten();
        }
        if let Some(last) = next {
            self.handle_answer(last);
        }
        self.shared.overdue[self.thread].store(self.overdue, Ordering::Relaxed);
    }

    fn handle_answer(&mut self, answered: Answered) {
        let Answered {
            seat,
            number,
            sent,
            result,
        } = answered;
        let id = RequestId {
            device: self.seats[seat].index,
            number,
        };
        let outcome = match result {
            Ok(reply) => {
                let body = self.shared.payloads.judge(id, &reply.payload);
                Outcome::Reply(body)
            }
            Err(Error::Service { code, .. }) => Outcome::ErrorReply(code),
            Err(error) => Outcome::Lost(why(&error)),
        };
        let now = (self.shared.clock.now(), self.shared.phase.get());
        self.shared.tally().handle_outcome(&sent, &outcome, now);
    }

    async fn drain(&mut self, patience: Duration) {
        let answers = async {
            // What was due is sent as far as answers make room for it.
            while let Some(answered) = self.pending.next().await {
                let seat = answered.seat;
                self.handle_answer(answered);
                self.send_from(seat);
            }
        };
        // Whatever is left then is lost.
        let _ = tokio::time::timeout(patience, answers).await;
        let now = (self.shared.clock.now(), self.shared.phase.get());
        for left in std::mem::take(&mut self.pending) {
            let outcome = Outcome::Lost("unanswered at the end");
            self.shared.tally().handle_outcome(&left.sent, &outcome, now);
        }
        for _ in 0..std::mem::take(&mut self.overdue) {
            self.shared.tally().handle_unsent();
        }
        self.shared.overdue[self.thread].store(0, Ordering::Relaxed);
        // For replies that nobody asked for.
        tokio::time::sleep(LINGER).await;
    }

    async fn close(&mut self) {
        let devices = self
            .seats
            .drain(..)
            .map(|seat| async move { seat.device.close().await });
        futures_util::stream::iter(devices)
            .buffer_unordered(CLOSING)
            .collect::<()>()
            .await;
    }
}

fn request(shared: &Shared, id: RequestId) -> Request {
    let payload = shared.payloads.make(id);
    match RawValue::from_string(payload) {
        Ok(json) if !id.is_binary() => Request::json(NAMESPACE, NAME, json),
        Ok(json) => {
            let text: Box<str> = json.into();
            Request::binary(NAMESPACE, NAME, Bytes::from(text.into_string()))
        }
        Err(error) => unreachable!("payloads are JSON: {error}"),
    }
}

fn why(error: &Error) -> &'static str {
    match error {
        Error::Timeout => "no reply in 60 s",
        Error::Disconnected => "disconnected",
        Error::Protocol(_) => "protocol error",
        Error::TooLarge { .. } => "too large",
        _ => "connection closed for good",
    }
}

/// Of the bench's one route.
pub(crate) const NAMESPACE: &str = "Bench";
const NAME: &str = "Call";
/// Handshakes at a time, per thread.
const CONNECTING: usize = 32;
const CLOSING: usize = 256;
const SENDS_PER_TURN: usize = 64;
const ANSWERS_PER_TURN: usize = 64;
const LINGER: Duration = Duration::from_millis(300);
