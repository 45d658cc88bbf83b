//! What stands in a control record: the WebSocket's ping, pong and close, where nobody else can see or make them.

/// Longest reason of a close, in bytes: as a WebSocket's (RFC 6455 section 5.5).
pub const MAX_REASON_BYTES: usize = 123;

const PING: u8 = 0;
const PONG: u8 = 1;
const CLOSE: u8 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlRecord {
    Ping,
    Pong,
    /// Nothing follows it in this direction. `code` is one that a close frame may carry (RFC 6455 section 7.4): 1000 to 1003,
    /// 1007 to 1014, or 3000 to 4999.
    Close {
        code: u16,
        reason: String,
    },
}

/// Data that is no control record: always the sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("a control record of an unknown kind, or of the wrong length")]
    Form,
    #[error("a close code that never travels")]
    Code,
    #[error("a close reason that is not UTF-8 or over {MAX_REASON_BYTES} bytes")]
    Reason,
}

impl ControlRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        out
    }

    /// Appends the record's data. A reason that is too long is cut at a character.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping => out.push(PING),
            Self::Pong => out.push(PONG),
            Self::Close { code, reason } => {
                out.push(CLOSE);
                out.extend_from_slice(&code.to_be_bytes());
                let end = reason.floor_char_boundary(MAX_REASON_BYTES);
                out.extend_from_slice(&reason.as_bytes()[..end]);
            }
        }
    }

    /// Takes what [`encode`](Self::encode) writes, and nothing else.
    pub fn decode(data: &[u8]) -> Result<Self, ControlError> {
        match data {
            [PING] => Ok(Self::Ping),
            [PONG] => Ok(Self::Pong),
            [CLOSE, high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !travels(code) {
                    return Err(ControlError::Code);
                }
                if reason.len() > MAX_REASON_BYTES {
                    return Err(ControlError::Reason);
                }
                let reason = std::str::from_utf8(reason).map_err(|_| ControlError::Reason)?;
                Ok(Self::Close {
                    code,
                    reason: reason.to_owned(),
                })
            }
            _ => Err(ControlError::Form),
        }
    }
}

/// 1004 to 1006 and 1015 are for programs to talk to themselves, and 1016 to 2999 are not defined.
fn travels(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(reason: &str) -> ControlRecord {
        ControlRecord::Close {
            code: 4000,
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn control_records_have_the_documented_form() {
        assert_eq!(ControlRecord::Ping.encode(), [0]);
        assert_eq!(ControlRecord::Pong.encode(), [1]);
        assert_eq!(close("bye").encode(), b"\x02\x0f\xa0bye");
        assert_eq!(close("").encode(), b"\x02\x0f\xa0");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for bad in [
            &b""[..],
            b"\0\0",
            b"\x01\x01",
            b"\x02",
            b"\x02\x03",
            b"\x03",
            b"\xff",
        ] {
            assert_eq!(ControlRecord::decode(bad), Err(ControlError::Form), "{bad:?}");
        }
        let longest = close(&"x".repeat(MAX_REASON_BYTES));
        assert_eq!(ControlRecord::decode(&longest.encode()), Ok(longest.clone()));
        let mut over = longest.encode();
        over.push(b'x');
        assert_eq!(ControlRecord::decode(&over), Err(ControlError::Reason));
        assert_eq!(
            ControlRecord::decode(b"\x02\x0f\xa0\xff"),
            Err(ControlError::Reason)
        );
    }

    #[test]
    fn only_codes_that_travel_are_taken() {
        let decode = |code: u16| {
            let reason = String::new();
            ControlRecord::decode(&ControlRecord::Close { code, reason }.encode())
        };
        for bad in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert_eq!(decode(bad), Err(ControlError::Code), "{bad}");
        }
        for good in [1000, 1003, 1007, 1014, 3000, 4999] {
            assert!(decode(good).is_ok(), "{good}");
        }
        for ours in crate::CloseCode::ALL {
            assert!(decode(ours as u16).is_ok(), "{ours:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let encoded = close(&"é".repeat(100)).encode();
        assert_eq!(ControlRecord::decode(&encoded), Ok(close(&"é".repeat(61))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_what_is_taken_has_one_form(mut data in proptest::collection::vec(any::<u8>(), 0..140), is_close: bool) {
            if is_close && !data.is_empty() {
                data[0] = CLOSE;
            }
            if let Ok(record) = ControlRecord::decode(&data) {
                prop_assert_eq!(record.encode(), data);
            }
        }

        #[test]
        fn closes_round_trip(code in prop_oneof![1000u16..=1003, 1007u16..=1014, 3000u16..=4999], reason in "\\PC{0,30}") {
            let record = ControlRecord::Close { code, reason };
            prop_assert_eq!(ControlRecord::decode(&record.encode()), Ok(record));
        }
    }
}
