//! The channel over UDP: datagrams, and a transport of messages above them.
//!
//! Messages, not streams: what one end's application sends as one message, the other's gets as one message, whole, once and in
//! order. Each [`Connection`] is the state of one end, without a socket, a clock or a task. Datagrams and `now` come in through its
//! `handle_*` methods; events, datagrams to send and one deadline come out of its `poll_*` methods.

pub mod connection;
mod ids;

pub use connection::{
    Config, Connection, End, Event, INITIAL_SERVER_CREDIT, Opening, PeerCredit, ReceiveRun, Received,
    SendError, Side, Stats, TransmitRun,
};
pub use ids::{ConnectionId, RESET_TOKEN_BYTES, ResetToken};
