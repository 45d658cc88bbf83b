//! What requests carry, and what a reply's body says about where it came from. Bodies are made from (seed, device, number),
//! so that the right one can be made again when the reply comes, and none need be kept. Pure.

#![deny(clippy::disallowed_methods)]

use std::fmt::Write;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

/// Makes and recognises bodies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payloads {
    seed: u64,
    bytes: usize,
}

/// A request, in the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId {
    pub(crate) device: u32,
    /// Counts the device's requests from 0.
    pub(crate) number: u64,
}

/// What a reply's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Right,
    /// Not what this request sent, nor any other device.
    Wrong,
    /// Another device's.
    Crossed,
}

impl RequestId {
    /// Half the requests travel as binary messages, since frontends and backends read those another way.
    pub(crate) fn is_binary(self) -> bool {
        self.number % 2 == 1
    }
}

impl Payloads {
    /// Bodies of about `bytes`; the least is what names the request.
    pub(crate) const fn new(seed: u64, bytes: usize) -> Self {
        Self { seed, bytes }
    }

    /// JSON, of which the padding differs from request to request.
    pub(crate) fn make(&self, id: RequestId) -> String {
        let RequestId { device, number } = id;
        let mut text = String::with_capacity(self.bytes + 64);
        // Writing to a String cannot fail.
        let _ = write!(text, "{{\"device\":{device},\"number\":{number},\"pad\":\"");
        let mix = (u64::from(device) << 40 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = SmallRng::seed_from_u64(self.seed ^ mix);
        while text.len() + 2 < self.bytes {
            let letters = rng.random::<u64>();
            let room = self.bytes - text.len() - 2;
            for shift in 0..room.min(LETTERS_PER_WORD) {
                text.push(char::from(b'a' + (letters >> (4 * shift) & 0xf) as u8));
            }
        }
        text.push_str("\"}");
        text
    }

    pub(crate) fn judge(&self, id: RequestId, body: &[u8]) -> Body {
        if body == self.make(id).as_bytes() {
            return Body::Right;
        }
        match serde_json::from_slice::<Named>(body) {
            Ok(named) if named.device != id.device => Body::Crossed,
            _ => Body::Wrong,
        }
    }
}

#[derive(Deserialize)]
struct Named {
    device: u32,
}

const LETTERS_PER_WORD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId {
        device: 3,
        number: 41,
    };

    #[test]
    fn a_body_is_its_requests_alone() {
        let payloads = Payloads::new(1, 200);
        let other = |device, number| payloads.make(RequestId { device, number });
        let own = payloads.make(ID);
        assert_eq!(own.len(), 200);
        assert!(serde_json::from_str::<serde_json::Value>(&own).is_ok());
        assert_eq!(payloads.judge(ID, own.as_bytes()), Body::Right);
        assert_eq!(payloads.judge(ID, other(3, 40).as_bytes()), Body::Wrong);
        assert_eq!(payloads.judge(ID, other(4, 41).as_bytes()), Body::Crossed);
        assert_eq!(payloads.judge(ID, &own.as_bytes()[..199]), Body::Wrong);
        assert_eq!(payloads.judge(ID, b""), Body::Wrong);
        let flipped = own.replace("\"}", "!}");
        assert_eq!(payloads.judge(ID, flipped.as_bytes()), Body::Wrong);
    }

    #[test]
    fn sizes_are_kept_down_to_the_least() {
        for bytes in [0, 10, 60, 61, 1000] {
            let body = Payloads::new(1, bytes).make(ID);
            assert!(
                body.len() == bytes || (bytes < 60 && body.len() < 60),
                "{bytes}: {}",
                body.len()
            );
        }
    }
}
