//! Writing a packet, field by field. Absent is what has its field's default, as generated code has it.

use super::{MAX_ACK_RUNS, tag};
use crate::udp::packet::{Close, Piece};
use crate::udp::{PeerCredit, ResetToken};

/// Runs of accepted packet numbers, as they stand in an acknowledgement. A replay window has 256 numbers, so that each fits a byte.
#[derive(Debug, Clone)]
pub(in crate::udp) struct Ranges {
    values: [u8; 2 * MAX_ACK_RUNS - 1],
    count: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            values: [0; 2 * MAX_ACK_RUNS - 1],
            count: 0,
        }
    }
}

impl Ranges {
    /// Adds a run of 1 to 256 accepted numbers; first how many of 1 to 256 lie between it and the one before. `false`: full.
    pub(in crate::udp) fn push(&mut self, gap: u32, run: u32) -> bool {
        let less_1 = |n: u32| n.saturating_sub(1).min(255) as u8;
        if self.count == 0 {
            self.values[0] = less_1(run);
            self.count = 1;
            return true;
        }
        let Some(place) = self.values.get_mut(self.count..self.count + 2) else {
            return false;
        };
        place.copy_from_slice(&[less_1(gap), less_1(run)]);
        self.count += 2;
        true
    }

    fn values(&self) -> &[u8] {
        &self.values[..self.count]
    }
}

pub(in crate::udp) fn push_ack(out: &mut Vec<u8>, largest: u64, delay_us: u32, ranges: &Ranges) {
    let packed: usize = ranges.values().iter().map(|v| varint_len((*v).into())).sum();
    let runs_len = if packed == 0 {
        0
    } else {
        1 + varint_len(packed as u64) + packed
    };
    push_varint(out, tag::ACK.into());
    let length = number_len(largest) + runs_len + number_len(delay_us.into());
    push_varint(out, length as u64);
    push_number(out, 1, largest);
    if packed > 0 {
        push_varint(out, tag::bytes(2).into());
        push_varint(out, packed as u64);
        ranges.values().iter().for_each(|v| push_varint(out, (*v).into()));
    }
    push_number(out, 3, delay_us.into());
}

/// What a piece costs in its packet, with its key and length.
pub(in crate::udp) fn piece_len(piece: &Piece<'_>) -> usize {
    let body = piece_body_len(piece);
    1 + varint_len(body as u64) + body
}

/// How much of a piece that is too long for `room` bytes fits there, given its other fields.
pub(in crate::udp) fn cut_to_room(piece: &Piece<'_>, room: usize) -> usize {
    // A length that is said takes no more bytes for the part than for the whole; both lengths of data take 2 bytes at most.
    let numbers = number_len(piece.message)
        + number_len(piece.kind as u64)
        + number_len(piece.length.into())
        + number_len(piece.offset.into());
    room.saturating_sub(1 + 2 + numbers + 1 + 2)
}

pub(in crate::udp) fn push_piece(out: &mut Vec<u8>, piece: &Piece<'_>) {
    push_varint(out, tag::PIECE.into());
    push_varint(out, piece_body_len(piece) as u64);
    push_number(out, 1, piece.message);
    push_number(out, 2, piece.kind as u64);
    push_number(out, 3, said_length(piece).into());
    push_number(out, 4, piece.offset.into());
    push_bytes(out, 5, piece.data);
}

/// A piece that is all of its message does not say a length.
fn said_length(piece: &Piece<'_>) -> u32 {
    match piece.data.len() == piece.length as usize {
        true => 0,
        false => piece.length,
    }
}

fn piece_body_len(piece: &Piece<'_>) -> usize {
    number_len(piece.message)
        + number_len(piece.kind as u64)
        + number_len(said_length(piece).into())
        + number_len(piece.offset.into())
        + bytes_len(piece.data)
}

pub(in crate::udp) fn push_credit(out: &mut Vec<u8>, credit: PeerCredit) {
    push_varint(out, tag::CREDIT.into());
    push_varint(
        out,
        (number_len(credit.messages) + number_len(credit.bytes)) as u64,
    );
    push_number(out, 1, credit.messages);
    push_number(out, 2, credit.bytes);
}

pub(in crate::udp) fn push_challenge(out: &mut Vec<u8>, token: u64) {
    push_varint(out, tag::CHALLENGE.into());
    out.extend_from_slice(&token.to_le_bytes());
}

pub(in crate::udp) fn push_response(out: &mut Vec<u8>, token: u64) {
    push_varint(out, tag::RESPONSE.into());
    out.extend_from_slice(&token.to_le_bytes());
}

pub(in crate::udp) fn push_ping(out: &mut Vec<u8>) {
    push_number(out, tag::PING >> 3, 1);
}

pub(in crate::udp) fn push_close(out: &mut Vec<u8>, close: &Close<'_>) {
    let length =
        number_len(close.code.into()) + bytes_len(close.reason.as_bytes()) + number_len(close.messages);
    push_varint(out, tag::CLOSE.into());
    push_varint(out, length as u64);
    push_number(out, 1, close.code.into());
    push_bytes(out, 2, close.reason.as_bytes());
    push_number(out, 3, close.messages);
}

pub(in crate::udp) fn push_reset_token(out: &mut Vec<u8>, token: &ResetToken) {
    push_bytes(out, tag::RESET_TOKEN >> 3, &token.0);
}

/// Zeros, so that `missing` bytes (or one more) come in addition.
pub(in crate::udp) fn push_padding(out: &mut Vec<u8>, missing: usize) {
    let zeros = missing.saturating_sub(2);
    push_varint(out, tag::PADDING.into());
    push_varint(out, zeros as u64);
    out.resize(out.len() + zeros, 0);
}

fn push_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        push_varint(out, tag::varint(field).into());
        push_varint(out, value);
    }
}

fn push_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        push_varint(out, tag::bytes(field).into());
        push_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// All fields here have keys of one byte.
fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

fn bytes_len(bytes: &[u8]) -> usize {
    match bytes.len() {
        0 => 0,
        length => 1 + varint_len(length as u64) + length,
    }
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}
