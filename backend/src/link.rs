//! The links to the frontends.
//!
//! [`Attachment`] is one link's state, pure: from a fresh socket over the handshake to draining and the end. [`edge`] owns the
//! ZeroMQ sockets behind the trait [`Sockets`], and knows nothing of what the batches mean.

mod attachment;
pub mod edge;
mod jitter;
mod outcome;
mod sockets;
pub mod tunnel;

pub use attachment::Attachment;
pub use jitter::Jitter;
pub use outcome::{Frontend, LinkSettings, LinkState, Loss, LossReason, Step};
pub use sockets::{SendError, SocketEvent, SocketNews, Sockets};

/// Which of the configured frontends: its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkIndex(u16);

impl LinkIndex {
    /// Panics at `index` 65536 and above; a configuration has at most 64 frontends.
    pub const fn new(index: usize) -> Self {
        assert!(index <= u16::MAX as usize);
        Self(index as u16)
    }

    pub const fn get(self) -> usize {
        self.0 as usize
    }
}
