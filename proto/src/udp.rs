//! The channel over UDP: datagrams, and a transport of messages above them.
//!
//! Messages, not streams: what one end's application sends as one message, the other's gets as one message, whole, once and in
//! order. Each [`Connection`] is the state of one end, without a socket, a clock or a task. Datagrams and `now` come in through its
//! `handle_*` methods; events, datagrams to send and one deadline come out of its `poll_*` methods.

pub mod connection;
pub mod cookie;
pub mod datagram;
pub mod dial;
mod ids;
pub mod packet;
mod parameters;
mod protect;
mod reset;
#[cfg(test)]
mod vectors;

pub use connection::{
    CLOSE_LINGER, Config, Connection, End, Event, INITIAL_SERVER_CREDIT, MAX_DATAGRAM_BYTES, MAX_FORGERIES,
    MESSAGE_COST_BYTES, MIN_DATAGRAM_LIMIT, MIN_DEVICE_DATAGRAM_BYTES, Opening, PeerCredit, ReceiveRun,
    Received, SendError, Side, Stats, TransmitRun,
};
pub use cookie::Cookies;
pub use datagram::{Datagram, Malformed, parse};
pub use dial::{Dial, DialStats, Dialed, Dialing, Refusal};
pub use ids::{ConnectionId, RESET_TOKEN_BYTES, ResetToken};
pub use parameters::{
    MAX_RECEIVE_BYTES, MAX_RECEIVE_MESSAGES, MIN_RECEIVE_BYTES, MIN_RECEIVE_MESSAGES, Parameters,
};
pub use protect::{DATA, HEADER_BYTES, OVERHEAD_BYTES, REKEY_SHIFT, REPLAY_WINDOW};
pub use reset::{RESET_KEY_BYTES, ResetKey};
