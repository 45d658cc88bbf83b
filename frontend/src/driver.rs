//! Where sessions, channels and the link meet: threads, sockets and timers.
//!
//! A shard is one thread with one single-threaded runtime; its connections, sessions and buffers belong to a [`Shard`] that
//! no other thread touches. A stream is a task of its own, all that comes as datagrams is one. One more thread has the link. They exchange vectors of messages, one per turn.

mod connection;
mod datagrams;
mod event;
mod intake;
mod marks;
mod output;
mod shard;
mod threads;
mod udp;

pub use connection::connection_sizes;
pub use intake::Intake;
pub use shard::{Shard, ShardSetup, StartedShard};
pub use threads::{Frontend, StartError};
pub use udp::{Admission, SocketBuffers, UdpMetrics, UdpSetup, bind_group, udp_record_bytes};

#[cfg(test)]
mod random;
#[cfg(test)]
mod stream_tests;
