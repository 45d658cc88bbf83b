//! The best that is possible: each lost datagram is sent once more, one round trip after it was sent, and the bandwidth is never
//! idle nor overrun. No acknowledgement is needed to know that.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Setting;
use super::link::Ends;
use super::stop_and_wait::{OVERHEAD, fill};
use crate::sim::queue::Time;
use crate::transport::net::HEADER_BYTES;

pub(super) struct Best {
    room: usize,
    rtt: Duration,
    bits_per_second: u64,
    waiting: VecDeque<usize>,
    /// Lost, and when that is known.
    lost: VecDeque<(Time, Frame)>,
    /// When the bandwidth is free for the next datagram.
    free_at: Time,
    next: u64,
    /// The receiver's: what came early.
    early: BTreeMap<u64, usize>,
    expected: u64,
    handed: usize,
    /// The time of the latest call: what is due is due from there on.
    now: Time,
}

#[derive(Clone, Copy)]
pub(super) struct Frame {
    number: u64,
    bytes: usize,
    ends: usize,
}

impl Best {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            room: usize::from(setting.datagram) - OVERHEAD,
            rtt: setting.rtt,
            bits_per_second: setting.bits_per_second,
            waiting: VecDeque::new(),
            lost: VecDeque::new(),
            free_at: Time::ZERO,
            next: 0,
            early: BTreeMap::new(),
            expected: 0,
            handed: 0,
            now: Time::ZERO,
        }
    }

    fn next_frame(&mut self, now: Time) -> Option<Frame> {
        if let Some((_, frame)) = self.lost.pop_front_if(|(known, _)| *known <= now) {
            return Some(frame);
        }
        let (bytes, ends) = fill(&mut self.waiting, self.room);
        if bytes == 0 {
            return None;
        }
        self.next += 1;
        Some(Frame {
            number: self.next - 1,
            bytes: bytes + OVERHEAD,
            ends,
        })
    }
}

impl Ends for Best {
    type Frame = Frame;

    fn send(&mut self, _now: Time, bytes: usize) -> bool {
        self.waiting.push_back(bytes);
        true
    }

    fn poll_transmit(&mut self, now: Time) -> Option<(bool, usize, Frame)> {
        self.now = now;
        if now < self.free_at {
            return None;
        }
        let frame = self.next_frame(now)?;
        let bits = (frame.bytes as u64 + HEADER_BYTES) * 8;
        self.free_at = now + Duration::from_nanos(bits * 1_000_000_000 / self.bits_per_second);
        Some((true, frame.bytes, frame))
    }

    fn arrive(&mut self, _now: Time, _up: bool, frame: Frame) {
        self.early.insert(frame.number, frame.ends);
        while let Some(ends) = self.early.remove(&self.expected) {
            self.expected += 1;
            self.handed += ends;
        }
    }

    fn on_lost(&mut self, now: Time, frame: Frame) {
        self.lost.push_back((now + self.rtt, frame));
    }

    fn timeout(&self) -> Option<Time> {
        let lost = self.lost.front().map(|(known, _)| *known);
        let new = (!self.waiting.is_empty()).then_some(self.now);
        let first = [lost, new].into_iter().flatten().min()?;
        // Not again for what has just been done.
        Some(first.max(self.free_at))
    }

    fn on_timeout(&mut self, _now: Time) {}

    fn take_handed(&mut self, _now: Time) -> usize {
        std::mem::take(&mut self.handed)
    }
}
