//! How fast the transport is: goodput and the time until a message is handed up, against loss, beside the two transports that one
//! would compare it with.
//!
//! All three run over the network of the simulation, with the same datagrams: ours; stop-and-wait under the same rules for its
//! timer; and the best that is possible, which learns of each loss after exactly one round trip and fills the bandwidth with
//! everything else. What is printed was measured here, each time anew.

mod best;
mod link;
mod ours;
mod plot;
mod report;
mod stop_and_wait;

use std::time::Duration;

use serde::Serialize;

pub use plot::draw;
pub use report::table;

use best::Best;
use link::{Course, Load};
use ours::Ours;
use stop_and_wait::StopAndWait;

/// What is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    #[serde(rename = "rtt_ms", serialize_with = "as_millis")]
    pub rtt: Duration,
    pub bits_per_second: u64,
    /// What waits in front of the bottleneck at most, in bytes: the product of bandwidth and round-trip time is usual.
    pub queue_bytes: u64,
    /// Longest UDP payload, in bytes.
    pub datagram: u16,
    /// Percent of the datagrams, in both directions.
    pub losses: Vec<u32>,
    /// Courses of each kind: their samples are put together.
    pub courses: u64,
    /// Messages of 128 bytes at random intervals, so many per second, for so long.
    pub small_per_second: u32,
    pub small_seconds: u32,
    /// Messages of 1 MiB, two under way at a time.
    pub bulk_messages: usize,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            rtt: Duration::from_millis(50),
            bits_per_second: 10_000_000,
            queue_bytes: 62_500,
            datagram: 1_200,
            losses: vec![0, 1, 2, 5, 10, 20, 30],
            courses: 4,
            small_per_second: 100,
            small_seconds: 60,
            bulk_messages: 8,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Ours,
    StopAndWait,
    Best,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Ours, Self::StopAndWait, Self::Best];

    pub fn label(self) -> &'static str {
        match self {
            Self::Ours => "holdfast",
            Self::StopAndWait => "stop-and-wait",
            Self::Best => "best possible",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    Small,
    Bulk,
}

impl Workload {
    pub const ALL: [Self; 2] = [Self::Small, Self::Bulk];
}

/// One transport under one load at one loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    pub transport: Transport,
    pub workload: Workload,
    pub loss_percent: u32,
    /// Bits of messages handed up per second.
    pub goodput: f64,
    /// From the sender's `send` until the receiver is handed the message, in milliseconds.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Bytes of UDP payload on the wire, both ways, per byte of messages.
    pub overhead: f64,
}

/// Measures everything. `progress` is told of each point.
pub fn measure(setting: &Setting, mut progress: impl FnMut(&Point)) -> Vec<Point> {
    let mut points = Vec::new();
    for workload in Workload::ALL {
        for &loss_percent in &setting.losses {
            for transport in Transport::ALL {
                let point = measure_point(setting, (workload, transport), loss_percent);
                progress(&point);
                points.push(point);
            }
        }
    }
    points
}

fn measure_point(
    setting: &Setting,
    (workload, transport): (Workload, Transport),
    loss_percent: u32,
) -> Point {
    let mut course = Course::default();
    for seed in 0..setting.courses {
        let load = match workload {
            Workload::Small => Load::open(setting, seed),
            Workload::Bulk => Load::closed(setting),
        };
        let line = (setting, loss_percent, seed);
        course.add(match transport {
            Transport::Ours => link::run(line, load, Ours::new(setting)),
            Transport::StopAndWait => link::run(line, load, StopAndWait::new(setting)),
            Transport::Best => link::run(line, load, Best::new(setting)),
        });
    }
    Point {
        transport,
        workload,
        loss_percent,
        goodput: course.goodput(),
        p50_ms: course.percentile(50),
        p99_ms: course.percentile(99),
        overhead: course.overhead(),
    }
}

fn as_millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests;
