//! The way in: TCP from a chosen address, TLS or not, and the WebSocket upgrade by hand, so that refusals are seen as they are; or
//! the handshake over datagrams; or a Python device's own way.

mod datagrams;
mod driven;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_proto::secure::{DeviceKey, Identity, Initiator, SecureChannel};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::device::Device;
use crate::http::Answer;
use crate::keys::now_ms;

/// TCP, with TLS on `wss`.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub type Socket = Box<dyn Stream>;

/// A stream after a 101.
pub(crate) struct Upgraded {
    pub(crate) socket: Socket,
    pub(crate) headers: HeaderMap,
    /// What came with the answer.
    pub(crate) tail: Vec<u8>,
}

/// Longer than any bound of the gateway's own on an upgrade (60 s without a backend, as tests set it).
const PATIENCE: Duration = Duration::from_secs(80);
/// Seven HELLOs, of which one must get through with its answer: at 5 % loss each way one attempt in ten million fails, and at 10 % one in
/// a hundred thousand. With a device's own 15 s it would be one in ten thousand and in a thousand, and a suite makes a thousand.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(100);
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Where a frontend takes devices.
#[derive(Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub transport: Transport,
}

/// What lies under the messages.
#[derive(Clone)]
pub enum Transport {
    /// `ws`
    Tcp,
    /// `wss`
    Tls(Arc<ClientConfig>),
    /// `udp`
    Datagrams,
    /// `ws`, by a Python device of the process that listens at this path.
    Python(Arc<Path>),
}

/// Why a device did not get in.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("refused: {0:?}")]
    Refused(Box<Answer>),
    #[error("no TCP or TLS connection, or it ended: {0}")]
    Io(#[from] std::io::Error),
    #[error("no answer within {PATIENCE:?}, or on udp within the handshake's own time")]
    Timeout,
    #[error("the answer breaks HTTP or RFC 6455: {0}")]
    Malformed(String),
}

/// How to connect. Nothing is sent that was not asked for, but what RFC 6455 requires.
#[derive(Clone)]
pub struct Dial {
    endpoint: Endpoint,
    headers: Vec<(String, String)>,
    source: Option<IpAddr>,
    receive_buffer: Option<u32>,
    key: Option<(Identity, DeviceKey)>,
    runtime: Option<Handle>,
    gives_up: Duration,
}

impl Dial {
    pub fn new(endpoint: &Endpoint) -> Self {
        let headers = [
            ("Host", "localhost"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
        ];
        let mut dial = Self {
            endpoint: endpoint.clone(),
            headers: headers.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
            source: None,
            receive_buffer: None,
            key: None,
            runtime: None,
            gives_up: DATAGRAM_PATIENCE,
        };
        dial = dial.header("Sec-WebSocket-Version", "13");
        dial.header("Sec-WebSocket-Key", &STANDARD.encode(rand::random::<[u8; 16]>()))
    }

    /// A bearer token in the HTTP header.
    pub fn token(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// A device key: each connection shows a credential of its own, and wants a challenge that fits it.
    pub fn key(mut self, identity: Identity, key: DeviceKey) -> Self {
        self.key = Some((identity, key));
        self
    }

    /// A bearer token as browsers send it.
    pub fn subprotocol_token(self, token: &str) -> Self {
        self.header("Sec-WebSocket-Protocol", &format!("holdfast.v1, bearer.{token}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    /// Connects from this address instead of the system's choice.
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// The device lives on this runtime, which may be in another network.
    pub fn on(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// SO_RCVBUF in bytes, set before connecting, or the receive credit on `udp`: a small one makes the server feel a slow reader
    /// early.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// On `udp`: how long an attempt is repeated.
    pub fn gives_up_after(mut self, time: Duration) -> Self {
        self.gives_up = time;
        self
    }

    /// Connects and upgrades.
    pub async fn connect(mut self) -> Result<Device, DialError> {
        match self.runtime.take() {
            None => self.connect_here().await,
            Some(runtime) => {
                let connected = runtime.spawn(self.connect_here()).await;
                connected.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            }
        }
    }

    async fn connect_here(mut self) -> Result<Device, DialError> {
        match self.endpoint.transport.clone() {
            Transport::Datagrams => return self.over_datagrams().await,
            Transport::Python(devices) => return self.through_python(&devices).await,
            Transport::Tcp | Transport::Tls(_) => {}
        }
        let Some((identity, key)) = self.key.take() else {
            return Device::new(self.upgrade().await?, None).await;
        };
        let (initiator, credential) = Initiator::new(SecureChannel::Ws, &identity, &key, Some(now_ms()))
            .map_err(|e| DialError::Malformed(e.to_string()))?;
        let dial = self.header("Authorization", &format!("Holdfast {credential}"));
        Device::new(dial.upgrade().await?, Some(initiator)).await
    }

    /// Connects and upgrades; panics unless the answer was a refusal, and returns that.
    pub async fn refusal(self) -> Answer {
        match self.connect().await {
            Err(DialError::Refused(answer)) => *answer,
            Err(other) => panic!("expected a refusal, not {other}"),
            Ok(_) => panic!("expected a refusal, but was admitted"),
        }
    }

    /// Connects and upgrades, and leaves the framing to the caller.
    pub async fn raw(self) -> Result<Socket, DialError> {
        let Upgraded { socket, tail, .. } = self.upgrade().await?;
        if tail.is_empty() {
            Ok(socket)
        } else {
            Err(DialError::Malformed(
                "the server spoke before the device".to_owned(),
            ))
        }
    }

    async fn upgrade(self) -> Result<Upgraded, DialError> {
        let exchange = async {
            let mut socket = self.socket().await?;
            let mut head = String::from("GET / HTTP/1.1\r\n");
            for (name, value) in &self.headers {
                head.extend([name, ": ", value, "\r\n"]);
            }
            head.push_str("\r\n");
            socket.write_all(head.as_bytes()).await?;
            socket.flush().await?;
            self.read_answer(socket).await
        };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or(Err(DialError::Timeout))
    }

    async fn socket(&self) -> Result<Socket, DialError> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(self.endpoint.address).await?;
        stream.set_nodelay(true)?;
        let Transport::Tls(tls) = self.endpoint.transport.clone() else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from("localhost").expect("a valid name");
        Ok(Box::new(TlsConnector::from(tls).connect(name, stream).await?))
    }

    async fn read_answer(&self, mut socket: Socket) -> Result<Upgraded, DialError> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if bytes.len() > MAX_HEAD_BYTES || socket.read_buf(&mut bytes).await? == 0 {
                return Err(DialError::Malformed(String::from_utf8_lossy(&bytes).into_owned()));
            }
        };
        let mut tail = bytes.split_off(end);
        let (status, headers) = parse_head(&bytes)?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.check_accept(&headers)?;
            return Ok(Upgraded {
                socket,
                headers,
                tail,
            });
        }
        let length = headers
            .get("content-length")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok());
        while length.is_none_or(|length: usize| tail.len() < length) {
            if socket.read_buf(&mut tail).await? == 0 {
                break;
            }
        }
        Err(DialError::Refused(Box::new(Answer {
            status,
            headers,
            body: Bytes::from(tail),
        })))
    }

    fn check_accept(&self, headers: &HeaderMap) -> Result<(), DialError> {
        let key = self.headers.iter().find(|(n, _)| n == "Sec-WebSocket-Key");
        let expected = key.map(|(_, key)| derive_accept_key(key.as_bytes()));
        let actual = headers.get("sec-websocket-accept").and_then(|v| v.to_str().ok());
        if expected.as_deref() == actual && headers.contains_key("upgrade") {
            Ok(())
        } else {
            Err(DialError::Malformed(format!(
                "Sec-WebSocket-Accept {actual:?}, not {expected:?}"
            )))
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<(StatusCode, HeaderMap), DialError> {
    let malformed = || DialError::Malformed(String::from_utf8_lossy(bytes).into_owned());
    let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
    let mut lines = text.trim_end().split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        let name = HeaderName::try_from(name).map_err(|_| malformed())?;
        headers.append(
            name,
            HeaderValue::try_from(value.trim()).map_err(|_| malformed())?,
        );
    }
    Ok((status.ok_or_else(malformed)?, headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Incoming;
    use crate::keys::Certificates;
    use futures_util::{SinkExt as _, StreamExt as _};
    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_tungstenite::tungstenite::Message;

    async fn listen() -> (Endpoint, TcpListener, TlsAcceptor) {
        let certificates = Certificates::generate();
        let chain = CertificateDer::from_pem_slice(certificates.chain_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(certificates.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint {
            address: listener.local_addr().unwrap(),
            transport: Transport::Tls(certificates.client_config()),
        };
        (endpoint, listener, TlsAcceptor::from(Arc::new(config)))
    }

    #[tokio::test]
    async fn connects_from_the_source_asked_for_and_sees_each_kind_of_message() {
        let (endpoint, listener, acceptor) = listen().await;
        let server = tokio::spawn(async move {
            let (stream, peer) = listener.accept().await.unwrap();
            let socket = acceptor.accept(stream).await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("@hello {}"));
            let messages = [
                r#"@welcome {"window":32}"#,
                r#"{"header":{"namespace":"A","name":"B.Reply","id":"r-1","seq":1},"payload":[1, 2]}"#,
                r#"{"header":{"namespace":"System","name":"Error","seq":2},"payload":{"code":"no_route","message":"m","retryable":false}}"#,
                r#"{"header":{"namespace":"A","name":"B","id":"m-1"},"payload":{}}"#,
                "nonsense",
            ];
            for text in messages {
                socket.send(Message::text(text)).await.unwrap();
            }
            socket.close(None).await.unwrap();
            peer.ip()
        });
        let source: IpAddr = "127.9.8.7".parse().unwrap();
        let mut device = Dial::new(&endpoint)
            .token("t")
            .source(source)
            .connect()
            .await
            .unwrap();
        assert_eq!(device.hello().await["window"], 32);
        assert_eq!(device.next_reply().await.json(), json!([1, 2]));
        assert_eq!(device.next_error().await.code, "no_route");
        assert_eq!(device.next_push().await.id, "m-1");
        assert!(matches!(device.next().await, Incoming::Malformed(_)));
        assert_eq!(device.until_closed().await, (None, 1005));
        assert_eq!(server.await.unwrap(), source);
    }

    #[tokio::test]
    async fn a_refusal_is_read_to_its_end() {
        let (endpoint, listener, acceptor) = listen().await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = acceptor.accept(stream).await.unwrap();
            let answer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 9\r\n\r\n";
            for part in [answer, "not", " ready"] {
                socket.write_all(part.as_bytes()).await.unwrap();
                socket.flush().await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let answer = Dial::new(&endpoint).refusal().await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "3"));
        assert_eq!(answer.text(), "not ready");
    }
}
