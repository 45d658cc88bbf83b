//! A server that does what each test tells it to: real TCP, TLS and WebSocket, and a scripted peer.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use holdfast_client::{Builder, Device, Tls};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

pub(crate) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    tls: Tls,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn new() -> Self {
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
            acceptor: TlsAcceptor::from(Arc::new(config)),
            tls,
            address,
        }
    }

    pub(crate) fn builder(&self) -> Builder {
        Device::builder(format!("wss://127.0.0.1:{}", self.address.port()), "a.token")
            .tls(self.tls.clone())
            .seed(1)
    }

    async fn accept_tls(&self) -> TlsStream<TcpStream> {
        let (tcp, _) = self.listener.accept().await.unwrap();
        self.acceptor.accept(tcp).await.unwrap()
    }

    /// Takes one connection as far as the upgrade.
    pub(crate) async fn accept(&self) -> Peer {
        Peer {
            socket: tokio_tungstenite::accept_async(self.accept_tls().await)
                .await
                .unwrap(),
        }
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
        let mut stream = self.accept_tls().await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.contains("authorization: bearer a.token"), "{head}");
        stream.write_all(response.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl Peer {
    pub(crate) async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
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

    /// The next message, `None` when the client hung up.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        self.socket.next().await.and_then(Result::ok)
    }

    pub(crate) async fn close(&mut self, code: u16) {
        self.socket
            .close(Some(CloseFrame {
                code: code.into(),
                reason: "".into(),
            }))
            .await
            .unwrap();
        while self.next().await.is_some() {}
    }
}
