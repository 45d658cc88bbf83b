//! What a socket did not take.

use std::sync::Arc;

use super::budget::{Budget, Charge, OverBudget};

/// Bytes that wait for the socket to become writable. Empty, it is one null pointer.
///
/// The bytes are already encrypted and numbered: none may be left out. Where they do not fit, the connection is over.
#[derive(Debug, Default)]
pub struct Outbox {
    pending: Option<Box<Pending>>,
}

#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
    charge: Charge,
}

/// What bounds an outbox.
#[derive(Debug, Clone)]
pub struct OutboxLimits {
    /// Most bytes that wait for one socket.
    pub connection_bytes: usize,
    /// Most bytes that wait for all sockets of the shard.
    pub budget: Arc<Budget>,
}

/// The bytes do not fit: the peer does not read, or too many do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutboxFull {
    #[error("the peer has too many bytes to read")]
    Connection,
    #[error(transparent)]
    Shard(#[from] OverBudget),
}

impl Outbox {
    /// Appends bytes that the socket did not take.
    ///
    /// # Errors
    /// They do not fit; nothing was appended, and the connection must be closed.
    pub fn push(&mut self, bytes: &[u8], limits: &OutboxLimits) -> Result<(), OutboxFull> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.len() + bytes.len() > limits.connection_bytes {
            return Err(OutboxFull::Connection);
        }
        let pending = match &mut self.pending {
            Some(pending) => pending,
            empty => {
                let charge = Charge::new(&limits.budget, bytes.len() + size_of::<Pending>())?;
                let bytes = Vec::with_capacity(bytes.len());
                empty.insert(Box::new(Pending {
                    bytes,
                    written: 0,
                    charge,
                }))
            }
        };
        pending.append(bytes)?;
        Ok(())
    }

    /// What to write next; empty if nothing waits.
    pub fn pending(&self) -> &[u8] {
        self.pending
            .as_ref()
            .map_or(&[], |pending| &pending.bytes[pending.written..])
    }

    /// The socket took the first `n` bytes of [`pending`](Self::pending).
    pub fn advance(&mut self, n: usize) {
        let Some(pending) = &mut self.pending else { return };
        pending.written = (pending.written + n).min(pending.bytes.len());
        if pending.written == pending.bytes.len() {
            self.pending = None;
        }
    }

    pub fn len(&self) -> usize {
        self.pending().len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_none()
    }
}

impl Pending {
    /// Moves what is left to the front before it asks for more memory.
    fn append(&mut self, bytes: &[u8]) -> Result<(), OverBudget> {
        if self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.max(self.bytes.capacity() * 2);
            self.charge.resize(size_of::<Self>() + capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(connection_bytes: usize, shard: usize) -> OutboxLimits {
        OutboxLimits {
            connection_bytes,
            budget: Budget::new(shard),
        }
    }

    #[test]
    fn both_bounds_hold_and_leave_it_as_it_was() {
        let bounds = limits(10, 1000);
        let mut outbox = Outbox::default();
        outbox.push(&[1; 10], &bounds).unwrap();
        assert_eq!(outbox.push(&[2], &bounds), Err(OutboxFull::Connection));
        assert_eq!(outbox.pending(), [1; 10]);
        outbox.advance(10);
        assert!(outbox.is_empty());
        assert_eq!(bounds.budget.used(), 0);
        let tight = limits(10_000, 500);
        assert_eq!(outbox.push(&[0; 500], &tight), Err(OutboxFull::Shard(OverBudget)));
        assert!(outbox.is_empty());
        assert_eq!(size_of::<Outbox>(), 8);
    }

    proptest! {
        #[test]
        fn every_byte_leaves_in_order(steps in prop::collection::vec((0usize..50, 0usize..50), 1..60)) {
            let bounds = limits(usize::MAX / 2, usize::MAX);
            let (mut outbox, mut next, mut seen) = (Outbox::default(), 0u32, Vec::new());
            for (push, take) in steps {
                let bytes: Vec<u8> = (0..push).map(|_| { next += 1; next as u8 }).collect();
                outbox.push(&bytes, &bounds).unwrap();
                let take = take.min(outbox.len());
                seen.extend_from_slice(&outbox.pending()[..take]);
                outbox.advance(take);
            }
            seen.extend_from_slice(outbox.pending());
            prop_assert_eq!(seen, (1..=next).map(|n| n as u8).collect::<Vec<_>>());
        }
    }
}
