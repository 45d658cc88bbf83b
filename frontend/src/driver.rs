//! Where sessions, channels and the link meet: threads, sockets and timers.
//!
//! A shard is one thread with one single-threaded runtime; its connections, sessions and buffers belong to a [`Shard`] that
//! no other thread touches. One more thread has the link. They exchange vectors of messages, one per turn.

mod connection;
mod marks;
mod output;
mod shard;
mod threads;

pub use connection::connection_sizes;
pub use shard::{Shard, ShardSetup};
pub use threads::{Frontend, StartError};

#[cfg(test)]
mod random;
