//! What the service remembers: which calls it saw before, by their `Idempotency-Key`, as a service with a side effect would.
//!
//! A key is `<session uuid>-<sequence>`. Sequences of a session ascend without gaps, so a session costs its lowest sequence
//! not yet seen and the few above it, however long the run. A request that never comes (it was answered with an error before)
//! leaves a gap, which is forgotten when too many follow it. Pure.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeSet, HashMap};

/// One call's claims.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// `Idempotency-Key`, without its quotes.
    pub(crate) key: &'a str,
    /// `ce-hfsession` and `ce-hfsequence`.
    pub(crate) session: &'a str,
    pub(crate) sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The side effect is done now.
    First,
    /// It was done before.
    Again,
    /// The key is not that of the request: a service would do it twice.
    BadKey,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    sessions: HashMap<Box<str>, Session>,
}

#[derive(Debug, Default)]
struct Session {
    /// All sequences up to here were seen.
    seen_to: u64,
    /// And these.
    above: BTreeSet<u64>,
}

impl Book {
    pub(crate) fn handle_call(&mut self, call: &Call<'_>) -> Seen {
        let own = call
            .key
            .strip_prefix(call.session)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|digits| digits.parse().ok());
        if own != Some(call.sequence) || call.session.is_empty() || call.sequence == 0 {
            return Seen::BadKey;
        }
        if !self.sessions.contains_key(call.session) {
            self.sessions.insert(call.session.into(), Session::default());
        }
        match self.sessions.get_mut(call.session) {
            Some(session) => session.see(call.sequence),
            None => Seen::BadKey,
        }
    }
}

impl Session {
    fn see(&mut self, sequence: u64) -> Seen {
        if sequence <= self.seen_to || !self.above.insert(sequence) {
            return Seen::Again;
        }
        if self.above.len() > MAX_ABOVE_A_GAP {
            self.seen_to = self.above.pop_first().unwrap_or(self.seen_to);
        }
        while self.above.remove(&(self.seen_to + 1)) {
            self.seen_to += 1;
        }
        Seen::First
    }
}

/// Many times the requests that a session may have in flight.
const MAX_ABOVE_A_GAP: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(key: &'a str, session: &'a str, sequence: u64) -> Call<'a> {
        Call {
            key,
            session,
            sequence,
        }
    }

    #[test]
    fn side_effects_happen_once_per_key() {
        let mut book = Book::default();
        assert_eq!(book.handle_call(&call("a-1", "a", 1)), Seen::First);
        assert_eq!(book.handle_call(&call("a-3", "a", 3)), Seen::First);
        assert_eq!(book.handle_call(&call("b-1", "b", 1)), Seen::First);
        assert_eq!(book.handle_call(&call("a-3", "a", 3)), Seen::Again, "above a gap");
        assert_eq!(book.handle_call(&call("a-2", "a", 2)), Seen::First);
        assert_eq!(book.handle_call(&call("a-1", "a", 1)), Seen::Again, "long ago");
    }

    #[test]
    fn a_key_that_is_not_the_requests_is_told() {
        let mut book = Book::default();
        for (key, session, sequence) in [
            ("a-2", "a", 1),
            ("b-1", "a", 1),
            ("a1", "a", 1),
            ("-1", "", 1),
            ("a-0", "a", 0),
        ] {
            assert_eq!(
                book.handle_call(&call(key, session, sequence)),
                Seen::BadKey,
                "{key}"
            );
        }
        assert_eq!(book.handle_call(&call("a-1", "a", 1)), Seen::First);
    }

    #[test]
    fn a_gap_does_not_make_it_grow() {
        let mut book = Book::default();
        for sequence in 2..=20_000 {
            assert_eq!(
                book.handle_call(&call(&format!("a-{sequence}"), "a", sequence)),
                Seen::First
            );
            assert!(book.sessions["a"].above.len() <= MAX_ABOVE_A_GAP);
        }
        assert_eq!(book.handle_call(&call("a-19000", "a", 19_000)), Seen::Again);
    }

    #[test]
    fn a_session_costs_no_more_than_its_gaps() {
        let mut book = Book::default();
        for sequence in 1..=10_000 {
            assert_eq!(
                book.handle_call(&call(&format!("a-{sequence}"), "a", sequence)),
                Seen::First
            );
        }
        let session = &book.sessions["a"];
        assert_eq!((session.seen_to, session.above.len()), (10_000, 0));
    }
}
