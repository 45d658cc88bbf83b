//! The server: lets devices in, holds its ends of the connections, and answers what it does not know.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::secure::{Credential, MasterKey, SecureChannel, Verified};
use holdfast_proto::udp::datagram::{self, Hello, Refused};
use holdfast_proto::udp::{
    Config, Connection, ConnectionId, Cookies, Datagram, INITIAL_SERVER_CREDIT, Opening, PeerCredit,
    ResetKey, Side, parse,
};

use super::device::draw_config;
use super::endpoint::Endpoint;
use super::ledger::Broken;
use super::shared::{Packet, Place, Shared};
use crate::sim::queue::Time;

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) up: bool,
    /// It was restarted so often.
    pub(crate) life: u32,
    pub(crate) ends: BTreeMap<ConnectionId, Endpoint>,
    pub(crate) config: Rc<Config>,
    attempts: BTreeMap<Vec<u8>, Attempt>,
    master: MasterKey,
    reset_key: ResetKey,
    cookies: Cookies,
    /// How often, per mille, a HELLO must come with a cookie, and how often a good one is refused.
    asks_cookie: u32,
    refuses: u32,
    /// What its ends take at first: at most what each device counts on.
    credit: PeerCredit,
    /// Resets that may still be sent, and since when that is so.
    resets: (f64, Time),
}

/// What became of a HELLO.
#[derive(Debug)]
struct Attempt {
    device: usize,
    from: SocketAddr,
    /// `None` while the backend has not answered.
    answer: Option<Vec<u8>>,
    until: Time,
}

/// An answer of the backend is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) at: Time,
    pub(crate) life: u32,
    pub(crate) key: Vec<u8>,
}

/// How long the answer to a HELLO is kept.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How long an end waits for the device's first datagram.
pub(crate) const HALF_OPEN: Duration = Duration::from_secs(15);
const RESETS_PER_SECOND: f64 = 50.0;
/// The shortest datagram that a reset answers: longer than the reset.
const MIN_DATA: usize = 29;

impl Server {
    pub(crate) fn new(s: &mut Shared, master: MasterKey) -> Self {
        let mut reset_key = [0; 32];
        reset_key.fill_with(|| s.rng.next() as u8);
        let config = draw_config(s, false);
        let mut credit = INITIAL_SERVER_CREDIT;
        if s.rng.chance(200) {
            // It finds no room for what it may be sent, refuses it, and is asked again. More than a window beyond the credit would be
            // the device's fault.
            credit.messages = credit
                .messages
                .saturating_sub(config.receive_messages.into())
                .max(1);
            credit.bytes = credit
                .bytes
                .saturating_sub(config.receive_bytes.into())
                .max(1_000);
        }
        Self {
            up: true,
            life: 0,
            ends: BTreeMap::new(),
            config: Rc::new(config),
            credit,
            attempts: BTreeMap::new(),
            master,
            reset_key: ResetKey::from_bytes(reset_key),
            cookies: draw_cookies(s),
            asks_cookie: s.rng.pick(&[0, 0, 300, 1000]),
            refuses: s.rng.pick(&[0, 0, 0, 300]),
            resets: (RESETS_PER_SECOND, s.now),
        }
    }

    /// Gives what the backend is asked. `device` is who owns the path that it came over.
    pub(crate) fn handle_packet(
        &mut self,
        s: &mut Shared,
        packet: &mut Packet,
        device: usize,
    ) -> Result<Option<Bind>, Broken> {
        s.accounts.receive(packet.from, packet.bytes.len());
        let bytes = std::mem::take(&mut packet.bytes);
        let parsed = parse(&bytes);
        match parsed {
            Ok(Datagram::Hello(hello)) => return Ok(self.on_hello(s, packet.from, (device, hello))),
            Ok(Datagram::Data { cid, .. }) => {
                packet.bytes = bytes;
                if let Some(end) = self.ends.get_mut(&cid) {
                    end.handle_packet(s, packet)?;
                } else {
                    self.reset(s, cid, (packet, device));
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn reset(&mut self, s: &mut Shared, cid: ConnectionId, (packet, device): (&Packet, usize)) {
        let (left, since) = self.resets;
        let earned = (s.now - since).as_secs_f64() * RESETS_PER_SECOND;
        let left = (left + earned).min(RESETS_PER_SECOND);
        let may = left >= 1.0 && packet.bytes.len() >= MIN_DATA;
        self.resets = (if may { left - 1.0 } else { left }, s.now);
        if may {
            let mut out = Vec::new();
            datagram::encode_reset(cid, &self.reset_key.token(cid).0, &mut out);
            s.put_out(Place::Server(device), packet.from, out, None);
        }
    }

    fn on_hello(
        &mut self,
        s: &mut Shared,
        from: SocketAddr,
        (device, hello): (usize, Hello<'_>),
    ) -> Option<Bind> {
        let now_s = s.now.as_secs() as u32;
        let attempt = hello.parameters.attempt;
        let mut key = hello.parameters.encode().to_vec();
        key.extend_from_slice(hello.credential);
        self.attempts.retain(|_, attempt| attempt.until > s.now);
        if let Some(known) = self.attempts.get(&key) {
            if known.from != from {
                // Who gets the answer is taken to be there: it goes to one place only.
                s.saw("hello", "from elsewhere");
            } else if let Some(answer) = known.answer.clone() {
                s.put_out(Place::Server(device), from, answer, None);
            }
            return None;
        }
        if !self.cookies.check(now_s, from, &hello) && s.rng.chance(self.asks_cookie) {
            let cookie = self.cookies.mint(now_s, from, &hello);
            let mut out = Vec::new();
            datagram::encode_retry(attempt, &cookie, &mut out);
            s.saw("hello", "asked for a cookie");
            s.put_out(Place::Server(device), from, out, None);
            return None;
        }
        let known = Attempt {
            device,
            from,
            answer: None,
            until: s.now + ATTEMPT,
        };
        self.attempts.insert(key.clone(), known);
        let at = s.now + s.rng.around(Duration::from_millis(5));
        let life = self.life;
        Some(Bind { at, life, key })
    }

    /// The backend has answered.
    pub(crate) fn on_bound(&mut self, s: &mut Shared, bind: &Bind) -> Option<ConnectionId> {
        let attempt = self.attempts.get(&bind.key).filter(|_| bind.life == self.life)?;
        let (device, from) = (attempt.device, attempt.from);
        let (answer, opened) = self.judge(s, &bind.key, (device, from));
        s.put_out(Place::Server(device), from, answer.clone(), None);
        if let Some(attempt) = self.attempts.get_mut(&bind.key) {
            attempt.answer = Some(answer);
        }
        opened
    }

    fn judge(
        &mut self,
        s: &mut Shared,
        key: &[u8],
        (device, from): (usize, SocketAddr),
    ) -> (Vec<u8>, Option<ConnectionId>) {
        let (parameters, credential) = key.split_first_chunk().expect("the parameters come first");
        let decoded = holdfast_proto::udp::Parameters::decode(parameters).expect("it was parsed");
        let mut out = Vec::new();
        let verified = Credential::parse_datagram(parameters, credential)
            .ok()
            .and_then(|credential| {
                let (identity, _) =
                    holdfast_proto::secure::Identity::decode(credential.identity_bytes()).ok()?;
                let key = self.master.device_key(&identity);
                Verified::verify(SecureChannel::Udp, &credential, &key).ok()
            });
        let refused = s.rng.chance(self.refuses);
        let Some((message2, keys)) = verified.filter(|_| !refused).and_then(|v| v.answer().ok()) else {
            s.saw("hello", if refused { "refused" } else { "not authentic" });
            let refusal = Refused {
                attempt: decoded.attempt,
                status: if refused { 503 } else { 401 },
                retry_after_ms: 0,
                retryable: refused,
                code: "no",
            };
            datagram::encode_refused(&refusal, &mut out);
            return (out, None);
        };
        let cid = ConnectionId::new(s.rng.below(4) as u8, self.ends.len() as u32, s.rng.next() as u32);
        let message2 = message2.as_slice().try_into().expect("message 2 has 48 bytes");
        datagram::encode_challenge(decoded.attempt, cid, message2, &mut out);
        let opening = Opening {
            cid,
            keys,
            peer: from,
            peer_max_datagram: decoded.max_datagram,
            peer_credit: PeerCredit {
                messages: decoded.receive_messages.into(),
                bytes: decoded.receive_bytes.into(),
            },
            own_credit: self.credit,
            reset_token: Some(self.reset_key.token(cid)),
        };
        let connection = Connection::new(Side::Server, opening, s.instant());
        let end = Endpoint::new(connection, self.config.clone(), Place::Server(device), s);
        self.ends.insert(cid, end);
        (out, Some(cid))
    }

    /// One turn of the driver for one connection. Gives its end if that is over.
    pub(crate) fn run(
        &mut self,
        s: &mut Shared,
        cid: ConnectionId,
        whole: bool,
    ) -> Result<Option<Endpoint>, Broken> {
        let Some(end) = self.ends.get_mut(&cid) else {
            return Ok(None);
        };
        let late = !end.opened && s.now >= end.heard + HALF_OPEN;
        if !late {
            end.run(s, whole)?;
        }
        if !late && end.ended.is_none() {
            return Ok(None);
        }
        if late {
            end.vanish(s);
            s.saw("hello", "half open");
        }
        Ok(self.ends.remove(&cid))
    }

    /// Its process is gone, and all that it knew.
    pub(crate) fn stop(&mut self, s: &mut Shared) {
        s.note("server stops");
        self.ends.values().for_each(|end| end.vanish(s));
        self.ends.clear();
        self.attempts.clear();
        self.life += 1;
        self.up = false;
    }

    pub(crate) fn start(&mut self, s: &mut Shared) {
        s.note("server starts");
        self.cookies = draw_cookies(s);
        self.up = true;
    }

    pub(crate) fn heal(&mut self) {
        self.refuses = 0;
    }
}

fn draw_cookies(s: &mut Shared) -> Cookies {
    let mut key = [0; 32];
    key.fill_with(|| s.rng.next() as u8);
    Cookies::new(key)
}
