//! The baseline of a fan-out: nothing but a loop of `write` over as many sockets, or of `send_to` to as many addresses.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::echo::listen;
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Outcome, Run};

pub(super) async fn serve(datagrams: bool, mut commands: Commands) -> Result<()> {
    let mut peers = if datagrams {
        Peers::addresses()?
    } else {
        Peers::sockets()?
    };
    answer(&Answer::Ready(Some(peers.address()?), None))?;
    while let Some(command) = commands.next().await? {
        let done = match command {
            Command::Connect(count) => {
                peers.meet(count).await?;
                Outcome::default()
            }
            Command::Run(run) => peers.write(&run)?,
            _ => bail!("a bare loop only writes"),
        };
        answer(&Answer::Done(done))?;
    }
    Ok(())
}

enum Peers {
    Sockets(tokio::net::TcpListener, Vec<TcpStream>),
    Addresses(UdpSocket, Vec<SocketAddr>),
}

impl Peers {
    fn sockets() -> Result<Self> {
        Ok(Self::Sockets(listen(LOOPBACK)?, Vec::new()))
    }

    fn addresses() -> Result<Self> {
        let socket = super::packets::lines::bind(LOOPBACK, false)?.into_std()?;
        Ok(Self::Addresses(socket, Vec::new()))
    }

    fn address(&self) -> Result<SocketAddr> {
        Ok(match self {
            Self::Sockets(listener, _) => listener.local_addr()?,
            Self::Addresses(socket, _) => socket.local_addr()?,
        })
    }

    /// Takes so many more connections, or first datagrams, which are there already or on their way.
    async fn meet(&mut self, count: u32) -> Result<()> {
        match self {
            Self::Sockets(listener, sockets) => {
                for _ in 0..count {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    // From here on nobody waits for it: `write` is all that is done.
                    sockets.push(stream.into_std()?);
                }
            }
            Self::Addresses(socket, addresses) => {
                socket.set_nonblocking(false)?;
                for _ in 0..count {
                    addresses.push(socket.recv_from(&mut [0; 16])?.1);
                }
                socket.set_nonblocking(true)?;
            }
        }
        Ok(())
    }

    /// One message to each, as often as is asked for.
    fn write(&self, run: &Run) -> Result<Outcome> {
        let (message, started) = (vec![b'x'; run.payload], Instant::now());
        let mut left = run.requests;
        match self {
            Self::Sockets(_, sockets) => {
                let mut sockets = sockets.iter().cycle();
                while left > 0 {
                    let mut socket = sockets.next().context("nobody is there")?;
                    let written = socket.write(&message).context("a socket is full")?;
                    ensure!(written == message.len(), "a socket took a part only");
                    left -= 1;
                }
            }
            Self::Addresses(socket, addresses) => {
                let mut addresses = addresses.iter().cycle();
                while left > 0 {
                    socket.send_to(&message, addresses.next().context("nobody is there")?)?;
                    left -= 1;
                }
            }
        }
        Ok(Outcome {
            requests: run.requests,
            seconds: started.elapsed().as_secs_f64(),
            ..Outcome::default()
        })
    }
}

const LOOPBACK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0));
