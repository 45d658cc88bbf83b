//! What each link carried: what a backend was given, in which order, and what it answered; and which credit was returned.
//!
//! The other end would defend itself, and the device, against most of what an end could do wrong here. So each end is judged
//! by what it puts on the link.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use holdfast_backend::dispatch::CallId;
use holdfast_proto::link::frames::{Frame, Header, Reply, Request};
use holdfast_proto::link::{Class, Command, Grant, decode_batch, session_id};

use super::Promise;
use super::conn::ConnId;
use super::pipe::{Direction, PipeId};
use super::promises::POISON_ATTEMPTS;
use super::request::Domain;
use super::world::World;

/// A batch, and what it says.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub(super) batch: Bytes,
    pub(super) header: Rc<Header>,
    pub(super) frames: Rc<Vec<(Frame, u32)>>,
}

impl Parcel {
    /// What cannot be read has no header and no frames.
    pub(super) fn new(batch: Bytes) -> Self {
        let (header, frames) = decode_batch(batch.clone()).unwrap_or_default();
        Self {
            batch,
            header: Rc::new(header),
            frames: Rc::new(frames),
        }
    }

    pub(super) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.frames.iter().filter_map(|(frame, _)| frame.command.as_ref())
    }
}

/// The requests that a backend was given on one link, by session, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Ledger(BTreeMap<u128, Vec<Given>>);

#[derive(Debug)]
struct Given {
    sequence: u64,
    domain: Domain,
    /// The one before it in its domain.
    before: Option<u64>,
    /// The service works on it.
    call: Option<CallId>,
    /// This one was surely in flight when it was taken: its reply must name it.
    follows: Option<u64>,
    answered: bool,
}

impl Ledger {
    fn of(&mut self, id: Option<holdfast_proto::link::frames::SessionId>) -> Option<&mut Vec<Given>> {
        let id = session_id(id).ok()?;
        Some(self.0.entry(id.as_u128()).or_default())
    }

    fn note_reply(&mut self, reply: &Reply) -> Result<(), (Promise, String)> {
        let (sequence, after) = (reply.sequence, reply.after);
        let twice = |what: &str| Err((Promise::ExactlyOneAnswer, format!("reply {sequence}: {what}")));
        let order = |what: String| Err((Promise::InOrder, format!("reply {sequence}: {what}")));
        let Some(given) = self.of(reply.id) else {
            return twice("of no session");
        };
        let Some(index) = given.iter().position(|g| g.sequence == sequence) else {
            return twice("nobody asked this on this link");
        };
        if given[index].answered {
            return twice("it was given on this link before");
        }
        if given[index].domain != Domain::Unordered {
            let mut earlier = given[..index].iter().filter(|g| g.domain == given[index].domain);
            if let Some(late) = earlier.find(|g| !g.answered) {
                return order(format!("it leaves before reply {}", late.sequence));
            }
            let (before, follows) = (given[index].before, given[index].follows);
            if follows.is_some_and(|follows| follows != after) || after != 0 && before != Some(after) {
                return order(format!(
                    "it names {after} as the one before it, which is {before:?}"
                ));
            }
        } else if after != 0 {
            return order(format!("it has no order and waits for {after}"));
        }
        given[index].answered = true;
        let last_of = |domain: &Domain, given: &[Given]| given.iter().rposition(|g| g.domain == *domain);
        let kept: Vec<bool> = (0..given.len())
            .map(|n| !given[n].answered || last_of(&given[n].domain, given) == Some(n))
            .collect();
        let mut kept = kept.into_iter();
        given.retain(|_| kept.next().unwrap_or(true));
        Ok(())
    }
}

impl World {
    /// An end puts a batch on a link: the credit that it returns, and the replies in it.
    pub(super) fn judge_sent(&mut self, pipe: PipeId, direction: Direction, parcel: &Parcel) {
        let header = &parcel.header;
        let totals = [&header.requests, &header.replies, &header.lifecycle, &header.push];
        let limits = self.scenario.lane.grants.0;
        let came = match direction {
            Direction::Up => &self.pipes[pipe.0].down,
            Direction::Down => &self.pipes[pipe.0].up,
        };
        let false_ack = header.acknowledged > came.frames;
        let over = Class::ALL.into_iter().find(|class| {
            let index = *class as usize;
            let (limit, came) = (limits[index], came.charged[index]);
            totals[index].as_ref().is_some_and(|total| {
                total.messages > limit.messages + came.messages || total.bytes > limit.bytes + came.bytes
            })
        });
        if let Some(class) = over {
            let what = format!("{pipe:?}, {direction:?}: more credit for {class:?} returns than came");
            return self.fail(Promise::Bounded, what);
        }
        if false_ack {
            let what = format!("{pipe:?}, {direction:?}: acknowledges what never came");
            return self.fail(Promise::Protocol, what);
        }
        if direction == Direction::Up {
            for command in parcel.commands() {
                if let Command::Reply(reply) = command
                    && let Err((promise, what)) = self.pipes[pipe.0].ledger.note_reply(reply)
                {
                    return self.fail(promise, format!("{pipe:?}: {what}"));
                }
            }
        }
    }

    /// A batch arrives: what it charges its receiver, and what a backend is asked.
    pub(super) fn note_arrived(&mut self, pipe: PipeId, direction: Direction, parcel: &Parcel) {
        let way = self.pipes[pipe.0].way(direction);
        for (frame, bytes) in parcel.frames.iter() {
            way.frames += 1;
            if let Some(class) = frame.command.as_ref().and_then(Class::of) {
                let Grant { messages, bytes: sum } = &mut way.charged[class as usize];
                *messages += 1;
                *sum += u64::from(*bytes);
            }
        }
        if direction == Direction::Down {
            for command in parcel.commands() {
                if let Command::TextMessage(request) | Command::BinaryMessage(request) = command {
                    self.note_given(pipe, request);
                }
            }
        }
    }

    fn note_given(&mut self, pipe: PipeId, request: &Request) {
        let id = request.session.as_ref().and_then(|session| session.id);
        let conn = session_id(id)
            .ok()
            .and_then(|id| self.sessions.get(&id.as_u128()));
        let position = (request.sequence as usize).wrapping_sub(1);
        let Some(known) = conn.and_then(|conn| self.conns[conn.0].requests.get(position)) else {
            return;
        };
        // It is not read any more.
        let poisoned = request.attempt >= POISON_ATTEMPTS;
        let domain = if poisoned {
            Domain::Connection
        } else {
            known.domain()
        };
        if let Some(given) = self.pipes[pipe.0].ledger.of(id)
            && given.iter().all(|g| g.sequence != request.sequence)
        {
            let before = given.iter().rfind(|g| g.domain == domain).map(|g| g.sequence);
            given.push(Given {
                sequence: request.sequence,
                domain,
                before,
                call: None,
                follows: None,
                answered: false,
            });
        }
    }

    /// A backend has taken a request. Whatever it works on at this time has its reply before this one's.
    pub(super) fn note_call(&mut self, (conn, sequence): (ConnId, u64), (backend, call): (usize, CallId)) {
        let (frontend, session) = (self.conns[conn.0].frontend, self.conns[conn.0].session);
        let Some(life) = self.backends[backend].life.as_ref() else {
            return;
        };
        let Some(pipe) = life.sockets[frontend] else {
            return;
        };
        let Some(given) = self.pipes[pipe.0].ledger.of(session.map(Into::into)) else {
            return;
        };
        let Some(index) = given.iter().position(|g| g.sequence == sequence) else {
            return;
        };
        given[index].call = Some(call);
        if given[index].domain != Domain::Unordered {
            let before = given[..index].iter().rfind(|g| g.domain == given[index].domain);
            let works_on = |g: &&Given| g.call.is_some_and(|call| life.running.contains(&call));
            given[index].follows = before.filter(works_on).map(|g| g.sequence);
        }
    }
}
