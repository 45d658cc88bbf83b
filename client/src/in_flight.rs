//! The requests of one connection that wait for their reply: numbered from 1 as the server numbers them, and the judge of
//! whether a reply is one that may come. Pure.

use std::collections::BTreeMap;

use crate::Violation;

/// `W` is whoever waits for the reply.
#[derive(Debug)]
pub(crate) struct InFlight<W> {
    sent: u64,
    waiting: BTreeMap<u64, Slot<W>>,
    /// Requests up to here may have been forgotten, so that their late replies are no violation.
    forgotten_to: u64,
    last_answered: u64,
    expect_order: bool,
    awaited: Load,
}

/// How much somebody waits for: to be compared with the server's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Slot<W> {
    id: Box<str>,
    bytes: usize,
    /// `None` for a one-way request: a reply (an error) may come, but nobody waits.
    waiter: Option<W>,
}

impl<W> InFlight<W> {
    /// With `expect_order` a reply to an earlier request than the last answered one is a violation, as it is when all
    /// routes have `order = "connection"`.
    pub(crate) fn new(expect_order: bool) -> Self {
        Self {
            sent: 0,
            waiting: BTreeMap::new(),
            forgotten_to: 0,
            last_answered: 0,
            expect_order,
            awaited: Load::default(),
        }
    }

    /// Notes a request of so many `bytes` as sent and gives its number.
    pub(crate) fn handle_sent(&mut self, id: &str, bytes: usize, waiter: Option<W>) -> u64 {
        self.sent += 1;
        if waiter.is_some() {
            self.awaited.requests += 1;
            self.awaited.bytes += bytes;
        }
        self.waiting.insert(
            self.sent,
            Slot {
                id: id.into(),
                bytes,
                waiter,
            },
        );
        self.sent
    }

    /// Finds who waits for a reply: `None` when nobody does. On a violation the one who waited for that number, if any, is
    /// given back with it.
    pub(crate) fn handle_reply(
        &mut self,
        seq: u64,
        reply_to: Option<&str>,
    ) -> Result<Option<W>, (Violation, Option<W>)> {
        if seq == 0 || seq > self.sent {
            return Err((Violation::Unsent { seq, sent: self.sent }, None));
        }
        let Some(slot) = self.waiting.remove(&seq) else {
            let forgotten = seq <= self.forgotten_to;
            return if forgotten {
                Ok(None)
            } else {
                Err((Violation::Duplicate { seq }, None))
            };
        };
        if slot.waiter.is_some() {
            self.awaited.requests -= 1;
            self.awaited.bytes -= slot.bytes;
        }
        if let Some(named) = reply_to.filter(|named| **named != *slot.id) {
            let violation = Violation::Crossed {
                seq,
                id: slot.id,
                named: named.into(),
            };
            return Err((violation, slot.waiter));
        }
        if self.expect_order && seq < self.last_answered {
            return Err((
                Violation::Reordered {
                    seq,
                    after: self.last_answered,
                },
                slot.waiter,
            ));
        }
        self.last_answered = seq;
        Ok(slot.waiter)
    }

    /// Forgets requests for which nobody waits any more when there are over [`MAX_UNANSWERED`]: one-way requests get no
    /// reply, and nothing may grow without a bound.
    pub(crate) fn forget(&mut self, abandoned: impl Fn(&W) -> bool) {
        if self.waiting.len() <= MAX_UNANSWERED {
            return;
        }
        let gone = |slot: &Slot<W>| slot.waiter.as_ref().is_none_or(&abandoned);
        let (forgotten_to, awaited) = (&mut self.forgotten_to, &mut self.awaited);
        self.waiting.retain(|seq, slot| {
            let keep = !gone(slot);
            if !keep {
                *forgotten_to = (*forgotten_to).max(*seq);
            }
            if !keep && slot.waiter.is_some() {
                awaited.requests -= 1;
                awaited.bytes -= slot.bytes;
            }
            keep
        });
    }

    /// All who still wait, in the order of their requests.
    pub(crate) fn into_waiters(self) -> impl Iterator<Item = W> {
        self.waiting.into_values().filter_map(|slot| slot.waiter)
    }

    /// One-way requests do not count: nothing tells when they are done.
    pub(crate) fn awaited(&self) -> Load {
        self.awaited
    }
}

/// More than any allowed number in flight by default; about 100 KiB when all are used.
const MAX_UNANSWERED: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn three(expect_order: bool) -> InFlight<u32> {
        let mut in_flight = InFlight::new(expect_order);
        for (index, id) in ["a", "b", "c"].iter().enumerate() {
            assert_eq!(
                in_flight.handle_sent(id, 10, Some(index as u32)),
                index as u64 + 1
            );
        }
        in_flight
    }

    #[test]
    fn replies_find_their_waiters() {
        let mut in_flight = three(true);
        assert_eq!(
            in_flight.awaited(),
            Load {
                requests: 3,
                bytes: 30
            }
        );
        assert_eq!(in_flight.handle_reply(1, Some("a")), Ok(Some(0)));
        assert_eq!(in_flight.handle_reply(2, None), Ok(Some(1)));
        assert_eq!(in_flight.handle_reply(3, Some("c")), Ok(Some(2)));
        assert_eq!(in_flight.awaited(), Load::default());
    }

    #[test]
    fn a_second_reply_is_a_violation() {
        let mut in_flight = three(false);
        in_flight.handle_reply(2, Some("b")).unwrap();
        assert_eq!(
            in_flight.handle_reply(2, Some("b")),
            Err((Violation::Duplicate { seq: 2 }, None))
        );
    }

    #[test]
    fn a_reply_to_what_was_never_sent_is_a_violation() {
        let mut in_flight = three(false);
        assert_eq!(
            in_flight.handle_reply(4, None),
            Err((Violation::Unsent { seq: 4, sent: 3 }, None))
        );
        assert_eq!(
            in_flight.handle_reply(0, None),
            Err((Violation::Unsent { seq: 0, sent: 3 }, None))
        );
    }

    #[test]
    fn crossed_replies_are_a_violation_that_the_waiter_hears_of() {
        let mut in_flight = three(false);
        let (violation, waiter) = in_flight.handle_reply(1, Some("b")).unwrap_err();
        assert_eq!(
            violation,
            Violation::Crossed {
                seq: 1,
                id: "a".into(),
                named: "b".into()
            }
        );
        assert_eq!(waiter, Some(0));
    }

    #[test]
    fn order_is_judged_only_where_it_is_expected() {
        let mut ordered = three(true);
        ordered.handle_reply(2, Some("b")).unwrap();
        let (violation, waiter) = ordered.handle_reply(1, Some("a")).unwrap_err();
        assert_eq!(
            (violation, waiter),
            (Violation::Reordered { seq: 1, after: 2 }, Some(0))
        );
        let mut free = three(false);
        free.handle_reply(2, Some("b")).unwrap();
        assert_eq!(free.handle_reply(1, Some("a")), Ok(Some(0)));
    }

    #[test]
    fn one_way_requests_do_not_pile_up_and_their_late_errors_are_no_violation() {
        let mut in_flight = InFlight::new(false);
        let kept = in_flight.handle_sent("kept", 10, Some(7));
        for _ in 0..10 * MAX_UNANSWERED {
            in_flight.handle_sent("x", 10, None);
            in_flight.forget(|_| false);
            assert!(in_flight.waiting.len() <= MAX_UNANSWERED + 1);
        }
        assert_eq!(in_flight.handle_reply(2, Some("x")), Ok(None));
        assert_eq!(in_flight.handle_reply(kept, Some("kept")), Ok(Some(7)));
    }

    #[test]
    fn waiters_come_out_in_the_order_of_their_requests() {
        let mut in_flight = three(false);
        in_flight.handle_reply(2, None).unwrap();
        assert_eq!(in_flight.into_waiters().collect::<Vec<_>>(), vec![0, 2]);
    }
}
