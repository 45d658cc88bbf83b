//! Devices: they connect, ask, read slowly, vanish and come back.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::{ChannelKind, CloseCode, DeviceId, MessageKind};

use super::attempts::Origin;
use super::challenge::Recorded;
use super::conn::{Caller, Conn, ConnId, FromDevice, Phase, Stage, Target, ToDevice};
use super::message;
use super::queue::Time;
use super::world::{Actor, Event, World};

#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) id: DeviceId,
    /// It never changes it.
    pub(super) kind: ChannelKind,
    pub(super) origin: Origin,
    /// The stand-in for its key.
    pub(super) secret: u64,
    /// What its latest handshake has told whoever listens.
    pub(super) recorded: Option<Recorded>,
    pub(super) conn: Option<ConnId>,
    /// It does not connect before.
    pub(super) not_before: Time,
    /// It says nothing by itself before.
    quiet_until: Time,
    retry_key: Option<String>,
    next_mark: u64,
}

/// Devices ask nothing new after so much time without faults.
const ASKING_AFTER_HEAL: Duration = Duration::from_millis(1200);
/// A device that hears nothing while it connects gives up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Control messages that a device has unanswered at most: far fewer than what is a flood.
const MAX_CONTROLS: usize = 20;

impl World {
    pub(super) fn add_devices(&mut self) {
        for index in 0..self.scenario.devices {
            let next_mark = (index as u64 + 1) << 32;
            // Its own in each world: what a canary gets hangs on the names.
            let name = format!("device-{index}-{:x}", self.rng.next());
            let id = name.parse().expect("a name of letters, digits and hyphens");
            // Some share an address with others.
            let origin = Origin(if self.rng.chance(300) { 0 } else { index });
            self.devices.push(Device {
                name,
                id,
                kind: self.rng.pick(&ChannelKind::WEB_SOCKET),
                origin,
                secret: self.rng.next(),
                recorded: None,
                conn: None,
                not_before: Time::ZERO,
                quiet_until: Time::ZERO,
                retry_key: None,
                next_mark,
            });
            let at = self.rng.millis(0..=600);
            self.queue.push(at, Event::Act(index));
        }
    }

    pub(super) fn is_asking(&self) -> bool {
        self.healed.is_none_or(|at| self.now < at + ASKING_AFTER_HEAL)
    }

    pub(super) fn act(&mut self, index: usize) {
        match self.devices[index].conn {
            None if self.now >= self.devices[index].not_before => self.connect(index),
            None => {}
            Some(conn) if self.conns[conn.0].proof.is_mute => {}
            Some(conn) if self.conns[conn.0].phase == Phase::Admitted => self.behave(index, conn),
            Some(conn) if self.now > self.conns[conn.0].opened + CONNECT_TIMEOUT => self.vanish(conn),
            Some(_) => {}
        }
        let pause = self.rng.around(self.scenario.pace);
        let least = if self.is_asking() {
            Duration::ZERO
        } else {
            Duration::from_millis(40)
        };
        self.queue.push(self.now + pause.max(least), Event::Act(index));
    }

    fn connect(&mut self, index: usize) {
        let frontend = self.rng.below(self.scenario.frontends);
        if self.frontends[frontend].life.is_none() {
            self.devices[index].not_before = self.now + self.rng.millis(20..=200);
            return;
        }
        let device = &self.devices[index];
        let caller = Caller {
            device: index,
            stranger: None,
            kind: device.kind,
            origin: device.origin,
        };
        self.devices[index].conn = Some(self.dial(caller, frontend));
    }

    /// Opens a connection to some shard of a frontend that runs.
    pub(super) fn dial(&mut self, caller: Caller, frontend: usize) -> ConnId {
        let id = ConnId(self.conns.len());
        let port = 1024 + (id.0 % 60_000) as u16;
        let address = SocketAddr::new(caller.origin.address(&mut self.rng), port);
        let target = Target {
            frontend,
            incarnation: self.frontends[frontend].incarnation,
            shard: self.rng.below(usize::from(self.scenario.shards)),
        };
        let about = (self.now, address, self.scenario.socket_bytes);
        self.conns.push(Conn::new(caller, target, about));
        self.summary.connections += 1;
        let at = self.now + self.latency();
        self.queue.push(at, Event::Arrive(id));
        id
    }

    /// From a device to its frontend or back.
    fn latency(&mut self) -> Duration {
        if self.rng.chance(30) {
            self.rng.millis(1..=40)
        } else {
            self.rng.micros(20..=400)
        }
    }

    pub(super) fn on_arrive(&mut self, conn: ConnId) {
        let c = &self.conns[conn.0];
        let (frontend, shard, incarnation) = (c.frontend, c.shard, c.incarnation);
        let now = self.now;
        let Some(life) = self.life_of(frontend, incarnation) else {
            return self.on_lost(conn);
        };
        life.shards[shard].accepts.push_back(conn);
        let held = life.shards[shard].pace.held(now);
        self.conns[conn.0].held_before = held;
        self.wake_soon(Actor::Shard(frontend, shard));
        let credential = self.draw_credential(conn);
        // Some say nothing at all after they have connected.
        if self.healed.is_some() || !self.rng.chance(10) {
            self.put(conn, FromDevice::Upgrade(credential));
        }
    }

    /// Puts something on the connection's wire.
    pub(super) fn put(&mut self, conn: ConnId, what: FromDevice) {
        let what = self.conns[conn.0].proof.seal(what);
        let at = (self.now + self.latency()).max(self.conns[conn.0].last_arrival);
        self.conns[conn.0].last_arrival = at;
        self.queue.push(at, Event::FromDevice(conn, what));
    }

    pub(super) fn on_from_device(&mut self, conn: ConnId, what: FromDevice) {
        self.trace.note(self.now, ("from device", conn, what.clone()));
        let c = &mut self.conns[conn.0];
        if !matches!(what, FromDevice::Reset) {
            c.heard = self.now;
        }
        c.inbox.push_back(what);
        self.ready(conn);
    }

    fn behave(&mut self, index: usize, conn: ConnId) {
        if self.healed.is_some() {
            return if self.is_asking() {
                self.ask_some(index, conn)
            };
        }
        if self.now < self.devices[index].quiet_until {
            return;
        }
        match self.rng.weighted(&[850, 40, 50, 20, 12, 16, 8, 10]) {
            0 => self.ask_some(index, conn),
            1 => self.put(
                conn,
                FromDevice::Message(MessageKind::Text, Bytes::from_static(b"@ping")),
            ),
            2 => (0..self.rng.pick(&[1, 1, 3, 9])).for_each(|_| self.say_control(conn)),
            3 => {
                self.conns[conn.0].reading = false;
                let at = self.now + self.rng.millis(100..=4000);
                self.queue.push(at, Event::Resume(conn));
            }
            4 => {
                self.put(conn, FromDevice::Close);
                self.end_for_device(conn, Duration::from_millis(50));
            }
            5 => self.vanish(conn),
            // So long that it is asked for a sign of life.
            6 => self.devices[index].quiet_until = self.now + self.rng.millis(1500..=6000),
            // A second connection beside the first: the newcomer wins.
            _ => self.devices[index].conn = None,
        }
    }

    fn ask_some(&mut self, index: usize, conn: ConnId) {
        for _ in 0..self.rng.range(1..=4) {
            if self.conns[conn.0].outstanding() >= self.scenario.eagerness {
                return;
            }
            let device = &mut self.devices[index];
            device.next_mark += 1;
            let about = (self.now, device.next_mark);
            let (request, message) = message::draw(&mut self.rng, about, device.retry_key.clone());
            device.retry_key = request.retry_key.clone().or(device.retry_key.take());
            let kind = request.kind;
            self.conns[conn.0].requests.push(request);
            self.summary.requests += 1;
            self.put(conn, FromDevice::Message(kind, message));
        }
    }

    fn say_control(&mut self, conn: ConnId) {
        if self.conns[conn.0].controls >= MAX_CONTROLS {
            return;
        }
        self.conns[conn.0].controls += 1;
        let mark = self.rng.below(1000);
        let text = match self.rng.below(3) {
            0 => "@join {\"group\":\"g\"}".to_owned(),
            _ => format!("@update {{\"attributes\":{{\"a{}\":{mark}}}}}", mark % 4),
        };
        self.put(conn, FromDevice::Message(MessageKind::Text, text.into()));
    }

    /// The device is gone without a word.
    fn vanish(&mut self, conn: ConnId) {
        self.trace.note(self.now, ("vanishes", conn));
        self.conns[conn.0].vanished = true;
        self.queue
            .push(self.now + self.scenario.user_timeout, Event::UserTimeout(conn));
        // Some stay away for so long that the frontend finds out by itself.
        let long = self.healed.is_none() && self.rng.chance(400);
        let pause = if long { 4000 } else { 300 };
        self.end_for_device(conn, Duration::from_millis(pause));
    }

    /// Bytes that nobody acknowledges end a connection.
    pub(super) fn on_user_timeout(&mut self, conn: ConnId) {
        let c = &mut self.conns[conn.0];
        if c.stage == Stage::Over {
            return;
        }
        if c.out.is_behind() {
            c.inbox.push_back(FromDevice::Reset);
            self.ready(conn);
        }
        self.queue
            .push(self.now + self.scenario.user_timeout, Event::UserTimeout(conn));
    }

    /// The device has no use for this connection any more, and comes back after about `pause`.
    fn end_for_device(&mut self, conn: ConnId, pause: Duration) {
        self.conns[conn.0].phase = Phase::Ended;
        let pause = self.rng.around(pause);
        let device = &mut self.devices[self.conns[conn.0].device];
        if device.conn == Some(conn) {
            device.conn = None;
            device.not_before = self.now + pause;
        }
    }

    pub(super) fn on_lost(&mut self, conn: ConnId) {
        let c = &self.conns[conn.0];
        if c.phase == Phase::Ended {
            return;
        }
        // What the kernel had already may still be read.
        if c.reading && !c.vanished && self.rng.chance(500) {
            self.read_now(conn);
        }
        self.end_for_device(conn, Duration::from_millis(100));
    }

    /// The device reads after a while, if it reads at all.
    pub(super) fn schedule_read(&mut self, conn: ConnId) {
        let at = self.now + self.latency();
        let c = &mut self.conns[conn.0];
        if c.reading && !c.vanished && !c.read_due && c.out.read < c.out.taken {
            c.read_due = true;
            self.queue.push(at, Event::Read(conn));
        }
    }

    pub(super) fn resume_reading(&mut self, conn: ConnId) {
        self.conns[conn.0].reading = true;
        self.schedule_read(conn);
    }

    pub(super) fn on_read(&mut self, conn: ConnId) {
        let c = &mut self.conns[conn.0];
        c.read_due = false;
        if !c.reading || c.vanished {
            return;
        }
        self.read_now(conn);
        if self.conns[conn.0].out.is_blocked() {
            self.ready(conn);
        }
    }

    fn read_now(&mut self, conn: ConnId) {
        for item in self.conns[conn.0].out.read_all() {
            if self.conns[conn.0].phase != Phase::Ended {
                self.on_item(conn, item);
            }
        }
    }

    fn on_item(&mut self, conn: ConnId, item: ToDevice) {
        match item {
            ToDevice::Admitted(challenge) => self.on_admitted(conn, challenge.as_ref()),
            ToDevice::Refused(refusal) => {
                let pause = refusal.retry_after.unwrap_or(Duration::from_millis(100));
                self.end_for_device(conn, pause);
            }
            ToDevice::Message(kind, payload) => self.on_message(conn, kind, &payload),
            ToDevice::Ping => self.put(conn, FromDevice::Alive),
            ToDevice::Closed(code) => {
                let pause = if code == CloseCode::Replaced { 1000 } else { 60 };
                self.end_for_device(conn, Duration::from_millis(pause));
            }
        }
    }
}
