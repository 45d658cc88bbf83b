//! Reading a binary message: a varint length, a protobuf header of that length, then the payload's raw bytes.

use bytes::{Buf, Bytes};
use prost::Message;

use super::{Field, HeaderError, MAX_BINARY_HEADER_BYTES, bounded, required};

/// The header of a binary message, in either direction. An empty string or a zero means absent, as in protobuf.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct EventHeader {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub id: String,
    /// Requests only.
    #[prost(string, tag = "4")]
    pub retry_key: String,
    /// Replies only: the request's id.
    #[prost(string, tag = "5")]
    pub reply_to: String,
    /// Replies only: the request's number on its connection, from 1.
    #[prost(uint64, tag = "6")]
    pub seq: u64,
}

/// A binary message, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinaryEvent {
    pub header: EventHeader,
    /// Shares the message's buffer.
    pub payload: Bytes,
}

/// Takes a request apart and checks its header. Unknown fields are skipped.
pub fn parse_binary(message: &Bytes) -> Result<BinaryEvent, HeaderError> {
    let mut rest = message.clone();
    let length = prost::decode_length_delimiter(&mut rest).map_err(|_| HeaderError::BadBinaryHeader)?;
    if length > MAX_BINARY_HEADER_BYTES || length > rest.remaining() {
        return Err(HeaderError::BadBinaryHeader);
    }
    let header = EventHeader::decode(rest.split_to(length)).map_err(|_| HeaderError::BadBinaryHeader)?;
    required(Field::Namespace, &header.namespace)?;
    required(Field::Name, &header.name)?;
    bounded(Field::Id, &header.id)?;
    bounded(Field::RetryKey, &header.retry_key)?;
    Ok(BinaryEvent {
        header,
        payload: rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> EventHeader {
        EventHeader {
            namespace: "N".into(),
            name: "n".into(),
            id: "1".into(),
            ..EventHeader::default()
        }
    }

    fn message(header: &EventHeader, payload: &[u8]) -> Bytes {
        let mut message = header.encode_length_delimited_to_vec();
        message.extend_from_slice(payload);
        message.into()
    }

    #[test]
    fn header_and_payload_are_told_apart() {
        let event = parse_binary(&message(&header(), b"\0\xffraw")).unwrap();
        assert_eq!(event.header, header());
        assert_eq!(event.payload, &b"\0\xffraw"[..]);
        assert!(parse_binary(&message(&header(), b"")).unwrap().payload.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bad = |bytes: &'static [u8]| parse_binary(&Bytes::from_static(bytes)).unwrap_err();
        for bytes in [
            &b""[..],
            b"\x05\x0a",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x02\x0a\x09",
        ] {
            assert_eq!(bad(bytes), HeaderError::BadBinaryHeader, "{bytes:?}");
        }
        assert_eq!(bad(b"\0payload"), HeaderError::Missing(Field::Namespace));
        let long = EventHeader {
            id: "x".repeat(129),
            ..header()
        };
        assert_eq!(
            parse_binary(&message(&long, b"")),
            Err(HeaderError::TooLong(Field::Id))
        );
        let huge = EventHeader {
            reply_to: "x".repeat(2000),
            ..header()
        };
        assert_eq!(
            parse_binary(&message(&huge, b"")),
            Err(HeaderError::BadBinaryHeader)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_binary(&bytes.into());
        }
    }
}
