//! Loopback addresses of one's own. All of 127/8 is this host: with an address drawn at random, a port that was found free
//! stays free until its process binds it, whatever other tests and outgoing connections do meanwhile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// A random address of 127/8 outside 127.0/16, from which the system's own connections come.
pub fn own_address() -> IpAddr {
    let [a, b, c]: [u8; 3] = rand::random();
    IpAddr::V4(Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254)))
}

/// A free port of `address`, for TCP.
pub fn free_port(address: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::new(address, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address")
}

/// A free port of `address`, for datagrams.
pub fn free_udp_port(address: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind(SocketAddr::new(address, 0)).expect("a free port");
    socket.local_addr().expect("a bound socket has an address")
}
