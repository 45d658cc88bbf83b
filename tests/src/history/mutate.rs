//! Breaks a valid history in one place: what a broken gateway would have shown. Each must be caught, else the checker is
//! blind to it.

use holdfast_proto::ErrorCode;

use super::{Conn, Domain, Event, Outcome};

/// A way of breaking a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// An answer is lost.
    DropReply,
    /// An answer comes again, later.
    DoubleReply,
    /// Two answers of one order domain change places.
    SwapReplies,
    /// An answer goes to another connection.
    CrossReply,
    /// An answer's body is another one.
    CorruptBody,
    /// An answer names another request by number.
    WrongSeq,
    /// An answer names another request by id.
    WrongId,
    /// A text answer to a binary request or the reverse.
    WrongForm,
    /// A reply becomes `backend_failed`.
    TurnIntoError,
    /// An answer to a request that is sent only later.
    AnswerEarly,
    /// The connection closes although requests are unanswered, then goes on.
    EarlyClose,
    /// A message out of nowhere.
    Stray,
    /// A push that was reported as written is not seen.
    LosePush,
    /// A push is seen twice.
    DoublePush,
    /// A push reaches another connection.
    CrossPush,
}

impl Mutation {
    pub const ALL: [Self; 15] = [
        Self::DropReply,
        Self::DoubleReply,
        Self::SwapReplies,
        Self::CrossReply,
        Self::CorruptBody,
        Self::WrongSeq,
        Self::WrongId,
        Self::WrongForm,
        Self::TurnIntoError,
        Self::AnswerEarly,
        Self::EarlyClose,
        Self::Stray,
        Self::LosePush,
        Self::DoublePush,
        Self::CrossPush,
    ];
}

/// The history with one thing broken at a place chosen by `pick`; `None` when it has no such place.
pub fn mutate(history: &[Event], mutation: Mutation, pick: usize) -> Option<Vec<Event>> {
    let places: Vec<usize> = (0..history.len())
        .filter(|&i| fits(&history[i], mutation))
        .collect();
    let place = *places.get(pick.checked_rem(places.len())?)?;
    let mut events = history.to_vec();
    match mutation {
        Mutation::DropReply | Mutation::LosePush => {
            events.remove(place);
        }
        Mutation::DoubleReply | Mutation::DoublePush => {
            let later = place + 1 + pick % (events.len() - place);
            events.insert(later, history[place]);
        }
        Mutation::SwapReplies => {
            let other = same_domain_reply_after(history, place)?;
            events.swap(place, other);
        }
        Mutation::AnswerEarly => {
            let sent = history.iter().position(|e| answers(e, &history[place]))?;
            let reply = events.remove(place);
            events.insert(sent, reply);
        }
        Mutation::EarlyClose => events.insert(
            place,
            Event::Closed {
                conn: history[place].conn(),
                code: 1006,
            },
        ),
        Mutation::Stray => events.insert(
            place,
            Event::Unknown {
                conn: history[place].conn(),
            },
        ),
        _ => alter(&mut events[place], mutation),
    }
    Some(events)
}

fn fits(event: &Event, mutation: Mutation) -> bool {
    match mutation {
        Mutation::LosePush | Mutation::DoublePush | Mutation::CrossPush => {
            matches!(event, Event::Pushed { .. })
        }
        Mutation::CorruptBody | Mutation::TurnIntoError => {
            matches!(
                event,
                Event::Replied {
                    outcome: Outcome::Body(_),
                    ..
                }
            )
        }
        _ => matches!(event, Event::Replied { .. }),
    }
}

fn alter(event: &mut Event, mutation: Mutation) {
    match (event, mutation) {
        (Event::Replied { conn, .. }, Mutation::CrossReply)
        | (Event::Pushed { conn, .. }, Mutation::CrossPush) => *conn = Conn(conn.0 ^ 1),
        (
            Event::Replied {
                outcome: Outcome::Body(body),
                ..
            },
            Mutation::CorruptBody,
        ) => *body ^= 1,
        (Event::Replied { seq, .. }, Mutation::WrongSeq) => *seq += 1,
        (Event::Replied { id, .. }, Mutation::WrongId) => *id ^= 1,
        (Event::Replied { binary, .. }, Mutation::WrongForm) => *binary = !*binary,
        (Event::Replied { outcome, .. }, Mutation::TurnIntoError) => {
            *outcome = Outcome::Error(ErrorCode::BackendFailed);
        }
        _ => unreachable!("fits() chose an event of the right kind"),
    }
}

fn same_domain_reply_after(history: &[Event], place: usize) -> Option<usize> {
    let own = domain_of(history, &history[place])?;
    (place + 1..history.len())
        .find(|&i| history[i].conn() == history[place].conn() && domain_of(history, &history[i]) == Some(own))
}

/// The order domain of the request that `reply` answers; `None` for the unordered.
fn domain_of(history: &[Event], reply: &Event) -> Option<Domain> {
    let sent = history.iter().find(|e| answers(e, reply))?;
    match sent {
        Event::Sent { domain, .. } if *domain != Domain::UNORDERED => Some(*domain),
        _ => None,
    }
}

fn answers(request: &Event, reply: &Event) -> bool {
    match (request, reply) {
        (Event::Sent { conn: a, seq: x, .. }, Event::Replied { conn: b, seq: y, .. }) => a == b && x == y,
        _ => false,
    }
}
