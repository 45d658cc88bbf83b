//! Strangers: they say again what they heard a device on `ws` say, and have no key. They take places among its unfinished
//! handshakes until they are found out, and must take nothing else from anybody.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::{ChannelKind, MessageKind};

use super::attempts::Origin;
use super::conn::{Caller, ConnId, FromDevice, Phase, Stage};
use super::world::{Event, World};

#[derive(Debug)]
pub(super) struct Stranger {
    /// The device in whose name it comes.
    pub(super) victim: usize,
    pub(super) origin: Origin,
    /// Where it goes mostly, so that its handshakes meet.
    frontend: usize,
    open: Vec<ConnId>,
}

/// Connections that a stranger has at a time: more than there are places, far fewer than sessions.
const MAX_OPEN: usize = 10;

impl World {
    pub(super) fn add_strangers(&mut self) {
        let victims: Vec<usize> = (0..self.devices.len())
            .filter(|index| self.devices[*index].kind == ChannelKind::Ws)
            .collect();
        let strangers = if victims.is_empty() {
            0
        } else {
            self.scenario.strangers
        };
        for index in 0..strangers {
            let victim = self.rng.pick(&victims);
            // Some sit where the device does.
            let origin = match self.rng.chance(300) {
                true => self.devices[victim].origin,
                false => Origin(self.devices.len() + index),
            };
            self.strangers.push(Stranger {
                victim,
                origin,
                frontend: self.rng.below(self.scenario.frontends),
                open: Vec::new(),
            });
            let at = self.rng.millis(0..=1000);
            self.queue.push(at, Event::Intrude(index));
        }
    }

    pub(super) fn intrude(&mut self, index: usize) {
        if self.healed.is_some() {
            return;
        }
        let pause = self.rng.around(self.scenario.stranger_pace);
        self.queue.push(self.now + pause, Event::Intrude(index));
        let conns = &self.conns;
        let stranger = &mut self.strangers[index];
        stranger
            .open
            .retain(|conn| !matches!(conns[conn.0].stage, Stage::Lingering | Stage::Over));
        let room = MAX_OPEN - stranger.open.len();
        for _ in 0..self.rng.pick(&[1, 1, 2, 7]).min(room) {
            self.begin_intrusion(index);
        }
    }

    fn begin_intrusion(&mut self, index: usize) {
        let Stranger {
            victim,
            origin,
            mut frontend,
            ..
        } = self.strangers[index];
        if self.rng.chance(200) {
            frontend = self.rng.below(self.scenario.frontends);
        }
        if self.frontends[frontend].life.is_none() {
            return;
        }
        let caller = Caller {
            device: victim,
            stranger: Some(index),
            kind: ChannelKind::Ws,
            origin,
        };
        let conn = self.dial(caller, frontend);
        self.strangers[index].open.push(conn);
    }

    /// It got a challenge, and has nothing to answer it with.
    pub(super) fn on_stranger_challenged(&mut self, conn: ConnId) {
        let (hello, text) = (Bytes::from_static(b"@hello {}"), MessageKind::Text);
        let recorded = self.devices[self.conns[conn.0].device].recorded.clone();
        match self.rng.weighted(&[600, 100, 60, 60, 100, 80]) {
            0 => {}
            // What the device said to answer another challenge.
            1 => {
                let seal = recorded.map(|recorded| recorded.seal).unwrap_or_default();
                self.put(conn, FromDevice::Record(seal, text, hello));
            }
            2 => {
                let mut seal = [0; 32];
                seal[..8].copy_from_slice(&self.rng.next().to_le_bytes());
                self.put(conn, FromDevice::Record(seal, text, hello));
            }
            3 => self.put(conn, FromDevice::Message(text, hello)),
            4 => self.hang_up(conn, FromDevice::Close),
            _ => self.hang_up(conn, FromDevice::Reset),
        }
    }

    fn hang_up(&mut self, conn: ConnId, how: FromDevice) {
        self.put(conn, how);
        self.conns[conn.0].phase = Phase::Ended;
    }
}

/// How long strangers wait between two visits, on average.
pub(super) const PACES: [Duration; 3] = [
    Duration::from_millis(60),
    Duration::from_millis(200),
    Duration::from_millis(600),
];
