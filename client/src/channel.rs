//! A connection's transport as the connection sees it: whole messages both ways, signs of life, and how it ends. What differs between
//! the channels is in [`web_socket`] (`wss` and `ws`) and in [`udp`].

mod udp;
mod web_socket;

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::codes::CloseCode;

pub(crate) use self::udp::{Transport, UdpChannel};
pub(crate) use self::web_socket::{Socket, Stream, WebSocketChannel};
use crate::message::Encoded;
use crate::{Disturbance, Violation};

/// An open channel whose server may be spoken with.
pub(crate) enum Channel {
    WebSocket(WebSocketChannel),
    Udp(UdpChannel),
}

/// What came from the other end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// UTF-8.
    Text(Bytes),
    Binary(Bytes),
    /// A ping, a pong, an acknowledgement, or a part of a message: the server lives.
    Alive,
    /// Something that anybody on the way can make. It says nothing about the server.
    Unproven,
    /// The server says that it closes; its close frame follows.
    Closing {
        code: u16,
        reason: String,
    },
    /// The last thing that comes: the WebSocket's close frame, or the close on `udp`. `proven`: nobody but the server can have sent it.
    CloseFrame {
        code: u16,
        reason: String,
        proven: bool,
    },
}

/// Why a channel cannot go on.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The socket is gone, or the connection above it.
    Broken(String),
    /// Somebody on the way changed something.
    Disturbed(Disturbance),
    /// The server broke the protocol.
    Server(CloseCode, Violation),
}

impl Channel {
    /// After a fault other than [`Fault::Broken`] only the close frame is of interest; the rest comes as `Unproven`.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, Fault>> {
        match self {
            Self::WebSocket(channel) => channel.poll_next(cx),
            Self::Udp(channel) => channel.poll_next(cx),
        }
    }

    /// Whether a message may be given to [`Self::start_send`].
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::WebSocket(channel) => channel.poll_ready(cx),
            Self::Udp(channel) => channel.poll_ready(),
        }
    }

    pub(crate) fn start_send(&mut self, message: Encoded) -> Result<(), Fault> {
        match self {
            Self::WebSocket(channel) => channel.start_send(message),
            Self::Udp(channel) => channel.start_send(message),
        }
    }

    /// Says that this end closes, behind what was taken for sending; tells how long it may wait for that. A channel that takes it no
    /// more is closed by dropping it.
    pub(crate) fn start_close(&mut self, code: CloseCode) -> Duration {
        match self {
            Self::WebSocket(channel) => {
                channel.start_close(code);
                Duration::ZERO
            }
            Self::Udp(channel) => channel.start_close(code),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::WebSocket(channel) => channel.poll_flush(cx),
            Self::Udp(channel) => channel.poll_flush(cx).map(Ok),
        }
    }

    /// Whether the channel has things to send and deadlines to keep of its own: then [`Self::poll_flush`] is due in each turn.
    pub(crate) fn wants_flush(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// Has the server show that it lives by the channel's own means; false where that takes a message.
    pub(crate) fn ping(&mut self) -> bool {
        match self {
            Self::WebSocket(_) => false,
            Self::Udp(channel) => {
                channel.ping();
                true
            }
        }
    }

    /// Whether the server hears of each thing that it sends, so that hearing from it is being heard as well.
    pub(crate) fn acknowledges(&self) -> bool {
        matches!(self, Self::Udp(_))
    }
}
