//! Whether one device's replies come in the order of its requests, each once. Holds only what is unanswered. Pure.

#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Numbers of unanswered requests, ascending.
    open: VecDeque<u64>,
    sent_to: u64,
}

/// How a reply came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    InOrder,
    /// An earlier request is still unanswered.
    Overtook,
    /// Its request was answered before, or given up.
    Again,
    /// Its request was not sent.
    Unsent,
}

impl Order {
    /// Numbers must ascend.
    pub(crate) fn handle_sent(&mut self, number: u64) {
        debug_assert!(
            number >= self.sent_to,
            "requests are numbered in the order of sending"
        );
        self.sent_to = number + 1;
        self.open.push_back(number);
    }

    pub(crate) fn handle_answered(&mut self, number: u64) -> Arrival {
        match self.open.binary_search(&number) {
            Ok(0) => {
                self.open.pop_front();
                Arrival::InOrder
            }
            Ok(place) => {
                self.open.remove(place);
                Arrival::Overtook
            }
            Err(_) if number < self.sent_to => Arrival::Again,
            Err(_) => Arrival::Unsent,
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn give_up(&mut self, number: u64) {
        if let Ok(place) = self.open.binary_search(&number) {
            self.open.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Order {
        let mut order = Order::default();
        (0..3).for_each(|n| order.handle_sent(n));
        order
    }

    #[test]
    fn replies_in_order_are_in_order() {
        let mut order = three();
        for n in 0..3 {
            assert_eq!(order.handle_answered(n), Arrival::InOrder);
        }
        assert!(order.open.is_empty());
    }

    #[test]
    fn what_overtakes_comes_again_or_was_never_asked_is_told() {
        let mut order = three();
        assert_eq!(order.handle_answered(1), Arrival::Overtook);
        assert_eq!(order.handle_answered(0), Arrival::InOrder);
        assert_eq!(order.handle_answered(1), Arrival::Again);
        assert_eq!(order.handle_answered(3), Arrival::Unsent);
        assert_eq!(order.handle_answered(2), Arrival::InOrder);
    }

    #[test]
    fn what_was_given_up_is_not_waited_for() {
        let mut order = three();
        order.give_up(0);
        assert_eq!(order.handle_answered(1), Arrival::InOrder);
        assert_eq!(order.handle_answered(0), Arrival::Again);
    }
}
