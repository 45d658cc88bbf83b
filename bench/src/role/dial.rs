//! How a device gets online.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{AUTHORIZATION, HeaderValue};
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_with_config};

use super::tls;
use crate::keys::TokenKey;
use crate::protocol::{Endpoint, Speak};

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Small: a load generator holds thousands of connections. A 128 B exchange fits.
const BUFFER_BYTES: usize = 2048;
/// Connections from one source address: well below the number of its ports.
const DEVICES_PER_ADDRESS: u32 = 2000;

/// Connects devices to one endpoint.
pub(super) struct Dialer {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    speak: Speak,
    tokens: Option<TokenKey>,
}

impl Dialer {
    pub(super) fn new(endpoint: Endpoint) -> Result<Self> {
        let tokens = match endpoint.speak {
            Speak::Holdfast { token_seed } => Some(TokenKey::from_seed(token_seed)),
            Speak::Echo | Speak::Mailbox => None,
        };
        Ok(Self {
            address: endpoint.address,
            tls: endpoint.ca.as_deref().map(tls::connector).transpose()?,
            speak: endpoint.speak,
            tokens,
        })
    }

    pub(super) fn speak(&self) -> &Speak {
        &self.speak
    }

    /// On return device `number` is online.
    pub(super) async fn connect(&self, number: u32) -> Result<Socket> {
        let connected = Box::pin(self.upgrade(number)).await;
        let mut socket = connected.with_context(|| format!("device {number} did not get in"))?;
        let greeting = match self.speak {
            Speak::Holdfast { .. } => Some(("@hello {}".to_owned(), "@welcome ")),
            Speak::Mailbox => Some((format!("@id {}", device_id(number)), "@ok")),
            Speak::Echo => None,
        };
        if let Some((hello, welcome)) = greeting {
            socket.send(Message::text(hello)).await?;
            match socket.next().await {
                Some(Ok(Message::Text(text))) if text.starts_with(welcome) => {}
                other => bail!("device {number} was not welcomed: {other:?}"),
            }
        }
        Ok(socket)
    }

    async fn upgrade(&self, number: u32) -> Result<Socket> {
        let socket = TcpSocket::new_v4()?;
        let [high, low] = ((number / DEVICES_PER_ADDRESS) as u16 + 1).to_be_bytes();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0)))?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = match &self.tls {
            Some(connector) => {
                let name = ServerName::try_from("localhost")?;
                MaybeTlsStream::Rustls(connector.connect(name, stream).await?)
            }
            None => MaybeTlsStream::Plain(stream),
        };
        let mut request = "ws://localhost/".into_client_request()?;
        if let Some(tokens) = &self.tokens {
            let value = format!("Bearer {}", tokens.token(&device_id(number)));
            request
                .headers_mut()
                .insert(AUTHORIZATION, HeaderValue::try_from(value)?);
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES);
        let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
        Ok(socket)
    }
}

pub(crate) fn device_id(number: u32) -> String {
    format!("bench-{number:06}")
}
