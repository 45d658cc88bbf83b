//! The world: what happens when, and to whom.

use std::time::Duration;

use holdfast_proto::secure::{Identity, MasterKey};
use holdfast_proto::udp::{ConnectionId, End, Side};

use super::device::{Device, SERVER, State};
use super::endpoint::Endpoint;
use super::faults::Moods;
use super::ledger::{Broken, Fate, other};
use super::server::{Bind, HALF_OPEN, Server};
use super::settle::Settling;
use super::shared::{Packet, Place, Shared};
use super::{Failure, Options, PROGRAM, Promise, Summary};
use crate::sim::queue::{Queue, Time};
use crate::sim::rng::Rng;
use crate::sim::trace::Trace;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) s: Shared,
    pub(crate) queue: Queue<Event>,
    pub(crate) server: Server,
    pub(crate) devices: Vec<Device>,
    pub(crate) moods: Moods,
    pub(crate) settling: Option<Settling>,
    pub(crate) settled: bool,
    step: u64,
}

#[derive(Debug)]
pub(crate) enum Event {
    Arrive(Packet),
    /// The driver of a device's has something to do, in that life of it.
    Device(usize, u32),
    /// The driver of one of the server's ends.
    End(ConnectionId),
    Bound(Bind),
    Trouble,
    ServerStarts,
    Heal,
    Look,
}

const MAX_STEPS: u64 = 5_000_000;
/// How many of the datagrams that a stranger repeats he keeps from arriving themselves, per mille.
const STOLEN: u32 = 100;
/// How much longer than [`Config::give_up`](holdfast_proto::udp::Config::give_up) after the last trouble nobody may give up any more.
const GRACE: Duration = Duration::from_secs(10);

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let summary = Summary {
            seed,
            ..Summary::default()
        };
        let mut s = Shared::new(Rng::new(seed), Trace::new(options.trace), summary);
        s.volume = s
            .rng
            .pick(&[4 << 10, 64 << 10, 64 << 10, 300 << 10, 300 << 10, 2 << 20]);
        s.longest = s.rng.pick(&[1 << 20, 1 << 20, 64 << 10]);
        let master = MasterKey::from_bytes(&[7; 32]).expect("a key has 32 bytes");
        let moods = Moods::draw(&mut s.rng);
        let devices = (0..s.rng.range(1..=3) as usize)
            .map(|number| {
                let identity = identity(number);
                let key = master.device_key(&identity);
                Device::new(number, (identity, key), &mut s)
            })
            .collect();
        Self {
            server: Server::new(&mut s, master),
            devices,
            moods,
            settling: None,
            settled: false,
            queue: Queue::new(),
            step: 0,
            s,
        }
    }

    pub(crate) fn run(&mut self) -> Result<(), Broken> {
        (0..self.devices.len()).for_each(|device| self.arm_device(device));
        self.queue.push(Time::ZERO, Event::Trouble);
        self.queue.push(self.moods.lasts, Event::Heal);
        while let Some((at, event)) = self.queue.pop() {
            self.step += 1;
            self.s.now = at;
            self.s.trace.begin_step(self.step);
            self.take(event)?;
            self.ship()?;
            if self.settled {
                return Ok(());
            }
            if self.step == MAX_STEPS {
                return Err((Promise::Quiet, "there is no end of it".into()));
            }
        }
        Err((Promise::Progress, "nothing is to happen any more".into()))
    }

    fn take(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Arrive(packet) => self.arrive(packet),
            Event::Device(device, life) => self.wake_device(device, life),
            Event::End(cid) => self.wake_end(cid),
            Event::Bound(bind) => {
                if let Some(cid) = self.server.on_bound(&mut self.s, &bind) {
                    let late = self.s.now + HALF_OPEN;
                    self.queue.push(late, Event::End(cid));
                    // The application may have something to say before the device has proved itself.
                    if self.s.rng.chance(500) {
                        self.run_end(cid)?;
                    }
                }
                Ok(())
            }
            Event::Trouble => self.trouble(),
            Event::ServerStarts => {
                self.server.start(&mut self.s);
                Ok(())
            }
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    fn arrive(&mut self, mut packet: Packet) -> Result<(), Broken> {
        if packet.to == SERVER.into() {
            return self.arrive_at_server(packet);
        }
        let Some(device) = self.devices.iter().position(|d| d.is_at(packet.to)) else {
            return Ok(());
        };
        let whole = self.is_whole();
        self.devices[device].handle_packet(&mut self.s, &mut packet, whole)?;
        self.after_device(device)
    }

    fn arrive_at_server(&mut self, mut packet: Packet) -> Result<(), Broken> {
        if !self.server.up {
            return Ok(());
        }
        let device = match packet.place {
            Some(Place::Device(device) | Place::Server(device)) => device,
            None => 0,
        };
        if let Some(bind) = self.server.handle_packet(&mut self.s, &mut packet, device)? {
            self.queue.push(bind.at, Event::Bound(bind));
        }
        match holdfast_proto::udp::parse(&packet.bytes) {
            Ok(holdfast_proto::udp::Datagram::Data { cid, .. }) => self.run_end(cid),
            _ => Ok(()),
        }
    }

    fn is_whole(&mut self) -> bool {
        let sluggish = self.moods.sluggish;
        self.s.healed || !self.s.rng.chance(sluggish)
    }

    fn wake_device(&mut self, device: usize, life: u32) -> Result<(), Broken> {
        let node = &self.devices[device];
        if node.life != life || node.armed != Some(self.s.now) {
            return Ok(());
        }
        self.devices[device].armed = None;
        let whole = self.is_whole();
        self.devices[device].run(&mut self.s, whole)?;
        self.after_device(device)
    }

    pub(crate) fn after_device(&mut self, device: usize) -> Result<(), Broken> {
        if let Some(end) = self.devices[device].gone.take() {
            self.judge(&end, device, Side::Device)?;
        }
        self.arm_device(device);
        Ok(())
    }

    pub(crate) fn arm_device(&mut self, device: usize) {
        let node = &mut self.devices[device];
        let due = node.due(&self.s);
        if let Some(at) = arm(&mut self.s, &mut node.armed, due) {
            self.queue.push(at, Event::Device(device, node.life));
        }
    }

    fn wake_end(&mut self, cid: ConnectionId) -> Result<(), Broken> {
        let now = self.s.now;
        let Some(end) = self.server.ends.get_mut(&cid) else {
            return Ok(());
        };
        if end.armed != Some(now) && end.opened {
            return Ok(());
        }
        end.armed = end.armed.filter(|at| *at > now);
        self.run_end(cid)
    }

    pub(crate) fn run_end(&mut self, cid: ConnectionId) -> Result<(), Broken> {
        let whole = self.is_whole();
        if let Some(end) = self.server.run(&mut self.s, cid, whole)? {
            let device = match end.place() {
                Place::Device(device) | Place::Server(device) => device,
            };
            self.judge(&end, device, Side::Server)?;
        }
        if let Some(end) = self.server.ends.get_mut(&cid) {
            let due = end.due(&self.s);
            if let Some(at) = arm(&mut self.s, &mut end.armed, due) {
                self.queue.push(at, Event::End(cid));
            }
        }
        Ok(())
    }

    /// Whether an end had a reason to give up.
    fn judge(&mut self, end: &Endpoint, device: usize, side: Side) -> Result<(), Broken> {
        let cid = end.cid();
        let log = self.s.ledger.log(cid);
        let closing = log.flow(side).closed.is_some() || log.flow(other(side)).closed.is_some();
        let peer_lives = log.flow(other(side)).sender == Fate::Running && !closing;
        let trouble = self.devices[device].trouble(self.s.now);
        let calm_since = trouble + end.config.give_up + GRACE;
        let wrong = match end.ended {
            Some(End::Reset) => peer_lives,
            Some(End::GaveUp) => peer_lives && self.s.now > calm_since,
            _ => false,
        };
        if !wrong {
            return Ok(());
        }
        let what = format!(
            "{side:?} of {cid} ended by {:?}: the other end lives, and the last trouble was at {:.3}s",
            end.ended,
            trouble.as_secs_f64()
        );
        Err((Promise::NoDrop, what))
    }

    /// Gives what the nodes put out to the network.
    pub(crate) fn ship(&mut self) -> Result<(), Broken> {
        let mut outbox = std::mem::take(&mut self.s.outbox);
        for packet in outbox.drain(..) {
            self.s.summary.datagrams += 1;
            match packet.place {
                Some(Place::Device(device)) => self.ship_up(packet, device),
                _ => self.ship_down(packet)?,
            }
        }
        self.s.outbox = outbox;
        Ok(())
    }

    fn ship_up(&mut self, mut packet: Packet, device: usize) {
        let node = &mut self.devices[device];
        packet.from = node.address;
        node.record(&mut self.s, &packet);
        if self.s.rng.chance(self.moods.copies) && !self.s.healed {
            self.copy_from_stranger(&packet);
            if self.s.rng.chance(STOLEN) {
                return;
            }
        }
        self.carry(packet, device, true);
    }

    fn ship_down(&mut self, mut packet: Packet) -> Result<(), Broken> {
        packet.from = SERVER.into();
        if let Some(what) = self.s.accounts.send(packet.to, packet.bytes.len()) {
            return Err((Promise::Amplified, what));
        }
        let Some(device) = self.devices.iter().position(|d| d.is_at(packet.to)) else {
            self.s.saw("lost", "to where nobody is");
            return Ok(());
        };
        self.devices[device].record(&mut self.s, &packet);
        self.carry(packet, device, false);
        Ok(())
    }

    fn carry(&mut self, packet: Packet, device: usize, up: bool) {
        let node = &mut self.devices[device];
        let way = if up { &mut node.up } else { &mut node.down };
        let passages = way.carry(&mut self.s.rng, self.s.now, packet.bytes.len());
        let arrive = passages.iter().flatten().count();
        let kind = packet.bytes.first().copied();
        self.s.note((
            "datagram",
            packet.id,
            kind,
            packet.bytes.len(),
            up,
            device,
            arrive,
        ));
        for passage in passages.into_iter().flatten() {
            let mut copy = packet.clone();
            if let Some(bit) = passage.flip {
                copy.bytes[bit / 8] ^= 1 << (bit % 8);
                copy.flipped = true;
            }
            self.queue.push(passage.at, Event::Arrive(copy));
        }
    }

    pub(crate) fn open_devices(&self) -> Vec<usize> {
        let open = |device: &usize| matches!(self.devices[*device].state, State::Open(_));
        (0..self.devices.len()).filter(open).collect()
    }

    pub(crate) fn finish(mut self, broken: Option<Broken>) -> Result<Summary, Box<Failure>> {
        self.s.summary.steps = self.step;
        self.s.summary.virtual_time = self.s.now;
        self.s.summary.digest = self.s.trace.digest();
        let Some((promise, what)) = broken else {
            return Ok(self.s.summary);
        };
        Err(Box::new(Failure {
            program: PROGRAM,
            seed: self.s.summary.seed,
            step: self.step,
            at: self.s.now,
            promise,
            what,
            latest: self.s.trace.latest(),
            summary: self.s.summary,
        }))
    }
}

/// When a driver is to be woken, unless it is already going to be by then. Timers are late at times, never early.
fn arm(s: &mut Shared, armed: &mut Option<Time>, due: Option<Time>) -> Option<Time> {
    let mut at = due?.max(s.now);
    if at > s.now && s.rng.chance(100) {
        at += s.rng.micros(0..=3_000);
    }
    if armed.is_some_and(|armed| armed <= at) {
        return None;
    }
    *armed = Some(at);
    Some(at)
}

fn identity(number: usize) -> Identity {
    Identity {
        key_id: "k1".into(),
        product: "speaker".into(),
        class: "home".into(),
        device: format!("d-{number}").parse().expect("a device id"),
        key_version: 1,
    }
}
