//! Two ends, the line between them, and the application that gives one of them messages.

use std::time::Duration;

use super::Setting;
use crate::sim::queue::{Queue, Time};
use crate::sim::rng::Rng;
use crate::transport::net::{Limit, Way, Weather};

/// Both ends of a transport. Messages go one way: up.
pub(crate) trait Ends {
    /// A datagram.
    type Frame: Clone;

    /// Takes a message of so many bytes, if there is room.
    fn send(&mut self, now: Time, bytes: usize) -> bool;
    /// The next datagram of either end's: whether it goes up, and how long it is.
    fn poll_transmit(&mut self, now: Time) -> Option<(bool, usize, Self::Frame)>;
    fn arrive(&mut self, now: Time, up: bool, frame: Self::Frame);
    /// Nobody but the best possible transport hears of it.
    fn on_lost(&mut self, _now: Time, _frame: Self::Frame) {}
    fn timeout(&self) -> Option<Time>;
    fn on_timeout(&mut self, now: Time);
    /// How many more messages were handed up.
    fn take_handed(&mut self, now: Time) -> usize;
}

/// What the application sends.
#[derive(Debug)]
pub(super) struct Load {
    /// When each message is there to be sent; it waits for room.
    due: Vec<Time>,
    bytes: usize,
    /// Messages that are under way at a time, if that is bounded.
    window: usize,
}

const SMALL_BYTES: usize = 128;
const BULK_BYTES: usize = 1 << 20;
/// A course that takes longer has failed.
const TOO_LONG: Time = Duration::from_secs(100_000);

impl Load {
    /// At random times, whatever has become of the messages before.
    pub(super) fn open(setting: &Setting, seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0010_ad00);
        let gap = Duration::from_secs(1) / setting.small_per_second;
        let count = setting.small_per_second * setting.small_seconds;
        let mut at = Time::ZERO;
        let due = (0..count).map(|_| {
            at += rng.around(gap);
            at
        });
        Self {
            due: due.collect(),
            bytes: SMALL_BYTES,
            window: usize::MAX,
        }
    }

    /// As fast as it goes.
    pub(super) fn closed(setting: &Setting) -> Self {
        Self {
            due: vec![Time::ZERO; setting.bulk_messages],
            bytes: BULK_BYTES,
            window: 2,
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// From the wish to send until the message was handed up.
    took: Vec<Duration>,
    bytes: u64,
    time: Duration,
    wire_bytes: u64,
}

impl Course {
    pub(super) fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        self.bytes += other.bytes;
        self.time += other.time;
        self.wire_bytes += other.wire_bytes;
    }

    pub(super) fn goodput(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.time.as_secs_f64()
    }

    pub(super) fn overhead(&self) -> f64 {
        self.wire_bytes as f64 / self.bytes as f64
    }

    /// In milliseconds.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.took.clone();
        sorted.sort();
        let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted[place].as_secs_f64() * 1e3
    }
}

/// # Panics
/// When messages are handed up that nobody sent, or not all are in the end.
pub(super) fn run<E: Ends>((setting, loss, seed): (&Setting, u32, u64), load: Load, ends: E) -> Course {
    let weather = Weather {
        loss: loss * 10,
        limit: Some(Limit {
            bits_per_second: setting.bits_per_second,
            queue_bytes: setting.queue_bytes,
        }),
        ..Weather::calm(setting.rtt / 2)
    };
    let mut line = Line {
        ends,
        ways: [Way::new(weather.clone()), Way::new(weather)],
        queue: Queue::new(),
        rng: Rng::new(seed),
        now: Time::ZERO,
        begun: Vec::new(),
        load,
        course: Course::default(),
    };
    line.run();
    line.course
}

struct Line<E: Ends> {
    ends: E,
    /// Down, up.
    ways: [Way; 2],
    queue: Queue<What<E::Frame>>,
    rng: Rng,
    now: Time,
    /// Since when each message has been wanted out.
    begun: Vec<Time>,
    load: Load,
    course: Course,
}

enum What<F> {
    Arrive(bool, F),
    /// The time of a message, or of a timer.
    Wake,
}

impl<E: Ends> Line<E> {
    fn run(&mut self) {
        for at in &self.load.due {
            self.queue.push(*at, What::Wake);
        }
        let mut armed = Time::MAX;
        while self.course.took.len() < self.load.due.len() {
            let (at, what) = self.queue.pop().expect("messages are under way");
            assert!(at < TOO_LONG, "it takes too long");
            self.now = at;
            if armed <= at {
                armed = Time::MAX;
            }
            if let What::Arrive(up, frame) = what {
                self.ends.arrive(at, up, frame);
            }
            if self.ends.timeout().is_some_and(|due| due <= at) {
                self.ends.on_timeout(at);
            }
            self.turn();
            if let Some(due) = self.ends.timeout().filter(|due| *due < armed) {
                armed = due.max(at);
                self.queue.push(armed, What::Wake);
            }
        }
    }

    fn turn(&mut self) {
        self.take_handed();
        loop {
            let number = self.begun.len();
            let open = number - self.course.took.len();
            let Some(due) = self.load.due.get(number).filter(|due| **due <= self.now) else {
                break;
            };
            if open >= self.load.window || !self.ends.send(self.now, self.load.bytes) {
                break;
            }
            // What had to wait for room has waited since it was due; a closed loop only begins when there is room.
            let since = if self.load.window == usize::MAX {
                *due
            } else {
                self.now
            };
            self.begun.push(since);
        }
        self.transmit();
        self.take_handed();
    }

    fn take_handed(&mut self) {
        for _ in 0..self.ends.take_handed(self.now) {
            let number = self.course.took.len();
            self.course.took.push(self.now - self.begun[number]);
            self.course.bytes += self.load.bytes as u64;
            self.course.time = self.now;
        }
    }

    fn transmit(&mut self) {
        while let Some((up, bytes, frame)) = self.ends.poll_transmit(self.now) {
            self.course.wire_bytes += bytes as u64;
            let passages = self.ways[usize::from(up)].carry(&mut self.rng, self.now, bytes);
            if passages[0].is_none() {
                self.ends.on_lost(self.now, frame.clone());
            }
            for passage in passages.into_iter().flatten() {
                self.queue.push(passage.at, What::Arrive(up, frame.clone()));
            }
        }
    }
}
