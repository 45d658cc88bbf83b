//! What the link thread needs of its sockets, so that it can be driven without ZeroMQ.

use std::time::Instant;

use bytes::Bytes;

use super::LinkIndex;

/// The sockets of all links: one per link, replaced as a whole.
pub trait Sockets {
    /// Drops the link's socket, if there is one, and opens another one at `at`. News of it carry `attach`.
    fn open(&mut self, link: LinkIndex, attach: u32, identity: String, at: Instant);

    /// Hands a batch to the link's socket without waiting. On an error the socket is gone.
    fn send(&mut self, link: LinkIndex, batch: Bytes) -> Result<(), SendError>;

    /// Drops the link's socket for good.
    fn close(&mut self, link: LinkIndex);
}

/// The socket cannot take a batch: it must be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("there is no socket")]
    Closed,
    #[error("the socket failed")]
    Failed,
    /// The lanes' bounds keep the queue far from full, so this is a defect, not a load.
    #[error("the socket's queue is full")]
    Full,
}

/// What happened to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketEvent {
    Connected,
    Batch(Bytes),
    /// It could not connect, or is gone; nothing follows.
    Disconnected,
}

/// An event, and the socket that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketNews {
    pub link: LinkIndex,
    pub attach: u32,
    pub event: SocketEvent,
}
