//! A device's opening: from its first HELLO to a connection, a refusal, or nothing (PROTOCOL.md section 14.3).
//!
//! Nothing that comes before a CHALLENGE authenticates is more than a hint. Who sees the HELLO can make RETRYs, REFUSEDs and
//! CHALLENGEs with its attempt; who does not see it would have to guess 64 bits. So a CHALLENGE that does not authenticate is passed
//! over, a RETRY is followed a few times only, and a REFUSED is believed when nothing better came for a while.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::datagram::{self, Datagram, Hello, MAX_COOKIE_BYTES, Refused};
use super::{
    Connection, ConnectionId, INITIAL_SERVER_CREDIT, MAX_DATAGRAM_BYTES, Opening, Parameters, PeerCredit,
    Side,
};
use crate::secure::{DeviceKey, HandshakeError, Identity, Initiator, MESSAGE_2_BYTES, TrafficKeys};

/// The HELLO is repeated after so long without an answer, then after twice as long each time.
pub const FIRST_REPETITION: Duration = Duration::from_secs(1);
/// How long an attempt may take unless the caller says otherwise.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a REFUSED must stand before it is believed: somebody who only listens can be quicker than the server, but he cannot
/// keep the server's CHALLENGE from coming.
pub const REFUSAL_PATIENCE: Duration = FIRST_REPETITION;
/// RETRYs that are followed in one attempt. An honest server sends one, and another one when its cookie's time is over.
pub const MAX_RETRIES: u32 = 3;
/// CHALLENGEs that are tried in one attempt: each costs a multiplication on the curve.
pub const MAX_CHALLENGES: u32 = 64;

/// What a device asks with.
#[derive(Debug)]
pub struct Dialing<'a> {
    pub identity: &'a Identity,
    pub key: &'a DeviceKey,
    /// Its `attempt` must be random and new.
    pub parameters: Parameters,
    /// Milliseconds since 1970; `None` on a device without a clock.
    pub now_ms: Option<u64>,
    /// How long it may take; [`DIAL_TIMEOUT`] is usual.
    pub timeout: Duration,
}

/// An attempt to open a connection.
///
/// After `new` and each `handle_*` call [`poll_transmit`](Self::poll_transmit) until it gives nothing, then
/// [`poll_timeout`](Self::poll_timeout). It is over with the first outcome that is not [`Dialed::Pending`].
#[derive(Debug)]
pub struct Dial {
    initiator: Initiator,
    parameters: Parameters,
    credential: Vec<u8>,
    cookie: Vec<u8>,
    retries: u32,
    challenges: u32,
    /// When the next HELLO goes out, and how long after it the one after that.
    next: Instant,
    interval: Duration,
    /// The first REFUSED, and when it is believed.
    refusal: Option<(Instant, Refusal)>,
    gives_up: Instant,
    stats: DialStats,
}

/// What an attempt came to so far.
#[derive(Debug)]
pub enum Dialed {
    /// Go on.
    Pending,
    /// The server holds the same key, and let the device in.
    Open(Box<Connection>),
    /// The server, or somebody in its name, says no. Only a hint: it must not keep a device away for good.
    Refused(Refusal),
    /// Nobody answered.
    TimedOut,
}

/// Why a device was not let in, as somebody says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As HTTP's.
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub retryable: bool,
    /// A stable word.
    pub code: String,
}

/// What came in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DialStats {
    /// HELLOs sent.
    pub hellos: u32,
    /// CHALLENGEs that did not authenticate, or were over the bound.
    pub forged: u32,
    /// Datagrams that were no answer to this attempt.
    pub strays: u32,
}

impl Dial {
    /// # Errors
    /// When the identity is not one that a server takes, or there is no randomness.
    ///
    /// # Panics
    /// When a parameter is out of its bounds.
    pub fn new(now: Instant, dialing: &Dialing<'_>) -> Result<Self, HandshakeError> {
        let parameters = dialing.parameters;
        parameters.check().expect("parameters are within their bounds");
        let (initiator, credential) = Initiator::for_datagrams(
            &parameters.encode(),
            dialing.identity,
            dialing.key,
            dialing.now_ms,
        )?;
        Ok(Self {
            initiator,
            parameters,
            credential,
            cookie: Vec::new(),
            retries: 0,
            challenges: 0,
            next: now,
            interval: FIRST_REPETITION,
            refusal: None,
            gives_up: now + dialing.timeout,
            stats: DialStats::default(),
        })
    }

    /// Takes a datagram from the address that HELLOs go to.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Dialed {
        let attempt = self.parameters.attempt;
        match datagram::parse(bytes) {
            Ok(Datagram::Retry { attempt: of, cookie }) if of == attempt => self.on_retry(now, cookie),
            Ok(Datagram::Refused(refused)) if refused.attempt == attempt => self.on_refused(now, &refused),
            Ok(Datagram::Challenge {
                attempt: of,
                cid,
                message2,
            }) if of == attempt => {
                if let Some(keys) = self.on_challenge(message2) {
                    return Dialed::Open(Box::new(self.open(now, from, (cid, keys))));
                }
            }
            _ => self.stats.strays += 1,
        }
        Dialed::Pending
    }

    fn on_retry(&mut self, now: Instant, cookie: &[u8]) {
        if self.retries == MAX_RETRIES {
            self.stats.strays += 1;
            return;
        }
        debug_assert!(cookie.len() <= MAX_COOKIE_BYTES);
        self.retries += 1;
        self.cookie = cookie.to_vec();
        self.next = now;
        // The server is there: what is repeated from here on begins anew.
        self.interval = FIRST_REPETITION;
    }

    fn on_refused(&mut self, now: Instant, refused: &Refused<'_>) {
        self.refusal.get_or_insert_with(|| {
            let retry_after = Duration::from_millis(refused.retry_after_ms.into());
            let refusal = Refusal {
                status: refused.status,
                retry_after: Some(retry_after).filter(|after| !after.is_zero()),
                retryable: refused.retryable,
                code: refused.code.to_owned(),
            };
            (now + REFUSAL_PATIENCE, refusal)
        });
    }

    fn on_challenge(&mut self, message2: &[u8; MESSAGE_2_BYTES]) -> Option<TrafficKeys> {
        if self.challenges == MAX_CHALLENGES {
            self.stats.forged += 1;
            return None;
        }
        self.challenges += 1;
        let keys = self.initiator.try_finish(message2).ok();
        self.stats.forged += u32::from(keys.is_none());
        keys
    }

    fn open(&self, now: Instant, from: SocketAddr, (cid, keys): (ConnectionId, TrafficKeys)) -> Connection {
        let opening = Opening {
            cid,
            keys,
            peer: from,
            peer_max_datagram: MAX_DATAGRAM_BYTES,
            peer_credit: INITIAL_SERVER_CREDIT,
            own_credit: PeerCredit {
                messages: self.parameters.receive_messages.into(),
                bytes: self.parameters.receive_bytes.into(),
            },
            reset_token: None,
        };
        Connection::new(Side::Device, opening, now)
    }

    /// Appends a HELLO if one is due, and says whether it did.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if now < self.next || now >= self.gives_up {
            return false;
        }
        let hello = Hello {
            parameters: self.parameters,
            cookie: &self.cookie,
            credential: &self.credential,
        };
        datagram::encode_hello(&hello, out);
        self.stats.hellos += 1;
        self.next = now + self.interval;
        self.interval *= 2;
        true
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, then [`poll_transmit`](Self::poll_transmit).
    pub fn poll_timeout(&self) -> Instant {
        let believed = self.refusal.as_ref().map(|(at, _)| *at);
        let until = believed.map_or(self.gives_up, |at| at.min(self.gives_up));
        self.next.min(until)
    }

    /// Does what is due; too early does no harm.
    pub fn handle_timeout(&mut self, now: Instant) -> Dialed {
        let over = now >= self.gives_up;
        match self.refusal.take_if(|(believed, _)| over || *believed <= now) {
            Some((_, refusal)) => Dialed::Refused(refusal),
            None if over => Dialed::TimedOut,
            None => Dialed::Pending,
        }
    }

    pub fn stats(&self) -> DialStats {
        self.stats
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
