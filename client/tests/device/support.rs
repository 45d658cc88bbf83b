//! A server that does what each test tells it to: real TCP, WebSocket, and TLS or records, and a scripted peer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use holdfast_client::{Builder, Device, DeviceKey, Identity, Tls};
use holdfast_proto::ChannelKind;
use holdfast_proto::secure::{
    Assembler, ControlRecord, Credential, Opener, RecordKind, Sealer, SecureChannel, TrafficKeys, Verified,
    chunks, render_challenge,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

pub(crate) trait Bytestream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytestream for T {}
type Socket = WebSocketStream<Box<dyn Bytestream>>;

pub(crate) struct Server {
    listener: TcpListener,
    kind: ChannelKind,
    acceptor: TlsAcceptor,
    tls: Tls,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn new(kind: ChannelKind) -> Self {
        let certified =
            rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certified.cert.der().clone()], key)
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Tls::from_ca_pem(certified.cert.pem().as_bytes()).unwrap();
        Self {
            listener,
            kind,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            tls,
            address,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.kind.label(), self.address.port())
    }

    pub(crate) fn builder(&self) -> Builder {
        let builder = match self.kind {
            ChannelKind::Udp => unreachable!("this speaks WebSocket"),
            ChannelKind::Wss => self.builder_with_token("a.token"),
            ChannelKind::Ws => Device::builder_with_key(self.url(), identity(), device_key()),
        };
        builder.seed(1)
    }

    pub(crate) fn builder_with_token(&self, token: &str) -> Builder {
        Device::builder(self.url(), token).tls(self.tls.clone())
    }

    async fn accept_stream(&self) -> Box<dyn Bytestream> {
        let (tcp, _) = self.listener.accept().await.unwrap();
        match self.kind {
            ChannelKind::Udp => unreachable!("this speaks WebSocket"),
            ChannelKind::Wss => Box::new(self.acceptor.accept(tcp).await.unwrap()),
            ChannelKind::Ws => Box::new(tcp),
        }
    }

    /// Takes one connection as far as the upgrade, and gives what stood in `Authorization`.
    pub(crate) async fn accept_upgrade(&self) -> (Socket, String) {
        let mut authorization = String::new();
        #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
        let note = |request: &Request, response: Response| {
            let field = request.headers()["authorization"].to_str().unwrap();
            authorization.push_str(field);
            Ok(response)
        };
        let stream = self.accept_stream().await;
        let socket = tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap();
        (socket, authorization)
    }

    /// Takes one connection as far as the upgrade, and on `ws` the challenge.
    pub(crate) async fn accept(&self) -> Peer {
        let (mut socket, authorization) = self.accept_upgrade().await;
        let records = match self.kind {
            ChannelKind::Udp => unreachable!("this speaks WebSocket"),
            ChannelKind::Wss => None,
            ChannelKind::Ws => {
                let (message2, keys) = verify(&authorization).answer().unwrap();
                socket
                    .send(Message::text(render_challenge(&message2)))
                    .await
                    .unwrap();
                Some(Records::new(keys))
            }
        };
        Peer { socket, records }
    }

    /// Takes one connection, its `@hello`, and answers `@welcome`.
    pub(crate) async fn welcome(&self, heartbeat_ms: u64) -> Peer {
        let mut peer = self.accept().await;
        assert_eq!(peer.receive().await, "@hello {}");
        let welcome =
            json!({"session": "s1", "heartbeat_ms": heartbeat_ms, "max_message": 4096, "window": 32});
        peer.send(&format!("@welcome {welcome}")).await;
        peer
    }

    /// Takes one connection and answers its upgrade with `response` (head and body).
    pub(crate) async fn refuse(&self, response: &str) {
        let mut stream = self.accept_stream().await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let shown = match self.kind {
            ChannelKind::Udp => unreachable!("this speaks WebSocket"),
            ChannelKind::Wss => "authorization: bearer a.token",
            ChannelKind::Ws => "authorization: holdfast ",
        };
        assert!(head.contains(shown), "{head}");
        stream.write_all(response.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

/// Who the device on `ws` is.
pub(crate) fn identity() -> Identity {
    Identity {
        key_id: "k1".into(),
        product: "speaker".into(),
        class: String::new(),
        device: "d-1".parse().unwrap(),
        key_version: 1,
    }
}

pub(crate) fn device_key() -> DeviceKey {
    DeviceKey::from_bytes(&[7; 32]).unwrap()
}

/// The device's credential, which must be good.
pub(crate) fn verify(authorization: &str) -> Verified {
    let text = authorization.strip_prefix("Holdfast ").unwrap();
    let credential = Credential::parse(text.as_bytes()).unwrap();
    assert_eq!(credential.identity, identity());
    Verified::verify(SecureChannel::Ws, &credential, &device_key()).unwrap()
}

pub(crate) struct Peer {
    pub(crate) socket: Socket,
    pub(crate) records: Option<Records>,
}

/// The server's end of the records.
pub(crate) struct Records {
    sealer: Sealer,
    opener: Opener,
    assembler: Assembler,
}

impl Records {
    pub(crate) fn new(keys: TrafficKeys) -> Self {
        Self {
            sealer: Sealer::new(keys.to_device),
            opener: Opener::new(keys.to_server),
            assembler: Assembler::new(1 << 21),
        }
    }

    pub(crate) fn seal(&mut self, kind: RecordKind, more: bool, data: &[u8]) -> Bytes {
        let mut record = Vec::new();
        self.sealer.seal(kind, more, data, &mut record).unwrap();
        record.into()
    }

    /// The records of a message; control messages of the WebSocket become control records.
    fn wrap(&mut self, message: &Message) -> VecDeque<Bytes> {
        let control = |control: ControlRecord| (RecordKind::Control, control.encode());
        let (kind, data) = match message {
            Message::Text(text) => (RecordKind::Text, text.as_bytes().to_vec()),
            Message::Binary(bytes) => (RecordKind::Binary, bytes.to_vec()),
            Message::Ping(_) => control(ControlRecord::Ping),
            Message::Pong(_) => control(ControlRecord::Pong),
            Message::Close(Some(frame)) => control(ControlRecord::Close {
                code: frame.code.into(),
                reason: frame.reason.to_string(),
            }),
            other => panic!("{other:?} has no record"),
        };
        chunks(&data)
            .map(|(more, data)| self.seal(kind, more, data))
            .collect()
    }

    /// What the device said; nothing when it is a part.
    fn open(&mut self, record: &[u8]) -> Option<Message> {
        let mut record = record.to_vec();
        let opened = self.opener.open(&mut record).unwrap();
        let data = &record[1..record.len() - 16];
        let whole = self.assembler.push(opened, data).unwrap()?;
        Some(match whole.kind {
            RecordKind::Text => Message::text(String::from_utf8(whole.data.into_owned()).unwrap()),
            RecordKind::Binary => Message::binary(whole.data.into_owned()),
            RecordKind::Control => match ControlRecord::decode(&whole.data).unwrap() {
                ControlRecord::Ping => Message::Ping(Bytes::new()),
                ControlRecord::Pong => Message::Pong(Bytes::new()),
                ControlRecord::Close { code, reason } => Message::Close(Some(CloseFrame {
                    code: code.into(),
                    reason: reason.into(),
                })),
            },
        })
    }
}

impl Peer {
    pub(crate) async fn send(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    pub(crate) async fn send_message(&mut self, message: Message) {
        let Some(records) = &mut self.records else {
            self.send_clear(message).await;
            return;
        };
        for record in records.wrap(&message) {
            self.send_clear(Message::binary(record)).await;
        }
    }

    /// Sends a message of the WebSocket as it is.
    pub(crate) async fn send_clear(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    pub(crate) async fn reply(&mut self, seq: u64, reply_to: &str, payload: Value) {
        let header = json!({"namespace": "Demo", "name": "Echo.Reply", "id": format!("r-{seq}"),
            "reply_to": reply_to, "seq": seq});
        self.send(&json!({"header": header, "payload": payload}).to_string())
            .await;
    }

    /// The next text message.
    pub(crate) async fn receive(&mut self) -> String {
        match self.next().await {
            Some(Message::Text(text)) => text.to_string(),
            other => panic!("not a text message: {other:?}"),
        }
    }

    /// The next event's header.
    pub(crate) async fn receive_header(&mut self) -> Value {
        let event: Value = serde_json::from_str(&self.receive().await).unwrap();
        event["header"].clone()
    }

    /// The next message, `None` when the client hung up. What a record holds counts as the message.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            let message = self.socket.next().await.and_then(Result::ok)?;
            match (&mut self.records, message) {
                (Some(records), Message::Binary(record)) => {
                    if let Some(message) = records.open(&record) {
                        return Some(message);
                    }
                }
                (_, message) => return Some(message),
            }
        }
    }

    /// Closes, on `ws` with a record before the close frame.
    pub(crate) async fn close(&mut self, code: u16) {
        let frame = CloseFrame {
            code: code.into(),
            reason: "".into(),
        };
        if self.records.is_some() {
            self.send_message(Message::Close(Some(frame.clone()))).await;
        }
        self.socket.close(Some(frame)).await.unwrap();
        while self.next().await.is_some() {}
    }
}
