//! A server on `udp` that does what each test tells it to: a real socket, and the transport's own server side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::secure::{Credential, SecureChannel, Verified};
use holdfast_proto::udp::datagram::{
    Hello, Refused, encode_challenge, encode_refused, encode_reset, encode_retry,
};
use holdfast_proto::udp::{
    self, Config, Connection, ConnectionId, Datagram, Event, INITIAL_SERVER_CREDIT, Opening, Parameters,
    PeerCredit, ResetToken, Side,
};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{device_key, identity};

pub(crate) struct UdpServer {
    socket: Arc<UdpSocket>,
    /// One datagram of so many is lost, in each direction.
    pub(crate) lose_every: Option<u32>,
}

/// A HELLO that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) from: SocketAddr,
    pub(crate) parameters: Parameters,
    pub(crate) cookie: Vec<u8>,
    pub(crate) credential: Vec<u8>,
}

impl Asked {
    pub(crate) fn hello(&self) -> Hello<'_> {
        Hello {
            parameters: self.parameters,
            cookie: &self.cookie,
            credential: &self.credential,
        }
    }

    /// The credential, which must be good.
    pub(crate) fn verify(&self) -> Verified {
        let credential = Credential::parse_datagram(&self.parameters.encode(), &self.credential).unwrap();
        assert_eq!(credential.identity, identity());
        Verified::verify(SecureChannel::Udp, &credential, &device_key()).unwrap()
    }
}

impl UdpServer {
    pub(crate) async fn new() -> Self {
        Self {
            socket: Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()),
            lose_every: None,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// The next HELLO; what else comes is of connections that are over.
    pub(crate) async fn hello(&self) -> Asked {
        let mut bytes = [0; 2048];
        loop {
            let (length, from) = self.socket.recv_from(&mut bytes).await.unwrap();
            if let Ok(Datagram::Hello(hello)) = udp::parse(&bytes[..length]) {
                return Asked {
                    from,
                    parameters: hello.parameters,
                    cookie: hello.cookie.to_vec(),
                    credential: hello.credential.to_vec(),
                };
            }
        }
    }

    pub(crate) async fn accept(&self) -> UdpPeer {
        let asked = self.hello().await;
        self.admit(&asked).await
    }

    pub(crate) async fn admit(&self, asked: &Asked) -> UdpPeer {
        let (message2, keys) = asked.verify().answer().unwrap();
        let cid = ConnectionId::new(3, 7, rand::random());
        self.challenge(asked, cid, &message2).await;
        let reset_token = ResetToken(rand::random());
        let opening = Opening {
            cid,
            keys,
            peer: asked.from,
            peer_max_datagram: asked.parameters.max_datagram,
            peer_credit: PeerCredit {
                messages: asked.parameters.receive_messages.into(),
                bytes: asked.parameters.receive_bytes.into(),
            },
            own_credit: INITIAL_SERVER_CREDIT,
            reset_token: Some(reset_token),
        };
        let (commands, orders) = mpsc::unbounded_channel();
        let (tell, events) = mpsc::channel(1);
        let end = ServerEnd {
            socket: self.socket.clone(),
            connection: Connection::new(Side::Server, opening, Instant::now()),
            config: Config {
                max_message_bytes: 1 << 21,
                ..Config::default()
            },
            events: tell,
            orders,
            lose_every: self.lose_every,
            lose_over: usize::MAX,
            datagrams: [0, 0],
        };
        UdpPeer {
            commands,
            events,
            socket: self.socket.clone(),
            from: asked.from,
            cid,
            reset_token,
            task: tokio::spawn(end.run()),
        }
    }

    pub(crate) async fn challenge(&self, asked: &Asked, cid: ConnectionId, message2: &[u8]) {
        let mut out = Vec::new();
        encode_challenge(
            asked.parameters.attempt,
            cid,
            message2.try_into().unwrap(),
            &mut out,
        );
        self.socket.send_to(&out, asked.from).await.unwrap();
    }

    pub(crate) async fn retry(&self, asked: &Asked, cookie: &[u8]) {
        let mut out = Vec::new();
        encode_retry(asked.parameters.attempt, cookie, &mut out);
        self.socket.send_to(&out, asked.from).await.unwrap();
    }

    pub(crate) async fn refuse(&self, asked: &Asked, status: u16, code: &str, retry_after_ms: u32) {
        let refused = Refused {
            attempt: asked.parameters.attempt,
            status,
            retry_after_ms,
            retryable: status >= 500,
            code,
        };
        let mut out = Vec::new();
        encode_refused(&refused, &mut out);
        self.socket.send_to(&out, asked.from).await.unwrap();
    }
}

enum Order {
    Send(MessageKind, Bytes),
    Close(u16),
    /// From now on datagrams that are longer are lost on their way to the device.
    LoseOver(usize),
    /// Takes and sends nothing any more.
    Vanish,
}

/// A connection's server. Dropping it is a server that forgets the connection, and says so.
pub(crate) struct UdpPeer {
    commands: mpsc::UnboundedSender<Order>,
    events: mpsc::Receiver<Event>,
    socket: Arc<UdpSocket>,
    from: SocketAddr,
    cid: ConnectionId,
    reset_token: ResetToken,
    task: JoinHandle<()>,
}

impl Drop for UdpPeer {
    fn drop(&mut self) {
        self.task.abort();
        self.reset(self.reset_token.0);
    }
}

impl UdpPeer {
    pub(crate) fn send_message(&self, message: Message) {
        let order = match message {
            Message::Text(text) => Order::Send(MessageKind::Text, text.into()),
            Message::Binary(bytes) => Order::Send(MessageKind::Binary, bytes),
            other => panic!("{other:?} is no message"),
        };
        self.order(order);
    }

    /// A text message with these bytes, whatever they are.
    pub(crate) fn send_text(&self, bytes: &'static [u8]) {
        self.order(Order::Send(MessageKind::Text, Bytes::from_static(bytes)));
    }

    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            return Some(match self.events.recv().await? {
                Event::Message(MessageKind::Text, text) => {
                    Message::text(String::from_utf8(text.to_vec()).unwrap())
                }
                Event::Message(MessageKind::Binary, bytes) => Message::binary(bytes),
                Event::Closed { code, reason } => Message::Close(Some(CloseFrame {
                    code: code.into(),
                    reason: reason.into(),
                })),
                Event::Ended(_) | Event::Delivered(_) | Event::PeerMoved(_) => continue,
            });
        }
    }

    pub(crate) fn start_close(&self, code: u16) {
        self.order(Order::Close(code));
    }

    pub(crate) fn lose_over(&self, bytes: usize) {
        self.order(Order::LoseOver(bytes));
    }

    pub(crate) fn vanish(&self) {
        self.order(Order::Vanish);
    }

    /// Says that it does not know the connection. With another token it is not the server who says so.
    pub(crate) fn reset(&self, token: [u8; 16]) {
        let mut out = Vec::new();
        encode_reset(self.cid, &token, &mut out);
        // At a test's end there may be nobody any more.
        let _ = self.socket.try_send_to(&out, self.from);
    }

    fn order(&self, order: Order) {
        // The connection may be over.
        let _ = self.commands.send(order);
    }
}

struct ServerEnd {
    socket: Arc<UdpSocket>,
    connection: Connection,
    config: Config,
    events: mpsc::Sender<Event>,
    orders: mpsc::UnboundedReceiver<Order>,
    lose_every: Option<u32>,
    lose_over: usize,
    /// Taken, and sent: counted apart, or two datagrams and their answer would be lost in step for ever.
    datagrams: [u32; 2],
}

impl ServerEnd {
    async fn run(mut self) {
        let mut bytes = [0; 2048];
        loop {
            // A test that takes no messages is a server that does not read.
            let room = self.events.clone();
            while let Ok(permit) = room.try_reserve() {
                match self.connection.poll_event(&self.config) {
                    Some(Event::Ended(_)) => return self.transmit().await,
                    Some(event) => permit.send(event),
                    None => break,
                }
            }
            self.transmit().await;
            let full = room.capacity() == 0;
            let far = Instant::now() + Duration::from_secs(3600);
            let due = self.connection.poll_timeout().unwrap_or(far);
            tokio::select! {
                _ = room.reserve(), if full => {}
                received = self.socket.recv_from(&mut bytes) => {
                    let (length, from) = received.unwrap();
                    self.handle(&mut bytes[..length], from);
                }
                () = tokio::time::sleep_until(due.into()) => {
                    self.connection.handle_timeout(&self.config, Instant::now());
                }
                order = self.orders.recv() => match order {
                    Some(Order::Send(kind, payload)) => {
                        self.connection.send(&self.config, kind, payload).unwrap();
                    }
                    Some(Order::Close(code)) => self.connection.close(Instant::now(), code, ""),
                    Some(Order::LoseOver(bytes)) => self.lose_over = bytes,
                    Some(Order::Vanish) | None => std::future::pending().await,
                },
            }
        }
    }

    fn handle(&mut self, datagram: &mut [u8], from: SocketAddr) {
        let ours =
            matches!(udp::parse(datagram), Ok(Datagram::Data { cid, .. }) if cid == self.connection.cid());
        if ours && !self.is_lost(0) {
            self.connection
                .handle_datagram(&self.config, Instant::now(), from, datagram, rand::random());
        }
    }

    async fn transmit(&mut self) {
        let mut out = Vec::new();
        while let Some(to) = self
            .connection
            .poll_transmit(&self.config, Instant::now(), &mut out)
        {
            if !self.is_lost(1) && out.len() <= self.lose_over {
                self.socket.send_to(&out, to).await.unwrap();
            }
            out.clear();
        }
    }

    fn is_lost(&mut self, direction: usize) -> bool {
        self.datagrams[direction] += 1;
        self.lose_every
            .is_some_and(|every| self.datagrams[direction].is_multiple_of(every))
    }
}
