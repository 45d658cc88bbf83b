//! The harness: everything follows from a seed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::MessageKind;
use crate::secure::{TrafficKey, TrafficKeys};
use crate::udp::{
    Config, Connection, ConnectionId, End, Event, INITIAL_SERVER_CREDIT, Opening, PeerCredit, Received,
    ResetToken, SendError, Side,
};

pub(super) const TOKEN: [u8; 16] = [9; 16];

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x1234_5678)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// With so many chances in a hundred.
    pub(super) fn percent(&mut self, chances: u64) -> bool {
        self.below(100) < chances
    }
}

/// What the network does, in hundredths and milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    pub(super) loss: u64,
    pub(super) doubled: u64,
    pub(super) flipped: u64,
    pub(super) delay: (u64, u64),
}

pub(super) const FINE: Conditions = Conditions {
    loss: 0,
    doubled: 0,
    flipped: 0,
    delay: (10, 10),
};

#[derive(Debug, Clone)]
pub(super) struct Datagram {
    pub(super) at: Instant,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) config: Config,
    pub(super) address: SocketAddr,
    pub(super) received: Vec<(MessageKind, Bytes)>,
    pub(super) sent: usize,
    pub(super) delivered: usize,
    pub(super) events: Vec<Event>,
    pub(super) outcomes: Vec<Received>,
    /// Whether its application takes messages.
    pub(super) takes: bool,
    pub(super) datagrams_out: usize,
    pub(super) bytes_out: usize,
}

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) device: Peer,
    pub(super) server: Peer,
    pub(super) network: Vec<Datagram>,
    pub(super) conditions: Conditions,
    pub(super) random: Random,
    /// All that was ever sent, if wanted.
    pub(super) tape: Option<Vec<Datagram>>,
}

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn config() -> Config {
    Config {
        keep_alive: Some(Duration::from_secs(25)),
        ..Config::default()
    }
}

pub(super) fn keys() -> TrafficKeys {
    let key = |byte| TrafficKey::from_bytes(&[byte; 32]).unwrap();
    TrafficKeys {
        to_server: key(1),
        to_device: key(2),
    }
}

pub(super) fn hello_credit(config: &Config) -> PeerCredit {
    PeerCredit {
        messages: config.receive_messages.into(),
        bytes: config.receive_bytes.into(),
    }
}

impl Peer {
    pub(super) fn new(side: Side, config: Config, device: &Config, now: Instant) -> Self {
        let is_server = side == Side::Server;
        let (address, peer) = match side {
            Side::Server => (address("192.0.2.1:443"), address("198.51.100.7:5000")),
            Side::Device => (address("198.51.100.7:5000"), address("192.0.2.1:443")),
        };
        let (hello, initial) = (hello_credit(device), INITIAL_SERVER_CREDIT);
        let opening = Opening {
            cid: ConnectionId::new(3, 77, 0xabcd),
            keys: keys(),
            peer,
            peer_max_datagram: 1_472,
            peer_credit: if is_server { hello } else { initial },
            own_credit: if is_server { initial } else { hello },
            reset_token: is_server.then_some(ResetToken(TOKEN)),
        };
        Self {
            connection: Connection::new(side, opening, now),
            config,
            address,
            received: Vec::new(),
            sent: 0,
            delivered: 0,
            events: Vec::new(),
            outcomes: Vec::new(),
            takes: true,
            datagrams_out: 0,
            bytes_out: 0,
        }
    }

    pub(super) fn send(&mut self, kind: MessageKind, payload: Bytes) -> Result<(), SendError> {
        self.connection.send(&self.config, kind, payload)?;
        self.sent += 1;
        Ok(())
    }

    pub(super) fn text(&mut self, payload: impl Into<Bytes>) {
        self.send(MessageKind::Text, payload.into()).unwrap();
    }

    pub(super) fn ended(&self) -> Option<End> {
        self.events.iter().find_map(|event| match event {
            Event::Ended(end) => Some(*end),
            _ => None,
        })
    }

    fn poll_events(&mut self) {
        loop {
            let event = match self.takes {
                true => self.connection.poll_event(&self.config),
                false => self.connection.poll_notice(),
            };
            assert!(
                self.ended().is_none() || event.is_none(),
                "{event:?} after the end"
            );
            match event {
                None => return,
                Some(Event::Message(kind, data)) => self.received.push((kind, data)),
                Some(Event::Delivered(count)) => self.delivered += count,
                Some(other) => self.events.push(other),
            }
        }
    }
}

impl Pair {
    pub(super) fn new(seed: u64, conditions: Conditions) -> Self {
        Self::with(seed, conditions, config(), config())
    }

    pub(super) fn with(seed: u64, conditions: Conditions, device: Config, server: Config) -> Self {
        let now = Instant::now();
        Self {
            now,
            server: Peer::new(Side::Server, server, &device, now),
            device: Peer::new(Side::Device, device.clone(), &device, now),
            network: Vec::new(),
            conditions,
            random: Random::new(seed),
            tape: None,
        }
    }

    /// Both ends do all that they can do now.
    pub(super) fn settle(&mut self) {
        for side in [Side::Device, Side::Server] {
            let now = self.now;
            let peer = self.peer(side);
            peer.poll_events();
            let mut sent = Vec::new();
            {
                let mut run = peer.connection.transmit_run(&peer.config, now);
                let mut bytes = Vec::new();
                while let Some(to) = run.poll(&mut bytes) {
                    sent.push((to, std::mem::take(&mut bytes)));
                    assert!(sent.len() < 2_000, "it never stops");
                }
                assert!(bytes.is_empty());
            }
            peer.poll_events();
            let from = peer.address;
            let limit = usize::from(peer.config.max_datagram);
            for (to, bytes) in sent {
                assert!(bytes.len() <= limit, "{}", bytes.len());
                let peer = self.peer(side);
                peer.datagrams_out += 1;
                peer.bytes_out += bytes.len();
                self.put((from, to), bytes);
            }
        }
    }

    pub(super) fn peer(&mut self, side: Side) -> &mut Peer {
        match side {
            Side::Device => &mut self.device,
            Side::Server => &mut self.server,
        }
    }

    fn put(&mut self, (from, to): (SocketAddr, SocketAddr), bytes: Vec<u8>) {
        let conditions = self.conditions;
        let copies = 1 + u64::from(self.random.percent(conditions.doubled));
        for _ in 0..copies {
            let (low, high) = conditions.delay;
            let delay = Duration::from_micros(low * 1_000 + self.random.below((high - low) * 1_000 + 1));
            let mut datagram = Datagram {
                at: self.now + delay,
                from,
                to,
                bytes: bytes.clone(),
            };
            if let Some(tape) = &mut self.tape {
                tape.push(datagram.clone());
            }
            if self.random.percent(conditions.loss) {
                continue;
            }
            if self.random.percent(conditions.flipped) {
                let at = self.random.below(bytes.len() as u64) as usize;
                datagram.bytes[at] ^= 1 << self.random.below(8);
            }
            self.network.push(datagram);
        }
    }

    /// What happens next happens. `false`: nothing ever will, or not before `limit`.
    pub(super) fn step(&mut self, limit: Instant) -> bool {
        self.settle();
        let arrival = self.network.iter().map(|datagram| datagram.at).min();
        let timers = [&self.device, &self.server].map(|peer| peer.connection.poll_timeout());
        let next = [arrival, timers[0], timers[1]].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= limit) else {
            self.now = self.now.max(limit);
            return false;
        };
        self.now = self.now.max(next);
        self.arrive();
        for side in [Side::Device, Side::Server] {
            let now = self.now;
            let peer = self.peer(side);
            if peer.connection.poll_timeout().is_some_and(|at| at <= now) {
                peer.connection.handle_timeout(&peer.config, now);
                peer.poll_events();
            }
        }
        true
    }

    fn arrive(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) = self.network.drain(..).partition(|datagram| datagram.at <= now);
        self.network = later;
        for datagram in due {
            self.deliver(datagram);
        }
    }

    /// Hands a datagram to whoever lives at its address.
    pub(super) fn deliver(&mut self, mut datagram: Datagram) -> Option<Received> {
        let now = self.now;
        let entropy = self.random.next();
        let side = if datagram.to == self.server.address {
            Side::Server
        } else if datagram.to == self.device.address {
            Side::Device
        } else {
            return None;
        };
        let peer = self.peer(side);
        let outcome =
            peer.connection
                .handle_datagram(&peer.config, now, datagram.from, &mut datagram.bytes, entropy);
        peer.outcomes.push(outcome);
        peer.poll_events();
        Some(outcome)
    }

    pub(super) fn run(&mut self, time: Duration) {
        let limit = self.now + time;
        let mut steps = 0;
        while self.step(limit) {
            steps += 1;
            assert!(steps < 2_000_000, "it never rests");
        }
        self.settle();
    }

    /// Runs until something holds; whether it ever did.
    pub(super) fn run_until(&mut self, time: Duration, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let limit = self.now + time;
        loop {
            if holds(self) {
                return true;
            }
            if !self.step(limit) {
                self.settle();
                return holds(self);
            }
        }
    }
}

/// A message that says who sent it as the how-many-eth, so that order and content can be checked.
pub(super) fn message(side: Side, number: usize, length: usize) -> Bytes {
    let seed = number as u64 * 2 + u64::from(side == Side::Server);
    let mut random = Random::new(seed);
    (0..length).map(|_| random.next() as u8).collect()
}

/// A packet as the other end of `side` would seal it, with this number.
pub(super) fn forge(pair: &Pair, to: Side, number: u64, plain: &[u8]) -> Datagram {
    use crate::udp::protect::{Expanded, Sealer};
    let keys = keys();
    let (key, from, to_address) = match to {
        Side::Server => (keys.to_server, pair.device.address, pair.server.address),
        Side::Device => (keys.to_device, pair.server.address, pair.device.address),
    };
    let mut sealer = Sealer::at(key, number);
    let mut bytes = Vec::new();
    sealer.begin(pair.device.connection.cid(), &mut bytes);
    bytes.extend_from_slice(plain);
    sealer.seal(&mut Expanded::default(), &mut bytes, 0);
    Datagram {
        at: pair.now,
        from,
        to: to_address,
        bytes,
    }
}

/// A packet of the generated type to the other end, sealed with this number.
pub(super) fn inject(
    pair: &mut Pair,
    to: Side,
    number: u64,
    packet: crate::udp::packet::generated::Packet,
) -> Received {
    use prost::Message;
    let datagram = forge(pair, to, number, &packet.encode_to_vec());
    pair.deliver(datagram).unwrap()
}
