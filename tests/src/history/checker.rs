//! The checker itself: one pass over events, state per open connection.

use std::collections::{HashMap, VecDeque};

use super::{Broken, Conn, Domain, Event, Expectations, Form, Outcome, Violation};

/// Kept violations; the rest is only counted. The first ones tell the story.
const MAX_VIOLATIONS: usize = 1_000;

/// Checks a whole history, including that nothing is left unanswered at its end.
pub fn check(history: &[Event], expectations: Expectations) -> Vec<Violation> {
    let mut checker = Checker::new(expectations);
    for event in history {
        checker.handle(*event);
    }
    checker.finish()
}

/// Takes a history event by event.
pub struct Checker {
    expectations: Expectations,
    connections: HashMap<Conn, Connection>,
    violations: Vec<Violation>,
    suppressed: u64,
    events: u64,
    answered: u64,
}

#[derive(Default)]
struct Connection {
    last_sent: u32,
    waiting: VecDeque<Waiting>,
    pushes: HashMap<u64, Push>,
    closed: bool,
}

/// A request without its answer.
struct Waiting {
    seq: u32,
    domain: Domain,
    binary: bool,
    id: u64,
    body: u64,
    /// Position of its `Sent` in the history.
    at: u64,
}

#[derive(Default)]
struct Push {
    written: bool,
    seen: bool,
}

impl Checker {
    pub fn new(expectations: Expectations) -> Self {
        Self {
            expectations,
            connections: HashMap::new(),
            violations: Vec::new(),
            suppressed: 0,
            events: 0,
            answered: 0,
        }
    }

    pub fn handle(&mut self, event: Event) {
        self.events += 1;
        if let Event::Opened { conn } = event {
            return self.on_opened(conn);
        }
        let conn = event.conn();
        match self.connections.get(&conn) {
            Some(connection) if !connection.closed => {}
            _ => return self.report(conn, None, Broken::NotOpen),
        }
        match event {
            Event::Opened { .. } => {}
            Event::Sent { .. } => self.on_sent(event),
            Event::Replied { .. } => self.on_replied(event),
            Event::PushAsked { id, .. } => {
                self.open(conn).pushes.entry(id).or_default();
            }
            Event::PushWritten { id, .. } => self.open(conn).pushes.entry(id).or_default().written = true,
            Event::Pushed { id, .. } => self.on_pushed(conn, id),
            Event::Unknown { .. } => self.report(conn, None, Broken::Unknown),
            Event::Closed { code, .. } => self.on_closed(conn, code),
        }
    }

    /// Events handled so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Requests answered so far, by replies or errors.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Violations beyond those kept.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// Unanswered requests of open connections.
    pub fn unanswered(&self) -> usize {
        self.live().map(|(_, c)| c.waiting.len()).sum()
    }

    /// The position in the history at which the oldest unanswered request was sent. Walks all connections.
    pub fn oldest_unanswered(&self) -> Option<u64> {
        self.live()
            .filter_map(|(_, c)| c.waiting.front())
            .map(|w| w.at)
            .min()
    }

    /// Ends the history: what is still unanswered now is broken.
    pub fn finish(mut self) -> Vec<Violation> {
        let mut left = Vec::new();
        for (conn, connection) in self.live() {
            for waiting in &connection.waiting {
                left.push((conn, Some(waiting.seq), Broken::Unanswered));
            }
            let lost = connection
                .pushes
                .values()
                .filter(|p| p.written && !p.seen)
                .count();
            left.extend(std::iter::repeat_n((conn, None, Broken::PushLost), lost));
        }
        left.sort_by_key(|(conn, seq, _)| (*conn, *seq));
        for (conn, seq, kind) in left {
            self.report(conn, seq, kind);
        }
        self.violations
    }

    fn on_opened(&mut self, conn: Conn) {
        if self.connections.insert(conn, Connection::default()).is_some() {
            self.report(conn, None, Broken::Misrecorded);
        }
    }

    fn on_sent(&mut self, event: Event) {
        let Event::Sent {
            conn,
            seq,
            domain,
            form,
            id,
            body,
        } = event
        else {
            return;
        };
        let at = self.events;
        let connection = self.open(conn);
        let in_number = seq == connection.last_sent + 1;
        connection.last_sent = seq;
        if form != Form::OneWay {
            let binary = form == Form::Binary;
            connection.waiting.push_back(Waiting {
                seq,
                domain,
                binary,
                id,
                body,
                at,
            });
        }
        if !in_number {
            self.report(conn, Some(seq), Broken::Misrecorded);
        }
    }

    fn on_replied(&mut self, event: Event) {
        let Event::Replied {
            conn,
            seq,
            binary,
            id,
            outcome,
        } = event
        else {
            return;
        };
        let connection = self.open(conn);
        let Some(place) = connection.waiting.iter().position(|w| w.seq == seq) else {
            let sent = (1..=connection.last_sent).contains(&seq);
            return self.report(
                conn,
                Some(seq),
                if sent {
                    Broken::AnsweredAgain
                } else {
                    Broken::NeverSent
                },
            );
        };
        let waiting = connection
            .waiting
            .remove(place)
            .expect("position came from this queue");
        let overtaken = waiting.domain != Domain::UNORDERED
            && connection
                .waiting
                .iter()
                .take(place)
                .any(|w| w.domain == waiting.domain);
        self.answered += 1;
        if overtaken {
            self.report(conn, Some(seq), Broken::OutOfOrder);
        }
        if id != waiting.id {
            self.report(conn, Some(seq), Broken::WrongId);
        }
        if binary != waiting.binary {
            self.report(conn, Some(seq), Broken::WrongForm);
        }
        match outcome {
            Outcome::Body(body) if body != waiting.body => self.report(conn, Some(seq), Broken::WrongBody),
            Outcome::Error(code) if !self.expectations.errors.contains(&code) => {
                self.report(conn, Some(seq), Broken::UnexpectedError(code));
            }
            Outcome::Body(_) | Outcome::Error(_) => {}
        }
    }

    fn on_pushed(&mut self, conn: Conn, id: u64) {
        let kind = match self.open(conn).pushes.get_mut(&id) {
            None => Broken::PushNotAsked,
            Some(push) if push.seen => Broken::PushedTwice,
            Some(push) => {
                push.seen = true;
                return;
            }
        };
        self.report(conn, None, kind);
    }

    fn on_closed(&mut self, conn: Conn, code: u16) {
        self.open(conn).closed = true;
        if !self
            .expectations
            .closes
            .iter()
            .any(|allowed| *allowed as u16 == code)
        {
            self.report(conn, None, Broken::UnexpectedClose(code));
        }
    }

    fn open(&mut self, conn: Conn) -> &mut Connection {
        self.connections.entry(conn).or_default()
    }

    fn live(&self) -> impl Iterator<Item = (Conn, &Connection)> {
        self.connections
            .iter()
            .filter(|(_, c)| !c.closed)
            .map(|(conn, c)| (*conn, c))
    }

    fn report(&mut self, conn: Conn, seq: Option<u32>, kind: Broken) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation { conn, seq, kind });
        } else {
            self.suppressed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::{CloseCode, ErrorCode};

    const A: Conn = Conn(1);

    fn sent(seq: u32, domain: Domain) -> Event {
        let n = u64::from(seq);
        Event::Sent {
            conn: A,
            seq,
            domain,
            form: Form::Text,
            id: n,
            body: n * 100,
        }
    }

    fn replied(seq: u32) -> Event {
        let n = u64::from(seq);
        Event::Replied {
            conn: A,
            seq,
            binary: false,
            id: n,
            outcome: Outcome::Body(n * 100),
        }
    }

    fn kinds(events: &[Event]) -> Vec<Broken> {
        check(events, Expectations::default())
            .into_iter()
            .map(|v| v.kind)
            .collect()
    }

    #[test]
    fn domains_are_ordered_within_and_free_between() {
        let [x, y] = [Domain(1), Domain(2)];
        let open = Event::Opened { conn: A };
        assert_eq!(kinds(&[open, sent(1, x), sent(2, y), replied(2), replied(1)]), []);
        assert_eq!(
            kinds(&[open, sent(1, x), sent(2, x), replied(2), replied(1)]),
            [Broken::OutOfOrder]
        );
        let none = Domain::UNORDERED;
        assert_eq!(
            kinds(&[open, sent(1, none), sent(2, none), replied(2), replied(1)]),
            []
        );
    }

    #[test]
    fn errors_and_closes_must_be_expected() {
        let error = Event::Replied {
            conn: A,
            seq: 1,
            binary: false,
            id: 1,
            outcome: Outcome::Error(ErrorCode::BackendFailed),
        };
        let history = [
            Event::Opened { conn: A },
            sent(1, Domain(0)),
            error,
            Event::Closed { conn: A, code: 1001 },
        ];
        assert_eq!(
            kinds(&history),
            [
                Broken::UnexpectedError(ErrorCode::BackendFailed),
                Broken::UnexpectedClose(1001)
            ]
        );
        let allowed = Expectations {
            errors: vec![ErrorCode::BackendFailed],
            closes: vec![CloseCode::GoingAway],
        };
        assert_eq!(check(&history, allowed), []);
    }

    #[test]
    fn an_expected_close_forgives_what_was_unanswered() {
        let history = [
            Event::Opened { conn: A },
            sent(1, Domain(0)),
            Event::Closed { conn: A, code: 1000 },
        ];
        let expectations = Expectations {
            closes: vec![CloseCode::Normal],
            ..Expectations::default()
        };
        assert_eq!(check(&history, expectations), []);
    }

    #[test]
    fn a_million_events_leave_nothing_behind() {
        let mut checker = Checker::new(Expectations::default());
        checker.handle(Event::Opened { conn: A });
        for seq in 1..=500_000 {
            checker.handle(sent(seq, Domain(0)));
            checker.handle(replied(seq));
        }
        assert_eq!(checker.unanswered(), 0);
        assert!(checker.connections[&A].waiting.capacity() < 64);
        assert_eq!(checker.finish(), []);
    }
}
