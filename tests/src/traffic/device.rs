//! One device of the traffic: sends at its pace, records all that it sees.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_proto::ErrorCode;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_tungstenite::tungstenite::Message;

use super::{Shared, lock};
use crate::device::{Device, Incoming};
use crate::history::{Conn, Domain, Event, Form, Outcome, digest};
use crate::wire::BinaryHeader;

/// After the last request a reply comes within this, or it does not come.
const LAST_REPLY: Duration = Duration::from_secs(60);
/// Requests in flight at which a device waits before it sends more, as a device in its right mind does.
const WINDOW: usize = 24;

struct Run {
    shared: Arc<Shared>,
    conn: Conn,
    device: Device,
    sent: u32,
    /// Sending times of unanswered requests, by number.
    waiting: VecDeque<(u32, Instant)>,
    closed: bool,
}

/// Sends until told to stop, then reads until everything is answered, then listens until a last `@pong`: what was sent
/// twice or to the wrong device would come before it. Gives the device back still connected.
pub(super) async fn run(
    shared: Arc<Shared>,
    conn: Conn,
    device: Device,
    mut stop: watch::Receiver<bool>,
) -> Device {
    let plan = shared.plan;
    let period = Duration::from_secs(1) * plan.devices / plan.per_second;
    let mut ticks = interval_at(Instant::now() + period * conn.0 / plan.devices, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut run = Run {
        shared,
        conn,
        device,
        sent: 0,
        waiting: VecDeque::new(),
        closed: false,
    };
    while !run.closed {
        tokio::select! {
            _ = ticks.tick(), if run.waiting.len() < WINDOW => run.send().await,
            message = run.device.next() => run.see(message),
            _ = stop.changed() => break,
        }
    }
    while !run.closed && !run.waiting.is_empty() {
        match run.device.next_within(LAST_REPLY).await {
            Some(message) => run.see(message),
            None => break,
        }
    }
    run.last_round().await;
    run.device
}

impl Run {
    async fn send(&mut self) {
        self.sent += 1;
        let (conn, seq) = (self.conn, self.sent);
        let binary = rand::random_ratio(1, 4);
        let id = format!("{}-{seq}", conn.0);
        let payload = self.payload();
        let message = if binary {
            let (namespace, name) = ("Demo".to_owned(), "Echo".to_owned());
            let header = BinaryHeader {
                namespace,
                name,
                id: id.clone(),
                ..BinaryHeader::default()
            };
            Message::binary(header.encode(payload.as_bytes()))
        } else {
            let header = format!(r#"{{"namespace":"Demo","name":"Echo","id":"{id}"}}"#);
            Message::text(format!(r#"{{"header":{header},"payload":{payload}}}"#))
        };
        self.shared.record(Event::Sent {
            conn,
            seq,
            domain: Domain::CONNECTION,
            form: if binary { Form::Binary } else { Form::Text },
            id: digest(id.as_bytes()),
            body: digest(payload.as_bytes()),
        });
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        self.waiting.push_back((seq, Instant::now()));
        // When it fails, the close that follows is what gets recorded.
        self.device.try_send(message).await.ok();
    }

    /// Unique over all connections, so that a reply to another device's request cannot look right.
    fn payload(&self) -> String {
        let plan = self.shared.plan;
        let delay = rand::random_range(0..=plan.max_delay_ms);
        let start = format!(
            r#"{{"c":{},"n":{},"delay_ms":{delay},"pad":""#,
            self.conn.0, self.sent
        );
        let padding = "x".repeat(plan.payload_bytes.saturating_sub(start.len() + 2));
        format!("{start}{padding}\"}}")
    }

    fn see(&mut self, message: Incoming) {
        let conn = self.conn;
        let event = match message {
            Incoming::Reply(reply) => {
                let outcome = Outcome::Body(digest(&reply.payload));
                self.replied(reply.seq, reply.binary, &reply.reply_to, outcome)
            }
            Incoming::Error(error) => {
                match ErrorCode::ALL.into_iter().find(|code| code.label() == error.code) {
                    Some(code) => {
                        self.replied(error.seq, error.binary, &error.reply_to, Outcome::Error(code))
                    }
                    None => Event::Unknown { conn },
                }
            }
            Incoming::Push(push) => Event::Pushed {
                conn,
                id: digest(&push.payload),
            },
            Incoming::Closed { code, .. } => {
                self.closed = true;
                Event::Closed { conn, code }
            }
            Incoming::Ping => return,
            Incoming::Control { .. } | Incoming::Malformed(_) => Event::Unknown { conn },
        };
        self.shared.record(event);
    }

    fn replied(&mut self, seq: u64, binary: bool, reply_to: &str, outcome: Outcome) -> Event {
        let seq = u32::try_from(seq).unwrap_or(u32::MAX);
        if let Some(place) = self.waiting.iter().position(|(number, _)| *number == seq)
            && let Some((_, at)) = self.waiting.remove(place)
        {
            lock(&self.shared.latencies).push(at.elapsed());
        }
        Event::Replied {
            conn: self.conn,
            seq,
            binary,
            id: digest(reply_to.as_bytes()),
            outcome,
        }
    }

    async fn last_round(&mut self) {
        if self.closed || self.device.try_send(Message::text("@ping")).await.is_err() {
            return;
        }
        loop {
            match self.device.next_within(LAST_REPLY).await {
                Some(Incoming::Control { word, .. }) if word == "@pong" => return,
                Some(message) => self.see(message),
                None => return,
            }
            if self.closed {
                return;
            }
        }
    }
}
