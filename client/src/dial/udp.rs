//! HELLO and what the server answers, over a socket; the logic of it is in [`Dial`], which is pure.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_proto::udp::dial::{self, Dial, Dialed, Dialing, REFUSAL_PATIENCE};
use holdfast_proto::udp::{Config, Connection, MAX_DATAGRAM_BYTES, Parameters};
use tokio::net::UdpSocket;

use super::{bad_key, candidates, clock, no_address, silent};
use crate::builder::{Builder, DeviceIdentity, Target};
use crate::channel::{Transport, UdpChannel};
use crate::{Disturbance, Error, Refusal};

/// A channel to the first address where somebody answers, or what the answer was.
pub(super) async fn dial(
    settings: &Builder,
    target: &Target,
    identity: &DeviceIdentity,
) -> Result<UdpChannel, Error> {
    let config = Arc::new(settings.datagrams.config(settings.max_message));
    let failed = |e: io::Error| Error::Connect(format!("{}:{}: {e}", target.host, target.port));
    let mut last = no_address();
    for (server, share) in candidates(settings, target).await.map_err(failed)? {
        let attempt = Attempt {
            settings,
            identity,
            config: &config,
            server,
            timeout: share - (share / HEAD_START).min(MAX_HEAD_START),
        };
        match attempt.run().await {
            Ok(answer) => return answer.map(UdpChannel::new),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// One address.
struct Attempt<'a> {
    settings: &'a Builder,
    identity: &'a DeviceIdentity,
    config: &'a Arc<Config>,
    server: SocketAddr,
    timeout: Duration,
}

impl Attempt<'_> {
    /// # Errors
    /// The outer one is of this address; the inner one is an answer, and another address would give no other.
    async fn run(self) -> io::Result<Result<Transport, Error>> {
        let socket = UdpSocket::bind(self.local(0)).await?;
        // Only to a connected socket the system reports that nobody listens there, or that there is no way.
        socket.connect(self.server).await?;
        let connection = match self.say_hello(&socket).await? {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(Transport {
            socket: self.release(socket).await?,
            connection,
            config: self.config.clone(),
        }))
    }

    async fn say_hello(&self, socket: &UdpSocket) -> io::Result<Result<Box<Connection>, Error>> {
        let mut dial = match self.begin() {
            Ok(dial) => dial,
            Err(error) => return Ok(Err(error)),
        };
        // Like a refusal, anybody who listens on the way can make an ICMP message: it counts when nothing better comes.
        let mut trouble: Option<(Instant, io::Error)> = None;
        let mut datagram = vec![0; MAX_DATAGRAM_BYTES as usize + 1];
        loop {
            let sent = send_due(&mut dial, socket).await;
            note(&mut trouble, sent.err());
            let believed = trouble.as_ref().map(|(at, _)| *at);
            let due = dial.poll_timeout();
            let outcome = tokio::select! {
                received = socket.recv(&mut datagram) => match received {
                    Ok(length) => dial.handle_datagram(Instant::now(), self.server, &datagram[..length]),
                    Err(error) => {
                        note(&mut trouble, Some(error));
                        Dialed::Pending
                    }
                },
                () = tokio::time::sleep_until(believed.unwrap_or(due).min(due).into()) => {
                    dial.handle_timeout(Instant::now())
                }
            };
            match outcome {
                Dialed::Open(connection) => return Ok(Ok(connection)),
                Dialed::Refused(refused) => return Ok(Err(refusal(refused))),
                Dialed::TimedOut if dial.stats().forged > 0 => {
                    return Ok(Err(Error::Disturbed(Disturbance::Challenge)));
                }
                Dialed::TimedOut => return Err(silent(self.server)),
                Dialed::Pending => {}
            }
            if let Some((_, error)) = trouble.take_if(|(believed, _)| *believed <= Instant::now()) {
                return Err(unreachable(error));
            }
        }
    }

    fn begin(&self) -> Result<Dial, Error> {
        let dialing = Dialing {
            identity: &self.identity.identity,
            key: &self.identity.key,
            parameters: Parameters {
                attempt: rand::random(),
                max_datagram: self.config.max_datagram,
                receive_bytes: self.config.receive_bytes,
                receive_messages: self.config.receive_messages,
            },
            now_ms: clock(self.settings),
            timeout: self.timeout,
        };
        Dial::new(Instant::now(), &dialing).map_err(bad_key)
    }

    /// A socket at the same port that is not connected, so that the system chooses each datagram's source anew. Nothing is lost between
    /// the two: the server does not send before it has heard from the connection.
    async fn release(&self, socket: UdpSocket) -> io::Result<UdpSocket> {
        let port = socket.local_addr()?.port();
        drop(socket);
        match UdpSocket::bind(self.local(port)).await {
            Ok(socket) => Ok(socket),
            // Somebody was faster. To the server another port is no more than a device that moved.
            Err(_) => UdpSocket::bind(self.local(0)).await,
        }
    }

    fn local(&self, port: u16) -> SocketAddr {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(self.settings.local_address.unwrap_or(any), port)
    }
}

async fn send_due(dial: &mut Dial, socket: &UdpSocket) -> io::Result<()> {
    let mut out = Vec::new();
    while dial.poll_transmit(Instant::now(), &mut out) {
        socket.send(&out).await?;
        out.clear();
    }
    Ok(())
}

/// The first trouble, and when it is believed.
fn note(trouble: &mut Option<(Instant, io::Error)>, error: Option<io::Error>) {
    if let Some(error) = error {
        trouble.get_or_insert_with(|| (Instant::now() + REFUSAL_PATIENCE, error));
    }
}

fn unreachable(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => io::Error::new(
            error.kind(),
            "no server there (the host refuses datagrams to this port)",
        ),
        _ => error,
    }
}

fn refusal(refused: dial::Refusal) -> Error {
    Error::Refused(Refusal {
        status: refused.status,
        code: refused.code,
        detail: String::new(),
        retry_after: refused.retry_after,
        retryable: Some(refused.retryable),
    })
}

/// An attempt ends by this part of its time before those who wait for it give up, so that it can say why.
const HEAD_START: u32 = 10;
const MAX_HEAD_START: Duration = Duration::from_millis(500);
