//! What goes wrong, and when.

use std::time::Duration;

use holdfast_proto::udp::ConnectionId;

use super::application::Stall;
use super::device::State;
use super::endpoint::Endpoint;
use super::ledger::Broken;
use super::net::{USUAL_MTU, Weather};
use super::world::{Event, World};
use crate::sim::queue::Time;
use crate::sim::rng::Rng;

/// How this world is inclined.
#[derive(Debug)]
pub(crate) struct Moods {
    /// How long things go wrong.
    pub(crate) lasts: Time,
    /// Mean time between two faults.
    between: Duration,
    /// How likely each kind is against the others.
    weights: [u32; FAULTS.len()],
    /// How many datagrams a stranger repeats, per mille.
    pub(crate) copies: u32,
    /// How often a driver leaves something for later, per mille.
    pub(crate) sluggish: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    Weather,
    Dark,
    Mtu,
    Rebind,
    Stall,
    Replay,
    Junk,
    Close,
    Abort,
    DeviceRestarts,
    ServerRestarts,
}

const FAULTS: [Fault; 11] = [
    Fault::Weather,
    Fault::Dark,
    Fault::Mtu,
    Fault::Rebind,
    Fault::Stall,
    Fault::Replay,
    Fault::Junk,
    Fault::Close,
    Fault::Abort,
    Fault::DeviceRestarts,
    Fault::ServerRestarts,
];
const USUAL: [u32; FAULTS.len()] = [30, 10, 3, 12, 12, 8, 8, 4, 2, 3, 3];

impl Moods {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        // Each world leaves some faults out, so that each is also seen without the others.
        let weights = USUAL.map(|weight| if rng.chance(350) { 0 } else { weight });
        Self {
            lasts: rng.millis(5_000..=90_000),
            between: rng.millis(200..=6_000),
            weights,
            copies: rng.pick(&[0, 0, 0, 20, 200, 1000]),
            sluggish: rng.pick(&[0, 0, 50, 300]),
        }
    }
}

impl World {
    pub(crate) fn trouble(&mut self) -> Result<(), Broken> {
        if self.s.healed {
            return Ok(());
        }
        let next = self.s.now + self.s.rng.around(self.moods.between);
        self.queue.push(next, Event::Trouble);
        if self.moods.weights.iter().all(|weight| *weight == 0) {
            return Ok(());
        }
        let fault = FAULTS[self.s.rng.weighted(&self.moods.weights)];
        self.s.summary.faults += 1;
        let device = self.s.rng.below(self.devices.len());
        match fault {
            Fault::Weather => self.change_weather(device),
            Fault::Dark => self.darken(device),
            Fault::Mtu => self.narrow(device),
            Fault::Rebind => {
                let until = self.s.now + REBIND_TROUBLE;
                self.devices[device].rebind(&mut self.s);
                self.devices[device].troubled = self.devices[device].troubled.max(until);
                self.s.saw("fault", "rebind");
            }
            Fault::Stall => self.stall(),
            Fault::Replay => self.replay(),
            Fault::Junk => self.junk(),
            Fault::Close => return self.close_one(),
            Fault::Abort => self.abort_one(),
            Fault::DeviceRestarts => {
                self.devices[device].restart(&mut self.s);
                self.s.saw("fault", "device restarts");
                self.arm_device(device);
            }
            Fault::ServerRestarts => self.restart_server(),
        }
        Ok(())
    }

    fn change_weather(&mut self, device: usize) {
        let now = self.s.now;
        let trouble = self.devices[device].trouble(now);
        let node = &mut self.devices[device];
        node.troubled = trouble;
        if self.s.rng.chance(700) {
            node.up.weather = Weather::draw(&mut self.s.rng);
            self.s.note(("weather up", device, node.up.weather.clone()));
        }
        if self.s.rng.chance(700) {
            node.down.weather = Weather::draw(&mut self.s.rng);
            self.s.note(("weather down", device, node.down.weather.clone()));
        }
    }

    /// Nothing comes through, one way or both.
    fn darken(&mut self, device: usize) {
        let rng = &mut self.s.rng;
        let millis = if rng.chance(100) {
            15_000..=100_000
        } else {
            100..=15_000
        };
        let until = self.s.now + rng.millis(millis);
        let node = &mut self.devices[device];
        let which = rng.below(3);
        if which != 0 {
            node.up.dark_until = until;
        }
        if which != 1 {
            node.down.dark_until = until;
        }
        node.troubled = node.troubled.max(until);
        self.s.note(("dark", device, which, until));
        self.s.saw("fault", "dark");
    }

    /// Long datagrams vanish, until the weather changes.
    fn narrow(&mut self, device: usize) {
        let mtu = self.s.rng.range(400..=USUAL_MTU as u64) as usize;
        let node = &mut self.devices[device];
        let way = if self.s.rng.chance(500) {
            &mut node.up
        } else {
            &mut node.down
        };
        way.weather.mtu = mtu;
        self.s.note(("narrow", device, mtu));
        self.s.saw("fault", "narrow");
    }

    /// An application stops listening for a while.
    fn stall(&mut self) {
        let long = self.s.rng.chance(50);
        let until = self.s.now
            + self
                .s
                .rng
                .millis(if long { 60_000..=150_000 } else { 50..=15_000 });
        let notices = self.s.rng.chance(500);
        let mut noted = None;
        if let Some(end) = self.any_end() {
            end.application.stall = Some(Stall { until, notices });
            noted = Some((end.cid().0, end.connection.side()));
        }
        self.s.note(("stall", noted, until, notices));
        self.s.saw("fault", if long { "long stall" } else { "stall" });
    }

    /// Either end of any connection.
    fn any_end(&mut self) -> Option<&mut Endpoint> {
        let devices = self.open_devices();
        let cids: Vec<ConnectionId> = self.server.ends.keys().copied().collect();
        let which = self.s.rng.below((devices.len() + cids.len()).max(1));
        match devices.get(which) {
            Some(device) => self.devices[*device].endpoint(),
            None => self.server.ends.get_mut(cids.get(which - devices.len())?),
        }
    }

    /// An application closes, with whatever is under way.
    fn close_one(&mut self) -> Result<(), Broken> {
        let code = self.s.rng.range(4_000..=4_999) as u16;
        self.s.saw("fault", "close");
        let devices = self.open_devices();
        if !devices.is_empty() && self.s.rng.chance(500) {
            let device = self.s.rng.pick(&devices);
            if let Some(end) = self.devices[device].endpoint() {
                end.close(&mut self.s, code, "device is done");
            }
            self.devices[device].run(&mut self.s, true)?;
            return self.after_device(device);
        }
        let open = self.server.ends.iter().filter(|(_, end)| end.opened);
        let cids: Vec<ConnectionId> = open.map(|(cid, _)| *cid).collect();
        if cids.is_empty() {
            return Ok(());
        }
        let cid = self.s.rng.pick(&cids);
        if let Some(end) = self.server.ends.get_mut(&cid) {
            end.close(&mut self.s, code, "");
        }
        self.run_end(cid)
    }

    /// A process drops a connection without a word.
    fn abort_one(&mut self) {
        self.s.saw("fault", "abort");
        let devices = self.open_devices();
        if !devices.is_empty() && self.s.rng.chance(500) {
            let device = self.s.rng.pick(&devices);
            if let Some(end) = self.devices[device].endpoint() {
                end.connection.abort();
            }
            let again = self.s.now + self.s.rng.millis(10..=3_000);
            let state = std::mem::replace(&mut self.devices[device].state, State::Off(Some(again)));
            if let State::Open(end) = state {
                end.vanish(&mut self.s);
            }
            self.arm_device(device);
            return;
        }
        let cids: Vec<ConnectionId> = self.server.ends.keys().copied().collect();
        if !cids.is_empty() {
            let cid = self.s.rng.pick(&cids);
            if let Some(end) = self.server.ends.remove(&cid) {
                end.vanish(&mut self.s);
            }
        }
    }

    fn restart_server(&mut self) {
        if !self.server.up {
            return;
        }
        self.server.stop(&mut self.s);
        let up = self.s.now + self.s.rng.around(Duration::from_millis(800));
        for device in &mut self.devices {
            device.troubled = device.troubled.max(up);
        }
        self.s.saw("fault", "server restarts");
        self.queue.push(up, Event::ServerStarts);
    }
}

/// How long it may take until a server hears of a device's new address: as long as the device keeps silent.
const REBIND_TROUBLE: Duration = Duration::from_secs(27);
