//! What is encrypted in DATA: the protobuf message of the specification.

/// One packet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Packet {
    #[prost(message, optional, tag = "1")]
    pub ack: Option<Acknowledgement>,
    #[prost(message, repeated, tag = "2")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "3")]
    pub credit: Option<Credit>,
    #[prost(fixed64, optional, tag = "4")]
    pub path_challenge: Option<u64>,
    #[prost(fixed64, optional, tag = "5")]
    pub path_response: Option<u64>,
    #[prost(bool, tag = "6")]
    pub ping: bool,
    #[prost(message, optional, tag = "7")]
    pub close: Option<Close>,
    #[prost(bytes = "vec", tag = "8")]
    pub reset_token: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    pub padding: Vec<u8>,
}

/// Which packets were accepted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Acknowledgement {
    #[prost(uint64, tag = "1")]
    pub largest: u64,
    /// The run that ends with `largest`, less 1; then in turn the gap below it and the run below that, each less 1.
    #[prost(uint32, repeated, tag = "2")]
    pub ranges: Vec<u32>,
    #[prost(uint32, tag = "3")]
    pub delay_us: u32,
}

/// A part of a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Piece {
    #[prost(uint64, tag = "1")]
    pub message: u64,
    /// 0 text, 1 binary.
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    /// Of the whole message; 0 when this is all of it.
    #[prost(uint32, tag = "3")]
    pub length: u32,
    #[prost(uint32, tag = "4")]
    pub offset: u32,
    #[prost(bytes = "vec", tag = "5")]
    pub data: Vec<u8>,
}

/// How much may be sent over the whole connection.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Credit {
    #[prost(uint64, tag = "1")]
    pub messages: u64,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Close {
    #[prost(uint32, tag = "1")]
    pub code: u32,
    #[prost(string, tag = "2")]
    pub reason: String,
    /// How many messages the closer has sent in all.
    #[prost(uint64, tag = "3")]
    pub messages: u64,
}

impl Packet {
    pub fn of_pieces(pieces: Vec<Piece>) -> Self {
        Self {
            pieces,
            ..Self::default()
        }
    }

    /// One that must be acknowledged and says nothing.
    pub fn ping() -> Self {
        Self {
            ping: true,
            ..Self::default()
        }
    }
}

impl Piece {
    /// The whole of a text message.
    pub fn text(message: u64, text: &str) -> Self {
        Self {
            message,
            data: text.as_bytes().to_vec(),
            ..Self::default()
        }
    }

    /// A part of a text message of `length` bytes.
    pub fn part(message: u64, length: usize, offset: usize, data: &[u8]) -> Self {
        Self {
            message,
            kind: 0,
            length: length as u32,
            offset: offset as u32,
            data: data.to_vec(),
        }
    }
}
