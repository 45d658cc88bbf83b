//! What one device asks and hears: requests, the replies to them in order, and pushes.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::load::Load;

/// Requests without a reply, oldest first: payload bytes, and when each was made.
#[derive(Default)]
pub(super) struct Exchange {
    waiting: VecDeque<(usize, Instant)>,
    made: u64,
}

/// What a text was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Push,
    Answer,
}

impl Exchange {
    /// The next request's text.
    pub(super) fn request(&mut self, load: &Load) -> String {
        let payload = load.payload();
        self.made += 1;
        self.waiting.push_back((payload, Instant::now()));
        request_text(self.made, payload)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Takes a text, tells the load of it, and gives back memory that is not needed. `gateway`: whether replies are events of the
    /// gateway, or what was sent.
    ///
    /// # Errors
    /// When it is not what had to come.
    pub(super) fn on_text(&mut self, text: &str, gateway: bool, load: &Load) -> Result<Heard> {
        let event: Event<'_> = serde_json::from_str(text).with_context(|| format!("unexpected {text:?}"))?;
        if event.header.name == PUSH_NAME {
            load.on_push();
            return Ok(Heard::Push);
        }
        let seq = self.made + 1 - self.waiting.len() as u64;
        let (payload, sent) = self.waiting.pop_front().context("a reply too many")?;
        let expected = match gateway {
            true => event.is_reply(seq, payload),
            false => text == request_text(seq, payload),
        };
        if !expected {
            bail!("expected the reply to request {seq}, got {text}");
        }
        load.on_answer(sent);
        Ok(Heard::Answer)
    }
}

pub(super) const PUSH_NAME: &str = "Push";
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

impl Event<'_> {
    fn is_reply(&self, seq: u64, payload: usize) -> bool {
        self.header.name == REPLY_NAME
            && self.header.seq == Some(seq)
            && self.payload.get() == payload_text(seq, payload)
    }
}

/// A JSON string of `bytes` bytes, quotes included, that no other request of its device has.
pub(super) fn payload_text(seq: u64, bytes: usize) -> String {
    format!("\"{seq:0>width$}\"", width = bytes.saturating_sub(2))
}

fn request_text(seq: u64, bytes: usize) -> String {
    let payload = payload_text(seq, bytes);
    format!(r#"{{"header":{{"namespace":"Bench","name":"Echo","id":"{seq}"}},"payload":{payload}}}"#)
}

/// The body of a push; `to` says to whom, as the API does.
pub(super) fn push_body(to: &str, seq: u64, bytes: usize) -> String {
    let payload = payload_text(seq, bytes);
    format!(r#"{{"to":{{{to}}},"namespace":"Bench","name":"{PUSH_NAME}","payload":{payload}}}"#)
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
    fn replies_must_come_in_order_and_as_expected() {
        let load = Load::default();
        let mut exchange = Exchange::default();
        let (first, second) = (exchange.request(&load), exchange.request(&load));
        assert_eq!(exchange.in_flight(), 2);
        assert!(exchange.on_text(&second, false, &load).is_err());
        let mut exchange = Exchange::default();
        assert_eq!(exchange.request(&load), first);
        assert_eq!(exchange.on_text(&first, false, &load).unwrap(), Heard::Answer);
        assert!(
            exchange.on_text(&first, false, &load).is_err(),
            "nothing was asked"
        );
    }

    #[test]
    fn events_of_the_gateway_are_read() {
        let load = Load::default();
        let mut exchange = Exchange::default();
        let push = r#"{"header":{"namespace":"Bench","name":"Push","id":"m"},"payload":1}"#;
        assert_eq!(exchange.on_text(push, true, &load).unwrap(), Heard::Push);
        assert_eq!(load.pushes(), 1);
        let reply = |seq| {
            format!(
                r#"{{"header":{{"namespace":"Bench","name":"Echo.Reply","id":"r","seq":{seq}}},"payload":""}}"#
            )
        };
        exchange.request(&load);
        assert!(
            exchange.on_text(&reply(1), true, &load).is_err(),
            "another payload"
        );
    }
}
