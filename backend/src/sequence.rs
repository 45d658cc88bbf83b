//! The reply sequencer: services answer in any order, replies leave in the order of their requests.
//!
//! Pure. Requests are admitted in arrival order, each into an order domain of its session; an answer is released once all
//! answers before it in its domain were. Each release names its predecessor (`after`), so that the frontend can keep the same
//! order across a change of backend. A session without requests is not remembered, and what belonged to a lost link is
//! forgotten: nothing late can be released.
//!
//! Bytes of answers count from [`Sequencer::finish`] until [`Sequencer::on_sent`], whether they wait for a predecessor here
//! or for credit in the link's queue. Answers that wait for a predecessor may use only a part of the room: a device that has
//! large answers pile up behind a slow one must not take the room of those whose turn has come.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::{Sequence, SessionId};
use rustc_hash::FxHashMap;

use crate::link::LinkIndex;

/// Answers of at most this size are always taken: every error reply fits, so that a request can always be answered.
pub const ALWAYS_TAKEN_BYTES: usize = 4096;

/// The part of all room that early answers may use, and the part of it that those of one session may.
const EARLY_SHARE: usize = 2;
const SESSION_SHARE: usize = 16;

/// Order domains without a request in flight that a session remembers, at most. Forgetting one is safe: its replies have
/// left on the same link before anything that follows.
const MAX_IDLE_DOMAINS: usize = 32;

/// Names one request in this process: sequences count per session, sessions belong to a link's epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestKey {
    pub link: LinkIndex,
    pub session: SessionId,
    pub sequence: Sequence,
}

/// Which replies of a session wait for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domain {
    Connection,
    Namespace(Arc<str>),
    /// A domain of its own for each request.
    Unordered,
}

/// What takes a request's place in its session's window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub binary: bool,
    /// Nothing is sent to the device.
    pub silent: bool,
    pub payload: Bytes,
}

/// An answer whose turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub key: RequestKey,
    /// The predecessor in the order domain that may still be unwritten; 0 for none.
    pub after: Sequence,
    pub answer: Answer,
}

/// The same request is being answered already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this request is in flight already")]
pub struct Duplicate;

/// See the module's documentation.
#[derive(Debug)]
pub struct Sequencer {
    links: Vec<LinkSessions>,
    in_flight: usize,
    held_bytes: usize,
    /// Of these, the bytes of answers that wait for a predecessor.
    early_bytes: usize,
    max_held_bytes: usize,
}

#[derive(Debug, Default)]
struct LinkSessions {
    sessions: FxHashMap<SessionId, Session>,
    /// Requests admitted and not answered to the link yet.
    in_flight: usize,
    held_bytes: usize,
    early_bytes: usize,
}

#[derive(Debug, Default)]
struct Session {
    domains: Vec<(Domain, Line)>,
    unordered: Vec<Sequence>,
    early_bytes: usize,
}

/// One order domain of one session.
#[derive(Debug, Default)]
struct Line {
    last: Sequence,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    sequence: Sequence,
    after: Sequence,
    answer: Option<Answer>,
}

impl Sequencer {
    /// `max_held_bytes` bounds the answers that have not left, over all sessions.
    pub fn new(links: usize, max_held_bytes: usize) -> Self {
        let links = (0..links).map(|_| LinkSessions::default()).collect();
        Self {
            links,
            in_flight: 0,
            held_bytes: 0,
            early_bytes: 0,
            max_held_bytes,
        }
    }

    /// Puts a request in its place. `floor` is the session's lowest unanswered sequence as the frontend knows it.
    pub fn admit(&mut self, key: RequestKey, floor: Sequence, domain: Domain) -> Result<(), Duplicate> {
        let link = &mut self.links[key.link.get()];
        let session = link.sessions.entry(key.session).or_default();
        if session.holds(key.sequence) {
            return Err(Duplicate);
        }
        link.in_flight += 1;
        self.in_flight += 1;
        session.admit(key.sequence, floor, domain);
        Ok(())
    }

    /// Whether the request was admitted and has no answer yet.
    pub fn is_in_flight(&self, key: RequestKey) -> bool {
        self.links[key.link.get()]
            .sessions
            .get(&key.session)
            .is_some_and(|s| s.holds(key.sequence))
    }

    /// Takes a request's answer and appends what can leave now to `out`.
    ///
    /// Hands the answer back when it is larger than [`ALWAYS_TAKEN_BYTES`] and there is no room; the caller then gives a
    /// short one. An answer to a request that is not in flight is dropped.
    pub fn finish(&mut self, key: RequestKey, answer: Answer, out: &mut Vec<Release>) -> Result<(), Answer> {
        let bytes = answer.payload.len();
        let link = &mut self.links[key.link.get()];
        let Some(session) = link.sessions.get_mut(&key.session) else {
            return Ok(());
        };
        let early_room = EarlyRoom {
            total: (self.max_held_bytes / EARLY_SHARE).saturating_sub(self.early_bytes),
            session: (self.max_held_bytes / SESSION_SHARE).saturating_sub(session.early_bytes),
        };
        let fits = self.held_bytes + bytes <= self.max_held_bytes
            && (session.is_next(key.sequence) || early_room.fits(bytes, session.early_bytes == 0));
        if bytes > ALWAYS_TAKEN_BYTES && !fits {
            return Err(answer);
        }
        let before = session.early_bytes;
        if !session.finish(key, answer, out) {
            return Ok(());
        }
        link.early_bytes = link.early_bytes + session.early_bytes - before;
        self.early_bytes = self.early_bytes + session.early_bytes - before;
        if session.is_idle() {
            link.sessions.remove(&key.session);
        }
        link.held_bytes += bytes;
        self.held_bytes += bytes;
        Ok(())
    }

    /// A released answer of so many bytes was handed to the socket.
    pub fn on_sent(&mut self, link: LinkIndex, bytes: usize) {
        let link = &mut self.links[link.get()];
        let answered = link.in_flight.min(1);
        link.in_flight -= answered;
        self.in_flight -= answered;
        let bytes = bytes.min(link.held_bytes);
        link.held_bytes -= bytes;
        self.held_bytes -= bytes;
    }

    /// Forgets a link's sessions and whatever waits for it.
    pub fn remove_link(&mut self, link: LinkIndex) {
        let lost = std::mem::take(&mut self.links[link.get()]);
        self.in_flight -= lost.in_flight;
        self.held_bytes -= lost.held_bytes;
        self.early_bytes -= lost.early_bytes;
    }

    /// Requests of one link that were admitted and whose reply was not handed to its socket.
    pub fn in_flight(&self, link: LinkIndex) -> usize {
        self.links[link.get()].in_flight
    }

    /// The same over all links.
    pub fn total_in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Sessions with requests in flight.
    pub fn sessions(&self) -> usize {
        self.links.iter().map(|l| l.sessions.len()).sum()
    }
}

/// What is left for answers that wait for a predecessor.
struct EarlyRoom {
    total: usize,
    session: usize,
}

impl EarlyRoom {
    /// A session's `first` one may be larger than the session's part.
    fn fits(&self, bytes: usize, first: bool) -> bool {
        bytes <= self.total && (first || bytes <= self.session)
    }
}

impl Session {
    /// Whether an answer to this request could leave at once.
    fn is_next(&self, sequence: Sequence) -> bool {
        self.unordered.contains(&sequence)
            || self
                .domains
                .iter()
                .any(|(_, line)| line.waiting.front().is_some_and(|w| w.sequence == sequence))
    }

    fn holds(&self, sequence: Sequence) -> bool {
        self.unordered.contains(&sequence)
            || self
                .domains
                .iter()
                .any(|(_, line)| line.waiting.iter().any(|w| w.sequence == sequence))
    }

    fn is_idle(&self) -> bool {
        self.unordered.is_empty() && self.domains.iter().all(|(_, line)| line.waiting.is_empty())
    }

    fn admit(&mut self, sequence: Sequence, floor: Sequence, domain: Domain) {
        if domain == Domain::Unordered {
            self.unordered.push(sequence);
            return;
        }
        self.forget_idle(floor);
        let index = self
            .domains
            .iter()
            .position(|(d, _)| *d == domain)
            .unwrap_or_else(|| {
                self.domains.push((domain, Line::default()));
                self.domains.len() - 1
            });
        let line = &mut self.domains[index].1;
        let unwritten = line.last >= floor && line.last < sequence;
        let after = if unwritten { line.last } else { Sequence(0) };
        line.waiting.push_back(Waiting {
            sequence,
            after,
            answer: None,
        });
        line.last = sequence;
    }

    /// Drops domains of which nothing is in flight and whose last request the frontend has written, then the oldest ones.
    fn forget_idle(&mut self, floor: Sequence) {
        self.domains
            .retain(|(_, line)| !line.waiting.is_empty() || line.last >= floor);
        while self
            .domains
            .iter()
            .filter(|(_, line)| line.waiting.is_empty())
            .count()
            > MAX_IDLE_DOMAINS
        {
            let idle = self
                .domains
                .iter()
                .enumerate()
                .filter(|(_, (_, line))| line.waiting.is_empty());
            let Some((oldest, _)) = idle.min_by_key(|(_, (_, line))| line.last) else {
                return;
            };
            self.domains.swap_remove(oldest);
        }
    }

    /// False when the request is not in flight.
    fn finish(&mut self, key: RequestKey, answer: Answer, out: &mut Vec<Release>) -> bool {
        if let Some(index) = self.unordered.iter().position(|s| *s == key.sequence) {
            self.unordered.swap_remove(index);
            out.push(Release {
                key,
                after: Sequence(0),
                answer,
            });
            return true;
        }
        for (_, line) in &mut self.domains {
            let Some(waiting) = line.waiting.iter_mut().find(|w| w.sequence == key.sequence) else {
                continue;
            };
            if waiting.answer.is_some() {
                return false;
            }
            self.early_bytes += answer.payload.len();
            waiting.answer = Some(answer);
            self.early_bytes -= line.release(key, out);
            return true;
        }
        false
    }
}

impl Line {
    /// Returns the bytes of the answers that left.
    fn release(&mut self, key: RequestKey, out: &mut Vec<Release>) -> usize {
        let first = out.len();
        while let Some(front) = self.waiting.pop_front_if(|w| w.answer.is_some()) {
            let key = RequestKey {
                sequence: front.sequence,
                ..key
            };
            out.extend(front.answer.map(|answer| Release {
                key,
                after: front.after,
                answer,
            }));
        }
        out[first..].iter().map(|r| r.answer.payload.len()).sum()
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
