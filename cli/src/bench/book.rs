//! What the service remembers: which calls it saw before, by their `Idempotency-Key`, as a service with a side effect would.
//!
//! A key is `<session uuid>-<sequence>`. Sequences of a session ascend without gaps, so a session costs its lowest sequence
//! not yet seen and the few above it, however long the run. A request that never comes (it was answered with an error before)
//! leaves a gap, which is forgotten when too many follow it. Of the last ones it is also kept when they came first, by which
//! one tells whether they were in flight at a crash. Pure.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

/// One call's claims.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// `Idempotency-Key`, without its quotes.
    pub(crate) key: &'a str,
    /// `ce-hfsession` and `ce-hfsequence`.
    pub(crate) session: &'a str,
    pub(crate) sequence: u64,
}

/// When a call came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stay {
    pub(crate) came: Instant,
    /// When its answer was due.
    pub(crate) left: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The side effect is done now.
    First,
    /// It was done before; then, if that is not long ago.
    Again(Option<Stay>),
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
    /// The last ones, in the order in which they came.
    recent: VecDeque<(u64, Stay)>,
}

impl Book {
    /// `stay` is that of this call.
    pub(crate) fn handle_call(&mut self, call: &Call<'_>, stay: Stay) -> Seen {
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
            Some(session) => session.see(call.sequence, stay),
            None => Seen::BadKey,
        }
    }
}

impl Session {
    fn see(&mut self, sequence: u64, stay: Stay) -> Seen {
        if sequence <= self.seen_to || !self.above.insert(sequence) {
            let before = self.recent.iter().find(|(recent, _)| *recent == sequence);
            return Seen::Again(before.map(|(_, stay)| *stay));
        }
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((sequence, stay));
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
/// Twice the requests that a session may have in flight: 40 bytes each.
const MAX_RECENT: usize = 64;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need some time")]
mod tests {
    use super::*;

    fn stay() -> Stay {
        let came = Instant::now();
        Stay { came, left: came }
    }

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
        assert_eq!(book.handle_call(&call("a-1", "a", 1), stay()), Seen::First);
        assert_eq!(book.handle_call(&call("a-3", "a", 3), stay()), Seen::First);
        assert_eq!(book.handle_call(&call("b-1", "b", 1), stay()), Seen::First);
        assert!(
            matches!(
                book.handle_call(&call("a-3", "a", 3), stay()),
                Seen::Again(Some(_))
            ),
            "above a gap"
        );
        assert_eq!(book.handle_call(&call("a-2", "a", 2), stay()), Seen::First);
        assert!(
            matches!(
                book.handle_call(&call("a-1", "a", 1), stay()),
                Seen::Again(Some(_))
            ),
            "below it"
        );
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
                book.handle_call(&call(key, session, sequence), stay()),
                Seen::BadKey,
                "{key}"
            );
        }
        assert_eq!(book.handle_call(&call("a-1", "a", 1), stay()), Seen::First);
    }

    #[test]
    fn a_gap_does_not_make_it_grow() {
        let mut book = Book::default();
        for sequence in 2..=20_000 {
            assert_eq!(
                book.handle_call(&call(&format!("a-{sequence}"), "a", sequence), stay()),
                Seen::First
            );
            assert!(book.sessions["a"].above.len() <= MAX_ABOVE_A_GAP);
        }
        assert_eq!(
            book.handle_call(&call("a-19000", "a", 19_000), stay()),
            Seen::Again(None),
            "long ago"
        );
    }

    #[test]
    fn a_session_costs_no_more_than_its_gaps() {
        let mut book = Book::default();
        for sequence in 1..=10_000 {
            assert_eq!(
                book.handle_call(&call(&format!("a-{sequence}"), "a", sequence), stay()),
                Seen::First
            );
        }
        let session = &book.sessions["a"];
        assert_eq!((session.seen_to, session.above.len()), (10_000, 0));
        assert_eq!(session.recent.len(), MAX_RECENT);
    }
}
