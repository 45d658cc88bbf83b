//! DATA datagrams and timers: from the connection to its session.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use holdfast_proto::CloseCode;
use holdfast_proto::throttle::source_of;
use holdfast_proto::udp::datagram::{MIN_DATA_BYTES, RESET_BYTES, encode_reset};
use holdfast_proto::udp::{ConnectionId, Datagram, Received, parse};
use rand::Rng;

use super::super::shard::{LINGER, Shard};
use super::socket::Arrived;
use super::{Admission, LocalId, Record, Udp};
use crate::channel::{Channel, ChannelEvent};

/// Type and connection id: datagrams of one connection begin with the same.
const RUN_HEADER_BYTES: usize = 9;
/// A timer that is later than this has been waited for by somebody.
const LATE: Duration = Duration::from_secs(1);
/// Datagrams received before acknowledgements of them are sent: one can tell of 256.
const ANSWER_AFTER: usize = 64;

impl Shard {
    /// What came with one system call. Ends with what there is to answer.
    pub(super) fn on_datagrams<'a>(&mut self, arrived: impl Iterator<Item = Arrived<'a>>) {
        let now = Instant::now();
        if let Some(udp) = &mut self.udp {
            udp.shared.now = now;
            udp.metrics.received_batches.inc();
        }
        let mut unanswered = 0;
        for arrived in arrived {
            unanswered += self.on_arrived(now, arrived);
            if unanswered >= ANSWER_AFTER {
                unanswered = 0;
                self.transmit_datagrams();
            }
        }
        self.relieve_input(now);
        // Turns are frequent under load: timers need not wait for their task, but it hears all before it judges silence.
        if !self.is_udp_behind() && !self.is_udp_late(now) {
            self.on_udp_timer(now);
        }
        self.pump(now);
        self.end_turn();
    }

    /// Tells how many datagrams it was.
    fn on_arrived(&mut self, now: Instant, arrived: Arrived<'_>) -> usize {
        let Some(udp) = &mut self.udp else { return 0 };
        let Arrived {
            from,
            to,
            bytes,
            stride,
        } = arrived;
        let count = bytes.len().div_ceil(stride).max(1);
        udp.metrics.received.inc_by(count as u64);
        udp.metrics.received_bytes.inc_by(bytes.len() as u64);
        let mut rest = bytes;
        while !rest.is_empty() {
            let run = run_bytes(rest, stride);
            let (datagrams, after) = rest.split_at_mut(run);
            rest = after;
            let first = &datagrams[..stride.min(datagrams.len())];
            match parse(first) {
                Ok(Datagram::Data { cid, .. }) => {
                    let run = Arrived {
                        from,
                        to,
                        bytes: datagrams,
                        stride,
                    };
                    self.on_data(now, cid, run);
                }
                Ok(Datagram::Hello(hello)) => self.on_hello(now, (from, to), &hello),
                Ok(_) => self.udp_dropped("not_for_us"),
                Err(error) => {
                    if let Some(udp) = &self.udp {
                        udp.metrics.malformed(error);
                    }
                }
            }
        }
        count
    }

    pub(super) fn udp_dropped(&self, reason: &'static str) {
        if let Some(udp) = &self.udp {
            udp.metrics.dropped(reason);
        }
    }

    /// DATA of one connection, several in a row.
    fn on_data(&mut self, now: Instant, cid: ConnectionId, run: Arrived<'_>) {
        let Some(udp) = &mut self.udp else { return };
        let at = cid.slot();
        let known = udp.records.get_mut(at as usize);
        let Some(record) = known.filter(|record| record.channel.cid() == Some(cid)) else {
            return udp.on_unknown(now, cid, &run);
        };
        let (metrics, mut malformed) = (&udp.metrics, false);
        // What the datagram in hand says that it is, and the newest that opened.
        let (low, mut newest) = (Cell::new(0), None);
        let mut opened = || newest = Some(newest.map_or(low.get(), |newest| later(newest, low.get())));
        let tell = |received| match received {
            Received::Taken => opened(),
            Received::Duplicate => {
                metrics.duplicates.inc();
            }
            Received::Forged => {
                metrics.forged.inc();
            }
            Received::Refused => {
                metrics.dropped("no_room");
                opened();
            }
            Received::Malformed => malformed = true,
            Received::Ended => metrics.dropped("ended"),
        };
        // The parser has seen the first one only.
        let sound = |datagram: &&mut [u8]| {
            let sound = (MIN_DATA_BYTES..=MAX_BYTES).contains(&datagram.len());
            if sound {
                low.set(number_low(datagram));
            } else {
                metrics.dropped("length");
            }
            sound
        };
        let datagrams = run.bytes.chunks_mut(run.stride).filter(sound);
        let entropy = rand::rng().next_u64();
        record
            .channel
            .handle_datagrams(&udp.shared, run.from, datagrams, (entropy, tell));
        if let Some(low) = newest {
            record.on_arrived(low, run.from, udp.locals.intern(run.to));
        }
        let (session, proven) = (record.session, record.channel.is_proven());
        if let Some(asked) = record.asked.take_if(|_| proven) {
            udp.attempts.finish(now, asked.attempt);
            udp.metrics.attempt("opened");
            udp.show();
        }
        if let (true, Some(key)) = (malformed, session) {
            tracing::debug!("what a packet holds is not allowed");
            self.sessions.close(now, key, CloseCode::Protocol);
        }
        self.udp_events(now, at);
        self.pump(now);
    }

    /// Tells the session what its channel has for it.
    pub(super) fn udp_events(&mut self, now: Instant, at: u32) {
        loop {
            let Some(udp) = &mut self.udp else { return };
            let Some(record) = udp.records.get_mut(at as usize) else {
                return;
            };
            let Some(key) = record.session else {
                // Nobody is there to hear it.
                while !matches!(record.channel.poll_event(&mut udp.shared), Ok(None) | Err(_)) {}
                break;
            };
            let polled = match record.stalled {
                Some(_) => record.channel.poll_notice(&mut udp.shared),
                None => record.channel.poll_event(&mut udp.shared),
            };
            match polled {
                Ok(None) => break,
                Ok(Some(event)) => {
                    let over = matches!(event, ChannelEvent::Closed { .. } | ChannelEvent::Lost);
                    if let ChannelEvent::Moved(_) = event {
                        udp.metrics.moves.inc();
                        record.local = record.candidate_local;
                    }
                    let stalled = self.tell_session(now, key, event).err();
                    if over {
                        self.udp_linger(now, at);
                    } else if let Some(udp) = &mut self.udp
                        && let Some(record) = udp.records.get_mut(at as usize)
                        && stalled.is_some()
                    {
                        record.stalled = stalled;
                    }
                }
                Err(error) => {
                    self.channel_failed(now, key, &error);
                    break;
                }
            }
        }
        if let Some(udp) = &mut self.udp {
            udp.settle(at);
        }
    }

    /// The session of this connection is over.
    pub(super) fn udp_linger(&mut self, now: Instant, at: u32) {
        let Some(udp) = &mut self.udp else { return };
        if let Some(key) = udp.session_of(at) {
            self.by_slot[key.slot as usize] = None;
        }
        udp.linger(at, now + LINGER);
        udp.set_ready(at);
    }

    /// Makes room for others when input has been over its bound for too long.
    fn relieve_input(&mut self, now: Instant) {
        let Some(udp) = &mut self.udp else { return };
        if !udp.shared.must_relieve() {
            return;
        }
        if let Some(key) = udp.largest_unfinished() {
            tracing::warn!(
                "datagrams hold more than they may: the session of the longest unfinished message is closed"
            );
            self.sessions.close(now, key, CloseCode::TryAgainLater);
        }
    }

    /// Whether this thread was held up for so long that what devices said meanwhile may still be in the socket.
    pub(super) fn is_udp_late(&self, now: Instant) -> bool {
        let due = self.udp.as_ref().and_then(|udp| udp.wheel.next_deadline());
        due.is_some_and(|due| now > due + LATE)
    }

    /// Timers of connections, and those whose last words have taken long enough.
    pub(in super::super) fn on_udp_timer(&mut self, now: Instant) {
        loop {
            let Some(udp) = &mut self.udp else { return };
            udp.shared.now = now;
            let Some(at) = udp.wheel.poll(now) else {
                return udp.drop_lingering(now);
            };
            if let Some(record) = udp.records.get_mut(at as usize) {
                record.channel.handle_timeout(&udp.shared);
                self.udp_events(now, at);
            }
        }
    }
}

/// The longest UDP payload that is taken.
const MAX_BYTES: usize = holdfast_proto::udp::MAX_DATAGRAM_BYTES as usize;

impl Udp {
    /// DATA of a connection that is not here: its device learns so once, if that costs no more than it has sent, and not too often.
    fn on_unknown(&mut self, now: Instant, cid: ConnectionId, run: &Arrived<'_>) {
        let longest = run.stride.min(run.bytes.len());
        if cid.shard() != self.shard.0 && u16::from(cid.shard()) < self.shards {
            // Another shard has it. The kernel put it behind a datagram of ours.
            self.metrics.dropped("other_shard");
        } else if longest < RESET_BYTES || !self.may_reset(now, run.from.ip()) {
            self.metrics.dropped("unknown_connection");
        } else {
            let mut reset = Vec::with_capacity(RESET_BYTES);
            encode_reset(cid, &self.shared.reset_key.token(cid).0, &mut reset);
            let from = self.locals.intern(run.to);
            self.answer(run.from, self.locals.get(from), &reset);
            self.metrics.resets.inc();
        }
    }

    /// Whether a source that writes of a connection that is not here is told so. Each has a bound of its own, so that none uses up
    /// what the others need.
    fn may_reset(&mut self, now: Instant, source: IpAddr) -> bool {
        let Admission { resets, .. } = &self.admission;
        let own = resets.check(&source_of(source), self.admission.millis(now));
        own.is_ok() && self.resets.take(now)
    }
}

impl Record {
    /// A packet opened that came to an address of ours. Only the newest one says where the device writes to now: an old one may have
    /// been kept back, and sent on to elsewhere, by anybody.
    fn on_arrived(&mut self, low: u32, from: SocketAddr, local: LocalId) {
        if self.newest != low && later(self.newest, low) == low {
            self.newest = low;
            match self.channel.peer() == Some(from) {
                true => self.local = local,
                false => self.candidate_local = local,
            }
        }
    }
}

/// The low half of a datagram's number, which is at the end of its header.
fn number_low(datagram: &[u8]) -> u32 {
    let low = datagram.get(RUN_HEADER_BYTES..).and_then(<[u8]>::first_chunk);
    low.map_or(0, |low| u32::from_be_bytes(*low))
}

/// Which of two numbers is the later one, by their low halves: it is less than half their range ahead.
fn later(one: u32, other: u32) -> u32 {
    if other.wrapping_sub(one) <= u32::MAX / 2 {
        other
    } else {
        one
    }
}

/// How many bytes from the front are datagrams of one connection, or else one datagram.
fn run_bytes(bytes: &[u8], stride: usize) -> usize {
    let mut datagrams = bytes.chunks(stride);
    let first = datagrams.next().unwrap_or_default();
    let Some(begin) = first.get(..RUN_HEADER_BYTES).filter(|begin| begin[0] == 0x40) else {
        return first.len();
    };
    let same = datagrams.take_while(|datagram| datagram.starts_with(begin));
    first.len() + same.map(<[u8]>::len).sum::<usize>()
}
