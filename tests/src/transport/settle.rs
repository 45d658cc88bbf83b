//! How it ends: nothing goes wrong any more, and what is still connected finishes, comes to rest and closes in good order.

use std::time::Duration;

use holdfast_proto::udp::{ConnectionId, End, Side};

use super::Promise;
use super::device::State;
use super::endpoint::Endpoint;
use super::ledger::{Broken, Fate};
use super::message::Message;
use super::net::{Limit, Weather};
use super::world::{Event, World};
use crate::sim::queue::Time;

#[derive(Debug)]
pub(crate) struct Settling {
    phase: Phase,
    /// By then this phase is over.
    deadline: Time,
}

#[derive(Debug, Clone)]
enum Phase {
    /// What was sent arrives, and who lost its peer notices.
    Finish,
    /// All ends give their memory back.
    Rest,
    /// For a while nothing happens; so many datagrams each end had sent before.
    Idle(Vec<(ConnectionId, Side, u64)>),
    /// One end of each connection says something and closes.
    Close(Vec<(ConnectionId, Side)>),
}

const LOOK: Duration = Duration::from_millis(500);
/// An end that lost its peer asks after at most 30 s, and gives up 60 s later.
const FORLORN: Duration = Duration::from_secs(30 + 60 + 30);
/// For the longest wait between two probes, several times.
const SLACK: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(40);
const IDLE: Duration = Duration::from_secs(60);
const CLOSE: Duration = Duration::from_secs(10);
/// Keep-alives and pings of [`IDLE`], their acknowledgements, and as much again.
const IDLE_DATAGRAMS: u64 = 24;

impl World {
    pub(crate) fn heal(&mut self) -> Result<(), Broken> {
        self.s.note("heal");
        self.s.healed = true;
        self.server.heal();
        if !self.server.up {
            self.server.start(&mut self.s);
        }
        let now = self.s.now;
        for device in 0..self.devices.len() {
            let weather = self.calm();
            let node = &mut self.devices[device];
            node.troubled = now;
            node.former = None;
            for way in [&mut node.up, &mut node.down] {
                way.weather = weather.clone();
                way.dark_until = now;
            }
        }
        self.wake_all()?;
        let deadline = now + FORLORN + self.transfer_time();
        let phase = Phase::Finish;
        self.settling = Some(Settling { phase, deadline });
        self.queue.push(now + LOOK, Event::Look);
        Ok(())
    }

    fn calm(&mut self) -> Weather {
        let rng = &mut self.s.rng;
        let mut weather = Weather::calm(rng.millis(1..=60));
        weather.limit = rng.chance(500).then(|| Limit {
            bits_per_second: rng.range(2_000_000..=50_000_000),
            queue_bytes: 100_000,
        });
        weather
    }

    /// All applications listen again.
    fn wake_all(&mut self) -> Result<(), Broken> {
        for device in 0..self.devices.len() {
            if let Some(end) = self.devices[device].endpoint() {
                end.application.stall = None;
            }
            self.devices[device].run(&mut self.s, true)?;
            self.after_device(device)?;
        }
        let cids: Vec<ConnectionId> = self.server.ends.keys().copied().collect();
        for cid in cids {
            if let Some(end) = self.server.ends.get_mut(&cid) {
                end.application.stall = None;
            }
            self.run_end(cid)?;
        }
        Ok(())
    }

    /// How long what is under way may take at the least speed that is due: a quarter of the bandwidth, or of a window per
    /// round trip.
    fn transfer_time(&mut self) -> Duration {
        let mut longest = Duration::ZERO;
        let server = self.server.config.clone();
        for device in 0..self.devices.len() {
            let node = &self.devices[device];
            let State::Open(end) = &node.state else { continue };
            let log = self.s.ledger.log(end.cid());
            let left = |side| {
                let flow = log.flow(side);
                let left = &flow.sent[flow.taken.min(flow.delivered)..];
                let waiting = (left.len() + 1, 1 << 20);
                (
                    left.len() + waiting.0,
                    left.iter().map(|m| m.bytes).sum::<usize>() + waiting.1,
                )
            };
            let rtt = 2 * node.up.weather.delay;
            for (side, to, from) in [
                (Side::Device, &*server, &*node.config),
                (Side::Server, &*node.config, &*server),
            ] {
                let (messages, bytes) = left(side);
                let rate = node.up.weather.limit.map_or(50_000_000, |l| l.bits_per_second);
                let wire = Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64);
                let window = usize::from(to.receive_messages).min(from.send_messages);
                let turns = bytes / to.receive_bytes.min(60_000) as usize + messages / window + 2;
                longest = longest.max(4 * wire + 4 * turns as u32 * rtt);
            }
        }
        longest + SLACK
    }

    pub(crate) fn look(&mut self) -> Result<(), Broken> {
        let Some(Settling { phase, deadline }) = self.settling.take() else {
            return Ok(());
        };
        let late = self.s.now > deadline;
        let next = match phase {
            Phase::Finish => self.look_finish(late)?,
            Phase::Rest => self.look_rest(late)?,
            Phase::Idle(before) => self.look_idle(late, before)?,
            Phase::Close(closers) => self.look_closed(late, closers)?,
        };
        self.queue.push(self.s.now + LOOK, Event::Look);
        self.settling = Some(match next {
            (phase, Some(time)) => Settling {
                phase,
                deadline: self.s.now + time,
            },
            (phase, None) => Settling { phase, deadline },
        });
        Ok(())
    }

    fn look_finish(&mut self, late: bool) -> Result<(Phase, Option<Duration>), Broken> {
        match self.unfinished() {
            None => Ok((Phase::Rest, Some(REST))),
            Some(_) if !late => Ok((Phase::Finish, None)),
            Some(what) => Err((Promise::Progress, what)),
        }
    }

    /// What is not yet as it must be.
    fn unfinished(&self) -> Option<String> {
        for device in &self.devices {
            let end = match &device.state {
                State::Off(None) => continue,
                State::Open(end) => end,
                _ => return Some(format!("device {} still dials", device.number)),
            };
            let cid = end.cid();
            let log = self.s.ledger.log(cid);
            if !self.server.ends.contains_key(&cid) {
                return Some(format!(
                    "device {} has not noticed that {cid} is gone",
                    device.number
                ));
            }
            if [Side::Device, Side::Server]
                .iter()
                .any(|side| log.flow(*side).closed.is_some())
            {
                return Some(format!("{cid} is closed and does not end"));
            }
            if !log.is_settled() {
                let say = |side| {
                    let flow = log.flow(side);
                    (flow.sent.len(), flow.taken, flow.delivered)
                };
                return Some(format!(
                    "{cid}: sent, taken and delivered are {:?} of the device's messages and {:?} of the server's",
                    say(Side::Device),
                    say(Side::Server)
                ));
            }
        }
        let lives = |cid: &ConnectionId| {
            let of = |state: &State| matches!(state, State::Open(end) if end.cid() == *cid);
            self.devices.iter().any(|device| of(&device.state))
        };
        let forlorn = self.server.ends.keys().find(|cid| !lives(cid))?;
        Some(format!("the server has not noticed that {forlorn} is gone"))
    }

    fn ends(&self) -> impl Iterator<Item = &Endpoint> {
        let devices = self.devices.iter().filter_map(|device| match &device.state {
            State::Open(end) => Some(&**end),
            _ => None,
        });
        devices.chain(self.server.ends.values())
    }

    fn look_rest(&mut self, late: bool) -> Result<(Phase, Option<Duration>), Broken> {
        if self.unfinished().is_some() {
            // An end has given up for what happened before; its peer has yet to notice.
            return Ok((Phase::Finish, Some(FORLORN)));
        }
        let restless = self
            .ends()
            .find(|end| !end.connection.is_idle() || end.connection.held_bytes() > 0);
        if let Some(end) = restless {
            if !late {
                return Ok((Phase::Rest, None));
            }
            let what = format!(
                "{:?} of {} does not come to rest and holds {} bytes: {:?}",
                end.connection.side(),
                end.cid(),
                end.connection.held_bytes(),
                end.connection
            );
            return Err((Promise::Idle, what));
        }
        let before = self
            .ends()
            .map(|end| (end.cid(), end.connection.side(), end.sent));
        Ok((Phase::Idle(before.collect()), Some(IDLE)))
    }

    fn look_idle(
        &mut self,
        over: bool,
        before: Vec<(ConnectionId, Side, u64)>,
    ) -> Result<(Phase, Option<Duration>), Broken> {
        if !over {
            return Ok((Phase::Idle(before), None));
        }
        if self.ends().count() < before.len() {
            return Err((Promise::NoDrop, "a connection ended at rest".into()));
        }
        for (end, (cid, side, sent)) in self.ends().zip(&before) {
            let more = end.sent - sent;
            if more > IDLE_DATAGRAMS {
                let what = format!("{side:?} of {cid} sent {more} datagrams at rest");
                return Err((Promise::Quiet, what));
            }
        }
        Ok((Phase::Close(self.close_all()?), Some(CLOSE)))
    }

    fn close_all(&mut self) -> Result<Vec<(ConnectionId, Side)>, Broken> {
        let mut closers = Vec::new();
        for device in self.open_devices() {
            let Some(cid) = self.devices[device].endpoint().map(|end| end.cid()) else {
                continue;
            };
            let side = self.s.rng.pick(&[Side::Device, Side::Server]);
            let end = match side {
                Side::Device => self.devices[device].endpoint(),
                Side::Server => self.server.ends.get_mut(&cid),
            };
            let Some(end) = end else { continue };
            for _ in 0..self.s.rng.range(0..=3) {
                let bytes = self.s.rng.below(600);
                let message = Message::draw(&mut self.s.rng, bytes);
                end.message(&mut self.s, message)?;
            }
            end.close(&mut self.s, 1000, "done");
            closers.push((cid, side));
            match side {
                Side::Device => {
                    self.devices[device].run(&mut self.s, true)?;
                    self.after_device(device)?;
                }
                Side::Server => self.run_end(cid)?,
            }
        }
        Ok(closers)
    }

    fn look_closed(
        &mut self,
        late: bool,
        closers: Vec<(ConnectionId, Side)>,
    ) -> Result<(Phase, Option<Duration>), Broken> {
        if self.ends().next().is_some() {
            if !late {
                return Ok((Phase::Close(closers), None));
            }
            return Err((Promise::Progress, "a closed connection does not end".into()));
        }
        for (cid, side) in &closers {
            let log = self.s.ledger.log(*cid);
            let flow = log.flow(*side);
            let (sent, taken, delivered) = (flow.sent.len(), flow.taken, flow.delivered);
            if taken < sent || delivered < sent {
                let what = format!(
                    "{side:?} of {cid} closed in good order: {taken} of {sent} messages were taken, {delivered} delivered"
                );
                return Err((Promise::Progress, what));
            }
            let (us, them) = (flow.sender, log.flow(super::ledger::other(*side)).sender);
            let wanted = (Fate::Ended(End::ClosedByUs), Fate::Ended(End::ClosedByPeer));
            if (us, them) != wanted {
                return Err((
                    Promise::Truthful,
                    format!("{side:?} closed {cid}: {us:?}, {them:?}"),
                ));
            }
        }
        self.settled = true;
        Ok((Phase::Close(closers), None))
    }
}
