//! What a DATA datagram holds, as bytes: the `Packet` of device.proto, written and read by hand.
//!
//! Reading borrows and allocates nothing. It is a little stricter than generated code: groups, numbers over their field's size,
//! a sub-message that comes twice and unpacked ranges are refused. What is read here is read the same there, and whatever a
//! generated encoder writes within the bounds is read here.

mod read;
mod write;

pub use read::{AckRanges, Acknowledgement, Close, Packet, PacketError, Piece, Pieces};
pub(super) use write::{
    Ranges, cut_to_room, piece_len, push_ack, push_challenge, push_close, push_credit, push_padding,
    push_piece, push_ping, push_reset_token, push_response,
};

/// Pieces in one packet, at most: what a receiver does for one datagram.
pub const MAX_PIECES: usize = 64;
/// Runs of packet numbers in an acknowledgement, at most.
pub const MAX_ACK_RUNS: usize = 32;

/// The generated types: the reference.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod generated {
    include!(concat!(env!("OUT_DIR"), "/holdfast.device.v1.rs"));
}

/// Field numbers and wire types, joined as they stand on the wire.
mod tag {
    pub(super) const VARINT: u32 = 0;
    pub(super) const FIXED64: u32 = 1;
    pub(super) const BYTES: u32 = 2;
    pub(super) const FIXED32: u32 = 5;

    pub(super) const ACK: u32 = 1 << 3 | BYTES;
    pub(super) const PIECE: u32 = 2 << 3 | BYTES;
    pub(super) const CREDIT: u32 = 3 << 3 | BYTES;
    pub(super) const CHALLENGE: u32 = 4 << 3 | FIXED64;
    pub(super) const RESPONSE: u32 = 5 << 3 | FIXED64;
    pub(super) const PING: u32 = 6 << 3 | VARINT;
    pub(super) const CLOSE: u32 = 7 << 3 | BYTES;
    pub(super) const RESET_TOKEN: u32 = 8 << 3 | BYTES;
    pub(super) const PADDING: u32 = 9 << 3 | BYTES;

    /// Of the sub-messages: the first to fifth field.
    pub(super) const fn varint(field: u32) -> u32 {
        field << 3 | VARINT
    }

    pub(super) const fn bytes(field: u32) -> u32 {
        field << 3 | BYTES
    }
}

#[cfg(test)]
mod tests;
