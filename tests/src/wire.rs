//! The device protocol's binary form and bare WebSocket frames, written down a second time from the specification so that
//! a mistake in the gateway's own codec cannot hide itself.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The protobuf header of a binary message: 1 namespace, 2 name, 3 id, 4 retry_key, 5 reply_to, 6 seq.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BinaryHeader {
    pub namespace: String,
    pub name: String,
    pub id: String,
    pub retry_key: String,
    pub reply_to: String,
    pub seq: u64,
}

impl BinaryHeader {
    /// Length, header, payload. Empty fields are left out, as proto3 has it.
    pub fn encode(&self, payload: &[u8]) -> Vec<u8> {
        let mut header = Vec::new();
        let fields = [
            &self.namespace,
            &self.name,
            &self.id,
            &self.retry_key,
            &self.reply_to,
        ];
        for (number, text) in (1u64..).zip(fields) {
            if !text.is_empty() {
                put_varint(&mut header, number << 3 | 2);
                put_varint(&mut header, text.len() as u64);
                header.extend_from_slice(text.as_bytes());
            }
        }
        if self.seq != 0 {
            put_varint(&mut header, 6 << 3);
            put_varint(&mut header, self.seq);
        }
        let mut message = Vec::with_capacity(header.len() + payload.len() + 2);
        put_varint(&mut message, header.len() as u64);
        message.extend_from_slice(&header);
        message.extend_from_slice(payload);
        message
    }

    /// Header and payload; `None` when the message breaks the format. Unknown fields are skipped.
    pub fn decode(message: &Bytes) -> Option<(Self, Bytes)> {
        let mut rest: &[u8] = message;
        let length = usize::try_from(take_varint(&mut rest)?).ok()?;
        let (mut header, payload) = rest.split_at_checked(length)?;
        let payload = message.slice_ref(payload);
        let mut decoded = Self::default();
        while !header.is_empty() {
            let key = take_varint(&mut header)?;
            match (key >> 3, key & 7) {
                (6, 0) => decoded.seq = take_varint(&mut header)?,
                (_, 0) => drop(take_varint(&mut header)?),
                (number, 2) => {
                    let text = take_text(&mut header)?;
                    match number {
                        1 => decoded.namespace = text,
                        2 => decoded.name = text,
                        3 => decoded.id = text,
                        4 => decoded.retry_key = text,
                        5 => decoded.reply_to = text,
                        _ => {}
                    }
                }
                _ => return None,
            }
        }
        Some((decoded, payload))
    }
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_varint(from)?).ok()?;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// One frame as it came from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

impl Frame {
    /// The code of a close frame, 1005 when it has none.
    pub fn close_code(&self) -> Option<u16> {
        match (self.opcode, self.payload.as_slice()) {
            (CLOSE, [high, low, ..]) => Some(u16::from_be_bytes([*high, *low])),
            (CLOSE, _) => Some(1005),
            _ => None,
        }
    }
}

/// Reads the next frame of a server; `None` at the end of the stream. Panics on a masked frame: servers must not mask.
pub async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 2];
    from.read_exact(&mut head).await.ok()?;
    assert_eq!(
        head[1] & 0x80,
        0,
        "a server's frame was masked (RFC 6455 section 5.1)"
    );
    let length = match head[1] {
        126 => u64::from(from.read_u16().await.ok()?),
        127 => from.read_u64().await.ok()?,
        short => u64::from(short),
    };
    let mut payload = vec![0; usize::try_from(length).ok()?];
    from.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        fin: head[0] & 0x80 != 0,
        opcode: head[0] & 0x0f,
        payload,
    })
}

/// Writes one frame with any first byte (FIN, reserved bits, opcode), masked unless told otherwise.
pub async fn write_frame(to: &mut (impl AsyncWrite + Unpin), first: u8, masked: bool, payload: &[u8]) {
    let flag = if masked { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(flag | length as u8),
        length @ 126..=0xffff => {
            frame.push(flag | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(flag | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask: [u8; 4] = if masked { rand::random() } else { [0; 4] };
    if masked {
        frame.extend_from_slice(&mask);
    }
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    // A server that already refused may have closed: what the test then reads tells.
    to.write_all(&frame).await.ok();
    to.flush().await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_headers_round_trip_and_break_cleanly() {
        let header = BinaryHeader {
            namespace: "Demo".into(),
            name: "Echo.Reply".into(),
            id: "r-300".into(),
            retry_key: String::new(),
            reply_to: "x".repeat(200),
            seq: 300,
        };
        let message = Bytes::from(header.encode(b"\0raw"));
        let (decoded, payload) = BinaryHeader::decode(&message).unwrap();
        assert_eq!((decoded, payload.as_ref()), (header, &b"\0raw"[..]));
        for end in 0..message.len() - payload.len() {
            assert_eq!(BinaryHeader::decode(&message.slice(..end)), None);
        }
    }

    #[tokio::test]
    async fn frames_of_each_length_form_round_trip() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let (mut near, mut far) = tokio::io::duplex(100_000);
            let payload = vec![7; length];
            write_frame(&mut near, 0x82, false, &payload).await;
            let frame = read_frame(&mut far).await.unwrap();
            assert_eq!(
                frame,
                Frame {
                    fin: true,
                    opcode: BINARY,
                    payload
                }
            );
        }
    }
}
