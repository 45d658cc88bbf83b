//! HELLO: who may ask a backend, and who must first show where he is. Every answer is shorter than what asked for it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_proto::ChannelKind;
use holdfast_proto::secure::PARAMETER_BYTES;
use holdfast_proto::throttle::source_of;
use holdfast_proto::udp::ConnectionId;
use holdfast_proto::udp::datagram::{Hello, encode_retry};
use rand::RngExt;

use super::super::connection::Place;
use super::super::shard::Shard;
use super::attempts::{AttemptKey, Known};
use super::{Admission, Asked, LocalId, Record, Udp};
use crate::channel::{ChannelEvent, Refusal, UdpChannel, UpgradeRequest, canonical, write_refused};
use crate::session::SessionKey;

/// Slots that a connection id can name.
const MAX_CONNECTIONS: usize = 1 << 24;
/// Those who find no place come back after this, and up to twice this.
const RETRY_HINT: Duration = Duration::from_secs(2);

/// A HELLO that a backend is to judge.
struct Attempt<'a> {
    key: AttemptKey,
    hello: &'a Hello<'a>,
    from: SocketAddr,
    to: Option<IpAddr>,
    /// Whether it was shown that the device is at `from`.
    proven: bool,
}

impl Shard {
    pub(super) fn on_hello(
        &mut self,
        now: Instant,
        (from, to): (SocketAddr, Option<IpAddr>),
        hello: &Hello<'_>,
    ) {
        let Some(udp) = &mut self.udp else { return };
        udp.attempts.expire(now);
        let parameters = hello.parameters.encode();
        let key = udp.attempts.key(from, &parameters, hello.credential);
        let elsewhere = match udp.attempts.find(key, hello.parameters.attempt) {
            Known::No => false,
            Known::UnderWay => return udp.metrics.attempt("repeated"),
            Known::Answered(answer) => {
                let answer = answer.to_vec();
                udp.metrics.attempt("repeated");
                return udp.answer_from(from, to, &answer);
            }
            // The device's address changed, or somebody repeats what he has heard. Only who shows that he is there goes on.
            Known::Elsewhere => {
                udp.metrics.attempt("repeated_elsewhere");
                true
            }
        };
        let now_s = udp.admission.seconds(now);
        let proven = !hello.cookie.is_empty() && udp.admission.cookies.check(now_s, from, hello);
        if !proven && (elsewhere || udp.must_prove(now, from)) {
            return udp.retry(now_s, (from, to), hello);
        }
        let attempt = Attempt {
            key,
            hello,
            from,
            to,
            proven,
        };
        self.begin_attempt(now, &attempt);
    }

    /// Gives the attempt a session, which asks a backend.
    fn begin_attempt(&mut self, now: Instant, attempt: &Attempt<'_>) {
        let address = canonical(attempt.from);
        let accepted = match attempt.proven {
            true => self.sessions.accept(now, ChannelKind::Udp, address),
            false => self.sessions.accept_unproven(now, ChannelKind::Udp, address),
        };
        let Some(udp) = &mut self.udp else { return };
        let Some(session) = accepted else {
            return udp.refuse_overloaded(attempt);
        };
        let Some(at) = udp.insert(attempt, session) else {
            udp.metrics.attempt("no_place");
            return self.sessions.handle_broken(now, session, "no_place");
        };
        self.place(session, Place::Datagrams(at));
        let parameters = attempt.hello.parameters.encode();
        let mut credential = BytesMut::with_capacity(PARAMETER_BYTES + attempt.hello.credential.len());
        credential.put_slice(&parameters);
        credential.put_slice(attempt.hello.credential);
        let credential: Bytes = credential.freeze();
        // Its window is empty, so nothing comes back.
        let _ = self.tell_session(now, session, ChannelEvent::Upgrade(UpgradeRequest { credential }));
        self.pump(now);
    }
}

impl Udp {
    /// Whether whoever wrote from there has to show that he is there.
    fn must_prove(&mut self, now: Instant, from: SocketAddr) -> bool {
        let Admission {
            always,
            above,
            unproven,
            ..
        } = &self.admission;
        let since_start = self.admission.millis(now);
        *always
            || self.attempts.unfinished() > *above
            || unproven.check(&source_of(from.ip()), since_start).is_err()
            || !self.unproven.take(now)
    }

    fn retry(&mut self, now_s: u32, (from, to): (SocketAddr, Option<IpAddr>), hello: &Hello<'_>) {
        let cookie = self.admission.cookies.mint(now_s, from, hello);
        let mut answer = Vec::new();
        encode_retry(hello.parameters.attempt, &cookie, &mut answer);
        self.metrics.retries.inc();
        self.answer_from(from, to, &answer);
    }

    pub(super) fn answer_from(&mut self, to: SocketAddr, our_address: Option<IpAddr>, bytes: &[u8]) {
        let local = self.locals.intern(our_address);
        self.answer(to, self.locals.get(local), bytes);
    }

    /// No session is free, or the frontend stops.
    fn refuse_overloaded(&mut self, attempt: &Attempt<'_>) {
        let jitter = RETRY_HINT.mul_f64(rand::rng().random::<f64>());
        let refusal = Refusal::overloaded(RETRY_HINT + jitter);
        let mut answer = Vec::new();
        write_refused(&mut answer, attempt.hello.parameters.attempt, &refusal);
        self.metrics.attempt("overloaded");
        self.answer_from(attempt.from, attempt.to, &answer);
    }

    /// Makes the connection's record. `None`: there are too many.
    fn insert(&mut self, attempt: &Attempt<'_>, session: SessionKey) -> Option<u32> {
        let parameters = attempt.hello.parameters;
        if self.records.len() >= MAX_CONNECTIONS
            || self.attempts.begin(attempt.key, parameters.attempt).is_err()
        {
            return None;
        }
        let entry = self.records.vacant_entry();
        let at = entry.key() as u32;
        // Whoever had the slot before has another random half.
        let cid = ConnectionId::new(self.shard.0, at, rand::rng().random());
        entry.insert(Record {
            channel: UdpChannel::new(cid, parameters, attempt.from),
            session: Some(session),
            stalled: None,
            asked: Some(Box::new(Asked {
                attempt: attempt.key,
                from: attempt.from,
            })),
            counted: (0, 0),
            local: self.locals.intern(attempt.to),
            candidate_local: LocalId::default(),
            newest: u32::MAX,
            ready: false,
        });
        self.metrics.connections.inc();
        self.metrics.attempt("judged");
        self.show();
        Some(at)
    }
}

impl Admission {
    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.born).as_secs() as u32
    }

    pub(super) fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }
}
