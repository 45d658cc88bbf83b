//! How much an end may send: to addresses that proved nothing, and when it has nothing new to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::sim::queue::Time;

/// What the server received from each address and sent there, in bytes of UDP payload.
#[derive(Debug, Default)]
pub(crate) struct Accounts(BTreeMap<SocketAddr, Account>);

#[derive(Debug, Default)]
struct Account {
    received: u64,
    sent: u64,
    proven: bool,
}

impl Accounts {
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: usize) {
        self.0.entry(from).or_default().received += bytes as u64;
    }

    /// The address has answered a challenge, or is the first that a connection was used from.
    pub(crate) fn prove(&mut self, address: SocketAddr) {
        self.0.entry(address).or_default().proven = true;
    }

    /// Says what is wrong when it is more than came.
    pub(crate) fn send(&mut self, to: SocketAddr, bytes: usize) -> Option<String> {
        let account = self.0.entry(to).or_default();
        account.sent += bytes as u64;
        let Account {
            received,
            sent,
            proven,
        } = *account;
        (!proven && sent > received).then(|| format!("{sent} bytes went to {to}, from where {received} came"))
    }
}

/// How many datagrams an end may send: what it has to say and what it hears each give it some, and time a few.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// For what came and what is to be sent.
    earned: u64,
    /// From time, up to [`PATIENCE`].
    waited: f64,
    since: Time,
}

/// Datagrams that may go out without a cause: keep-alives and probes, of which the first come fast.
const PATIENCE: f64 = 40.0;
const PER_SECOND: f64 = 10.0;
/// For each datagram that came: its acknowledgement, and what it tells of losses.
const PER_DATAGRAM: u64 = 3;
/// How often a piece goes out, on average, at the worst loss there is.
const PER_PIECE: u64 = 4;

impl Allowance {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            earned: 0,
            waited: PATIENCE,
            since: now,
        }
    }

    pub(crate) fn on_received(&mut self) {
        self.earned += PER_DATAGRAM;
    }

    pub(crate) fn on_message(&mut self, bytes: usize, datagram: usize) {
        self.earned += PER_PIECE * (1 + bytes as u64 / (datagram as u64 / 2));
    }

    /// What was saved is not for later storms.
    pub(crate) fn on_idle(&mut self) {
        self.earned = 0;
    }

    /// Whether one more datagram is within bounds.
    pub(crate) fn spend(&mut self, now: Time) -> bool {
        let waited = now.saturating_sub(self.since).as_secs_f64() * PER_SECOND;
        (self.waited, self.since) = ((self.waited + waited).min(PATIENCE), now);
        if self.earned > 0 {
            self.earned -= 1;
            return true;
        }
        let has = self.waited >= 1.0;
        self.waited -= f64::from(u8::from(has));
        has
    }
}

/// Whether an end is run over and over at one instant.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    at: Time,
    turns: u32,
}

/// Turns at one instant: as many datagrams can arrive together.
const MAX_TURNS: u32 = 3_000;

impl Spin {
    /// Whether that is still no spinning.
    pub(crate) fn turn(&mut self, now: Time) -> bool {
        self.turns = if now == self.at { self.turns + 1 } else { 0 };
        self.at = now;
        self.turns < MAX_TURNS
    }
}

/// HELLOs of one attempt: after 0, 1, 3 and 7 s, and so again after each of three RETRYs.
pub(crate) const MAX_HELLOS: u32 = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_goes_out_than_came_until_the_address_is_proven() {
        let mut accounts = Accounts::default();
        let address = "10.0.0.1:5".parse().unwrap();
        accounts.receive(address, 100);
        assert_eq!(accounts.send(address, 100), None);
        assert!(accounts.send(address, 1).is_some());
        accounts.prove(address);
        assert_eq!(accounts.send(address, 1_000), None);
    }

    #[test]
    fn who_has_nothing_to_say_falls_silent() {
        let mut allowance = Allowance::new(Time::ZERO);
        let sent = (0..1_000).filter(|_| allowance.spend(Time::ZERO)).count();
        assert_eq!(sent, 40);
        let mut allowance = Allowance::new(Time::ZERO);
        allowance.on_received();
        allowance.on_message(600, 1_200);
        let sent = (0..1_000).filter(|_| allowance.spend(Time::ZERO)).count();
        assert_eq!(sent, 40 + 3 + 8);
        assert!(allowance.spend(Duration::from_secs(1)));
    }
}
