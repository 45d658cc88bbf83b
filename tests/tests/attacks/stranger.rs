//! Somebody on `udp` who counts what he says and hears.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use holdfast_tests::datagram::{Hello, Said};
use holdfast_tests::keys::DeviceKeys;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// A server that answers at all does so within this.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Stranger {
    pub(crate) socket: UdpSocket,
    pub(crate) sent_bytes: usize,
    pub(crate) heard_bytes: usize,
}

impl Stranger {
    pub(crate) async fn at(source: impl Into<IpAddr>, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((source.into(), 0)).await.expect("a free port");
        socket.connect(server).await.expect("UDP connects at once");
        Self {
            socket,
            sent_bytes: 0,
            heard_bytes: 0,
        }
    }

    pub(crate) async fn says(&mut self, datagram: &[u8]) {
        self.socket.send(datagram).await.expect("it is sent");
        self.sent_bytes += datagram.len();
    }

    /// What comes within `wait`.
    pub(crate) async fn hears_within(&mut self, wait: Duration) -> Option<Vec<u8>> {
        let mut datagram = vec![0; 2048];
        let length = timeout(wait, self.socket.recv(&mut datagram)).await.ok()?.ok()?;
        datagram.truncate(length);
        self.heard_bytes += length;
        Some(datagram)
    }

    /// The answer, which must come.
    pub(crate) async fn hears(&mut self) -> Said {
        let datagram = self.hears_within(PATIENCE).await.expect("an answer");
        Said::parse(&datagram)
    }

    /// Asks to be let in, and shows where it is when it is asked to.
    pub(crate) async fn asks(&mut self, hello: &Hello) -> Said {
        let mut cookie = Vec::new();
        loop {
            self.says(&hello.encode(&cookie)).await;
            match self.hears().await {
                Said::Retry { cookie: given, .. } => cookie = given,
                other => return other,
            }
        }
    }

    /// Listens until nothing came for `quiet`, and gives what did.
    pub(crate) async fn listens(&mut self, quiet: Duration) -> Vec<Said> {
        let mut heard = Vec::new();
        while let Some(datagram) = self.hears_within(quiet).await {
            heard.push(Said::parse(&datagram));
        }
        heard
    }
}

/// An address that nobody else in the test has.
pub(crate) fn address(net: u8, n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, net, (n / 250) as u8, (n % 250) as u8 + 1)
}

/// What a device with a key of another gateway asks with.
pub(crate) fn strange_hello(keys: &DeviceKeys, id: &str) -> Hello {
    let identity = keys.identity(id);
    let key = DeviceKeys::generate().device_key(&identity);
    Hello::of(&identity, &key).0
}
