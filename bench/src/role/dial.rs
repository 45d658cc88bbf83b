//! How a device gets online.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt as _;
use holdfast_proto::secure::{
    DeviceKey, Identity, Initiator, MasterKey, SecureChannel, TrafficKeys, parse_challenge,
};
use http::header::{AUTHORIZATION, HeaderValue};
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, client_async_with_config};

use super::line::{Line, Socket};
use super::tls;
use crate::keys::{MASTER_KEY_ID, TokenKey};
use crate::protocol::{Endpoint, Speak};

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
    master: Option<MasterKey>,
}

impl Dialer {
    pub(super) fn new(endpoint: Endpoint) -> Result<Self> {
        let tokens = match endpoint.speak {
            Speak::Holdfast { token_seed } => Some(TokenKey::from_seed(token_seed)),
            _ => None,
        };
        let master = match endpoint.speak {
            Speak::Records { master_key } => MasterKey::from_bytes(&master_key),
            _ => None,
        };
        Ok(Self {
            address: endpoint.address,
            tls: endpoint.ca.as_deref().map(tls::connector).transpose()?,
            speak: endpoint.speak,
            tokens,
            master,
        })
    }

    pub(super) fn speak(&self) -> &Speak {
        &self.speak
    }

    /// On return device `number` is online.
    pub(super) async fn connect(&self, number: u32) -> Result<Line> {
        let connected = Box::pin(self.upgrade(number)).await;
        let mut line = connected.with_context(|| format!("device {number} did not get in"))?;
        let greeting = match self.speak {
            Speak::Holdfast { .. } | Speak::Records { .. } => Some(("@hello {}".to_owned(), "@welcome ")),
            Speak::Mailbox => Some((format!("@id {}", device_id(number)), "@ok")),
            Speak::Echo | Speak::Packets { .. } | Speak::PacketEcho { .. } => None,
        };
        if let Some((hello, welcome)) = greeting {
            line.send(hello).await?;
            match line.next().await {
                Ok(Some(text)) if text.starts_with(welcome) => {}
                other => bail!("device {number} was not welcomed: {other:?}"),
            }
        }
        Ok(line)
    }

    async fn upgrade(&self, number: u32) -> Result<Line> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(source(number))?;
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
        let mut initiator = None;
        if let Some(master) = &self.master {
            let (started, credential) = start_handshake(master, number)?;
            let value = HeaderValue::try_from(format!("Holdfast {credential}"))?;
            request.headers_mut().insert(AUTHORIZATION, value);
            initiator = Some(started);
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES);
        let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
        match initiator {
            None => Ok(Line::plain(socket)),
            Some(initiator) => challenged(socket, initiator).await,
        }
    }
}

/// Where a device binds its socket: of some thousand devices each has the same address.
pub(super) fn source(number: u32) -> SocketAddr {
    let [high, low] = ((number / DEVICES_PER_ADDRESS) as u16 + 1).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0))
}

pub(super) fn identity(number: u32) -> Result<Identity> {
    Ok(Identity {
        key_id: MASTER_KEY_ID.to_owned(),
        product: "bench".to_owned(),
        class: String::new(),
        device: device_id(number).parse()?,
        key_version: 1,
    })
}

fn start_handshake(master: &MasterKey, number: u32) -> Result<(Initiator, String)> {
    let identity = identity(number)?;
    let key: DeviceKey = master.device_key(&identity);
    Ok(Initiator::new(SecureChannel::Ws, &identity, &key, None)?)
}

async fn challenged(mut socket: Socket, initiator: Initiator) -> Result<Line> {
    let Some(Ok(Message::Text(text))) = socket.next().await else {
        bail!("no challenge came");
    };
    let message2 = parse_challenge(&text).context("the challenge cannot be read")?;
    let keys: TrafficKeys = initiator.finish(&message2)?;
    Ok(Line::sealed(socket, keys))
}

pub(crate) fn device_id(number: u32) -> String {
    format!("bench-{number:06}")
}
