//! A device of the tests' own: sees every message in its raw form, in order, with the close. It reconnects never, answers
//! nothing by itself but pings, and is light enough that one process holds thousands. On `ws` a message is what records held.

mod message;
mod records;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::SplitStream;
use holdfast_proto::secure::{Initiator, parse_challenge};
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::dial::{DialError, Socket};
use crate::wire::BinaryHeader;

pub(crate) use message::classify;
pub use message::{ErrorReply, Event, Incoming};
use records::{Unwrap, Writer};

/// A message that the test expects comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// Idle devices cost little more than this.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// The close code for an end without a close frame (RFC 6455 section 7.1.5).
pub const ABNORMAL: u16 = 1006;

/// A connected device.
pub struct Device {
    sink: Outbox,
    stream: Inbox,
    /// Headers of the 101 answer.
    pub headers: HeaderMap,
}

/// The reading half of a device.
pub struct Inbox {
    stream: SplitStream<WebSocketStream<Socket>>,
    /// On `ws`, and the way by which pings are answered.
    records: Option<(Box<Unwrap>, Arc<Mutex<Writer>>)>,
}

/// The writing half of a device.
pub struct Outbox(Arc<Mutex<Writer>>);

impl Device {
    pub(crate) async fn new(socket: Socket, headers: HeaderMap, tail: Vec<u8>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0);
        let stream = WebSocketStream::from_partially_read(socket, tail, Role::Client, Some(config)).await;
        let (sink, stream) = stream.split();
        Self {
            sink: Outbox(Arc::new(Mutex::new(Writer::new(sink)))),
            stream: Inbox {
                stream,
                records: None,
            },
            headers,
        }
    }

    /// Reads the challenge, which must come first; from then on messages travel in records.
    pub(crate) async fn meet_challenge(&mut self, initiator: Initiator) -> Result<(), DialError> {
        let malformed = |what: String| DialError::Malformed(format!("no challenge: {what}"));
        let first = timeout(PATIENCE, self.stream.stream.next()).await;
        let text = match first {
            Ok(Some(Ok(Message::Text(text)))) => text,
            other => return Err(malformed(format!("{other:?}"))),
        };
        let message2 = parse_challenge(&text).ok_or_else(|| malformed(text.to_string()))?;
        let keys = initiator
            .finish(&message2)
            .map_err(|e| malformed(e.to_string()))?;
        self.sink.0.lock().await.seal_with(keys.to_server);
        let unwrap = Box::new(Unwrap::new(keys.to_device));
        self.stream.records = Some((unwrap, self.sink.0.clone()));
        Ok(())
    }

    /// Says `@hello` and returns the body of `@welcome`.
    pub async fn hello(&mut self) -> Value {
        self.send_text("@hello {}").await;
        match self.next().await {
            Incoming::Control { word, body } if word == "@welcome" => body,
            other => panic!("expected @welcome, not {other:?}"),
        }
    }

    /// Sends a text message; panics when the connection is gone.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.try_send(Message::text(text.into()))
            .await
            .expect("the connection takes a message");
    }

    pub async fn send_binary(&mut self, bytes: Vec<u8>) {
        self.try_send(Message::binary(bytes))
            .await
            .expect("the connection takes a message");
    }

    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.sink.0.lock().await.send(message).await
    }

    /// Sends a JSON event.
    pub async fn request(&mut self, kind: (&str, &str), id: &str, payload: &Value) {
        self.send_text(event_text(kind, id, payload)).await;
    }

    /// Sends a binary event.
    pub async fn request_binary(&mut self, kind: (&str, &str), id: &str, payload: &[u8]) {
        let (namespace, name) = (kind.0.to_owned(), kind.1.to_owned());
        let header = BinaryHeader {
            namespace,
            name,
            id: id.to_owned(),
            ..BinaryHeader::default()
        };
        self.send_binary(header.encode(payload)).await;
    }

    /// The next message; panics when none comes.
    pub async fn next(&mut self) -> Incoming {
        self.stream.next().await
    }

    /// The next message, or `None` when none comes within `wait`.
    pub async fn next_within(&mut self, wait: Duration) -> Option<Incoming> {
        timeout(wait, self.stream.next()).await.ok()
    }

    #[track_caller]
    pub fn next_reply(&mut self) -> impl Future<Output = Event> {
        let caller = std::panic::Location::caller();
        async move {
            match self.next().await {
                Incoming::Reply(reply) => reply,
                other => panic!("expected a reply at {caller}, not {other:?}"),
            }
        }
    }

    #[track_caller]
    pub fn next_error(&mut self) -> impl Future<Output = ErrorReply> {
        let caller = std::panic::Location::caller();
        async move {
            match self.next().await {
                Incoming::Error(error) => error,
                other => panic!("expected an error at {caller}, not {other:?}"),
            }
        }
    }

    #[track_caller]
    pub fn next_push(&mut self) -> impl Future<Output = Event> {
        let caller = std::panic::Location::caller();
        async move {
            match self.next().await {
                Incoming::Push(push) => push,
                other => panic!("expected a push at {caller}, not {other:?}"),
            }
        }
    }

    /// Reads on, past anything else, until the connection ends; returns the last `@goodbye` and the close code.
    pub async fn until_closed(&mut self) -> (Option<Value>, u16) {
        let mut goodbye = None;
        loop {
            match self.next().await {
                Incoming::Control { word, body } if word == "@goodbye" => goodbye = Some(body),
                Incoming::Closed { code, .. } => return (goodbye, code),
                _ => {}
            }
        }
    }

    /// Closes from the device's side and waits for the answer.
    pub async fn close(mut self) {
        self.sink.0.lock().await.close().await.ok();
        self.until_closed().await;
    }

    /// Splits into halves that may live in different tasks.
    pub fn split(self) -> (Outbox, Inbox) {
        (self.sink, self.stream)
    }
}

impl Outbox {
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<(), Error> {
        self.0.lock().await.send(Message::text(text.into())).await
    }
}

impl Inbox {
    /// The next message; panics when none comes within [`PATIENCE`].
    pub async fn next(&mut self) -> Incoming {
        let next = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(message)) => match self.unwrap(message).await {
                        Some(Message::Pong(_) | Message::Frame(_)) | None => {}
                        Some(message) => return classify(message),
                    },
                    Some(Err(error)) => {
                        return Incoming::Closed {
                            code: ABNORMAL,
                            reason: error.to_string(),
                        };
                    }
                    None => {
                        return Incoming::Closed {
                            code: ABNORMAL,
                            reason: "end of stream".to_owned(),
                        };
                    }
                }
            }
        };
        timeout(PATIENCE, next)
            .await
            .unwrap_or_else(|_| panic!("no message within {PATIENCE:?}"))
    }
}

impl Inbox {
    /// The message that came, which on `ws` is what its record holds; `None` while there are only parts of it.
    async fn unwrap(&mut self, message: Message) -> Option<Message> {
        let Some((unwrap, writer)) = &mut self.records else {
            return Some(message);
        };
        let message = unwrap.unwrap(message)?;
        if let Message::Ping(_) = message
            // Who is sending at this moment shows that it lives.
            && let Ok(mut writer) = writer.try_lock()
        {
            writer.send(Message::Pong(Bytes::new())).await.ok();
        }
        Some(message)
    }
}

/// A JSON event as text.
pub fn event_text(kind: (&str, &str), id: &str, payload: &Value) -> String {
    json!({"header": {"namespace": kind.0, "name": kind.1, "id": id}, "payload": payload}).to_string()
}
