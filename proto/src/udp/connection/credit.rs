//! How much each end may send. What was used and what is left, so that 24 bytes per direction do for totals of 64 bits.

use crate::udp::PeerCredit;

/// What we may send.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendCredit {
    /// Messages of which something was sent.
    begun: u64,
    /// Bytes of messages that were sent, each counted once.
    bytes: u64,
    left_messages: u32,
    left_bytes: u32,
}

/// A credit of more than 2^32 ahead: nobody has such buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excessive;

impl SendCredit {
    pub(super) fn new(initial: PeerCredit) -> Self {
        Self {
            begun: 0,
            bytes: 0,
            left_messages: u32::try_from(initial.messages).unwrap_or(u32::MAX),
            left_bytes: u32::try_from(initial.bytes).unwrap_or(u32::MAX),
        }
    }

    /// The number of the next message to begin.
    pub(super) fn next_message(&self) -> u64 {
        self.begun
    }

    pub(super) fn has_message(&self) -> bool {
        self.left_messages > 0
    }

    pub(super) fn bytes(&self) -> u32 {
        self.left_bytes
    }

    pub(super) fn begin_message(&mut self) {
        self.begun += 1;
        self.left_messages -= 1;
    }

    pub(super) fn use_bytes(&mut self, bytes: u32) {
        self.bytes += u64::from(bytes);
        self.left_bytes -= bytes;
    }

    /// Takes what the peer says; an older, smaller credit changes nothing.
    pub(super) fn update(&mut self, total: PeerCredit) -> Result<(), Excessive> {
        let left = |total: u64, used: u64| u32::try_from(total.saturating_sub(used)).map_err(|_| Excessive);
        let messages = left(total.messages, self.begun)?;
        let bytes = left(total.bytes, self.bytes)?;
        self.left_messages = self.left_messages.max(messages);
        self.left_bytes = self.left_bytes.max(bytes);
        Ok(())
    }
}

/// What the peer may send.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReceiveCredit {
    /// Messages that the application took.
    taken: u64,
    /// Their bytes.
    taken_bytes: u64,
    /// Beyond what was taken, what the peer was told.
    granted_messages: u32,
    granted_bytes: u32,
}

impl ReceiveCredit {
    pub(super) fn new(initial: PeerCredit) -> Self {
        Self {
            taken: 0,
            taken_bytes: 0,
            granted_messages: u32::try_from(initial.messages).unwrap_or(u32::MAX),
            granted_bytes: u32::try_from(initial.bytes).unwrap_or(u32::MAX),
        }
    }

    /// The number of the next message that the application takes.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn granted_messages(&self) -> u32 {
        self.granted_messages
    }

    pub(super) fn granted_bytes(&self) -> u32 {
        self.granted_bytes
    }

    /// The application took a message of so many bytes, which had been granted.
    pub(super) fn take(&mut self, bytes: u32) {
        self.taken += 1;
        self.taken_bytes += u64::from(bytes);
        self.granted_messages = self.granted_messages.saturating_sub(1);
        self.granted_bytes = self.granted_bytes.saturating_sub(bytes);
    }

    /// Grants up to a window beyond what was taken, and `contiguous` bytes of the next message, but no more than `most` bytes in all.
    /// Whether it is so much more that the peer should be told: half a window of either.
    pub(super) fn grow(&mut self, window: (u16, u32), contiguous: u32, most: u32) -> bool {
        let messages = u32::from(window.0);
        let wanted = window.1.saturating_add(contiguous);
        let bytes = wanted.min(most);
        let due = |new: u32, old: u32, window: u32| new.saturating_sub(old) >= (window / 2).max(1);
        let is_short = bytes > self.granted_bytes && due(wanted, self.granted_bytes, window.1);
        let tell = is_short || due(messages, self.granted_messages, messages);
        if tell {
            self.grant(messages, bytes);
        }
        tell
    }

    fn grant(&mut self, messages: u32, bytes: u32) {
        self.granted_messages = self.granted_messages.max(messages);
        self.granted_bytes = self.granted_bytes.max(bytes);
    }

    /// What to tell the peer.
    pub(super) fn total(&self) -> PeerCredit {
        PeerCredit {
            messages: self.taken + u64::from(self.granted_messages),
            bytes: self.taken_bytes + u64::from(self.granted_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credit(messages: u64, bytes: u64) -> PeerCredit {
        PeerCredit { messages, bytes }
    }

    #[test]
    fn credit_to_send_is_used_up_and_only_grows() {
        let mut send = SendCredit::new(credit(2, 100));
        send.begin_message();
        send.use_bytes(60);
        assert_eq!((send.has_message(), send.bytes()), (true, 40));
        send.begin_message();
        assert!(!send.has_message());
        send.update(credit(3, 90)).unwrap();
        assert_eq!((send.has_message(), send.bytes()), (true, 40));
        send.update(credit(0, 160)).unwrap();
        assert_eq!((send.has_message(), send.bytes()), (true, 100));
        let all = u64::from(u32::MAX);
        assert_eq!(send.update(credit(2 + all, 60 + all)), Ok(()));
        assert_eq!(send.update(credit(3 + all, 0)), Err(Excessive));
        assert_eq!(send.update(credit(0, 61 + all)), Err(Excessive));
    }

    #[test]
    fn credit_is_granted_by_half_windows() {
        let mut receive = ReceiveCredit::new(credit(8, 1_000));
        assert!(!receive.grow((8, 1_000), 499, u32::MAX));
        assert!(receive.grow((8, 1_000), 500, u32::MAX));
        assert_eq!(receive.total(), credit(8, 1_500));
        receive.take(900);
        (0..2).for_each(|_| receive.take(10));
        assert_eq!((receive.granted_messages(), receive.granted_bytes()), (5, 580));
        assert!(!receive.grow((8, 1_000), 0, u32::MAX));
        receive.take(0);
        assert!(receive.grow((8, 1_000), 0, u32::MAX));
        assert_eq!(receive.total(), credit(12, 1_920));
        // A window that is smaller than what was granted takes nothing back.
        assert!(!receive.grow((1, 10), 0, u32::MAX));
        assert_eq!(receive.total(), credit(12, 1_920));
    }

    #[test]
    fn no_more_is_granted_than_may_be_held() {
        let mut receive = ReceiveCredit::new(credit(8, 1_000));
        // What was granted stays.
        assert!(!receive.grow((8, 600), 1_000, 600));
        receive.take(600);
        assert_eq!(receive.granted_bytes(), 400);
        // A message that is longer than what is left may grow up to the bound.
        assert!(!receive.grow((8, 600), 0, 600));
        assert!(receive.grow((8, 600), 400, 600));
        assert_eq!(receive.total(), credit(9, 1_200));
        assert!(!receive.grow((8, 600), 600, 600));
    }
}
