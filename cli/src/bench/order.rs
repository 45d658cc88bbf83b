//! Whether one connection's replies come in the order of its requests, each once: their `seq` must count from 1. Judged as
//! they are read, beside the device's own check and independent of it. Pure.

#![deny(clippy::disallowed_methods)]

use std::collections::BTreeSet;

/// Of one connection; a new one for the next.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The highest that came.
    last: u64,
    /// Those below it that did not.
    missing: BTreeSet<u64>,
}

/// How a reply came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    InOrder,
    /// An earlier request is still unanswered.
    Overtook,
    /// The one that was overtaken.
    Late,
    /// Its request was answered before.
    Again,
}

impl Order {
    pub(crate) fn handle_reply(&mut self, seq: u64) -> Arrival {
        if seq <= self.last {
            return if self.missing.remove(&seq) {
                Arrival::Late
            } else {
                Arrival::Again
            };
        }
        let first_missing = self.last + 1;
        // A device closes its connection at the first fault: what is missing need not be kept in full.
        self.missing.extend((first_missing..seq).take(MAX_MISSING));
        self.last = seq;
        if first_missing == seq {
            Arrival::InOrder
        } else {
            Arrival::Overtook
        }
    }
}

const MAX_MISSING: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_in_order_are_in_order() {
        let mut order = Order::default();
        for seq in 1..100 {
            assert_eq!(order.handle_reply(seq), Arrival::InOrder);
        }
        assert!(order.missing.is_empty());
    }

    #[test]
    fn what_overtakes_is_late_or_comes_again_is_told() {
        let mut order = Order::default();
        let expected = [
            (2, Arrival::Overtook),
            (1, Arrival::Late),
            (1, Arrival::Again),
            (3, Arrival::InOrder),
            (2, Arrival::Again),
            (6, Arrival::Overtook),
            (5, Arrival::Late),
            (7, Arrival::InOrder),
            (4, Arrival::Late),
            (0, Arrival::Again),
        ];
        for (seq, arrival) in expected {
            assert_eq!(order.handle_reply(seq), arrival, "{seq}");
        }
    }

    #[test]
    fn a_mad_number_costs_no_more_than_its_bound() {
        let mut order = Order::default();
        assert_eq!(order.handle_reply(u64::MAX), Arrival::Overtook);
        assert_eq!(order.missing.len(), MAX_MISSING);
    }
}
