//! A Python device, as `python/driven.py` has it: this end only carries messages over and back, which Python sealed and opened.
//!
//! A message is sent when Python says that the system has it, and none is read but on request: what the server makes a device feel,
//! the test feels, and the other way round.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::ABNORMAL;
use super::message::{Incoming, classify};

/// Above every message of a test gateway.
const MAX_FRAME_BYTES: usize = 16 << 20;
/// The outcome of a send, and a message: no more is under way.
const HEARD: usize = 2;

/// What goes over the Unix socket.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) data: Vec<u8>,
}

impl Frame {
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let length = from.read_u32().await? as usize;
        let kind = from.read_u8().await?;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let mut data = vec![0; length];
        from.read_exact(&mut data).await?;
        Ok(Self { kind, data })
    }

    pub(crate) async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut bytes = (self.data.len() as u32).to_be_bytes().to_vec();
        bytes.push(self.kind);
        bytes.extend_from_slice(&self.data);
        to.write_all(&bytes).await
    }
}

/// The way to the device. When the last one is gone, so is the device.
#[derive(Clone)]
pub(super) struct Sender(mpsc::Sender<Command>);

/// What the device hears.
pub(super) struct Receiver {
    incoming: mpsc::Receiver<Incoming>,
    /// A message was asked for, and has not come yet.
    asked: bool,
    sender: Sender,
}

/// A frame for Python, and who waits until what it holds is sent.
struct Command {
    frame: Frame,
    sent: Option<oneshot::Sender<()>>,
}

/// Lets a device live that is connected.
pub(super) fn start(stream: UnixStream) -> (Sender, Receiver) {
    let (from, to) = stream.into_split();
    let (commands, obeyed) = mpsc::channel(1);
    let (waiting, waits) = mpsc::channel(1);
    let (arriving, incoming) = mpsc::channel(HEARD);
    tokio::spawn(write(to, obeyed, waiting));
    tokio::spawn(read(from, arriving, waits));
    let sender = Sender(commands);
    let receiver = Receiver {
        incoming,
        asked: false,
        sender: sender.clone(),
    };
    (sender, receiver)
}

impl Sender {
    /// Returns when the system has taken the message.
    pub(super) async fn send(&self, message: Message) -> Result<(), Error> {
        let (kind, data) = match message {
            Message::Text(text) => (b'T', text.as_bytes().to_vec()),
            Message::Binary(bytes) => (b'B', bytes.to_vec()),
            Message::Ping(_) => (b'P', Vec::new()),
            Message::Close(_) => return self.close().await,
            // Python answers pings by itself.
            Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        let (sent, wait) = oneshot::channel();
        self.tell(Frame { kind, data }, Some(sent)).await?;
        wait.await.map_err(|_| Error::ConnectionClosed)
    }

    pub(super) async fn close(&self) -> Result<(), Error> {
        let mut data = 1000u16.to_be_bytes().to_vec();
        data.extend_from_slice(b"normal");
        self.tell(Frame { kind: b'X', data }, None).await
    }

    async fn tell(&self, frame: Frame, sent: Option<oneshot::Sender<()>>) -> Result<(), Error> {
        let told = self.0.send(Command { frame, sent }).await;
        told.map_err(|_| Error::ConnectionClosed)
    }
}

impl Receiver {
    /// The next message, or the end; after that always an abnormal end.
    pub(super) async fn next(&mut self) -> Incoming {
        if !self.asked {
            let frame = Frame {
                kind: b'N',
                data: Vec::new(),
            };
            // If nobody is there to be asked, nothing comes either.
            self.sender.tell(frame, None).await.ok();
            self.asked = true;
        }
        let next = self.incoming.recv().await;
        self.asked = false;
        next.unwrap_or_else(|| closed(ABNORMAL, "the device's process is gone"))
    }
}

/// Carries over what the test says. Who waits for an outcome is told by the one who reads.
async fn write(
    mut to: OwnedWriteHalf,
    mut commands: mpsc::Receiver<Command>,
    waiting: mpsc::Sender<oneshot::Sender<()>>,
) {
    while let Some(Command { frame, sent }) = commands.recv().await {
        if let Some(sent) = sent
            && waiting.send(sent).await.is_err()
        {
            return;
        }
        if frame.write(&mut to).await.is_err() {
            return;
        }
    }
}

async fn read(
    from: OwnedReadHalf,
    arriving: mpsc::Sender<Incoming>,
    mut waiting: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut from = BufReader::new(from);
    while let Ok(Frame { kind, data }) = Frame::read(&mut from).await {
        let outcome = if matches!(kind, b'S' | b'G') {
            waiting.recv().await
        } else {
            None
        };
        let incoming = match kind {
            b'S' => {
                // Who went away meanwhile does not care.
                let _ = outcome.map(|sent| sent.send(()));
                continue;
            }
            b'G' => continue,
            b'T' => match String::from_utf8(data) {
                Ok(text) => classify(Message::text(text)),
                Err(error) => Incoming::Malformed(error.to_string()),
            },
            b'B' => classify(Message::binary(data)),
            b'P' => classify(Message::Ping(Bytes::new())),
            b'E' => match data.split_first_chunk() {
                Some((code, reason)) => closed(u16::from_be_bytes(*code), &String::from_utf8_lossy(reason)),
                None => Incoming::Malformed("an end without a code".to_owned()),
            },
            other => Incoming::Malformed(format!("a frame of kind {other} from Python")),
        };
        // The half that reads may be gone; the one that writes is not.
        arriving.send(incoming).await.ok();
    }
}

fn closed(code: u16, reason: &str) -> Incoming {
    Incoming::Closed {
        code,
        reason: reason.to_owned(),
    }
}
