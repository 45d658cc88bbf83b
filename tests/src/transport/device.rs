//! A device: dials, holds one connection, and dials anew when that has ended.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::secure::{DeviceKey, Identity};
use holdfast_proto::udp::{Config, Datagram, Dial, Dialed, Dialing, Parameters, dial, parse};

use super::Promise;
use super::endpoint::Endpoint;
use super::guard::MAX_HELLOS;
use super::ledger::Broken;
use super::net::{Way, Weather};
use super::shared::{Packet, Place, Shared};
use crate::sim::queue::Time;

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) number: usize,
    pub(crate) address: SocketAddr,
    /// The address before, where datagrams still arrive if the network is so kind.
    pub(crate) former: Option<SocketAddr>,
    pub(crate) up: Way,
    pub(crate) down: Way,
    pub(crate) state: State,
    /// It was restarted so often: what was armed before is void.
    pub(crate) life: u32,
    pub(crate) config: Rc<Config>,
    /// Until then its path was in such trouble that one may give up.
    pub(crate) troubled: Time,
    pub(crate) armed: Option<Time>,
    /// A connection that has ended, to be judged.
    pub(crate) gone: Option<Box<Endpoint>>,
    /// Datagrams of its path, for whoever repeats them.
    pub(crate) recorded: Vec<Packet>,
    identity: Identity,
    key: DeviceKey,
}

#[derive(Debug)]
pub(crate) enum State {
    /// It has no connection and dials then, if at all.
    Off(Option<Time>),
    Dialing(Box<Call>),
    Open(Box<Endpoint>),
}

#[derive(Debug)]
pub(crate) struct Call {
    dial: Dial,
    pub(crate) since: Time,
}

/// Datagrams that are kept to be repeated.
const MAX_RECORDED: usize = 700;

impl Device {
    pub(crate) fn new(number: usize, (identity, key): (Identity, DeviceKey), s: &mut Shared) -> Self {
        let weather = [Weather::draw(&mut s.rng), Weather::draw(&mut s.rng)];
        let [up, down] = weather.map(Way::new);
        let config = Rc::new(draw_config(s, true));
        s.max_datagrams.push(config.max_datagram);
        Self {
            number,
            address: SocketAddr::from(([10, 0, number as u8, 1], 40_000)),
            former: None,
            up,
            down,
            state: State::Off(Some(s.rng.millis(0..=500))),
            life: 0,
            config,
            troubled: Time::ZERO,
            armed: None,
            gone: None,
            recorded: Vec::new(),
            identity,
            key,
        }
    }

    pub(crate) fn endpoint(&mut self) -> Option<&mut Endpoint> {
        match &mut self.state {
            State::Open(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    pub(crate) fn record(&mut self, s: &mut Shared, packet: &Packet) {
        if self.recorded.len() < MAX_RECORDED {
            self.recorded.push(packet.clone());
        } else {
            let place = s.rng.below(MAX_RECORDED);
            self.recorded[place] = packet.clone();
        }
    }

    /// Its address changes, without its knowing.
    pub(crate) fn rebind(&mut self, s: &mut Shared) {
        let keeps = s.rng.chance(500);
        self.former = keeps.then_some(self.address);
        let port = s.rng.range(1024..=60_000) as u16;
        self.address = if s.rng.chance(500) {
            SocketAddr::new(self.address.ip(), port)
        } else {
            SocketAddr::from(([10, s.rng.range(1..=250) as u8, self.number as u8, 1], port))
        };
        s.note(("rebind", self.number, self.address, keeps));
    }

    /// When its path was last in such trouble that one may give up.
    pub(crate) fn trouble(&self, now: Time) -> Time {
        let rough = self.up.weather.is_rough() || self.down.weather.is_rough();
        if rough {
            now.max(self.troubled)
        } else {
            self.troubled
        }
    }

    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        self.address == address || self.former == Some(address)
    }

    pub(crate) fn handle_packet(
        &mut self,
        s: &mut Shared,
        packet: &mut Packet,
        whole: bool,
    ) -> Result<(), Broken> {
        let now = s.instant();
        match &mut self.state {
            State::Off(_) => return Ok(()),
            State::Dialing(call) => {
                let dialed = call.dial.handle_datagram(now, packet.from, &packet.bytes);
                self.on_dialed(s, dialed)?;
            }
            State::Open(endpoint) => match parse(&packet.bytes) {
                Ok(Datagram::Data { .. }) => endpoint.handle_packet(s, packet)?,
                Ok(Datagram::Reset { cid, token }) if cid == endpoint.cid() => {
                    let fits = endpoint.connection.handle_reset(token);
                    s.note(("reset", self.number, fits));
                    let honest = packet.place.is_some();
                    s.saw("reset", if fits { "that fits" } else { "in vain" });
                    if fits && !honest {
                        return Err((Promise::Private, "a made-up reset ends a connection".into()));
                    }
                }
                _ => {}
            },
        }
        self.run(s, whole)
    }

    /// One turn of its driver.
    pub(crate) fn run(&mut self, s: &mut Shared, whole: bool) -> Result<(), Broken> {
        match &mut self.state {
            State::Off(Some(at)) if *at <= s.now => self.dial(s)?,
            State::Off(_) => {}
            State::Dialing(call) => {
                let dialed = call.dial.handle_timeout(s.instant());
                self.on_dialed(s, dialed)?;
            }
            State::Open(_) => {}
        }
        self.say_hello(s)?;
        let State::Open(endpoint) = &mut self.state else {
            return Ok(());
        };
        endpoint.run(s, whole)?;
        if endpoint.ended.is_some() {
            let again = s.rng.millis(10..=3_000);
            let off = State::Off((!s.healed).then_some(s.now + again));
            if let State::Open(endpoint) = std::mem::replace(&mut self.state, off) {
                self.gone = Some(endpoint);
            }
        }
        Ok(())
    }

    fn dial(&mut self, s: &mut Shared) -> Result<(), Broken> {
        let parameters = Parameters {
            attempt: s.rng.next(),
            max_datagram: self.config.max_datagram,
            receive_bytes: self.config.receive_bytes,
            receive_messages: self.config.receive_messages,
        };
        s.note(("dial", self.number));
        s.summary.dials += 1;
        let dialing = Dialing {
            identity: &self.identity,
            key: &self.key,
            parameters,
            now_ms: s.rng.chance(500).then_some(1_900_000_000_000),
            timeout: dial::DIAL_TIMEOUT,
        };
        let dial = Dial::new(s.instant(), &dialing).map_err(|error| (Promise::Sound, error.to_string()))?;
        let since = s.now;
        self.state = State::Dialing(Box::new(Call { dial, since }));
        Ok(())
    }

    fn on_dialed(&mut self, s: &mut Shared, dialed: Dialed) -> Result<(), Broken> {
        let State::Dialing(call) = &self.state else {
            return Ok(());
        };
        let since = call.since;
        let again = s.now + s.rng.millis(50..=3_000);
        match dialed {
            Dialed::Pending => return Ok(()),
            Dialed::Open(connection) => {
                s.note(("open", self.number, connection.cid().0));
                s.saw("dial", "open");
                s.summary.connections += 1;
                let place = Place::Device(self.number);
                let mut endpoint = Endpoint::new(*connection, self.config.clone(), place, s);
                // As `@hello` is on the other channels: the first that a server hears.
                let message = super::message::Message::draw(&mut s.rng, 20);
                if !endpoint.message(s, message)? {
                    return Err((Promise::Protocol, "a new connection takes no message".into()));
                }
                self.state = State::Open(Box::new(endpoint));
            }
            Dialed::Refused(refusal) => {
                s.note(("refused", self.number, refusal.status));
                s.saw("dial", "refused");
                self.state = State::Off(Some(again));
            }
            Dialed::TimedOut => {
                s.note(("timed out", self.number));
                s.saw("dial", "timed out");
                let trouble = self.troubled.max(since);
                if s.healed && since > trouble {
                    return Err((Promise::Arriving, "nobody answers in calm weather".into()));
                }
                self.state = State::Off(Some(again));
            }
        }
        Ok(())
    }

    fn say_hello(&mut self, s: &mut Shared) -> Result<(), Broken> {
        let State::Dialing(call) = &mut self.state else {
            return Ok(());
        };
        let mut hello = Vec::new();
        while call.dial.poll_transmit(s.instant(), &mut hello) {
            if call.dial.stats().hellos > MAX_HELLOS {
                return Err((Promise::Quiet, "an attempt sends one HELLO after another".into()));
            }
            let bytes = std::mem::take(&mut hello);
            s.put_out(Place::Device(self.number), SERVER.into(), bytes, None);
        }
        if s.time_of(call.dial.poll_timeout()) <= s.now {
            return Err((Promise::Quiet, "an attempt is due again at once".into()));
        }
        Ok(())
    }

    pub(crate) fn due(&mut self, s: &Shared) -> Option<Time> {
        match &mut self.state {
            State::Off(at) => *at,
            State::Dialing(call) => Some(s.time_of(call.dial.poll_timeout())),
            State::Open(endpoint) => endpoint.due(s),
        }
    }

    /// Its process begins anew.
    pub(crate) fn restart(&mut self, s: &mut Shared) {
        s.note(("device restarts", self.number));
        if let State::Open(endpoint) = &self.state {
            endpoint.vanish(s);
        }
        self.life += 1;
        self.armed = None;
        self.state = State::Off(Some(s.now + s.rng.around(Duration::from_millis(500))));
    }
}

/// Where the server is.
pub(crate) const SERVER: ([u8; 4], u16) = ([192, 0, 2, 1], 8_443);

/// Limits of one end, from the narrowest to the widest that make sense.
pub(crate) fn draw_config(s: &mut Shared, is_device: bool) -> Config {
    let longest = s.longest;
    let rng = &mut s.rng;
    Config {
        max_message_bytes: longest,
        receive_bytes: rng.pick(&[4_096, 16 << 10, 64 << 10, 64 << 10, 256 << 10]),
        receive_messages: rng.pick(&[4, 8, 64, 64, 300]),
        max_datagram: rng.pick(&[512, 1_200, 1_200, 1_472]),
        give_up: Duration::from_secs(rng.pick(&[30, 60, 60])),
        keep_alive: is_device.then(|| Duration::from_secs(rng.pick(&[10, 25, 25]))),
        send_bytes: rng.pick(&[16 << 10, 256 << 10, 256 << 10, 2 << 20]),
        send_messages: rng.pick(&[2, 16, 256]),
        input_share: usize::MAX,
    }
}
