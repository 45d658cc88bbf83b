//! From the upgrade to LOGIN: what a device says to be let in, the challenge on `ws`, and who may log in after what.
//!
//! There is no cryptography here. Whole messages move, and a record is a message beside the key that it is sealed with. What
//! counts is as it is: the keys come from the device's secret and from what both ends drew for this one handshake. So whoever
//! says a recorded credential again gets a challenge that he cannot answer, and a record opens in its own conversation only.

use std::time::Duration;

use bytes::Bytes;
use holdfast_backend::auth::{Challenge, Claimant, Denied, Grant, Principal};
use holdfast_frontend::session;
use holdfast_proto::link::{Command, session_id};
use holdfast_proto::secure::{KEY_BYTES, TrafficKey, TrafficKeys};
use holdfast_proto::{ChannelKind, CloseCode, MessageKind};

use super::Promise;
use super::conn::{Conn, ConnId, FromDevice, Phase};
use super::queue::Time;
use super::rng::Rng;
use super::shard::Place;
use super::world::World;

/// A credential that begins so is refused.
const BAD_CREDENTIAL: &str = "bad.";
/// What stands between a device's name and what it drew, in a credential for `ws`.
const DRAWN: char = '/';
const CHALLENGE: &str = "@challenge ";
const HELLO: &[u8] = b"@hello {}";
/// What a timer may be late: the wheel's tick, and a turn that comes when it can.
const SLACK: Duration = Duration::from_millis(80);

/// The key that a record is sealed with.
pub(super) type Seal = [u8; KEY_BYTES];

/// What one connection has come to on its way to LOGIN.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The device's part of the handshake.
    drawn: u64,
    /// What the device seals with, once it has read its challenge.
    keys: Option<TrafficKeys>,
    /// It means to say nothing at all.
    pub(super) is_mute: bool,
    /// What the frontend's channel opens with.
    given: Option<TrafficKeys>,
    /// When the upgrade was answered.
    admitted: Option<Time>,
    first: First,
    /// What the channel itself found wrong with what came.
    pub(super) fault: Option<CloseCode>,
    /// Which bound on attempts forbids it to go on.
    pub(super) turned_away: Option<&'static str>,
}

/// The message that a session waited for after it was admitted.
#[derive(Debug, Default, PartialEq, Eq)]
enum First {
    /// None has come, or none in time.
    #[default]
    None,
    Hello(Bytes),
    Other,
}

/// What somebody who listened knows of a device.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) credential: Bytes,
    /// What its records were sealed with.
    pub(super) seal: Seal,
}

impl Proof {
    /// What a device's message is on its way: on `ws` a record, from when it has keys.
    pub(super) fn seal(&self, what: FromDevice) -> FromDevice {
        match (what, &self.keys) {
            (FromDevice::Message(kind, payload), Some(keys)) => {
                FromDevice::Record(*keys.to_server.as_bytes(), kind, payload)
            }
            (what, _) => what,
        }
    }

    /// Whether the frontend's channel can open a record.
    pub(super) fn opens(&self, seal: &Seal) -> bool {
        self.given
            .as_ref()
            .is_some_and(|keys| keys.to_server.as_bytes() == seal)
    }

    /// Whether a close can be told from one that anybody between could have sent.
    pub(super) fn is_authentic(&self, kind: ChannelKind) -> bool {
        kind.secure().is_none() || self.keys.is_some()
    }
}

/// The keys of one handshake.
fn derive(secret: u64, by_device: u64, by_backend: u64) -> TrafficKeys {
    let mut rng = Rng::new(secret);
    for part in [by_device, by_backend] {
        rng = Rng::new(rng.next() ^ part);
    }
    let mut key = || {
        let words: Vec<u8> = (0..KEY_BYTES / 8)
            .flat_map(|_| rng.next().to_le_bytes())
            .collect();
        TrafficKey::from_bytes(&words).expect("as many bytes as a key has")
    };
    TrafficKeys {
        to_server: key(),
        to_device: key(),
    }
}

impl World {
    /// What a connection's device says of itself.
    pub(super) fn draw_credential(&mut self, conn: ConnId) -> Bytes {
        let c = &self.conns[conn.0];
        let (device, kind) = (c.device, c.kind);
        let recorded = self.devices[device].recorded.as_ref();
        if c.stranger.is_some()
            && let Some(recorded) = recorded
        {
            return recorded.credential.clone();
        }
        let bad = c.stranger.is_some() || self.rng.chance(30);
        let prefix = if bad { BAD_CREDENTIAL } else { "" };
        let name = &self.devices[device].name;
        if kind.secure().is_none() {
            return format!("{prefix}{name}").into();
        }
        let drawn = self.rng.next();
        self.conns[conn.0].proof.drawn = drawn;
        format!("{prefix}{name}{DRAWN}{drawn:x}").into()
    }

    /// The simulated authenticator.
    pub(super) fn authenticate(&mut self, claimant: Claimant, credential: &Bytes) -> Result<Grant, Denied> {
        let text = std::str::from_utf8(credential).unwrap_or_default();
        let (name, drawn) = text.split_once(DRAWN).unzip();
        let kind = if drawn.is_some() {
            ChannelKind::Ws
        } else {
            ChannelKind::Wss
        };
        if claimant.channel != kind.frame() {
            let what = format!(
                "a credential for {kind:?} comes as one for {:?}",
                claimant.channel
            );
            self.fail(Promise::Protocol, what);
        }
        let name = name.unwrap_or(text);
        let Some(device) = self.devices.iter().find(|device| device.name == name) else {
            return Err(Denied::new(401, refusal_code(kind), "simulated"));
        };
        let (device, secret) = (device.id.clone(), device.secret);
        let Some(drawn) = drawn.and_then(|drawn| u64::from_str_radix(drawn, 16).ok()) else {
            let principal = Principal::Token {
                expires_at: u64::MAX,
                token_id: None,
            };
            return Ok(Grant {
                device,
                principal: principal.encode(),
                challenge: None,
            });
        };
        let by_backend = self.rng.next();
        let principal = Principal::DeviceKey {
            key_id: "k1".into(),
            key_version: 1,
            product: "lamp".into(),
            class: String::new(),
        };
        let challenge = Challenge {
            message: format!("{CHALLENGE}{by_backend:x}").into(),
            keys: derive(secret, drawn, by_backend),
        };
        Ok(Grant {
            device,
            principal: principal.encode(),
            challenge: Some(challenge),
        })
    }

    /// The frontend answers an upgrade. Gives the challenge's message.
    pub(super) fn note_admitted(
        &mut self,
        conn: ConnId,
        challenge: Option<Box<session::Challenge>>,
    ) -> Option<Bytes> {
        let kind = self.conns[conn.0].kind;
        if challenge.is_some() != kind.secure().is_some() {
            let what = format!("{conn:?} on {kind:?} is admitted with the challenge {challenge:?}");
            self.fail(Promise::Proven, what);
        }
        self.saw("admitted on", kind.label());
        let (message, given) = challenge.map(|c| (c.message, c.keys)).unzip();
        let proof = &mut self.conns[conn.0].proof;
        (proof.admitted, proof.given) = (Some(self.now), given);
        message
    }

    /// The device reads that it is admitted.
    pub(super) fn on_admitted(&mut self, conn: ConnId, challenge: Option<&Bytes>) {
        self.conns[conn.0].phase = Phase::Admitted;
        match challenge {
            _ if self.conns[conn.0].stranger.is_some() => self.on_stranger_challenged(conn),
            Some(message) => self.answer_challenge(conn, message),
            None if self.rng.chance(700) => self.say_hello(conn, Time::ZERO),
            None => {}
        }
    }

    /// Derives the keys as the device does, and says what must come first; or not.
    fn answer_challenge(&mut self, conn: ConnId, message: &Bytes) {
        let text = std::str::from_utf8(message).ok();
        let by_backend = text.and_then(|text| text.strip_prefix(CHALLENGE));
        let by_backend = by_backend.and_then(|drawn| u64::from_str_radix(drawn, 16).ok());
        let c = &self.conns[conn.0];
        let (device, proof) = (&self.devices[c.device], &c.proof);
        let keys = by_backend.map(|by_backend| derive(device.secret, proof.drawn, by_backend));
        if keys.is_none() || keys != proof.given {
            let what = format!("{conn:?} is challenged with {message:?}, which its keys do not belong to");
            return self.fail(Promise::Proven, what);
        }
        let recorded = keys.as_ref().map(|keys| Recorded {
            credential: format!("{}{DRAWN}{:x}", device.name, proof.drawn).into(),
            seal: *keys.to_server.as_bytes(),
        });
        let index = c.device;
        self.conns[conn.0].proof.keys = keys;
        self.devices[index].recorded = recorded;
        let kinds = if self.healed.is_some() { 1 } else { 4 };
        match self.rng.weighted(&[900, 30, 30, 40][..kinds]) {
            0 => self.say_hello(conn, Time::ZERO),
            // What comes behind it must not help.
            1 => {
                self.put(
                    conn,
                    FromDevice::Message(MessageKind::Text, Bytes::from_static(b"@ping")),
                );
                self.say_hello(conn, Time::ZERO);
            }
            2 => self.conns[conn.0].proof.is_mute = true,
            _ => {
                let timeout = self.scenario.shard.challenge_timeout;
                let delay = self.rng.micros(0..=timeout.as_micros() as u64 * 3 / 2);
                self.say_hello(conn, delay);
            }
        }
    }

    fn say_hello(&mut self, conn: ConnId, delay: Time) {
        let bad = self.healed.is_none() && self.rng.chance(20);
        let hello: &'static [u8] = if bad { b"@hello {\"ticket\":7}" } else { HELLO };
        let c = &mut self.conns[conn.0];
        c.said_hello = true;
        c.last_arrival = c.last_arrival.max(self.now + delay);
        self.put(
            conn,
            FromDevice::Message(MessageKind::Text, Bytes::from_static(hello)),
        );
    }

    /// A session that waits for its first message is about to get it.
    pub(super) fn note_first(&mut self, conn: ConnId, (kind, payload): (MessageKind, &Bytes)) {
        let is_hello = kind == MessageKind::Text && payload.starts_with(b"@hello");
        self.conns[conn.0].proof.first = match is_hello {
            true => First::Hello(payload.clone()),
            false => First::Other,
        };
    }

    /// On `ws` anything but `@hello` ends the session at once; on `wss` whatever it is goes on to LOGIN.
    pub(super) fn check_first(&mut self, conn: ConnId, state: Option<&'static str>) {
        let c = &self.conns[conn.0];
        let ends = c.kind.secure().is_some() && c.proof.first == First::Other;
        if state != (!ends).then_some("logging_in") {
            let what = format!("{conn:?} on {:?} is {state:?} after {:?}", c.kind, c.proof.first);
            self.fail(Promise::Proven, what);
        }
    }

    /// What a shard asks of a backend to let a device in: it says on which kind of channel, and rests on what the device said.
    pub(super) fn note_claim(&mut self, command: &Command) {
        let (id, channel, address) = match command {
            Command::Bind(bind) => (bind.id, bind.channel(), &bind.address),
            Command::Login(login) => {
                let id = login.session.as_ref().and_then(|session| session.id);
                (id, login.channel(), &login.address)
            }
            _ => return,
        };
        let id = session_id(id).ok();
        let Some(conn) = id.and_then(|id| self.sessions.get(&id.as_u128()).copied()) else {
            return self.fail(Promise::Protocol, "a claim of a session that never was".into());
        };
        let c = &self.conns[conn.0];
        if channel != c.kind.frame() || *address != c.address.to_string() {
            let what = format!(
                "{conn:?} on {:?} is called one on {channel:?} from {address}",
                c.kind
            );
            return self.fail(Promise::Protocol, what);
        }
        let Command::Login(login) = command else { return };
        if let Err(what) = self.judge_login(c, &login.hello) {
            self.fail(Promise::Proven, format!("{conn:?} on {:?}: {what}", c.kind));
        }
    }

    fn judge_login(&self, c: &Conn, hello: &Bytes) -> Result<(), &'static str> {
        let said = match &c.proof.first {
            First::Hello(said) => said.clone(),
            First::None | First::Other => Bytes::new(),
        };
        let patience = self.scenario.shard.hello_timeout;
        let waited = self.now.saturating_sub(c.proof.admitted.unwrap_or(self.now));
        if *hello != said {
            Err("LOGIN has another hello than was said")
        } else if c.stranger.is_some() {
            Err("a stranger logs in")
        } else if c.kind.secure().is_some() && said.is_empty() {
            Err("it logs in without an answer to its challenge")
        } else if c.proof.first == First::None && waited < patience {
            Err("it logs in before it was silent for long enough")
        } else {
            Ok(())
        }
    }

    /// Whether a session may be closed because its challenge was not answered. Says why.
    pub(super) fn failed_challenge(&self, conn: ConnId) -> Option<&'static str> {
        let c = &self.conns[conn.0];
        if c.kind.secure().is_none() || c.online {
            return None;
        }
        let due = c.proof.admitted? + self.scenario.shard.challenge_timeout;
        match c.proof.first {
            First::Other => Some("answered with something else"),
            First::None if c.inbox.is_empty() && self.now >= due => Some("not answered in time"),
            First::None | First::Hello(_) => None,
        }
    }

    /// Nobody waits for a first message for longer than he may.
    pub(super) fn check_challenging(&mut self) {
        let places = self.places();
        for place in places {
            let held = self.held_of(place);
            let Some(late) = self.find_late_first(place, held) else {
                continue;
            };
            self.fail(
                Promise::Bounded,
                format!("{late:?} still waits for its first message"),
            );
        }
    }

    fn find_late_first(&self, (frontend, index): Place, held: Time) -> Option<ConnId> {
        let shard = &self.frontends[frontend].life.as_ref()?.shards[index];
        if shard.pace.is_held(self.now) {
            return None;
        }
        let limits = &self.scenario.shard;
        let is_late = |conn: &&ConnId| {
            let c = &self.conns[conn.0];
            let usage = c.key.and_then(|key| shard.core.session_usage(key));
            let patience = match c.kind.secure() {
                Some(_) => limits.challenge_timeout,
                None => limits.hello_timeout,
            };
            let until = |since: Time| since + patience + (held - c.held_before) + SLACK;
            usage.is_some_and(|usage| usage.state == "challenging")
                && c.proof.admitted.is_some_and(|since| self.now > until(since))
        };
        shard.by_slot.iter().flatten().find(is_late).copied()
    }
}

/// What a backend says to a credential that it does not accept.
pub(super) fn refusal_code(kind: ChannelKind) -> &'static str {
    match kind {
        ChannelKind::Ws | ChannelKind::Udp => "key_unknown",
        ChannelKind::Wss => "token_invalid",
    }
}
