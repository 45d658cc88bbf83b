//! Which of a session's messages the socket has taken, when it does not take all bytes at once.

use std::collections::VecDeque;

/// Groups of messages by how many bytes of each the socket has not taken. Empty, it is one null pointer.
#[derive(Debug, Default)]
pub(super) struct Marks {
    #[allow(clippy::box_collection)]
    groups: Option<Box<VecDeque<(usize, usize)>>>,
}

impl Marks {
    /// `messages` messages end with the last of `bytes` bytes that wait from now on.
    pub(super) fn push(&mut self, bytes: usize, messages: usize) {
        self.groups.get_or_insert_default().push_back((bytes, messages));
    }

    /// The socket took `bytes` bytes: how many messages are complete with them.
    pub(super) fn advance(&mut self, mut bytes: usize) -> usize {
        let Some(groups) = &mut self.groups else { return 0 };
        let mut complete = 0;
        while let Some((left, messages)) = groups.front_mut() {
            if *left > bytes {
                *left -= bytes;
                break;
            }
            bytes -= *left;
            complete += *messages;
            groups.pop_front();
        }
        if groups.is_empty() {
            self.groups = None;
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_complete_with_their_last_byte() {
        let mut marks = Marks::default();
        assert_eq!(marks.advance(0), 0);
        marks.push(10, 2);
        marks.push(5, 0);
        marks.push(5, 1);
        assert_eq!(marks.advance(9), 0);
        assert_eq!(marks.advance(1), 2);
        assert_eq!(marks.advance(10), 1);
        assert!(marks.groups.is_none());
        assert_eq!(size_of::<Marks>(), 8);
    }
}
