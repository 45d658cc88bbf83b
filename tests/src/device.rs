//! A device of the tests' own: sees every message in its raw form, in order, with the close. It reconnects never, answers
//! nothing by itself but pings, and is light enough that one process holds thousands. On `ws` a message is what records held; on
//! `udp` the transport's own business goes on also while the test does not look. On `ws` it may also be one in Python.

pub(crate) mod datagrams;
pub(crate) mod driven;
mod message;
mod records;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::SplitStream;
use holdfast_proto::secure::{Initiator, TrafficKeys, parse_challenge};
use holdfast_proto::udp::Stats;
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::dial::{DialError, Socket, Upgraded};
use crate::wire::BinaryHeader;

use message::classify;
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
    /// Headers of the 101 answer; none on `udp`.
    pub headers: HeaderMap,
}

/// The reading half of a device.
pub struct Inbox(In);

enum In {
    WebSocket(Frames),
    Udp(datagrams::Receiver),
    Python(driven::Receiver),
}

struct Frames {
    stream: SplitStream<WebSocketStream<Socket>>,
    /// On `ws`, and the way by which pings are answered.
    records: Option<(Box<Unwrap>, Arc<Mutex<Writer>>)>,
}

/// The writing half of a device.
pub struct Outbox(Out);

enum Out {
    WebSocket(Arc<Mutex<Writer>>),
    Udp(datagrams::Sender),
    Python(driven::Sender),
}

impl Device {
    /// On `ws` with the handshake begun: its challenge must come first, and from then on messages travel in records.
    pub(crate) async fn new(upgraded: Upgraded, initiator: Option<Initiator>) -> Result<Self, DialError> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0);
        let Upgraded {
            socket,
            headers,
            tail,
        } = upgraded;
        let stream = WebSocketStream::from_partially_read(socket, tail, Role::Client, Some(config)).await;
        let (sink, mut stream) = stream.split();
        let mut writer = Writer::new(sink);
        let unwrap = match initiator {
            None => None,
            Some(initiator) => {
                let keys = challenged(&mut stream, initiator).await?;
                writer.seal_with(keys.to_server);
                Some(Box::new(Unwrap::new(keys.to_device)))
            }
        };
        let writer = Arc::new(Mutex::new(writer));
        let records = unwrap.map(|unwrap| (unwrap, writer.clone()));
        Ok(Self {
            sink: Outbox(Out::WebSocket(writer)),
            stream: Inbox(In::WebSocket(Frames { stream, records })),
            headers,
        })
    }

    pub(crate) fn on_datagrams(opened: datagrams::Opened) -> Self {
        let (sender, receiver) = datagrams::start(opened);
        Self {
            sink: Outbox(Out::Udp(sender)),
            stream: Inbox(In::Udp(receiver)),
            headers: HeaderMap::new(),
        }
    }

    pub(crate) fn driven(stream: UnixStream, headers: HeaderMap) -> Self {
        let (sender, receiver) = driven::start(stream);
        Self {
            sink: Outbox(Out::Python(sender)),
            stream: Inbox(In::Python(receiver)),
            headers,
        }
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
        self.sink.send(message).await
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
        match &self.sink.0 {
            Out::WebSocket(writer) => writer.lock().await.close().await.ok(),
            Out::Udp(sender) => sender.close().await.ok(),
            Out::Python(sender) => sender.close().await.ok(),
        };
        self.until_closed().await;
    }

    /// Is gone without a word, not even the system's: on `udp`. Over TCP the system says that the socket was closed.
    pub async fn vanish(self) {
        self.datagrams().vanish().await;
    }

    /// Goes on from another port: on `udp`.
    pub async fn move_on(&self) {
        self.datagrams().move_on().await;
    }

    /// What the transport counted, and where the device sends from: on `udp`.
    pub async fn look(&self) -> (Stats, SocketAddr) {
        self.datagrams().look().await
    }

    fn datagrams(&self) -> &datagrams::Sender {
        match &self.sink.0 {
            Out::Udp(sender) => sender,
            Out::WebSocket(_) | Out::Python(_) => panic!("this device has no datagrams"),
        }
    }

    /// Splits into halves that may live in different tasks.
    pub fn split(self) -> (Outbox, Inbox) {
        (self.sink, self.stream)
    }
}

impl Outbox {
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<(), Error> {
        self.send(Message::text(text.into())).await
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        match &self.0 {
            Out::WebSocket(writer) => writer.lock().await.send(message).await,
            Out::Udp(sender) => sender.send(message).await,
            Out::Python(sender) => sender.send(message).await,
        }
    }
}

impl Inbox {
    /// The next message; panics when none comes within [`PATIENCE`].
    pub async fn next(&mut self) -> Incoming {
        let next = async {
            match &mut self.0 {
                In::WebSocket(frames) => frames.next().await,
                In::Udp(receiver) => receiver.next().await,
                In::Python(receiver) => receiver.next().await,
            }
        };
        timeout(PATIENCE, next)
            .await
            .unwrap_or_else(|_| panic!("no message within {PATIENCE:?}"))
    }
}

impl Frames {
    async fn next(&mut self) -> Incoming {
        loop {
            let reason = match self.stream.next().await {
                Some(Ok(message)) => match self.unwrap(message).await {
                    Some(Message::Pong(_) | Message::Frame(_)) | None => continue,
                    Some(message) => return classify(message),
                },
                Some(Err(error)) => error.to_string(),
                None => "end of stream".to_owned(),
            };
            return Incoming::Closed {
                code: ABNORMAL,
                reason,
            };
        }
    }

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

/// Reads the challenge.
async fn challenged(
    stream: &mut SplitStream<WebSocketStream<Socket>>,
    initiator: Initiator,
) -> Result<TrafficKeys, DialError> {
    let malformed = |what: String| DialError::Malformed(format!("no challenge: {what}"));
    let text = match timeout(PATIENCE, stream.next()).await {
        Ok(Some(Ok(Message::Text(text)))) => text,
        other => return Err(malformed(format!("{other:?}"))),
    };
    let message2 = parse_challenge(&text).ok_or_else(|| malformed(text.to_string()))?;
    initiator.finish(&message2).map_err(|e| malformed(e.to_string()))
}

/// A JSON event as text.
pub fn event_text(kind: (&str, &str), id: &str, payload: &Value) -> String {
    json!({"header": {"namespace": kind.0, "name": kind.1, "id": id}, "payload": payload}).to_string()
}
