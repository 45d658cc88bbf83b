//! A device on `udp`: one task, which holds the socket and the connection, does what the transport asks for at once, and takes a
//! message only when the test has taken the one before, so that a device that reads nothing grants no credit.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::udp::{Config, Connection, End, Event, SendError, Stats};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::ABNORMAL;
use super::message::{Incoming, classify};

/// A connection as it came out of the handshake.
pub(crate) struct Opened {
    pub(crate) connection: Box<Connection>,
    pub(crate) config: Config,
    pub(crate) socket: UdpSocket,
    pub(crate) server: SocketAddr,
}

/// The way to the device's task. When the last one is gone, the device closes and leaves.
#[derive(Clone)]
pub(super) struct Sender(mpsc::Sender<Command>);

/// What the device's task gives out.
pub(super) struct Receiver {
    incoming: mpsc::Receiver<Incoming>,
    _alive: Sender,
}

enum Command {
    Send(Outgoing),
    Ping,
    Close,
    Vanish,
    /// From another port from now on.
    Move,
    Look(oneshot::Sender<(Stats, SocketAddr)>),
}

/// A message on its way into the connection, and who waits for that.
struct Outgoing {
    kind: MessageKind,
    payload: Bytes,
    taken: oneshot::Sender<()>,
}

/// A socket of `source`, or of the system's choice, that hears `server` alone.
pub(crate) async fn socket(source: Option<IpAddr>, server: SocketAddr) -> std::io::Result<UdpSocket> {
    let source = source.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let socket = UdpSocket::bind((source, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// Lets the device live.
pub(super) fn start(opened: Opened) -> (Sender, Receiver) {
    let (sender, commands) = mpsc::channel(1);
    let (arriving, incoming) = mpsc::channel(1);
    let driver = Driver {
        opened,
        commands,
        arriving,
        outgoing: None,
        incoming: None,
        last: None,
        abandoned: false,
    };
    tokio::spawn(driver.run());
    let sender = Sender(sender);
    let receiver = Receiver {
        incoming,
        _alive: sender.clone(),
    };
    (sender, receiver)
}

impl Sender {
    /// Returns when the connection has taken the message: it has room, or the device is gone.
    pub(super) async fn send(&self, message: Message) -> Result<(), Error> {
        let (kind, payload) = match message {
            Message::Text(text) => (MessageKind::Text, Bytes::from(text)),
            Message::Binary(bytes) => (MessageKind::Binary, bytes),
            Message::Ping(_) => return self.tell(Command::Ping).await,
            Message::Close(_) => return self.tell(Command::Close).await,
            // The transport answers pings by itself.
            Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        let (taken, wait) = oneshot::channel();
        let outgoing = Outgoing { kind, payload, taken };
        self.tell(Command::Send(outgoing)).await?;
        wait.await.map_err(|_| Error::ConnectionClosed)
    }

    pub(super) async fn close(&self) -> Result<(), Error> {
        self.tell(Command::Close).await
    }

    /// Ends without a word.
    pub(super) async fn vanish(&self) {
        self.tell(Command::Vanish).await.ok();
    }

    /// Goes on from another port.
    pub(super) async fn move_on(&self) {
        self.tell(Command::Move).await.ok();
    }

    /// What the transport counted, and where the device sends from.
    pub(super) async fn look(&self) -> (Stats, SocketAddr) {
        let (tell, told) = oneshot::channel();
        self.tell(Command::Look(tell)).await.expect("the device lives");
        told.await.expect("the device lives")
    }

    async fn tell(&self, command: Command) -> Result<(), Error> {
        self.0.send(command).await.map_err(|_| Error::ConnectionClosed)
    }
}

impl Receiver {
    /// The next message, or the end; after that always an abnormal end.
    pub(super) async fn next(&mut self) -> Incoming {
        let next = self.incoming.recv().await;
        next.unwrap_or_else(|| closed(ABNORMAL, "it has ended before"))
    }
}

struct Driver {
    opened: Opened,
    commands: mpsc::Receiver<Command>,
    arriving: mpsc::Sender<Incoming>,
    /// The connection has no room for it yet.
    outgoing: Option<Outgoing>,
    /// Nobody has asked for it yet.
    incoming: Option<Incoming>,
    /// What is told after everything else.
    last: Option<Incoming>,
    /// Nobody holds the device any more.
    abandoned: bool,
}

/// What there is to do next.
enum Turn {
    Datagram(usize),
    Command(Option<Command>),
    Handed,
    Due,
}

impl Driver {
    async fn run(mut self) {
        let mut datagram = vec![0; 2048];
        let mut out = Vec::new();
        loop {
            let ended = self.take_events();
            self.push_outgoing();
            self.transmit(&mut out).await;
            if ended {
                break;
            }
            match self.turn(&mut datagram).await {
                Turn::Datagram(length) => self.receive(&mut datagram, length),
                Turn::Command(None) => {
                    // Whoever holds the device is gone, and so it leaves; nobody hears the rest.
                    self.opened.connection.close(Instant::now(), 1001, "going away");
                    self.abandoned = true;
                }
                Turn::Command(Some(Command::Vanish)) => return,
                Turn::Command(Some(command)) => self.obey(command).await,
                Turn::Handed => {}
                Turn::Due => self
                    .opened
                    .connection
                    .handle_timeout(&self.opened.config, Instant::now()),
            }
        }
        for message in [self.incoming.take(), self.last.take()].into_iter().flatten() {
            self.arriving.send(message).await.ok();
        }
    }

    /// Waits until there is something to do, and hands over what waits for the test.
    async fn turn(&mut self, datagram: &mut [u8]) -> Turn {
        let due = self.opened.connection.poll_timeout();
        let until = tokio::time::Instant::from_std(due.unwrap_or_else(Instant::now));
        let listening = !self.abandoned && self.outgoing.is_none();
        tokio::select! {
            // An error tells of an earlier datagram that nobody took: there may be no frontend at the moment.
            received = self.opened.socket.recv(datagram) => Turn::Datagram(received.unwrap_or(0)),
            command = self.commands.recv(), if listening => Turn::Command(command),
            Ok(place) = self.arriving.reserve(), if self.incoming.is_some() => {
                if let Some(message) = self.incoming.take() {
                    place.send(message);
                }
                Turn::Handed
            }
            () = sleep_until(until), if due.is_some() => Turn::Due,
        }
    }

    /// That datagram, and those that came with it.
    fn receive(&mut self, datagram: &mut [u8], first: usize) {
        let Opened {
            connection,
            config,
            socket,
            server,
        } = &mut self.opened;
        let mut length = first;
        for _ in 0..64 {
            if let Some((0x05, token)) = datagram[..length].split_first().map(|(t, rest)| (*t, rest)) {
                on_reset(connection, token);
            } else {
                let entropy = rand::random();
                connection.handle_datagram(config, Instant::now(), *server, &mut datagram[..length], entropy);
            }
            match socket.try_recv(datagram) {
                Ok(next) => length = next,
                Err(_) => return,
            }
        }
    }

    /// Whether the connection is at its end.
    fn take_events(&mut self) -> bool {
        let Opened {
            connection, config, ..
        } = &mut self.opened;
        loop {
            let event = match self.incoming {
                None => connection.poll_event(config),
                Some(_) => connection.poll_notice(),
            };
            match event {
                Some(Event::Message(kind, payload)) => self.incoming = Some(incoming(kind, payload)),
                Some(Event::Delivered(_) | Event::PeerMoved(_)) => {}
                Some(Event::Closed { code, reason }) => self.last = Some(closed(code, &reason)),
                Some(Event::Ended(end)) => {
                    self.last.get_or_insert_with(|| closed(ABNORMAL, word(end)));
                    return true;
                }
                None => return false,
            }
        }
    }

    fn push_outgoing(&mut self) {
        let Some(Outgoing { kind, payload, taken }) = self.outgoing.take() else {
            return;
        };
        let Opened {
            connection, config, ..
        } = &mut self.opened;
        match connection.send(config, kind, payload) {
            Ok(()) => {
                // Who went away meanwhile does not care.
                let _ = taken.send(());
            }
            Err(SendError::Full(payload)) => {
                self.outgoing = Some(Outgoing { kind, payload, taken });
            }
            Err(SendError::Closed | SendError::TooBig) => {}
        }
    }

    async fn transmit(&mut self, out: &mut Vec<u8>) {
        let Opened {
            connection,
            config,
            socket,
            ..
        } = &mut self.opened;
        loop {
            out.clear();
            if connection.poll_transmit(config, Instant::now(), out).is_none() {
                return;
            }
            socket.send(out).await.ok();
        }
    }

    async fn obey(&mut self, command: Command) {
        let now = Instant::now();
        let Opened {
            connection,
            server,
            socket,
            ..
        } = &mut self.opened;
        let address = socket.local_addr().expect("a bound socket has an address");
        match command {
            Command::Send(outgoing) => self.outgoing = Some(outgoing),
            Command::Ping => connection.ping(),
            Command::Close => connection.close(now, 1000, "normal"),
            Command::Move => {
                let moved = self::socket(Some(address.ip()), *server).await;
                *socket = moved.expect("a free port");
            }
            Command::Look(tell) => {
                // Who went away meanwhile does not care.
                let _ = tell.send((connection.stats(), address));
            }
            Command::Vanish => {}
        }
    }
}

/// A RESET without its first byte: connection id and token.
fn on_reset(connection: &mut Connection, rest: &[u8]) {
    if let Some((cid, token)) = rest.split_first_chunk::<8>()
        && u64::from_be_bytes(*cid) == connection.cid().0
        && let Ok(token) = token.try_into()
    {
        connection.handle_reset(token);
    }
}

fn incoming(kind: MessageKind, payload: Bytes) -> Incoming {
    match kind {
        MessageKind::Binary => classify(Message::binary(payload)),
        _ => match String::from_utf8(payload.to_vec()) {
            Ok(text) => classify(Message::text(text)),
            Err(error) => Incoming::Malformed(error.to_string()),
        },
    }
}

fn closed(code: u16, reason: &str) -> Incoming {
    Incoming::Closed {
        code,
        reason: reason.to_owned(),
    }
}

/// What is said of an end without the peer's close.
fn word(end: End) -> &'static str {
    match end {
        End::ClosedByUs => "closed by the device",
        End::ClosedByPeer => "closed",
        End::GaveUp => "nothing was acknowledged",
        End::Reset => "reset",
        End::TooManyForgeries => "too many forgeries",
    }
}

#[cfg(test)]
#[path = "datagrams_tests.rs"]
mod tests;
