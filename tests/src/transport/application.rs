//! What an application does with its end of a connection: it sends by its habits, and at times does not listen.

use std::time::Duration;

use bytes::Bytes;

use super::message::{Message, Sizes};
use super::shared::Shared;
use crate::sim::queue::Time;

#[derive(Debug)]
pub(crate) struct Application {
    sizes: Sizes,
    /// Mean time between two bursts of messages.
    gap: Duration,
    burst: usize,
    /// What it still has to say.
    left: Budget,
    next: Time,
    in_burst: usize,
    /// What its end had no room for.
    waiting: Option<(Message, Bytes)>,
    /// There may be room now.
    pub(crate) room: bool,
    pub(crate) stall: Option<Stall>,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    messages: usize,
    bytes: usize,
}

/// It takes no messages until then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stall {
    pub(crate) until: Time,
    /// It still asks for everything else.
    pub(crate) notices: bool,
}

impl Application {
    pub(crate) fn draw(s: &mut Shared) -> Self {
        let rng = &mut s.rng;
        let sizes = [
            Sizes::Small,
            Sizes::Medium,
            Sizes::Edges,
            Sizes::Large,
            Sizes::Mixed,
        ];
        let sizes = sizes[rng.weighted(&[30, 20, 15, 5, 30])];
        let left = Budget {
            messages: rng.range(0..=150) as usize,
            bytes: s.volume,
        };
        Self {
            sizes,
            gap: rng.millis(1..=2_000),
            burst: rng.range(1..=12) as usize,
            left,
            next: s.now,
            in_burst: 0,
            waiting: None,
            room: false,
            stall: None,
        }
    }

    pub(crate) fn wake(&mut self, now: Time) {
        if self.stall.is_some_and(|stall| stall.until <= now) {
            self.stall = None;
        }
    }

    /// The next message, if it wants to send one now.
    pub(crate) fn next(&mut self, s: &mut Shared, longest: usize) -> Option<(Message, Bytes)> {
        if self.waiting.is_some() {
            return self.waiting.take_if(|_| std::mem::take(&mut self.room));
        }
        if self.next > s.now || self.left.messages == 0 || s.healed {
            return None;
        }
        let bytes = self.sizes.draw(&mut s.rng, longest).min(self.left.bytes);
        let message = Message::draw(&mut s.rng, bytes);
        Some((message, message.content()))
    }

    pub(crate) fn on_sent(&mut self, s: &mut Shared, bytes: usize) {
        self.left.messages = self.left.messages.saturating_sub(1);
        self.left.bytes -= bytes.min(self.left.bytes);
        self.in_burst += 1;
        self.room = true;
        if self.in_burst >= self.burst {
            self.in_burst = 0;
            self.next = s.now + s.rng.around(self.gap);
        }
    }

    pub(crate) fn wait(&mut self, message: Message, content: Bytes) {
        self.waiting = Some((message, content));
        self.room = false;
    }

    pub(crate) fn stop(&mut self) {
        self.left.messages = 0;
        self.waiting = None;
    }

    /// When it wants to do something by itself.
    pub(crate) fn due(&self, healed: bool) -> Option<Time> {
        let sends = self.left.messages > 0 && self.waiting.is_none() && !healed;
        let sends = sends.then_some(self.next);
        let wakes = self.stall.map(|stall| stall.until);
        [sends, wakes].into_iter().flatten().min()
    }
}
