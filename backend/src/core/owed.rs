//! CLOSEs of replaced sessions that a frontend owes its attention: kept until acknowledged, said again when it re-attaches.

use std::collections::{BTreeMap, VecDeque};

use holdfast_proto::DeviceId;
use rustc_hash::FxHashMap;

use crate::dispatch::Replaced;

/// Devices per link whose CLOSE is not acknowledged: about 300 bytes each. A frontend that stays away for longer may keep
/// sessions that were replaced meanwhile.
pub const MAX_OWED_CLOSES: usize = 8192;

/// What one frontend is owed. Of one device only the newest login counts: its CLOSE closes whatever older ones would have.
#[derive(Debug, Default)]
pub(super) struct OwedCloses {
    last: u64,
    owed: BTreeMap<u64, Replaced>,
    by_device: FxHashMap<DeviceId, u64>,
    /// Tickets that went out, and the number of the last frame when they had: acknowledged up to there, they are done.
    sent: VecDeque<(u64, u64)>,
}

/// There is no room for another device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyOwed;

impl OwedCloses {
    /// Remembers it, and gives the ticket to send it under.
    pub(super) fn owe(&mut self, replaced: Replaced) -> Result<u64, TooManyOwed> {
        match self.by_device.get(&replaced.device) {
            Some(older) => {
                self.owed.remove(older);
            }
            None if self.owed.len() >= MAX_OWED_CLOSES => return Err(TooManyOwed),
            None => {}
        }
        self.last += 1;
        self.by_device.insert(replaced.device.clone(), self.last);
        self.owed.insert(self.last, replaced);
        Ok(self.last)
    }

    /// It went out in a frame numbered `frame` at most.
    pub(super) fn on_sent(&mut self, ticket: u64, frame: u64) {
        if self.owed.contains_key(&ticket) {
            self.sent.push_back((ticket, frame));
        }
    }

    /// Frames up to this number were processed at the other end.
    pub(super) fn on_acknowledged(&mut self, frame: u64) {
        while let Some((ticket, _)) = self.sent.pop_front_if(|(_, at)| *at <= frame) {
            if let Some(done) = self.owed.remove(&ticket) {
                self.by_device.remove(&done.device);
            }
        }
    }

    /// The epoch is over: what was not acknowledged may not have arrived.
    pub(super) fn on_lost(&mut self) {
        self.sent.clear();
    }

    /// All that is owed, with its tickets, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Replaced)> {
        self.owed.iter().map(|(ticket, replaced)| (*ticket, replaced))
    }

    pub(super) fn len(&self) -> usize {
        self.owed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(device: usize, before_ms: u64) -> Replaced {
        Replaced {
            device: format!("d{device}").parse().unwrap(),
            before_ms,
            except: crate::dispatch::tests::id(1),
        }
    }

    #[test]
    fn what_is_not_acknowledged_stays_owed() {
        let mut owed = OwedCloses::default();
        let tickets: Vec<u64> = (0..3).map(|n| owed.owe(replaced(n, 5)).unwrap()).collect();
        owed.on_sent(tickets[0], 7);
        owed.on_sent(tickets[1], 8);
        owed.on_acknowledged(7);
        assert_eq!(owed.iter().map(|(t, _)| t).collect::<Vec<_>>(), tickets[1..]);
        owed.on_lost();
        owed.on_acknowledged(100);
        assert_eq!(
            owed.len(),
            2,
            "an acknowledgement of the next epoch says nothing of this one"
        );
    }

    #[test]
    fn a_newer_login_takes_the_place_of_an_older_one() {
        let mut owed = OwedCloses::default();
        let older = owed.owe(replaced(1, 5)).unwrap();
        owed.on_sent(older, 1);
        let newer = owed.owe(replaced(1, 9)).unwrap();
        owed.on_acknowledged(1);
        let left: Vec<_> = owed.iter().map(|(t, r)| (t, r.before_ms)).collect();
        assert_eq!(left, [(newer, 9)]);
        owed.on_sent(newer, 2);
        owed.on_acknowledged(2);
        assert_eq!((owed.len(), owed.by_device.len(), owed.sent.len()), (0, 0, 0));
    }

    #[test]
    fn owed_closes_are_bounded() {
        let mut owed = OwedCloses::default();
        for n in 0..MAX_OWED_CLOSES {
            owed.owe(replaced(n, 5)).unwrap();
        }
        assert_eq!(owed.owe(replaced(MAX_OWED_CLOSES, 5)), Err(TooManyOwed));
        assert!(
            owed.owe(replaced(0, 6)).is_ok(),
            "one that is owed already needs no room"
        );
        assert_eq!(owed.len(), MAX_OWED_CLOSES);
    }
}
