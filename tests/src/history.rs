//! What devices saw, and whether the gateway's promises held.
//!
//! A test records [`Event`]s as they happen and feeds them to a [`Checker`], at once or afterwards. The checker is pure:
//! no socket, clock or task, and it keeps only what is still open (unanswered requests, known pushes), so millions of
//! events cost no more memory than the busiest moment among them. It deliberately knows nothing of services; that a
//! request reached its service is checked by the service's own log.
//!
//! Identifiers and bodies enter as 64-bit digests ([`digest`]): make bodies unique, else an answer that crossed from one
//! connection to another may look right.

mod checker;
mod generate;
mod mutate;

use std::hash::{DefaultHasher, Hasher};

use holdfast_proto::{CloseCode, ErrorCode};

pub use checker::{Checker, check};
pub use generate::{Step, generate};
pub use mutate::{Mutation, mutate};

/// One device connection in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn(pub u32);

/// Requests of one connection and one domain are answered in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(pub u16);

impl Domain {
    /// The connection's own domain, the default of routes.
    pub const CONNECTION: Self = Self(0);
    /// Requests without an order among themselves (`order = "none"`).
    pub const UNORDERED: Self = Self(u16::MAX);
}

/// What a request looked like, and so what its reply must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    Text,
    Binary,
    /// Its reply is silent: any answer that is seen is one too many.
    OneWay,
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A reply, with its body's digest.
    Body(u64),
    Error(ErrorCode),
}

/// Something that a device did or saw. Record `Sent` and `PushAsked` before the act, everything else after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Opened {
        conn: Conn,
    },
    /// `seq` counts the connection's requests from 1; `body` is the digest that its reply must have.
    Sent {
        conn: Conn,
        seq: u32,
        domain: Domain,
        form: Form,
        id: u64,
        body: u64,
    },
    /// `seq` and `id` (of `reply_to`) are as they stood in the reply.
    Replied {
        conn: Conn,
        seq: u32,
        binary: bool,
        id: u64,
        outcome: Outcome,
    },
    /// The test is about to ask for a push to this connection.
    PushAsked {
        conn: Conn,
        id: u64,
    },
    /// The API said that this push was written.
    PushWritten {
        conn: Conn,
        id: u64,
    },
    Pushed {
        conn: Conn,
        id: u64,
    },
    /// A message that no rule of the device protocol explains.
    Unknown {
        conn: Conn,
    },
    /// The connection ended; 1006 stands for an end without a close frame (RFC 6455 section 7.1.5).
    Closed {
        conn: Conn,
        code: u16,
    },
}

impl Event {
    pub fn conn(&self) -> Conn {
        match *self {
            Self::Opened { conn }
            | Self::Sent { conn, .. }
            | Self::Replied { conn, .. }
            | Self::PushAsked { conn, .. }
            | Self::PushWritten { conn, .. }
            | Self::Pushed { conn, .. }
            | Self::Unknown { conn }
            | Self::Closed { conn, .. } => conn,
        }
    }
}

/// What a history may hold besides plain replies.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// Error codes that may stand in the place of a reply.
    pub errors: Vec<ErrorCode>,
    /// Close codes that may end a connection; its unanswered requests are then forgiven.
    pub closes: Vec<CloseCode>,
}

/// A promise broken, where, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    pub conn: Conn,
    pub seq: Option<u32>,
    pub kind: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A request was never answered although its connection lived (P3).
    Unanswered,
    /// A request was answered again, or a one-way request was answered (P3).
    AnsweredAgain,
    /// An answer to a request that was not sent, or not yet.
    NeverSent,
    /// An earlier request of the same order domain was still unanswered (P2).
    OutOfOrder,
    /// `seq` is one request's, `reply_to` another's.
    WrongId,
    /// A text reply to a binary request or the reverse.
    WrongForm,
    /// Another body than the request's.
    WrongBody,
    /// An error outside the expected ones.
    UnexpectedError(ErrorCode),
    /// A close outside the expected ones (P1).
    UnexpectedClose(u16),
    /// Something happened on a connection that was not open.
    NotOpen,
    /// A message that nobody asked for.
    Unknown,
    /// A push that this connection was not to get.
    PushNotAsked,
    /// The same push twice on one connection.
    PushedTwice,
    /// Reported as written, and never seen (P9).
    PushLost,
    /// The test itself recorded nonsense: a request out of number, a connection opened twice.
    Misrecorded,
}

/// The digest under which ids and bodies enter a history. Stable within one build.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_small() {
        assert!(size_of::<Event>() <= 48, "{} bytes", size_of::<Event>());
    }
}
