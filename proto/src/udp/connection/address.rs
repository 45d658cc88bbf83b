//! A socket address without what a peer's does not need, for the size of an idle connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// 24 bytes instead of 32. An IPv6 flow label is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    ip: [u8; 16],
    scope: u32,
    port: u16,
    is_v4: bool,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        Self {
            ip: ip.octets(),
            scope,
            port: address.port(),
            is_v4: address.is_ipv4(),
        }
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> Self {
        let ip = Ipv6Addr::from(address.ip);
        match ip.to_ipv4_mapped().filter(|_| address.is_v4) {
            Some(v4) => Self::new(IpAddr::V4(v4), address.port),
            None => SocketAddrV6::new(ip, address.port, 0, address.scope).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        assert_eq!(size_of::<Address>(), 24);
        for text in [
            "192.0.2.7:9",
            "[2001:db8::7]:65535",
            "[::ffff:192.0.2.7]:9",
            "[fe80::1%3]:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Address::from(address)), address, "{text}");
        }
        let [v4, mapped] = ["192.0.2.7:9", "[::ffff:192.0.2.7]:9"].map(|t| t.parse::<SocketAddr>().unwrap());
        assert_ne!(Address::from(v4), Address::from(mapped));
    }
}
