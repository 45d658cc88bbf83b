//! A connection's input that waits between turns.

use super::budget::Charge;
use super::error::ChannelError;
use super::scratch::{Scratch, Window};

/// Ciphertext that is not decoded, then plaintext that is the beginning of something; in memory exactly its size, and
/// charged to the shard.
#[derive(Debug)]
pub struct Parked {
    bytes: Box<[u8]>,
    cipher: usize,
    /// Held for its `Drop`.
    _charge: Charge,
}

impl Parked {
    /// Copies what is left of the input out of the scratch, if anything is. Whoever `is_open` has been let in, and does not share
    /// its room with strangers.
    pub(super) fn take(scratch: &mut Scratch, is_open: bool) -> Result<Option<Box<Self>>, ChannelError> {
        let Scratch {
            cipher,
            plain,
            limits,
            strangers,
            ..
        } = scratch;
        let size = cipher.len() + plain.len();
        if size == 0 {
            return Ok(None);
        }
        let budget = if is_open { &limits.budget } else { strangers };
        let charge = Charge::new(budget, size + size_of::<Self>())?;
        let bytes = [&*cipher.bytes(), &*plain.bytes()].concat().into_boxed_slice();
        Ok(Some(Box::new(Self {
            bytes,
            cipher: cipher.len(),
            _charge: charge,
        })))
    }

    pub(super) fn cipher(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.cipher]
    }

    pub(super) fn plain(&self) -> &[u8] {
        &self.bytes[self.cipher..]
    }
}

/// The ciphertext of a connection that is not decoded, wherever it is.
pub(super) fn undecoded<'a>(
    parked: &'a mut Option<Box<Parked>>,
    window: &'a mut Window,
    in_turn: bool,
) -> &'a mut [u8] {
    match parked {
        Some(parked) => parked.cipher(),
        None if in_turn => window.bytes(),
        None => &mut [],
    }
}
