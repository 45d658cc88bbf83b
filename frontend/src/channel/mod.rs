//! Channels: how one device's bytes become messages and back.
//!
//! There is no socket, task or clock here except in [`listener`]. A channel is a small struct per connection; the buffers
//! are one [`Scratch`] per shard, so that an idle connection holds none. What a turn leaves undecoded is boxed and kept by
//! its connection, charged to the shard's budget.
//!
//! What sessions need of a channel is [`Channel`]. The rest of this page is about streams ([`StreamChannel`]: `ws`, `wss`); what
//! is done with datagrams is said at [`UdpChannel`].
//!
//! # A turn with input
//! ```text
//! n = socket.read(scratch.read_target())
//! channel.handle_input(&mut scratch, n)?
//! while let Some(event) = channel.poll_event(&mut scratch)? { … send(…) … }     // may stop early: back-pressure
//! channel.park(&mut scratch)?
//! written = socket.try_write(scratch.outbound())
//! outbox.push(&scratch.outbound()[written..], …)?;  scratch.clear_outbound()
//! ```
//! When back-pressure is released: `unpark`, `poll_event` …, `park`, write. Do not read from a socket while its channel
//! `has_parked` because the driver stopped early, nor (beyond one read) between `Upgrade` and its answer.
//!
//! # A turn without input
//! `send`/`ping`/`close`/`accept`/`refuse`, then `flush`, then write. Everything queued in a turn shares TLS records.
//! This is allowed in the middle of another connection's turn, if that one's output was flushed and taken before.
//!
//! # The end
//! After `Closed`, or any error followed by `close(error.close_code(), …)`: write what is there, shut down the writing
//! side, wait (bounded) for the peer's end of file. `close` is legal in every state and says what still can be said. A
//! connection that is dropped in the middle of its turn needs `scratch.reset()`.

use std::net::SocketAddr;

use bytes::Bytes;

mod answer;
mod any;
#[cfg(test)]
mod autobahn;
mod budget;
mod error;
pub mod frame;
pub mod listener;
mod outbox;
mod parked;
mod scratch;
#[cfg(test)]
mod test_client;
mod tls;
mod tls_config;
mod udp;
pub mod upgrade;
mod websocket;
mod ws;
mod wss;

pub use answer::Refusal;
pub use any::AnyStream;
pub use budget::{Budget, Budgets, Charge, OverBudget, Strangers};
pub use error::{ChannelError, PeerFault};
use holdfast_proto::secure::TrafficKeys;
pub use holdfast_proto::{ChannelKind, MessageKind};
pub use outbox::{Outbox, OutboxFull, OutboxLimits};
pub use scratch::{
    DEFAULT_BUDGET_BYTES, DEFAULT_MAX_MESSAGE_BYTES, MAX_RECORD_BYTES, READ_BYTES, Scratch, ScratchLimits,
};
pub use tls_config::{TlsConfigError, load_server_config};
pub use udp::{UdpChannel, UdpShared};
pub(crate) use udp::{canonical, write_refused};
pub use upgrade::UpgradeRequest;
pub use ws::WsChannel;
pub use wss::WssChannel;

/// How a device proves that it holds its key: by answering `message`, which is sent in the clear, in records under `keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub message: Bytes,
    pub keys: TrafficKeys,
}

/// What a channel makes of its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelEvent {
    /// The device asks to be let in: answer with `accept` or `refuse`.
    Upgrade(UpgradeRequest),
    /// A whole message, in memory exactly its size.
    Message(MessageKind, Bytes),
    /// That many more of the messages sent are with the device, in their order. Streams do not say so: there a message is
    /// written when the socket took its last byte.
    Delivered(usize),
    /// The device is at another address now, and has shown that it is.
    Moved(SocketAddr),
    /// A sign of life that is no message (at most once per turn, after the messages).
    Alive,
    /// The device is done; the answer is queued and nothing more comes. Not `authentic`: someone on the way may have said so.
    Closed { code: Option<u16>, authentic: bool },
    /// Nothing gets through to the device any more.
    Lost,
}

/// One connection, as its session sees it: the same over every transport.
pub trait Channel {
    /// What a shard has once for all its channels of this sort, and lends for the time of a call.
    type Shared;

    fn kind(&self) -> ChannelKind;

    /// Whether messages can be sent.
    fn is_open(&self) -> bool;

    /// The next event; `None`: nothing more without more input (or, after `Upgrade`, without an answer). An event that is not
    /// asked for stays where it is, and the device is slowed down.
    ///
    /// # Errors
    /// The connection cannot go on; no later call decodes anything.
    fn poll_event(&mut self, shared: &mut Self::Shared) -> Result<Option<ChannelEvent>, ChannelError>;

    /// Lets the device in; where [`ChannelKind::secure`] names a handshake, with the challenge that it must answer.
    ///
    /// # Errors
    /// It did not ask, or another connection's output was not taken (on streams, as in all calls that queue output), or the
    /// challenge is missing or too many.
    fn accept(
        &mut self,
        shared: &mut Self::Shared,
        challenge: Option<Box<Challenge>>,
    ) -> Result<(), ChannelError>;

    /// Turns the device away; the channel is closed. Legal until `accept`.
    fn refuse(&mut self, shared: &mut Self::Shared, refusal: &Refusal) -> Result<(), ChannelError>;

    /// Queues a message. A channel that may have to send it again keeps a handle on `payload`, no copy.
    ///
    /// # Errors
    /// The channel is not open, or it keeps what it sends and has no room for more.
    fn send(
        &mut self,
        shared: &mut Self::Shared,
        kind: MessageKind,
        payload: &Bytes,
    ) -> Result<(), ChannelError>;

    /// Queues a transport ping, where there is such a thing.
    fn ping(&mut self, shared: &mut Self::Shared) -> Result<(), ChannelError>;

    /// Says goodbye in whatever way the state allows; a second call does nothing. A reason longer than 123 bytes is cut.
    fn close(&mut self, shared: &mut Self::Shared, code: u16, reason: &str) -> Result<(), ChannelError>;
}

/// A channel over a stream of bytes, which go through its shard's buffers. See the module's documentation for the order of calls.
pub trait StreamChannel: Channel<Shared = Scratch> {
    /// Whether the device has not asked to be let in yet.
    fn is_handshaking(&self) -> bool;

    /// Whether input waits in the connection.
    fn has_parked(&self) -> bool;

    /// Begins a turn: `n` bytes were read into `scratch.read_target()`.
    ///
    /// # Errors
    /// The peer sent more than may wait, or the turn before was not parked.
    fn handle_input(&mut self, scratch: &mut Scratch, n: usize) -> Result<(), ChannelError>;

    /// Begins a turn without new bytes: goes on with what was parked.
    fn unpark(&mut self, scratch: &mut Scratch);

    /// Ends a turn: flushes, and takes what was not decoded out of the scratch.
    ///
    /// # Errors
    /// The shard's budget has no room for it, or encrypting failed.
    fn park(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError>;

    /// Encrypts what was queued into `scratch.outbound()`. `close` has done so.
    fn flush(&mut self, scratch: &mut Scratch) -> Result<(), ChannelError>;
}
