//! The encryption of DATA datagrams: AES-256-GCM, the packet number as nonce, the header authenticated, a key that moves on, and a
//! window against replays.
//!
//! A [`Sealer`] and an [`Opener`] keep what must be kept and no more; the expanded key, some ten times as long as the key, is in an
//! [`Expanded`] that whoever handles several packets in a row keeps for as long.

mod window;

use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes256Gcm, Tag};

use self::window::Window;
use super::ConnectionId;
use super::packet::Ranges;
use crate::secure::{TrafficKey, expand, nonce, rekey};

/// First byte of a DATA datagram.
pub const DATA: u8 = 0x40;
/// Type, connection id and the lower half of the packet number.
pub const HEADER_BYTES: usize = 13;
/// What a DATA datagram has beside its plaintext.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Packets that a replay window has; older ones are taken for replayed.
pub const REPLAY_WINDOW: u64 = window::BITS;
/// After so many packets of a direction its key moves on, as a binary logarithm.
pub const REKEY_SHIFT: u32 = 20;

const TAG_BYTES: usize = 16;

/// Why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    /// Its number was accepted before, or is too old to tell.
    Duplicate,
    /// It does not authenticate.
    Forged,
}

/// A key ready for use, and which generation it is of. It is wiped when dropped.
#[derive(Default)]
pub(super) struct Expanded(Option<(u64, Aes256Gcm)>);

impl Expanded {
    /// The cipher of a generation; `key` gives its key if it is not this one.
    fn get(&mut self, generation: u64, key: impl FnOnce() -> Option<Aes256Gcm>) -> Option<&Aes256Gcm> {
        if self.0.as_ref().is_none_or(|(kept, _)| *kept != generation) {
            self.0 = Some((generation, key()?));
        }
        self.0.as_ref().map(|(_, cipher)| cipher)
    }
}

/// The sending half of one direction.
#[derive(Debug)]
pub(super) struct Sealer {
    key: TrafficKey,
    next: u64,
}

impl Sealer {
    pub(super) fn new(key: TrafficKey) -> Self {
        Self { key, next: 0 }
    }

    /// The number that the next packet will have.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Begins a datagram: appends its header.
    pub(super) fn begin(&self, cid: ConnectionId, out: &mut Vec<u8>) {
        out.push(DATA);
        out.extend_from_slice(&cid.0.to_be_bytes());
        out.extend_from_slice(&(self.next as u32).to_be_bytes());
    }

    /// Ends the datagram that began at `start`: encrypts what is behind its header, appends the tag, gives its number.
    pub(super) fn seal(&mut self, expanded: &mut Expanded, out: &mut Vec<u8>, start: usize) -> u64 {
        let number = self.next;
        let generation = number >> REKEY_SHIFT;
        let cipher = expanded
            .get(generation, || Some(expand(&self.key)))
            .expect("the sending key is always there");
        let (header, plain) = out[start..].split_at_mut(HEADER_BYTES);
        let tag = cipher
            .encrypt_in_place_detached(&nonce(number), header, plain)
            .expect("a datagram is below AES-GCM's limit");
        self.next += 1;
        if self.next >> REKEY_SHIFT != generation {
            self.key = rekey(cipher);
        }
        out.extend_from_slice(&tag);
        number
    }
}

/// The receiving half of one direction.
#[derive(Debug)]
pub(super) struct Opener {
    /// Of the generation of the highest accepted number.
    key: TrafficKey,
    window: Window,
}

impl Opener {
    pub(super) fn new(key: TrafficKey) -> Self {
        Self {
            key,
            window: Window::default(),
        }
    }

    /// The highest accepted number.
    pub(super) fn largest(&self) -> Option<u64> {
        self.window.largest()
    }

    /// Decrypts in place, and gives the packet's number and plaintext. Nothing has changed: [`accept`](Self::accept) does that.
    pub(super) fn open<'d>(
        &self,
        expanded: &mut Expanded,
        previous: Option<&TrafficKey>,
        datagram: &'d mut [u8],
    ) -> Result<(u64, &'d [u8]), OpenError> {
        let (header, rest) = datagram
            .split_first_chunk_mut::<HEADER_BYTES>()
            .ok_or(OpenError::Forged)?;
        let (sealed, tag) = rest
            .split_last_chunk_mut::<TAG_BYTES>()
            .ok_or(OpenError::Forged)?;
        let [.., a, b, c, d] = *header;
        let number = recover(u32::from_be_bytes([a, b, c, d]), self.window.next());
        if self.window.has(number) {
            return Err(OpenError::Duplicate);
        }
        let generation = number >> REKEY_SHIFT;
        let cipher = expanded
            .get(generation, || self.cipher(generation, previous))
            .ok_or(OpenError::Forged)?;
        cipher
            .decrypt_in_place_detached(&nonce(number), header, sealed, &Tag::from(*tag))
            .map_err(|_| OpenError::Forged)?;
        Ok((number, sealed))
    }

    /// The key of this generation, of the one before as long as it is kept, or of the one after.
    fn cipher(&self, generation: u64, previous: Option<&TrafficKey>) -> Option<Aes256Gcm> {
        let current = self.generation();
        if generation == current {
            Some(expand(&self.key))
        } else if generation == current + 1 {
            Some(expand(&rekey(&expand(&self.key))))
        } else if generation + 1 == current {
            previous.map(expand)
        } else {
            None
        }
    }

    fn generation(&self) -> u64 {
        self.window.largest().unwrap_or(0) >> REKEY_SHIFT
    }

    /// Notes that a packet which was opened is taken. Gives the key that was current until now if it moved on.
    pub(super) fn accept(&mut self, number: u64) -> Option<TrafficKey> {
        let before = self.generation();
        self.window.insert(number);
        (self.generation() != before).then(|| {
            let next = rekey(&expand(&self.key));
            std::mem::replace(&mut self.key, next)
        })
    }

    /// Whether packets of the previous generation may still come.
    pub(super) fn needs_previous(&self) -> bool {
        let oldest = self.window.next().saturating_sub(REPLAY_WINDOW);
        oldest >> REKEY_SHIFT != self.generation()
    }

    /// What to acknowledge: the highest accepted number and the runs below it.
    pub(super) fn acknowledge(&self) -> Option<(u64, Ranges)> {
        self.window.runs()
    }

    /// Whether a number below the highest is missing, near enough to matter for loss detection.
    pub(super) fn has_gap_before(&self, number: u64) -> bool {
        number > 0 && !self.window.has(number - 1)
    }
}

/// The number with this lower half that is nearest to the one expected next.
pub(super) fn recover(low: u32, expected: u64) -> u64 {
    const HALF: u64 = 1 << 31;
    const WHOLE: u64 = 1 << 32;
    let candidate = expected & !(WHOLE - 1) | u64::from(low);
    // Forwards if half is exactly between, as the expected one itself counts as ahead.
    if expected.saturating_sub(candidate) >= HALF && candidate < u64::MAX - WHOLE {
        candidate + WHOLE
    } else if candidate.saturating_sub(expected) > HALF && candidate >= WHOLE {
        candidate - WHOLE
    } else {
        candidate
    }
}

#[cfg(test)]
impl Sealer {
    /// One whose next packet has this number, under this key.
    pub(super) fn at(key: TrafficKey, next: u64) -> Self {
        Self { key, next }
    }
}

#[cfg(test)]
impl Opener {
    /// One that accepted all before this number, and has the key of the last of them.
    pub(super) fn at(key: TrafficKey, next: u64) -> Self {
        Self {
            key,
            window: Window::full(next),
        }
    }
}

#[cfg(test)]
mod tests;
