//! The addresses of ours that devices write to, when the socket takes what comes to any: answers go out from the same (pure).

use std::net::{IpAddr, SocketAddr};

/// Addresses remembered; of what comes to others the kernel chooses the sender's address.
const MAX_LOCALS: usize = 255;

/// One of our addresses, in a byte of each connection's. 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LocalId(u8);

#[derive(Debug)]
pub(super) struct Locals {
    /// The socket is bound to no one address.
    any: bool,
    known: Vec<IpAddr>,
}

impl Locals {
    pub(super) fn new(bound: SocketAddr) -> Self {
        Self {
            any: bound.ip().is_unspecified(),
            known: Vec::new(),
        }
    }

    /// The id of the address to which a datagram came.
    pub(super) fn intern(&mut self, to: Option<IpAddr>) -> LocalId {
        let Some(to) = to.filter(|to| self.any && !to.is_multicast()) else {
            return LocalId::default();
        };
        if let Some(at) = self.known.iter().position(|known| *known == to) {
            return LocalId(at as u8 + 1);
        }
        if self.known.len() == MAX_LOCALS {
            return LocalId::default();
        }
        self.known.push(to);
        LocalId(self.known.len() as u8)
    }

    /// What to send from; `None`: as the kernel thinks.
    pub(super) fn get(&self, id: LocalId) -> Option<IpAddr> {
        self.known.get(usize::from(id.0).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_out_from_where_was_written_to() {
        let mut locals = Locals::new("0.0.0.0:7".parse().unwrap());
        let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let ids = [locals.intern(Some(one)), locals.intern(Some(two))];
        assert_eq!(locals.intern(Some(one)), ids[0]);
        assert_eq!(ids.map(|id| locals.get(id)), [Some(one), Some(two)]);
        assert_eq!(locals.get(LocalId::default()), None);
        assert_eq!(locals.intern(Some("224.0.0.1".parse().unwrap())), LocalId(0));
        for n in 0..=u16::MAX {
            locals.intern(Some(IpAddr::from([10, 0, (n >> 8) as u8, n as u8])));
        }
        assert_eq!(locals.known.len(), MAX_LOCALS);
        assert_eq!(locals.intern(Some([11, 0, 0, 1].into())), LocalId(0));
    }

    #[test]
    fn a_socket_of_one_address_needs_none() {
        let mut locals = Locals::new("127.0.0.1:7".parse().unwrap());
        assert_eq!(locals.intern(Some([127, 0, 0, 1].into())), LocalId::default());
    }
}
