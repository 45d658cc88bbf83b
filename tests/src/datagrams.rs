//! A device of the tests' own over `udp`: the shipping transport, and a task that moves its datagrams. It reconnects never.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::secure::{DeviceKey, Identity};
use holdfast_proto::udp::{
    Config, Connection, Datagram, Dial, Dialed, Dialing, Event, Parameters, Refusal, parse,
};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use crate::device::{ABNORMAL, Incoming, classify};
use crate::keys::now_ms;

/// A message that the test expects comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// A device with nothing to wait for looks up this often.
const IDLE: Duration = Duration::from_secs(1);

/// A connected device. Dropped, it is gone without a word.
pub struct UdpDevice {
    say: mpsc::UnboundedSender<Say>,
    heard: mpsc::UnboundedReceiver<Incoming>,
    task: JoinHandle<()>,
}

enum Say {
    Text(String),
    /// From now on from a socket of this address.
    Move(SocketAddr),
    Close,
}

impl UdpDevice {
    /// # Errors
    /// What the gateway, or somebody in its name, refuses with; `None` when nobody answered.
    pub async fn connect(
        server: SocketAddr,
        from: SocketAddr,
        (identity, key): (&Identity, &DeviceKey),
    ) -> Result<Self, Option<Refusal>> {
        let socket = UdpSocket::bind(from).await.expect("an address of the loopback");
        let dialing = Dialing {
            identity,
            key,
            parameters: Parameters {
                attempt: rand::random(),
                max_datagram: 1200,
                receive_bytes: 256 << 10,
                receive_messages: 64,
            },
            now_ms: Some(now_ms()),
            timeout: PATIENCE,
        };
        let dial = Dial::new(Instant::now(), &dialing).expect("a good identity");
        let connection = dial_in(&socket, server, dial).await?;
        let (say, commands) = mpsc::unbounded_channel();
        let (events, heard) = mpsc::unbounded_channel();
        let task = Task {
            socket,
            connection: *connection,
            config: Config {
                max_message_bytes: 8 << 20,
                receive_bytes: 256 << 10,
                receive_messages: 64,
                keep_alive: Some(Duration::from_secs(25)),
                ..Config::default()
            },
            commands,
            events,
        };
        Ok(Self {
            say,
            heard,
            task: tokio::spawn(task.run()),
        })
    }

    /// Says `@hello` and returns the body of `@welcome`.
    pub async fn hello(&mut self) -> Value {
        self.send_text("@hello {}");
        match self.next().await {
            Incoming::Control { word, body } if word == "@welcome" => body,
            other => panic!("expected @welcome, not {other:?}"),
        }
    }

    pub fn send_text(&self, text: impl Into<String>) {
        self.say.send(Say::Text(text.into())).expect("the device lives");
    }

    /// Sends a JSON event.
    pub fn request(&self, (namespace, name): (&str, &str), id: &str, payload: &Value) {
        let header = json!({"namespace": namespace, "name": name, "id": id});
        self.send_text(json!({"header": header, "payload": payload}).to_string());
    }

    /// Goes on from another address.
    pub fn move_to(&self, address: SocketAddr) {
        self.say.send(Say::Move(address)).expect("the device lives");
    }

    /// Closes from the device's side.
    pub fn close(&self) {
        self.say.send(Say::Close).expect("the device lives");
    }

    /// The next message; panics when none comes.
    pub async fn next(&mut self) -> Incoming {
        let next = timeout(PATIENCE, self.heard.recv()).await;
        next.expect("a message comes").expect("the device lives")
    }
}

impl Drop for UdpDevice {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn dial_in(
    socket: &UdpSocket,
    server: SocketAddr,
    mut dial: Dial,
) -> Result<Box<Connection>, Option<Refusal>> {
    let mut buffer = [0; 2048];
    loop {
        let mut out = Vec::new();
        while dial.poll_transmit(Instant::now(), &mut out) {
            socket.send_to(&out, server).await.ok();
            out.clear();
        }
        let received = timeout_at(dial.poll_timeout().into(), socket.recv_from(&mut buffer)).await;
        let now = Instant::now();
        let dialed = match received {
            Ok(Ok((n, from))) if from == server => dial.handle_datagram(now, from, &buffer[..n]),
            Ok(_) => Dialed::Pending,
            Err(_) => dial.handle_timeout(now),
        };
        match dialed {
            Dialed::Pending => {}
            Dialed::Open(connection) => return Ok(connection),
            Dialed::Refused(refusal) => return Err(Some(refusal)),
            Dialed::TimedOut => return Err(None),
        }
    }
}

/// Moves the device's datagrams.
struct Task {
    socket: UdpSocket,
    connection: Connection,
    config: Config,
    commands: mpsc::UnboundedReceiver<Say>,
    events: mpsc::UnboundedSender<Incoming>,
}

impl Task {
    async fn run(mut self) {
        let mut buffer = [0; 2048];
        let mut over = false;
        while !over {
            over = self.tell();
            self.transmit().await;
            let until = self.connection.poll_timeout();
            let until = until.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    if let Ok((n, from)) = received {
                        self.take(from, &mut buffer[..n]);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = tokio::time::sleep_until(until.into()) => {
                    self.connection.handle_timeout(&self.config, Instant::now());
                }
            }
        }
    }

    fn take(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        if let Ok(Datagram::Reset { token, .. }) = parse(datagram) {
            let token = *token;
            self.connection.handle_reset(&token);
            return;
        }
        self.connection
            .handle_datagram(&self.config, Instant::now(), from, datagram, rand::random());
    }

    async fn obey(&mut self, command: Say) {
        let now = Instant::now();
        match command {
            Say::Text(text) => {
                let sent = self
                    .connection
                    .send(&self.config, now, MessageKind::Text, Bytes::from(text));
                sent.expect("the connection takes a message");
            }
            Say::Move(address) => {
                self.socket = UdpSocket::bind(address)
                    .await
                    .expect("an address of the loopback");
            }
            Say::Close => self.connection.close(now, 1000, ""),
        }
    }

    /// Hands on what was heard; whether that was the end.
    fn tell(&mut self) -> bool {
        let mut closed = None;
        while let Some(event) = self.connection.poll_event(&self.config, Instant::now()) {
            let incoming = match event {
                Event::Message(MessageKind::Text, text) => {
                    classify(Message::text(String::from_utf8_lossy(&text).into_owned()))
                }
                Event::Message(MessageKind::Binary, bytes) => classify(Message::binary(bytes)),
                Event::Closed { code, reason } => {
                    closed = Some((code, reason));
                    continue;
                }
                Event::Ended(end) => {
                    let (code, reason) = closed.unwrap_or_else(|| (ABNORMAL, format!("{end:?}")));
                    // A test that does not listen any more is done.
                    self.events.send(Incoming::Closed { code, reason }).ok();
                    return true;
                }
                Event::Delivered(_) | Event::PeerMoved(_) => continue,
            };
            self.events.send(incoming).ok();
        }
        false
    }

    async fn transmit(&mut self) {
        let mut out = Vec::new();
        while let Some(to) = self
            .connection
            .poll_transmit(&self.config, Instant::now(), &mut out)
        {
            self.socket.send_to(&out, to).await.ok();
            out.clear();
        }
    }
}
