//! Loopback addresses of one's own. All of 127/8 is this host: with an address drawn at random, a port that was found free
//! stays free until its process binds it, and binds it anew, whatever other tests and outgoing connections do meanwhile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

use rand::RngExt as _;

/// Below those that the system gives to sockets that ask for none: such a socket of any address (0.0.0.0), as devices on `udp` have,
/// keeps its port from everybody.
const PORTS: Range<u16> = 10_000..32_000;
const ATTEMPTS: u32 = 100;

/// A random address of 127/8 outside 127.0/16, from which the system's own connections come.
pub fn own_address() -> IpAddr {
    let [a, b, c]: [u8; 3] = rand::random();
    IpAddr::V4(Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254)))
}

/// A free port of `address`, for TCP.
pub fn free_port(address: IpAddr) -> SocketAddr {
    find(address, |at| TcpListener::bind(at).is_ok())
}

/// A free port of `address`, for datagrams.
pub fn free_udp_port(address: IpAddr) -> SocketAddr {
    find(address, |at| UdpSocket::bind(at).is_ok())
}

fn find(address: IpAddr, is_free: impl Fn(SocketAddr) -> bool) -> SocketAddr {
    let mut drawn = (0..ATTEMPTS).map(|_| SocketAddr::new(address, rand::rng().random_range(PORTS)));
    drawn.find(|at| is_free(*at)).expect("a free port")
}
