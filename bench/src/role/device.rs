//! One device: sends what it is told to, checks what comes.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::line::Line;
use super::load::Load;
use crate::protocol::Speak;

/// What the load generator knows of a device.
pub(super) struct Handle {
    /// How many requests to send now.
    pub(super) orders: mpsc::UnboundedSender<u32>,
    /// Ordered, and not answered yet.
    pub(super) in_flight: Rc<Cell<u32>>,
}

/// A device that is online.
pub(super) struct Device {
    line: Line,
    /// Whether replies are events of the gateway, or what was sent.
    gateway: bool,
    orders: mpsc::UnboundedReceiver<u32>,
    in_flight: Rc<Cell<u32>>,
    load: Rc<Load>,
    next: u64,
    /// Requests without a reply, oldest first: payload bytes, and when it was sent.
    waiting: VecDeque<(usize, Instant)>,
}

impl Device {
    pub(super) fn new(line: Line, speak: &Speak, load: Rc<Load>) -> (Self, Handle) {
        let (sender, orders) = mpsc::unbounded_channel();
        let in_flight = Rc::new(Cell::new(0));
        let handle = Handle {
            orders: sender,
            in_flight: in_flight.clone(),
        };
        let device = Self {
            line,
            gateway: matches!(speak, Speak::Holdfast { .. } | Speak::Records { .. }),
            orders,
            in_flight,
            load,
            next: 1,
            waiting: VecDeque::new(),
        };
        (device, handle)
    }

    /// Until the handle is gone. A failure is the load's.
    pub(super) async fn run(mut self, number: u32) {
        if let Err(error) = self.serve().await {
            self.load.fail(format!("device {number}: {error:#}"));
        }
    }

    async fn serve(&mut self) -> Result<()> {
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    let Some(count) = order else { return Ok(()) };
                    for _ in 0..count {
                        self.request().await?;
                    }
                }
                text = self.line.next() => {
                    self.on_text(text?).await?;
                    // What has come together is answered together.
                    while let Some(text) = self.line.next_now() {
                        self.on_text(text?).await?;
                    }
                }
            }
            self.line.flush().await?;
        }
    }

    async fn request(&mut self) -> Result<()> {
        let payload = self.load.payload();
        let text = request_text(self.next, payload);
        self.next += 1;
        self.waiting.push_back((payload, Instant::now()));
        self.line.feed(text).await
    }

    async fn on_text(&mut self, text: Option<String>) -> Result<()> {
        let Some(text) = text else { return Ok(()) };
        let event: Event<'_> = serde_json::from_str(&text).with_context(|| format!("unexpected {text:?}"))?;
        if event.header.name == PUSH_NAME {
            self.load.on_push();
            return Ok(());
        }
        let seq = self.next - self.waiting.len() as u64;
        let (payload, sent) = self.waiting.pop_front().context("a reply too many")?;
        if !self.is_reply(&text, &event, (seq, payload)) {
            bail!("expected the reply to request {seq}, got {text}");
        }
        self.load.on_answer(sent);
        if self.load.take_next() {
            self.request().await
        } else {
            self.in_flight.set(self.in_flight.get() - 1);
            Ok(())
        }
    }

    fn is_reply(&self, text: &str, event: &Event<'_>, (seq, payload): (u64, usize)) -> bool {
        if !self.gateway {
            return text == request_text(seq, payload);
        }
        event.header.name == REPLY_NAME
            && event.header.seq == Some(seq)
            && event.payload.get() == payload_text(seq, payload)
    }
}

const PUSH_NAME: &str = "Push";
const REPLY_NAME: &str = "Echo.Reply";

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    header: Header<'a>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Header<'a> {
    name: &'a str,
    seq: Option<u64>,
}

/// A JSON string of `bytes` bytes, quotes included, that no other request of its device has.
pub(super) fn payload_text(seq: u64, bytes: usize) -> String {
    format!("\"{seq:0>width$}\"", width = bytes.saturating_sub(2))
}

fn request_text(seq: u64, bytes: usize) -> String {
    let payload = payload_text(seq, bytes);
    format!(r#"{{"header":{{"namespace":"Bench","name":"Echo","id":"{seq}"}},"payload":{payload}}}"#)
}

/// The body of a push to one device, for gateway and bare server alike.
pub(super) fn push_body(device: &str, seq: u64, bytes: usize) -> String {
    let payload = payload_text(seq, bytes);
    format!(
        r#"{{"to":{{"device":"{device}"}},"namespace":"Bench","name":"{PUSH_NAME}","payload":{payload}}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_the_size_asked_for() {
        assert_eq!(payload_text(7, 128).len(), 128);
        assert_eq!(payload_text(7, 6), "\"0007\"");
    }

    #[test]
    fn requests_and_replies_are_read() {
        let text = request_text(3, 8);
        let event: Event<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (event.header.name, event.header.seq, event.payload.get()),
            ("Echo", None, "\"000003\"")
        );
    }
}
