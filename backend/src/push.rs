//! What the HTTP API asks of the frontends, and what their answers come to: pushes, presence queries, closes.
//!
//! Pure. An operation asks some frontends and ends when all have answered, a link was lost, or time is up. What is not known
//! is said to be not known (P9): a frontend that was not asked or did not answer makes the outcome `unconfirmed` (a push) or
//! incomplete (a query), unless another one's answer decides.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use holdfast_proto::DeviceId;
use holdfast_proto::link::frames::{self, PushStatus as FrameStatus, QueryResult, SessionInfo};
use holdfast_proto::link::session_id;

use crate::api::{PushCounts, PushResult, PushStatus, PushTarget};
use crate::link::LinkIndex;

/// Operations waiting for answers, at most: each costs about 300 bytes, and its frames' payload until they are sent.
pub const MAX_OUTSTANDING: usize = 4096;
/// Sessions that one presence answer lists, at most.
pub const MAX_LISTED_SESSIONS: usize = 64;
/// Bytes of a reason that are passed on.
const MAX_REASON_BYTES: usize = 128;

/// Number of an operation on the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub u64);

/// What the asker recognises its operation by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A device's sessions as far as they are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Presence {
    pub sessions: Vec<SessionInfo>,
    /// Whether every frontend answered.
    pub complete: bool,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The session, device and reason as far as the frontend said them; the asker knows whom it named.
    Push(PushTarget, PushResult),
    /// Sessions that got it, did not, or may have, and how many frontends did not say.
    All(PushCounts),
    Presence(DeviceId, Presence),
    Closed {
        sessions: u64,
        complete: bool,
    },
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Push(PushTarget),
    Presence(DeviceId),
    Close,
}

/// Which frontends are asked, and how many should have been but cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub links: Vec<LinkIndex>,
    pub missing: usize,
}

/// All operations under way.
#[derive(Debug, Default)]
pub struct Tracker {
    last: u64,
    operations: BTreeMap<OperationId, Operation>,
    deadlines: BTreeSet<(Instant, OperationId)>,
    done: VecDeque<(Ticket, Outcome)>,
}

#[derive(Debug)]
struct Operation {
    ticket: Ticket,
    question: Question,
    waiting: Vec<LinkIndex>,
    missing: usize,
    deadline: Instant,
    answers: Answers,
}

/// Merged so far.
#[derive(Debug, Default)]
struct Answers {
    best: Option<PushResult>,
    counts: PushCounts,
    sessions: Vec<SessionInfo>,
    closed: u64,
}

impl Tracker {
    /// Begins an operation, or hands the question back when too many are under way.
    pub fn begin(
        &mut self,
        ticket: Ticket,
        question: Question,
        asked: Asked,
        deadline: Instant,
    ) -> Result<OperationId, Question> {
        if self.operations.len() >= MAX_OUTSTANDING {
            return Err(question);
        }
        self.last += 1;
        let id = OperationId(self.last);
        let Asked {
            links: waiting,
            missing,
        } = asked;
        let operation = Operation {
            ticket,
            question,
            waiting,
            missing,
            deadline,
            answers: Answers::default(),
        };
        self.operations.insert(id, operation);
        self.deadlines.insert((deadline, id));
        self.end_if_answered(id);
        Ok(id)
    }

    /// Returns false for an answer that nobody waits for (any more).
    pub fn handle_push_result(&mut self, link: LinkIndex, result: frames::PushResult) -> bool {
        let id = OperationId(result.number);
        self.handle_answer(link, id, |operation| match operation.question {
            Question::Push(PushTarget::All) => {
                operation.answers.counts.written += result.written;
                operation.answers.counts.dropped += result.dropped;
                operation.answers.counts.unconfirmed += result.unconfirmed;
                true
            }
            Question::Push(_) => operation.answers.merge(read_push_result(result)),
            Question::Presence(_) | Question::Close => false,
        })
    }

    /// Returns false for an answer that nobody waits for (any more).
    pub fn handle_query_result(&mut self, link: LinkIndex, result: QueryResult) -> bool {
        let id = OperationId(result.number);
        self.handle_answer(link, id, |operation| {
            let answers = &mut operation.answers;
            answers.closed += u64::from(result.closed);
            let room = MAX_LISTED_SESSIONS - answers.sessions.len().min(MAX_LISTED_SESSIONS);
            answers.sessions.extend(result.sessions.into_iter().take(room));
            !matches!(operation.question, Question::Push(_))
        })
    }

    /// Whatever this link was asked stays unknown.
    pub fn handle_link_lost(&mut self, link: LinkIndex) {
        let ids: Vec<OperationId> = self.operations.keys().copied().collect();
        for id in ids {
            self.handle_answer(link, id, |operation| {
                operation.missing += 1;
                true
            });
        }
    }

    /// Ends what has waited long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            if let Some(operation) = self.operations.get_mut(&id) {
                operation.missing += std::mem::take(&mut operation.waiting).len();
            }
            self.end_if_answered(id);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub fn poll_done(&mut self) -> Option<(Ticket, Outcome)> {
        self.done.pop_front()
    }

    pub fn outstanding(&self) -> usize {
        self.operations.len()
    }

    /// `merge` returns false when the answer does not fit the question: it then counts as missing.
    fn handle_answer(
        &mut self,
        link: LinkIndex,
        id: OperationId,
        merge: impl FnOnce(&mut Operation) -> bool,
    ) -> bool {
        let Some(operation) = self.operations.get_mut(&id) else {
            return false;
        };
        let Some(index) = operation.waiting.iter().position(|l| *l == link) else {
            return false;
        };
        operation.waiting.swap_remove(index);
        if !merge(operation) {
            operation.missing += 1;
        }
        self.end_if_answered(id);
        true
    }

    fn end_if_answered(&mut self, id: OperationId) {
        if self.operations.get(&id).is_some_and(|o| o.waiting.is_empty())
            && let Some(operation) = self.operations.remove(&id)
        {
            self.deadlines.remove(&(operation.deadline, id));
            self.done.push_back((operation.ticket, operation.outcome()));
        }
    }
}

impl Operation {
    fn outcome(self) -> Outcome {
        let Answers {
            best,
            mut counts,
            sessions,
            closed,
        } = self.answers;
        let complete = self.missing == 0;
        match self.question {
            Question::Push(PushTarget::All) => {
                counts.frontends_unconfirmed = self.missing as u64;
                Outcome::All(counts)
            }
            Question::Push(target) => {
                let result = match best {
                    Some(best) if complete || best.status == PushStatus::Written => best,
                    None if complete => bare(PushStatus::Offline),
                    _ => bare(PushStatus::Unconfirmed),
                };
                Outcome::Push(target, result)
            }
            Question::Presence(device) => Outcome::Presence(device, Presence { sessions, complete }),
            Question::Close => Outcome::Closed {
                sessions: closed,
                complete,
            },
        }
    }
}

impl Answers {
    /// Of several frontends' answers the one that says most counts: written, then what may have been, then dropped, then offline.
    fn merge(&mut self, answer: Option<PushResult>) -> bool {
        let Some(answer) = answer else { return false };
        let rank = |outcome: &PushResult| match outcome.status {
            PushStatus::Written => 3,
            PushStatus::Unconfirmed => 2,
            PushStatus::Dropped => 1,
            PushStatus::Offline | PushStatus::Unknown => 0,
        };
        if self.best.as_ref().is_none_or(|best| rank(best) < rank(&answer)) {
            self.best = Some(answer);
        }
        true
    }
}

fn bare(status: PushStatus) -> PushResult {
    PushResult {
        device: None,
        session: None,
        status,
        reason: None,
    }
}

/// `None` for a status that this version does not know.
fn read_push_result(result: frames::PushResult) -> Option<PushResult> {
    let status = match result.status() {
        FrameStatus::Written => PushStatus::Written,
        FrameStatus::Offline => PushStatus::Offline,
        FrameStatus::Dropped => PushStatus::Dropped,
        FrameStatus::Unconfirmed => PushStatus::Unconfirmed,
        FrameStatus::Unspecified => return None,
    };
    let reason = (status == PushStatus::Dropped).then(|| {
        let end = result.reason.floor_char_boundary(MAX_REASON_BYTES);
        result.reason[..end].to_owned()
    });
    let device = DeviceId::from_bytes(result.device)
        .ok()
        .map(|d| d.to_owned_bytes());
    Some(PushResult {
        device,
        session: session_id(result.session).ok(),
        status,
        reason,
    })
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
