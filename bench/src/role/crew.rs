//! Runs of many devices: whose turn it is to ask, and how many at once.

use std::time::Instant;

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use super::load::Load;
use super::pace::{Pacer, TICK};
use crate::protocol::{Outcome, Pace, Run};

/// Devices that take orders.
pub(super) trait Crew {
    /// Requests of a device that are not answered.
    fn in_flight(&self, device: usize) -> u32;
    /// Has a device make so many requests.
    fn order(&mut self, device: usize, count: u32);
    /// All orders of this moment were given.
    fn flush(&mut self) {}
}

/// Makes a run's requests with devices `from..to`, and waits for the answers. `turn` says whose turn it is, run after run.
pub(super) async fn run(
    crew: &mut impl Crew,
    (from, to): (usize, usize),
    run: &Run,
    (load, turn): (&Load, &mut usize),
) -> Result<Outcome> {
    load.begin(run);
    let started = Instant::now();
    let mut round = Round {
        crew,
        devices: (from, to),
        load,
        depth: run.depth,
    };
    match run.pace {
        Pace::Saturated => round.fill(),
        Pace::PerSecond(rate) => round.pace(rate, run.requests, turn).await?,
    }
    load.finish(started).await
}

struct Round<'a, C> {
    crew: &'a mut C,
    devices: (usize, usize),
    load: &'a Load,
    depth: u32,
}

impl<C: Crew> Round<'_, C> {
    /// Gives each device its depth of requests; replies keep it there.
    fn fill(&mut self) {
        for device in self.devices.0..self.devices.1 {
            let count = (0..self.depth).take_while(|_| self.load.take()).count() as u32;
            self.crew.order(device, count);
        }
        self.crew.flush();
    }

    /// Paced requests, to one device after the other.
    async fn pace(&mut self, rate: u32, requests: u64, turn: &mut usize) -> Result<()> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut pacer, mut left) = (Pacer::new(rate, Instant::now()), requests);
        while left > 0 {
            ticks.tick().await;
            self.load.check()?;
            for _ in 0..pacer.due(Instant::now()).min(left) {
                if !self.one(turn) {
                    break;
                }
                left -= 1;
            }
            self.crew.flush();
        }
        Ok(())
    }

    /// One request of the next device that has room. Closed loop: none if none has.
    fn one(&mut self, turn: &mut usize) -> bool {
        let (from, to) = self.devices;
        for _ in from..to {
            *turn += 1;
            let device = from + *turn % (to - from);
            if self.crew.in_flight(device) < self.depth && self.load.take() {
                self.crew.order(device, 1);
                return true;
            }
        }
        false
    }
}
