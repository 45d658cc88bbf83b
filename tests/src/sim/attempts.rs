//! Bounds on attempts: how often one source may ask for a handshake on `ws`, and how many of one device and source may be
//! unfinished. What the sessions of a frontend do is compared with what it must be, attempt by attempt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use holdfast_frontend::exchange::ToShard;
use holdfast_frontend::session::{SessionKey, ShardConfig, SourceLimit, Sources, Unfinished};
use holdfast_proto::link::frames::bound;
use holdfast_proto::link::{Command, Incoming, session_id};
use holdfast_proto::throttle::{Throttle, source_of};
use holdfast_proto::{ChannelKind, DeviceId};

use super::Promise;
use super::conn::ConnId;
use super::rng::Rng;
use super::shard::Place;
use super::world::World;

/// Handshakes of one device from one source that may wait for their proof at a time (design section 8).
const MAX_UNFINISHED: usize = 4;
/// Slots of the table of sources: few, so that some sources share one.
const SOURCE_SLOTS: usize = 16;

/// Where somebody connects from: the addresses of one customer, who counts as one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin(pub(super) usize);

impl Origin {
    /// Some customers have one IPv4 address, others an IPv6 network of 64 bits, of which they may use any.
    pub(super) fn address(self, rng: &mut Rng) -> IpAddr {
        let number = self.0 as u8;
        if self.0.is_multiple_of(2) {
            return Ipv4Addr::new(10, 0, 0, number).into();
        }
        let network = u128::from_be_bytes([0x20, 1, 0xd, 0xb8, 0, 0, 0, number, 0, 0, 0, 0, 0, 0, 0, 0]);
        Ipv6Addr::from_bits(network | u128::from(rng.next())).into()
    }
}

/// What the shards of one frontend share.
#[derive(Debug)]
pub(super) struct Guards {
    unfinished: Arc<Unfinished>,
    sources: Sources,
    /// Counts the same attempts, to tell what the shards must decide.
    twin: Option<Throttle>,
}

impl Guards {
    pub(super) fn new(rng: &mut Rng, pace: Option<(u64, u32)>, born: Instant) -> Self {
        let seed = rng.uuid();
        let throttle = || pace.map(|(interval, burst)| Throttle::new(seed, SOURCE_SLOTS, interval, burst));
        Self {
            unfinished: Arc::new(Unfinished::new(rng.uuid())),
            sources: Sources {
                ws: throttle().map(|throttle| SourceLimit::new(throttle, born)),
                udp: None,
            },
            twin: throttle(),
        }
    }

    pub(super) fn config(&self, config: ShardConfig) -> ShardConfig {
        ShardConfig {
            unfinished: self.unfinished.clone(),
            sources: self.sources.clone(),
            ..config
        }
    }

    /// How many places of a pair are taken.
    fn taken(&self, (device, origin): &(DeviceId, Origin), rng: &mut Rng) -> usize {
        let source = source_of(origin.address(rng));
        let free: Vec<_> = (0..MAX_UNFINISHED)
            .map_while(|_| self.unfinished.enter(device, source))
            .collect();
        let taken = MAX_UNFINISHED - free.len();
        free.into_iter().for_each(|place| self.unfinished.leave(place));
        taken
    }
}

impl World {
    /// Devices on `ws` and where handshakes in their names come from, each pair once.
    pub(super) fn pairs(&self) -> Vec<(usize, Origin)> {
        let devices = self.devices.iter().enumerate();
        let own = devices.filter(|(_, device)| device.kind == ChannelKind::Ws);
        let own = own.map(|(index, device)| (index, device.origin));
        let mut pairs: Vec<_> = own
            .chain(
                self.strangers
                    .iter()
                    .map(|stranger| (stranger.victim, stranger.origin)),
            )
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    pub(super) fn draw_guards(&mut self) -> Guards {
        let now = self.instant();
        Guards::new(&mut self.rng, self.scenario.sources, now)
    }

    fn named_pairs(&self) -> Vec<(DeviceId, Origin)> {
        let pairs = self.pairs().into_iter();
        pairs
            .map(|(index, origin)| (self.devices[index].id.clone(), origin))
            .collect()
    }

    /// A device is about to ask for its upgrade: whether its source has had too many.
    pub(super) fn note_attempt(&mut self, place: Place, conn: ConnId) {
        let c = &self.conns[conn.0];
        if c.kind.secure().is_none() {
            return;
        }
        let Some(life) = self.frontends[place.0].life.as_ref() else {
            return;
        };
        let since_start = (self.now - life.began).as_millis() as u64;
        let source = source_of(c.address.ip());
        let twin = life.guards.twin.as_ref();
        if twin.is_some_and(|twin| twin.check(&source, since_start).is_err()) {
            self.conns[conn.0].proof.turned_away = Some("a source");
        }
    }

    /// Who was turned away is gone at once.
    pub(super) fn check_turned_away(&mut self, place: Place, (conn, key): (ConnId, SessionKey)) {
        let away = self.conns[conn.0].proof.turned_away;
        let state = self.state_of(place, key);
        if away.is_some() && state.is_some() {
            let what = format!("{conn:?} is {state:?} although {away:?} has too many handshakes");
            self.fail(Promise::Bounded, what);
        }
    }

    /// Sessions of a device, from one source, that wait for their proof at one frontend.
    fn challenging(&self, frontend: usize, pair: (usize, Origin)) -> usize {
        let shards = self.frontends[frontend].life.iter().flat_map(|life| &life.shards);
        let conns = shards.flat_map(|shard| shard.by_slot.iter().flatten().map(move |conn| (shard, conn)));
        let waits = conns.filter(|(shard, conn)| {
            let c = &self.conns[conn.0];
            let usage = c.key.and_then(|key| shard.core.session_usage(key));
            c.kind.secure().is_some()
                && (c.device, c.origin) == pair
                && usage.is_some_and(|usage| usage.state == "challenging")
        });
        waits.count()
    }

    /// A message is about to come to a shard. When it is the admission of a device on `ws`: gives which, after having noted
    /// whether there is a place for it.
    pub(super) fn foresee(&mut self, place: Place, message: &ToShard) -> Option<(ConnId, SessionKey)> {
        let ToShard::Frame {
            incoming:
                Incoming {
                    command: Command::Bound(bound),
                    ..
                },
            ..
        } = message
        else {
            return None;
        };
        let id = session_id(bound.id).ok()?;
        let conn = *self.sessions.get(&id.as_u128())?;
        let c = &self.conns[conn.0];
        let (key, pair) = (c.key?, (c.device, c.origin));
        let is_admission = matches!(bound.result, Some(bound::Result::Admitted(_)));
        if !is_admission || c.kind.secure().is_none() || self.state_of(place, key) != Some("binding") {
            return None;
        }
        let full = self.challenging(place.0, pair) >= MAX_UNFINISHED;
        self.conns[conn.0].proof.turned_away = full.then_some("a device");
        Some((conn, key))
    }

    /// What became of it.
    pub(super) fn check_foreseen(&mut self, place: Place, (conn, key): (ConnId, SessionKey)) {
        let state = self.state_of(place, key);
        let away = &mut self.conns[conn.0].proof.turned_away;
        // Another backend was asked meanwhile: this one is not heard.
        if state == Some("binding") {
            *away = None;
        } else if state != away.is_none().then_some("challenging") {
            let what = format!("{conn:?} is {state:?} when it is admitted, turned away by: {away:?}");
            self.fail(Promise::Bounded, what);
        }
    }

    /// Each place that is taken belongs to a session that waits for its proof.
    pub(super) fn check_unfinished(&mut self) {
        let pairs = self.pairs();
        let named = self.named_pairs();
        for frontend in 0..self.frontends.len() {
            for (pair, named) in pairs.iter().zip(&named) {
                let waiting = self.challenging(frontend, *pair);
                let Some(life) = self.frontends[frontend].life.as_ref() else {
                    break;
                };
                let taken = life.guards.taken(named, &mut self.rng);
                if taken != waiting || waiting > MAX_UNFINISHED {
                    let what = format!(
                        "frontend {frontend} has {taken} unfinished handshakes of {named:?}, but {waiting} sessions wait"
                    );
                    self.fail(Promise::Bounded, what);
                }
            }
        }
    }
}
