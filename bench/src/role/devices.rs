//! Many devices in one process, and the runs that they make together.

use std::rc::Rc;

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use tokio::sync::oneshot;

use super::crew::{self, Crew};
use super::device::{Device, Handle, Order};
use super::dial::Dialer;
use super::load::Load;
use super::{Commands, answer, packets};
use crate::protocol::{Answer, Command, Devices, Outcome, Run, Speak, Traffic};

/// Handshakes at a time: enough to keep a server busy, few enough for its queues.
pub(super) const CONNECTING_AT_ONCE: usize = 16;

pub(super) async fn serve(role: Devices, mut commands: Commands) -> Result<()> {
    if let Speak::Packets { .. } | Speak::PacketEcho { .. } = role.endpoint.speak {
        return packets::serve(role, commands).await;
    }
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
            Command::Traffic => Answer::Traffic(fleet.traffic().await?),
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
        let devices = taking_part(run, self.devices.len())?;
        let mut crew = Handles(&self.devices);
        crew::run(&mut crew, devices, run, (&self.load, &mut self.turn)).await
    }

    async fn traffic(&self) -> Result<Traffic> {
        let mut all = Traffic::default();
        for device in &self.devices {
            let (sender, report) = oneshot::channel();
            // A device that is gone has said why.
            if device.orders.send(Order::Report(sender)).is_ok() {
                all.add(&report.await??);
            }
        }
        Ok(all)
    }
}

/// The first device of a run, and the one behind its last.
pub(super) fn taking_part(run: &Run, all: usize) -> Result<(usize, usize)> {
    let (first, last) = match run.devices {
        (_, 0) => (0, all),
        (first, count) => (first as usize, (first + count) as usize),
    };
    if first >= last || last > all {
        bail!("there are not so many devices");
    }
    Ok((first, last))
}

struct Handles<'a>(&'a [Handle]);

impl Crew for Handles<'_> {
    fn in_flight(&self, device: usize) -> u32 {
        self.0[device].in_flight.get()
    }

    fn order(&mut self, device: usize, count: u32) {
        let device = &self.0[device];
        device.in_flight.set(device.in_flight.get() + count);
        // A device that is gone has said why.
        let _ = device.orders.send(Order::Requests(count));
    }
}
