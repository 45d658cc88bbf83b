//! Many devices in one process, and the runs that they make together.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval};

use super::device::{Device, Handle};
use super::dial::Dialer;
use super::load::Load;
use super::pace::{Pacer, TICK};
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Devices, Outcome, Pace, Run};

/// Handshakes at a time: enough to keep a server busy, few enough for its queues.
const CONNECTING_AT_ONCE: usize = 16;

pub(super) async fn serve(role: Devices, mut commands: Commands) -> Result<()> {
    let mut fleet = Fleet {
        dialer: Dialer::new(role.endpoint)?,
        first: role.first,
        devices: Vec::new(),
        load: Rc::default(),
        turn: 0,
    };
    answer(&Answer::Ready(None, None))?;
    while let Some(command) = commands.next().await? {
        let done = match command {
            Command::Connect(count) => {
                fleet.connect(count).await?;
                Answer::Done(Outcome::default())
            }
            Command::Run(run) => Answer::Done(fleet.run(&run).await?),
            Command::Pushes => Answer::Pushes(fleet.load.pushes()),
        };
        fleet.load.check()?;
        answer(&done)?;
    }
    Ok(())
}

struct Fleet {
    dialer: Dialer,
    first: u32,
    devices: Vec<Handle>,
    load: Rc<Load>,
    /// Whose turn it is.
    turn: usize,
}

impl Fleet {
    async fn connect(&mut self, count: u32) -> Result<()> {
        let first = self.first + self.devices.len() as u32;
        let dialer = &self.dialer;
        let connections = (first..first + count)
            .map(|number| async move { dialer.connect(number).await.map(|line| (number, line)) });
        let mut connections = futures_util::stream::iter(connections).buffered(CONNECTING_AT_ONCE);
        while let Some(connection) = connections.next().await {
            let (number, line) = connection?;
            let (device, handle) = Device::new(line, dialer.speak(), self.load.clone());
            tokio::task::spawn_local(device.run(number));
            self.devices.push(handle);
        }
        Ok(())
    }

    async fn run(&mut self, run: &Run) -> Result<Outcome> {
        let devices = match run.devices {
            (_, 0) => 0..self.devices.len(),
            (first, count) => first as usize..(first + count) as usize,
        };
        let Some(devices) = self.devices.get(devices) else {
            bail!("there are not so many devices");
        };
        self.load.begin(run);
        let started = Instant::now();
        match run.pace {
            Pace::Saturated => fill(devices, &self.load, run.depth),
            Pace::PerSecond(rate) => {
                let mut round = Round {
                    devices,
                    load: &self.load,
                    depth: run.depth,
                    turn: self.turn,
                };
                round.pace(rate, run.requests).await?;
                self.turn = round.turn;
            }
        }
        self.load.finish(started).await
    }
}

/// Gives each device its depth of requests; replies keep it there.
fn fill(devices: &[Handle], load: &Load, depth: u32) {
    for device in devices {
        let count = (0..depth).take_while(|_| load.take()).count() as u32;
        device.order(count);
    }
}

/// Paced requests, to one device after the other.
struct Round<'a> {
    devices: &'a [Handle],
    load: &'a Load,
    depth: u32,
    turn: usize,
}

impl Round<'_> {
    async fn pace(&mut self, rate: u32, requests: u64) -> Result<()> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut pacer, mut left) = (Pacer::new(rate, Instant::now()), requests);
        while left > 0 {
            ticks.tick().await;
            self.load.check()?;
            for _ in 0..pacer.due(Instant::now()).min(left) {
                if !self.one() {
                    break;
                }
                left -= 1;
            }
        }
        Ok(())
    }

    /// One request of the next device that has room. Closed loop: none if none has.
    fn one(&mut self) -> bool {
        for _ in 0..self.devices.len() {
            self.turn += 1;
            let device = &self.devices[self.turn % self.devices.len()];
            if device.in_flight.get() < self.depth {
                return self.load.take() && device.order(1);
            }
        }
        false
    }
}

impl Handle {
    fn order(&self, count: u32) -> bool {
        self.in_flight.set(self.in_flight.get() + count);
        // A device that is gone has said why.
        self.orders.send(count).is_ok()
    }
}
