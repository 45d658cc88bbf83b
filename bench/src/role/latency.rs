//! One device and one bare HTTP client in turns, in one process: what the gateway adds to a call.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::call::Caller;
use super::device::{Device, Handle, Order};
use super::dial::Dialer;
use super::load::{Load, outcome};
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Endpoint, Outcome, Pace, Poster, Run};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn serve(endpoint: Endpoint, direct: &Poster, mut commands: Commands) -> Result<()> {
    let (dialer, caller) = (Dialer::new(endpoint)?, Caller::new(direct)?);
    let load = Rc::new(Load::default());
    let socket = dialer.connect(0).await?;
    let (device, handle) = Device::new(socket, dialer.speak(), load.clone());
    tokio::task::spawn_local(device.run(0));
    answer(&Answer::Ready(None, None))?;
    let mut pair = Pair {
        load,
        handle,
        caller,
        made: 0,
    };
    while let Some(command) = commands.next().await? {
        let Command::Run(run) = command else {
            bail!("one device only runs");
        };
        let (device, direct) = pair.run(&run).await?;
        answer(&Answer::Both(device, direct))?;
    }
    Ok(())
}

struct Pair {
    load: Rc<Load>,
    handle: Handle,
    caller: Caller,
    made: u64,
}

impl Pair {
    /// `run.requests` of each kind, in turns; who is first changes with every pair.
    async fn run(&mut self, run: &Run) -> Result<(Outcome, Outcome)> {
        let Pace::PerSecond(rate) = run.pace else {
            bail!("latency is measured at a rate");
        };
        let started = Instant::now();
        // Two operations per request.
        let mut ticks = interval(Duration::from_secs(1) / (2 * rate));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut device, mut direct) = (Vec::new(), Vec::new());
        for pair in 0..run.requests {
            for half in 0..2 {
                ticks.tick().await;
                if (pair + half) % 2 == 0 {
                    device.push(self.ask_device(run).await?);
                } else {
                    direct.push(self.ask_service(run).await?);
                }
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok((outcome(&mut device, seconds), outcome(&mut direct, seconds)))
    }

    async fn ask_device(&self, run: &Run) -> Result<u64> {
        let one = Run { requests: 1, ..*run };
        self.load.begin(&one);
        self.load.take();
        let started = Instant::now();
        let order = Order::Requests(1);
        self.handle
            .orders
            .send(order)
            .ok()
            .context("the device is gone")?;
        self.handle.in_flight.set(1);
        let answered = timeout(PATIENCE, self.load.finish(started)).await;
        answered.context("no reply")??;
        Ok(started.elapsed().as_nanos() as u64)
    }

    async fn ask_service(&mut self, run: &Run) -> Result<u64> {
        self.made += 1;
        let started = Instant::now();
        let answered = timeout(PATIENCE, self.caller.call(self.made, run.payload)).await;
        answered.context("no answer")??;
        Ok(started.elapsed().as_nanos() as u64)
    }
}
