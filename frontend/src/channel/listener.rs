//! The TCP listener of a shard: every shard listens on the same port, and the kernel spreads the connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::canonical;

/// Connections that the kernel holds until they are accepted, if `net.core.somaxconn` allows: enough for the burst when
/// a site's devices come back at once.
pub const BACKLOG: i32 = 4096;
/// First pause when the machine has no descriptor or buffer left; it doubles up to [`MAX_PAUSE`].
pub const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause: short against a client's connect timeout.
pub const MAX_PAUSE: Duration = Duration::from_millis(320);

/// What is set on each accepted connection.
#[derive(Debug, Clone, Copy)]
pub struct AcceptOptions {
    /// How long sent bytes may stay unacknowledged before the kernel gives the connection up (`TCP_USER_TIMEOUT`); it
    /// reclaims peers that vanished while we do not read.
    pub user_timeout: Duration,
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self {
            user_timeout: Duration::from_secs(90),
        }
    }
}

/// How accepting went, over all listeners of a shard; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct AcceptMetrics {
    pub accepted: Counter,
    pub pauses: Counter,
    pub aborted: Counter,
}

impl AcceptMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("frontend");
        r.register(
            "tcp_accepted",
            "TCP connections accepted, also those that were closed at once",
            self.accepted.clone(),
        );
        r.register(
            "tcp_accept_pauses",
            "Pauses because the machine had no descriptor or memory for another connection",
            self.pauses.clone(),
        );
        r.register(
            "tcp_aborted",
            "TCP connections that were gone before they could be used",
            self.aborted.clone(),
        );
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    options: AcceptOptions,
    metrics: AcceptMetrics,
    pause: Duration,
}

impl Listener {
    /// Listens on `address` together with the other shards. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// What the system says about the address.
    pub fn bind(address: SocketAddr, options: AcceptOptions, metrics: AcceptMetrics) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let inner = TcpListener::from_std(socket.into())?;
        Ok(Self {
            inner,
            options,
            metrics,
            pause: MIN_PAUSE,
        })
    }

    /// The address, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// The next connection, and where it comes from: an IPv4 address as such, also where the listener is one of IPv6 for both.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The listening socket itself is of no more use. A shortage of descriptors is waited out, a lost connection skipped.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.inner.accept().await {
                Ok((stream, peer)) => {
                    self.pause = MIN_PAUSE;
                    if self.options.apply(&stream).is_ok() {
                        self.metrics.accepted.inc();
                        return Ok((stream, canonical(peer)));
                    }
                    self.metrics.aborted.inc();
                }
                Err(error) => match AcceptFailure::of(&error) {
                    AcceptFailure::Connection => {
                        self.metrics.aborted.inc();
                    }
                    AcceptFailure::Shortage => {
                        self.metrics.pauses.inc();
                        tokio::time::sleep(self.pause).await;
                        self.pause = (self.pause * 2).min(MAX_PAUSE);
                    }
                    AcceptFailure::Listener => return Err(error),
                },
            }
        }
    }
}

impl AcceptOptions {
    fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))
    }
}

/// Whose failure an error of accept(2) is.
#[derive(Debug, PartialEq, Eq)]
enum AcceptFailure {
    /// Of the connection that would have come: the next one may be fine.
    Connection,
    /// Of the machine: trying at once would spin.
    Shortage,
    /// Of the listening socket.
    Listener,
}

impl AcceptFailure {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => Self::Shortage,
            // accept(2): errors already pending on the new socket are passed on, and firewall rules say EPERM.
            Some(
                Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EINTR
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENONET
                | Errno::EOPNOTSUPP
                | Errno::ETIMEDOUT,
            ) => Self::Connection,
            _ => Self::Listener,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn localhost(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[tokio::test]
    async fn several_listeners_share_a_port_and_options_are_set() {
        let metrics = AcceptMetrics::default();
        let bind = |port| Listener::bind(localhost(port), AcceptOptions::default(), metrics.clone());
        let mut first = bind(0).unwrap();
        let address = first.local_addr().unwrap();
        let mut second = bind(address.port()).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, peer) = tokio::select! {
            accepted = first.accept() => accepted.unwrap(),
            accepted = second.accept() => accepted.unwrap(),
        };
        assert!(peer.ip().is_loopback());
        assert!(stream.nodelay().unwrap());
        assert_eq!(
            SockRef::from(&stream).tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(90))
        );
        assert_eq!(metrics.accepted.get(), 1);
    }

    #[tokio::test]
    async fn an_ipv4_address_is_one_wherever_it_comes_in() {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
        let mut listener = Listener::bind(any, AcceptOptions::default(), AcceptMetrics::default()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(localhost(port)).await.unwrap();
        let (_stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[test]
    fn only_a_shortage_pauses() {
        let of = |errno: Errno| AcceptFailure::of(&io::Error::from_raw_os_error(errno as i32));
        assert_eq!(of(Errno::EMFILE), AcceptFailure::Shortage);
        assert_eq!(of(Errno::ENFILE), AcceptFailure::Shortage);
        assert_eq!(of(Errno::ENOBUFS), AcceptFailure::Shortage);
        assert_eq!(of(Errno::ECONNABORTED), AcceptFailure::Connection);
        assert_eq!(of(Errno::EBADF), AcceptFailure::Listener);
    }
}
