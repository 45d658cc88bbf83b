//! Cookies: a device that can send one back receives what is sent to its address. The server remembers nothing for it.

use std::net::SocketAddr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::datagram::Hello;

/// Bytes of a cookie: when it was made, and a code that only we can make.
pub const COOKIE_BYTES: usize = 4 + CODE_BYTES;
/// How long a cookie is good, in seconds: longer than a device's attempt.
pub const COOKIE_LIFETIME_S: u32 = 30;

const CODE_BYTES: usize = 16;

/// Makes and checks cookies. Its key is random and lives as long as the process; all shards share it, since the repeated HELLO may
/// come to another one.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Cookies([u8; 32]);

impl Cookies {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// For this HELLO from this address, and nothing else. `now_s`: whole seconds of a clock that only goes forward; it may wrap.
    pub fn mint(&self, now_s: u32, from: SocketAddr, hello: &Hello<'_>) -> [u8; COOKIE_BYTES] {
        let mut cookie = [0; COOKIE_BYTES];
        let code = self.code(now_s, from, hello).finalize().into_bytes();
        cookie[..4].copy_from_slice(&now_s.to_be_bytes());
        cookie[4..].copy_from_slice(&code[..CODE_BYTES]);
        cookie
    }

    /// Whether the HELLO's cookie is one of ours for it, from this address, made at most [`COOKIE_LIFETIME_S`] ago.
    pub fn check(&self, now_s: u32, from: SocketAddr, hello: &Hello<'_>) -> bool {
        let Some((made_s, code)) = hello.cookie.split_first_chunk() else {
            return false;
        };
        let made_s = u32::from_be_bytes(*made_s);
        // In constant time, also of the length: `verify_truncated_left` alone would take a single byte.
        let age = now_s.wrapping_sub(made_s);
        code.len() == CODE_BYTES
            && age <= COOKIE_LIFETIME_S
            && self.code(made_s, from, hello).verify_truncated_left(code).is_ok()
    }

    fn code(&self, made_s: u32, from: SocketAddr, hello: &Hello<'_>) -> Hmac<Sha256> {
        // An IPv4 address counts as itself, however the socket names it.
        let address = match from.ip().to_canonical() {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            std::net::IpAddr::V6(v6) => v6,
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(&address.octets());
        mac.update(&from.port().to_be_bytes());
        mac.update(&made_s.to_be_bytes());
        mac.update(&hello.parameters.encode());
        mac.update(hello.credential);
        mac
    }
}

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Parameters;
    use super::*;

    const PARAMETERS: Parameters = Parameters {
        attempt: 1,
        max_datagram: 1200,
        receive_bytes: 65_536,
        receive_messages: 32,
    };

    fn from(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn hello<'a>(cookie: &'a [u8]) -> Hello<'a> {
        Hello {
            parameters: PARAMETERS,
            cookie,
            credential: b"who",
        }
    }

    #[test]
    fn a_cookie_is_good_for_its_hello_its_address_and_its_time() {
        let cookies = Cookies::new([1; 32]);
        let here = from("192.0.2.1:5000");
        let cookie = cookies.mint(1_000, here, &hello(b""));
        let good = hello(&cookie);
        for (now_s, ok) in [
            (999, false),
            (1_000, true),
            (1_030, true),
            (1_031, false),
            (0, false),
        ] {
            assert_eq!(cookies.check(now_s, here, &good), ok, "{now_s}");
        }
        assert!(cookies.check(1_000, from("[::ffff:192.0.2.1]:5000"), &good));
        for elsewhere in ["192.0.2.2:5000", "192.0.2.1:5001", "[2001:db8::1]:5000"] {
            assert!(!cookies.check(1_000, from(elsewhere), &good), "{elsewhere}");
        }
        let other_attempt = Hello {
            parameters: Parameters {
                attempt: 2,
                ..PARAMETERS
            },
            ..good
        };
        assert!(!cookies.check(1_000, here, &other_attempt));
        let other_device = Hello {
            credential: b"whom",
            ..good
        };
        assert!(!cookies.check(1_000, here, &other_device));
        assert!(!Cookies::new([2; 32]).check(1_000, here, &good));
    }

    #[test]
    fn a_cookie_has_one_form() {
        let cookies = Cookies::new([1; 32]);
        let here = from("[2001:db8::1]:5000");
        let cookie = cookies.mint(1_000, here, &hello(b""));
        for length in 0..COOKIE_BYTES {
            assert!(!cookies.check(1_000, here, &hello(&cookie[..length])), "{length}");
        }
        let longer = [&cookie[..], &[0]].concat();
        assert!(!cookies.check(1_000, here, &hello(&longer)));
        for bit in 0..COOKIE_BYTES * 8 {
            let mut changed = cookie;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!cookies.check(1_000, here, &hello(&changed)), "{bit}");
        }
    }

    #[test]
    fn the_clock_may_wrap() {
        let cookies = Cookies::new([1; 32]);
        let here = from("192.0.2.1:5000");
        let cookie = cookies.mint(u32::MAX - 1, here, &hello(b""));
        assert!(cookies.check(28, here, &hello(&cookie)));
        assert!(!cookies.check(29, here, &hello(&cookie)));
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", Cookies::new([1; 32])), "Cookies(..)");
    }
}
