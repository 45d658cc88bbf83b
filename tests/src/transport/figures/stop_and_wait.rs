//! The simplest transport that works: one datagram, its acknowledgement, the next datagram.

use std::collections::VecDeque;
use std::time::Duration;

use super::Setting;
use super::link::Ends;
use crate::sim::queue::Time;

/// Header, tag, and what says whose bytes these are.
pub(super) const OVERHEAD: usize = 29 + 6;
pub(super) const PIECE_OVERHEAD: usize = 8;
pub(super) const ACKNOWLEDGEMENT: usize = 29 + 8;

const INITIAL_RTT: Duration = Duration::from_millis(333);
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_secs(8);

pub(super) struct StopAndWait {
    room: usize,
    /// Bytes of each message that have not been sent.
    waiting: VecDeque<usize>,
    /// What is under way: its number, length, and how many messages end in it.
    current: Option<Current>,
    next: u64,
    srtt: Option<Duration>,
    rttvar: Duration,
    /// The receiver's.
    expected: u64,
    acknowledge: VecDeque<u64>,
    handed: usize,
}

#[derive(Clone, Copy)]
struct Current {
    number: u64,
    bytes: usize,
    ends: usize,
    sent: Time,
    due: Time,
    expired: u32,
    /// It is to go out, again or for the first time.
    out: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Frame {
    Data { number: u64, ends: usize },
    Acknowledgement(u64),
}

impl StopAndWait {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            room: usize::from(setting.datagram) - OVERHEAD,
            waiting: VecDeque::new(),
            current: None,
            next: 0,
            srtt: None,
            rttvar: INITIAL_RTT / 2,
            expected: 0,
            acknowledge: VecDeque::new(),
            handed: 0,
        }
    }

    /// As RFC 9002 section 6.2.1 has it.
    fn probe_timeout(&self, expired: u32) -> Duration {
        let variation = (self.rttvar * 4).max(Duration::from_millis(1));
        let period = self.srtt.unwrap_or(INITIAL_RTT) + variation + MAX_ACK_DELAY;
        (period * (1 << expired.min(16))).min(LONGEST)
    }

    fn on_sample(&mut self, sample: Duration) {
        match self.srtt {
            None => (self.srtt, self.rttvar) = (Some(sample), sample / 2),
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(sample)) / 4;
                self.srtt = Some((srtt * 7 + sample) / 8);
            }
        }
    }

    fn begin(&mut self, now: Time) {
        let (bytes, ends) = fill(&mut self.waiting, self.room);
        if bytes == 0 {
            return;
        }
        self.current = Some(Current {
            number: self.next,
            bytes: bytes + OVERHEAD,
            ends,
            sent: now,
            due: now,
            expired: 0,
            out: true,
        });
        self.next += 1;
    }
}

/// Takes what fits into one datagram. Gives its length and how many messages end in it.
pub(super) fn fill(waiting: &mut VecDeque<usize>, room: usize) -> (usize, usize) {
    let (mut bytes, mut ends) = (0, 0);
    while let Some(left) = waiting.front_mut() {
        let free = room.saturating_sub(bytes + PIECE_OVERHEAD);
        // Only what has begun with an empty datagram is cut: a rest of a few bytes is not worth a piece.
        if free == 0 || (*left > free && bytes > 0) {
            break;
        }
        let piece = free.min(*left);
        bytes += piece + PIECE_OVERHEAD;
        *left -= piece;
        if *left == 0 {
            waiting.pop_front();
            ends += 1;
        }
    }
    (bytes, ends)
}

impl Ends for StopAndWait {
    type Frame = Frame;

    fn send(&mut self, _now: Time, bytes: usize) -> bool {
        self.waiting.push_back(bytes);
        true
    }

    fn poll_transmit(&mut self, now: Time) -> Option<(bool, usize, Frame)> {
        if let Some(number) = self.acknowledge.pop_front() {
            return Some((false, ACKNOWLEDGEMENT, Frame::Acknowledgement(number)));
        }
        if self.current.is_none() {
            self.begin(now);
        }
        let timeout = self.probe_timeout(self.current?.expired);
        let current = self.current.as_mut().filter(|current| current.out)?;
        (current.out, current.due) = (false, now + timeout);
        let frame = Frame::Data {
            number: current.number,
            ends: current.ends,
        };
        Some((true, current.bytes, frame))
    }

    fn arrive(&mut self, now: Time, _up: bool, frame: Frame) {
        match frame {
            Frame::Data { number, ends } => {
                self.acknowledge.push_back(number);
                if number == self.expected {
                    self.expected += 1;
                    self.handed += ends;
                }
            }
            Frame::Acknowledgement(number) => {
                let Some(current) = self.current.take_if(|current| current.number == number) else {
                    return;
                };
                // Karn's rule: what was repeated says nothing about time.
                if current.expired == 0 {
                    self.on_sample(now - current.sent);
                }
            }
        }
    }

    fn timeout(&self) -> Option<Time> {
        let current = self.current.filter(|current| !current.out)?;
        Some(current.due)
    }

    fn on_timeout(&mut self, now: Time) {
        if let Some(current) = self.current.as_mut().filter(|current| current.due <= now) {
            current.expired += 1;
            current.out = true;
        }
    }

    fn take_handed(&mut self, _now: Time) -> usize {
        std::mem::take(&mut self.handed)
    }
}
