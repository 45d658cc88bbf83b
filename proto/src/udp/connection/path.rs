//! Validation of a peer's new address. Before the peer has proved that it is there, no more bytes go to it than came from it.

use std::time::{Duration, Instant};

use super::address::Address;
use super::rtt::MAX_PROBE_TIMEOUT;

/// How often a challenge is sent before a candidate is given up.
const MAX_CHALLENGES: u8 = 4;
/// Longest datagram with a challenge and nothing else, in bytes: header, field and tag.
pub(super) const CHALLENGE_DATAGRAM_BYTES: u32 = 13 + 9 + 16;

/// An address from which the newest packet came, and which is not proved yet. There is one at most.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) address: Address,
    token: u64,
    received: u32,
    sent: u32,
    challenges: u8,
    /// When a challenge may be sent (again), or when the candidate is given up.
    next: Instant,
}

impl Candidate {
    /// `entropy` makes the token, which nobody can guess.
    pub(super) fn new(address: Address, entropy: u64, now: Instant) -> Self {
        Self {
            address,
            token: entropy.max(1),
            received: 0,
            sent: 0,
            challenges: 0,
            next: now,
        }
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    /// An authentic datagram came from there.
    pub(super) fn on_received(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes as u32);
    }

    /// Whether a challenge is to be sent now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now && self.challenges < MAX_CHALLENGES && self.may_send()
    }

    fn may_send(&self) -> bool {
        self.received.saturating_sub(self.sent) >= CHALLENGE_DATAGRAM_BYTES
    }

    /// A challenge of so many bytes was sent; the next may follow after `wait`, doubled each time up to the longest wait for a probe:
    /// whoever repeats one datagram from elsewhere must not keep a connection busy for long.
    pub(super) fn on_sent(&mut self, bytes: usize, now: Instant, wait: Duration) {
        self.sent += bytes as u32;
        self.next = now + (wait * (1 << self.challenges.min(MAX_CHALLENGES))).min(MAX_PROBE_TIMEOUT);
        self.challenges += 1;
    }

    /// Whether it had its chances.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.next <= now && self.challenges >= MAX_CHALLENGES
    }

    /// When something is due, though nothing came. One that waits for bytes from there waits for as long as a challenge would.
    pub(super) fn deadline(&self) -> Instant {
        self.next
    }

    /// The time has come and nothing could be sent: what was sent from there is all that there is.
    pub(super) fn on_starved(&mut self, now: Instant, wait: Duration) {
        if self.next <= now && self.challenges < MAX_CHALLENGES && !self.may_send() {
            self.challenges += 1;
            self.next = now + wait;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[test]
    fn no_more_goes_out_than_came_in_and_patience_ends() {
        let (now, wait) = (Instant::now(), Duration::from_secs(1));
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut candidate = Candidate::new(address.into(), 0, now);
        assert_ne!(candidate.token(), 0);
        candidate.on_received(37);
        assert!(!candidate.is_due(now));
        candidate.on_received(1);
        assert!(candidate.is_due(now));
        candidate.on_sent(38, now, wait);
        // Nothing more came from there: no second one, whatever time it is.
        assert!(!candidate.is_due(now + wait * 60));
        candidate.on_received(1_000);
        assert!(!candidate.is_due(now));
        let mut at = now;
        let mut sent = 1;
        while !candidate.is_over(at) {
            at = candidate.deadline();
            if candidate.is_due(at) {
                candidate.on_sent(38, at, wait);
                sent += 1;
            }
        }
        assert_eq!((sent, at - now), (MAX_CHALLENGES, wait * (1 + 2 + 4 + 8)));
    }

    #[test]
    fn on_a_slow_path_patience_is_no_longer() {
        let now = Instant::now();
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut candidate = Candidate::new(address.into(), 9, now);
        candidate.on_received(1_000);
        let mut at = now;
        while !candidate.is_over(at) {
            candidate.on_sent(38, at, MAX_PROBE_TIMEOUT);
            at = candidate.deadline();
        }
        assert_eq!(at - now, MAX_PROBE_TIMEOUT * MAX_CHALLENGES.into());
    }

    #[test]
    fn one_that_sends_too_little_is_given_up_too() {
        let (now, wait) = (Instant::now(), Duration::from_secs(1));
        let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut candidate = Candidate::new(address.into(), 9, now);
        candidate.on_received(37);
        let mut at = now;
        for _ in 0..4 {
            assert!(!candidate.is_over(at));
            candidate.on_starved(at, wait);
            at = candidate.deadline();
        }
        assert!(candidate.is_over(at));
    }
}
