//! HELLO and what the server answers, over a socket; [`Dial`] is the logic of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use holdfast_proto::udp::datagram::MAX_DATAGRAM_BYTES;
use holdfast_proto::udp::{Config, Connection, Dial, Dialed, Parameters};
use tokio::net::UdpSocket;

use super::{bad_key, clock, first_that_answers, silent};
use crate::builder::{Builder, DeviceIdentity, Target};
use crate::channel::{Transport, UdpChannel};
use crate::{Disturbance, Error, Refusal};

/// A channel to the first address that lets the device in, or the reason of the last that did not.
pub(super) async fn dial(
    settings: &Builder,
    target: &Target,
    identity: &DeviceIdentity,
) -> Result<UdpChannel, Error> {
    let config = Arc::new(config(settings));
    let opened = first_that_answers(settings, target, async |address| {
        open(settings, identity, &config, address).await
    });
    opened.await.map(UdpChannel::new).map_err(|failure| match failure {
        Failure::Io(error) => Error::Connect(format!("{}:{}: {error}", target.host, target.port)),
        Failure::Other(error) => error,
    })
}

enum Failure {
    Io(io::Error),
    Other(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

async fn open(
    settings: &Builder,
    identity: &DeviceIdentity,
    config: &Arc<Config>,
    address: SocketAddr,
) -> Result<Transport, Failure> {
    let socket = UdpSocket::bind(local(settings, address, 0)).await?;
    // Only to a connected socket the system reports that nobody listens there, or that there is no way.
    socket.connect(address).await?;
    let connection = say_hello(settings, identity, config, &socket).await?;
    Ok(Transport {
        socket: release(settings, socket, address).await?,
        connection,
        config: config.clone(),
    })
}

/// A socket at the same port that is not connected. Nothing can be lost between the two: the server does not send before it has
/// heard from the connection.
async fn release(settings: &Builder, socket: UdpSocket, server: SocketAddr) -> io::Result<UdpSocket> {
    let port = socket.local_addr()?.port();
    drop(socket);
    match UdpSocket::bind(local(settings, server, port)).await {
        Ok(socket) => Ok(socket),
        // Somebody was faster. To the server another port is no more than a device that moved.
        Err(_) => UdpSocket::bind(local(settings, server, 0)).await,
    }
}

fn local(settings: &Builder, server: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(settings.local_address.unwrap_or(any), port)
}

async fn say_hello(
    settings: &Builder,
    identity: &DeviceIdentity,
    config: &Config,
    socket: &UdpSocket,
) -> Result<Box<Connection>, Failure> {
    let server = socket.peer_addr()?;
    let mut dial = Dial::new(
        Instant::now(),
        &identity.identity,
        &identity.key,
        parameters(config),
        clock(settings),
        config.clone(),
    )
    .map_err(bad_key)?;
    let mut datagram = vec![0; MAX_DATAGRAM_BYTES + 1];
    loop {
        let mut out = Vec::new();
        while dial.poll_transmit(Instant::now(), &mut out) {
            socket.send(&out).await?;
            out.clear();
        }
        let deadline = dial.poll_timeout().unwrap_or_else(Instant::now);
        let length = tokio::select! {
            received = socket.recv(&mut datagram) => received?,
            () = tokio::time::sleep_until(deadline.into()) => {
                dial.handle_timeout(Instant::now()).map_err(|_| nobody(&dial, server))?;
                continue;
            }
        };
        match dial.handle_datagram(Instant::now(), server, &datagram[..length]) {
            Dialed::Pending => {}
            Dialed::Open(connection) => return Ok(connection),
            refused @ Dialed::Refused { .. } => return Err(refusal(refused)),
        }
    }
}
