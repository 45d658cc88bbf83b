//! The buffers that all connections of a shard share, one connection at a time.
//!
//! ```text
//! socket ─► read_target │ cipher ─► plain ─► events          send, ping, close ─► unsealed ─► outbound ─► socket
//!                       └─ between turns what is left lives with its connection (park)
//! ```
//!
//! A connection's bytes must never reach another one. Input belongs to the connection whose turn it is; output is claimed
//! by the first connection that queues some, and refused to any other until the driver has taken it.

use std::sync::Arc;

use holdfast_proto::secure::MAX_RECORD_BYTES as MAX_RECORD;

use super::budget::{Budget, Budgets};
use super::error::ChannelError;
use super::frame::ReadLimits;

/// What one read from a socket takes at most.
pub const READ_BYTES: usize = 64 * 1024;
/// The longest TLS record that rustls takes: header, plaintext, and the expansion that TLS 1.2 allows.
pub const MAX_RECORD_BYTES: usize = 5 + 16 * 1024 + 2 * 1024;
/// Default of [`ScratchLimits::max_message_bytes`].
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Default of [`ScratchLimits::budget_bytes`].
pub const DEFAULT_BUDGET_BYTES: usize = 64 * 1024 * 1024;

/// An output buffer that grew beyond this is given back when it is empty again.
const KEPT_BYTES: usize = 256 * 1024;

/// What a shard's connections may use.
#[derive(Debug, Clone, Copy)]
pub struct ScratchLimits {
    /// Longest message from a device, in bytes.
    pub max_message_bytes: usize,
    /// Bytes of input that all connections of the shard may have waiting: messages that are still arriving, and what
    /// was read but could not be decoded yet. Those that have not been let in have a quarter of it and no more, so that no number
    /// of strangers takes what sessions need.
    pub budget_bytes: usize,
}

impl Default for ScratchLimits {
    fn default() -> Self {
        Self {
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            budget_bytes: DEFAULT_BUDGET_BYTES,
        }
    }
}

/// One shard's buffers: about 150 KiB, and nothing per connection.
#[derive(Debug)]
pub struct Scratch {
    pub(super) cipher: Window,
    pub(super) plain: Plain,
    /// What to encrypt for the connection in `owner`.
    pub(super) unsealed: Vec<u8>,
    pub(super) outbound: Vec<u8>,
    /// Pongs that answer this turn's pings, as frames. They are no longer than what came.
    pub(super) pongs: Vec<u8>,
    pub(super) limits: ReadLimits,
    /// The same, for messages that hold one record each: longer ones are no records.
    pub(super) record_limits: ReadLimits,
    /// For the input of connections that have not been let in.
    pub(super) strangers: Arc<Budget>,
    owner: Token,
    last_token: usize,
}

/// Tells connections apart while they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub(super) usize);

impl Scratch {
    pub fn new(limits: ScratchLimits) -> Self {
        Self::within(limits.max_message_bytes, &Budgets::alone(limits.budget_bytes, 0))
    }

    /// Like [`new`](Self::new), for budgets that others look at too.
    pub fn within(max_message_bytes: usize, budgets: &Budgets) -> Self {
        Self {
            cipher: Window::new(),
            plain: Plain::default(),
            unsealed: Vec::new(),
            outbound: Vec::new(),
            pongs: Vec::new(),
            limits: ReadLimits {
                max_message_bytes,
                max_frames_bytes: max_message_bytes,
                budget: Arc::clone(&budgets.input),
            },
            record_limits: ReadLimits {
                max_message_bytes,
                max_frames_bytes: MAX_RECORD,
                budget: Arc::clone(&budgets.input),
            },
            strangers: Arc::clone(&budgets.strangers.0),
            owner: Token(0),
            last_token: 0,
        }
    }

    /// Where to read a socket's bytes to, before `handle_input`. Never empty.
    ///
    /// The connection before must have been parked or dropped: whatever it left behind is forgotten here.
    pub fn read_target(&mut self) -> &mut [u8] {
        debug_assert!(
            self.cipher.is_empty() && self.plain.is_empty(),
            "the connection before was not parked"
        );
        self.reset_input();
        self.cipher.read_target()
    }

    /// What to write to the socket of the connection that queued it.
    pub fn outbound(&self) -> &[u8] {
        &self.outbound
    }

    /// Bytes queued for the socket, encrypted or not: a driver that sends much in one turn writes in between.
    pub fn queued_bytes(&self) -> usize {
        self.unsealed.len() + self.outbound.len()
    }

    /// The driver has written [`outbound`](Self::outbound), or keeps what the socket did not take.
    pub fn clear_outbound(&mut self) {
        self.outbound.clear();
        for buffer in [&mut self.outbound, &mut self.unsealed] {
            if buffer.is_empty() && buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    /// Forgets everything of a connection that is dropped in the middle of its turn.
    pub fn reset(&mut self) {
        self.reset_input();
        self.unsealed.clear();
        self.clear_outbound();
    }

    /// What waiting input is charged to.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.limits.budget
    }

    pub(super) fn reset_input(&mut self) {
        self.cipher.clear();
        self.plain.clear();
        self.pongs.clear();
    }

    /// A token for a connection whose own address cannot be one. They are odd, and addresses are even.
    pub(super) fn next_token(&mut self) -> Token {
        self.last_token = self.last_token.wrapping_add(2);
        Token(self.last_token | 1)
    }

    /// Makes `token` the owner of the output.
    pub(super) fn claim(&mut self, token: Token) -> Result<(), ChannelError> {
        if self.owner != token && self.queued_bytes() > 0 {
            return Err(ChannelError::State(
                "another connection's output has not been taken",
            ));
        }
        self.owner = token;
        Ok(())
    }
}

/// Ciphertext, with room in front for what a connection kept from its last turn.
#[derive(Debug)]
pub(super) struct Window {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Window {
    /// Room for what [`prepend`](Self::prepend) puts before the bytes just read.
    pub(super) const HEADROOM: usize = MAX_RECORD_BYTES;
    const CAPACITY: usize = Self::HEADROOM + READ_BYTES;

    fn new() -> Self {
        Self {
            bytes: vec![0; Self::CAPACITY].into(),
            start: 0,
            end: 0,
        }
    }

    fn read_target(&mut self) -> &mut [u8] {
        &mut self.bytes[Self::HEADROOM..]
    }

    /// The first `n` bytes of the read target were filled.
    pub(super) fn filled(&mut self, n: usize) {
        debug_assert!(n <= READ_BYTES, "more bytes than the read target has");
        self.start = Self::HEADROOM;
        self.end = (Self::HEADROOM + n).min(Self::CAPACITY);
    }

    /// Puts `bytes` before the bytes just read; `false` if there is no room.
    pub(super) fn prepend(&mut self, bytes: &[u8]) -> bool {
        let Some(start) = self.start.checked_sub(bytes.len()) else {
            return false;
        };
        self.bytes[start..self.start].copy_from_slice(bytes);
        self.start = start;
        true
    }

    /// Takes back what an earlier window held.
    pub(super) fn restore(&mut self, bytes: &[u8]) {
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        (self.start, self.end) = (0, bytes.len());
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

/// Decrypted bytes, taken from the front.
#[derive(Debug, Default)]
pub(super) struct Plain {
    bytes: Vec<u8>,
    start: usize,
}

impl Plain {
    /// Appends; what was consumed makes room first.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_bytes_come_before_the_ones_just_read() {
        let mut window = Window::new();
        window.read_target()[..3].copy_from_slice(b"def");
        window.filled(3);
        assert!(window.prepend(b"abc"));
        assert_eq!(window.bytes(), b"abcdef");
        window.consume(4);
        assert_eq!(window.bytes(), b"ef");
        assert!(!window.prepend(&[0; MAX_RECORD_BYTES + 2]));
        window.restore(&[7; Window::CAPACITY]);
        assert_eq!(window.len(), Window::CAPACITY);
    }

    #[test]
    fn output_belongs_to_one_connection_at_a_time() {
        let mut scratch = Scratch::new(ScratchLimits::default());
        scratch.claim(Token(1)).unwrap();
        scratch.claim(Token(2)).unwrap();
        scratch.unsealed.push(0);
        assert!(scratch.claim(Token(1)).is_err());
        scratch.claim(Token(2)).unwrap();
        scratch.reset();
        scratch.claim(Token(1)).unwrap();
    }

    #[test]
    fn a_large_burst_does_not_stay_allocated() {
        let mut scratch = Scratch::new(ScratchLimits::default());
        scratch.outbound.resize(KEPT_BYTES + 1, 0);
        scratch.clear_outbound();
        assert_eq!(scratch.outbound.capacity(), 0);
    }
}
