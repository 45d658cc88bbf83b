//! One WebSocket: what differs between its two channels is here and in [`records`]. On `wss` TLS vouches for all that comes, on `ws`
//! only what a record holds counts.

mod records;
mod stream;

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Sink, Stream as _};
use holdfast_proto::codes::CloseCode;
use holdfast_proto::secure::TrafficKeys;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use self::records::Records;
pub(crate) use self::stream::Stream;
use super::{Fault, Received};
use crate::message::Encoded;

pub(crate) type Socket = WebSocketStream<Stream>;

/// An upgraded connection whose server may be spoken with.
pub(crate) struct WebSocketChannel {
    socket: Socket,
    codec: Codec,
}

enum Codec {
    /// WebSocket messages are the messages.
    Plain,
    /// Each WebSocket message is a record.
    Records(Box<Records>),
}

impl WebSocketChannel {
    /// A channel within TLS.
    pub(crate) fn plain(socket: Socket) -> Self {
        Self {
            socket,
            codec: Codec::Plain,
        }
    }

    /// A channel whose messages go in records under these keys.
    pub(crate) fn records(socket: Socket, keys: TrafficKeys, max_message: usize) -> Self {
        Self {
            socket,
            codec: Codec::Records(Box::new(Records::new(keys, max_message))),
        }
    }

    /// After a fault other than [`Fault::Broken`] only the close frame is of interest; the rest comes as `Unproven`.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, Fault>> {
        let message = match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Poll::Ready(Err(error.into())),
            None => return Poll::Ready(Err(Fault::Broken("the server hung up".into()))),
        };
        Poll::Ready(match (&mut self.codec, message) {
            (codec, Message::Close(frame)) => {
                let proven = matches!(codec, Codec::Plain);
                Ok(close_frame(frame, proven))
            }
            (Codec::Plain, Message::Text(text)) => Ok(Received::Text(text.into())),
            (Codec::Plain, Message::Binary(bytes)) => Ok(Received::Binary(bytes)),
            // tungstenite has queued a pong.
            (Codec::Plain, Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Ok(Received::Alive),
            (Codec::Records(records), message) => records.handle(message),
        })
    }

    /// Whether a message may be given to [`Self::start_send`].
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Pin::new(&mut self.socket).poll_ready(cx).map_err(Fault::from)
    }

    pub(crate) fn start_send(&mut self, message: Encoded) -> Result<(), Fault> {
        match (&mut self.codec, message) {
            (Codec::Plain, Encoded::Text(text)) => self.put(Message::text(text)),
            (Codec::Plain, Encoded::Binary(bytes)) => self.put(Message::binary(bytes)),
            (Codec::Records(records), message) => {
                // The socket buffers all records of one message, which is no more than it would buffer of one frame.
                for record in records.seal(&message)? {
                    self.put(Message::binary(record))?;
                }
                Ok(())
            }
        }
    }

    /// Says that this end closes. A socket that takes it no more is closed by dropping it.
    pub(crate) fn start_close(&mut self, code: CloseCode) {
        if let Codec::Records(records) = &mut self.codec
            && let Some(record) = records.seal_close(code)
        {
            let _ = self.put(Message::binary(record));
        }
        let frame = CloseFrame {
            code: (code as u16).into(),
            reason: code.label().into(),
        };
        let _ = self.put(Message::Close(Some(frame)));
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if let Codec::Records(records) = &mut self.codec
            && records.owes_pong()
        {
            ready!(Pin::new(&mut self.socket).poll_ready(cx))?;
            if let Some(record) = records.seal_pong() {
                self.put(Message::binary(record))?;
            }
        }
        Pin::new(&mut self.socket).poll_flush(cx).map_err(Fault::from)
    }

    fn put(&mut self, message: Message) -> Result<(), Fault> {
        Pin::new(&mut self.socket)
            .start_send(message)
            .map_err(Fault::from)
    }
}

fn close_frame(frame: Option<CloseFrame>, proven: bool) -> Received {
    let (code, reason) = frame.map_or((NO_CLOSE_CODE, String::new()), |frame| {
        (frame.code.into(), frame.reason.to_string())
    });
    Received::CloseFrame { code, reason, proven }
}

impl From<WsError> for Fault {
    fn from(error: WsError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// RFC 6455 section 7.4.1: no code in the close frame.
const NO_CLOSE_CODE: u16 = 1005;
