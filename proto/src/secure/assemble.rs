//! Messages out of records, and records out of messages.

use std::borrow::Cow;

use super::{MAX_CHUNK_BYTES, Opened, RecordKind};
use crate::codes::CloseCode;

/// Cuts a message into the data of its records; the flag says whether more follow. An empty message is one empty record.
pub fn chunks(message: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let mut rest = Some(message);
    std::iter::from_fn(move || {
        let message = rest.take()?;
        let (head, tail) = message
            .split_at_checked(MAX_CHUNK_BYTES)
            .filter(|(_, tail)| !tail.is_empty())
            .map_or((message, None), |(head, tail)| (head, Some(tail)));
        rest = tail;
        Some((tail.is_some(), head))
    })
}

/// Puts the messages of one direction together. Between messages it holds no buffer.
#[derive(Debug)]
pub struct Assembler {
    /// The chunks of an unfinished message.
    partial: Option<Box<Partial>>,
    max_message_bytes: usize,
}

#[derive(Debug)]
struct Partial {
    kind: RecordKind,
    data: Vec<u8>,
}

/// A message, or a control record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole<'a> {
    pub kind: RecordKind,
    pub data: Cow<'a, [u8]>,
}

/// Records that authenticated but make no message: always the sender's fault, and the end of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    #[error("a message over the limit")]
    TooBig,
    #[error("a message within another, or a chunk of another kind")]
    Interleaved,
    #[error("an empty chunk at a message's end")]
    EmptyChunk,
}

impl AssembleError {
    /// The close code that tells the peer.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::TooBig => CloseCode::TooBig,
            Self::Interleaved | Self::EmptyChunk => CloseCode::Protocol,
        }
    }
}

impl Assembler {
    pub fn new(max_message_bytes: usize) -> Self {
        Self {
            partial: None,
            max_message_bytes,
        }
    }

    /// Takes the next record, and gives the message that it completes. A message of one record is not copied. Control records
    /// pass through, also between chunks.
    pub fn push<'a>(&mut self, opened: Opened, data: &'a [u8]) -> Result<Option<Whole<'a>>, AssembleError> {
        if opened.kind == RecordKind::Control {
            return Ok(Some(Whole::alone(opened, data)));
        }
        let before = self.partial.as_ref().map_or(0, |p| p.data.len());
        if data.len() > self.max_message_bytes - before {
            return Err(AssembleError::TooBig);
        }
        let max = self.max_message_bytes;
        match (&mut self.partial, opened.more) {
            (None, false) => return Ok(Some(Whole::alone(opened, data))),
            (None, true) => self.partial = Some(Box::new(Partial::new(opened.kind, data))),
            (Some(partial), more) => partial.add(opened.kind, more, data, max)?,
        }
        if opened.more {
            return Ok(None);
        }
        let whole = self.partial.take();
        Ok(whole.map(|p| Whole {
            kind: p.kind,
            data: Cow::Owned(p.data),
        }))
    }

    /// How much of an unfinished message is held, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |p| p.data.capacity())
    }
}

impl<'a> Whole<'a> {
    fn alone(opened: Opened, data: &'a [u8]) -> Self {
        Self {
            kind: opened.kind,
            data: Cow::Borrowed(data),
        }
    }
}

impl Partial {
    fn new(kind: RecordKind, data: &[u8]) -> Self {
        Self {
            kind,
            data: data.to_vec(),
        }
    }

    fn add(&mut self, kind: RecordKind, more: bool, data: &[u8], max: usize) -> Result<(), AssembleError> {
        if kind != self.kind {
            return Err(AssembleError::Interleaved);
        }
        if data.is_empty() && !more {
            return Err(AssembleError::EmptyChunk);
        }
        let needed = self.data.len() + data.len();
        if needed > self.data.capacity() {
            // Doubled as a Vec would do, but never over the limit.
            let capacity = (self.data.capacity() * 2).clamp(needed, max.max(needed));
            self.data.reserve_exact(capacity - self.data.len());
        }
        self.data.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: RecordKind = RecordKind::Text;
    static FULL: [u8; MAX_CHUNK_BYTES] = [7; MAX_CHUNK_BYTES];

    fn opened(kind: RecordKind, more: bool) -> Opened {
        Opened { kind, more }
    }

    #[test]
    fn messages_are_cut_in_one_way() {
        let lengths = |n: usize| -> Vec<(bool, usize)> {
            chunks(&vec![0; n])
                .map(|(more, data)| (more, data.len()))
                .collect()
        };
        const M: usize = MAX_CHUNK_BYTES;
        assert_eq!(lengths(0), [(false, 0)]);
        assert_eq!(lengths(1), [(false, 1)]);
        assert_eq!(lengths(M), [(false, M)]);
        assert_eq!(lengths(M + 1), [(true, M), (false, 1)]);
        assert_eq!(lengths(2 * M), [(true, M), (false, M)]);
        assert_eq!(lengths(2 * M + 5), [(true, M), (true, M), (false, 5)]);
    }

    #[test]
    fn a_message_of_one_record_is_not_copied_and_nothing_is_held() {
        let mut assembler = Assembler::new(5);
        for data in [&b"hello"[..], b""] {
            let whole = assembler.push(opened(TEXT, false), data).unwrap().unwrap();
            assert!(matches!(whole, Whole { kind: TEXT, data: Cow::Borrowed(d) } if d == data));
        }
        assert_eq!(assembler.held_bytes(), 0);
        assert_eq!(
            assembler.push(opened(TEXT, false), b"longer"),
            Err(AssembleError::TooBig)
        );
    }

    #[test]
    fn chunks_make_a_message_and_control_records_pass_between_them() {
        let mut assembler = Assembler::new(MAX_CHUNK_BYTES + 1);
        assert_eq!(assembler.push(opened(TEXT, true), &FULL), Ok(None));
        assert!(assembler.held_bytes() >= MAX_CHUNK_BYTES);
        let control = assembler.push(opened(RecordKind::Control, false), &[0]).unwrap();
        assert_eq!(
            control,
            Some(Whole::alone(opened(RecordKind::Control, false), &[0]))
        );
        let whole = assembler.push(opened(TEXT, false), b"x").unwrap().unwrap();
        assert_eq!((whole.kind, whole.data.len()), (TEXT, MAX_CHUNK_BYTES + 1));
        assert_eq!(assembler.held_bytes(), 0);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_and_what_is_held_stays_within_it() {
        let limit = 5 * MAX_CHUNK_BYTES;
        let mut assembler = Assembler::new(limit);
        for _ in 0..5 {
            assembler.push(opened(TEXT, true), &FULL).unwrap();
            assert!(assembler.held_bytes() <= limit, "{}", assembler.held_bytes());
        }
        assert_eq!(
            assembler.push(opened(TEXT, false), b"x"),
            Err(AssembleError::TooBig)
        );
    }

    #[test]
    fn chunks_of_two_messages_do_not_mix() {
        for more in [false, true] {
            let mut assembler = Assembler::new(usize::MAX);
            assembler.push(opened(TEXT, true), &FULL).unwrap();
            assert_eq!(
                assembler.push(opened(RecordKind::Binary, more), &FULL),
                Err(AssembleError::Interleaved)
            );
        }
        let mut assembler = Assembler::new(usize::MAX);
        assembler.push(opened(TEXT, true), &FULL).unwrap();
        assert_eq!(
            assembler.push(opened(TEXT, false), b""),
            Err(AssembleError::EmptyChunk)
        );
    }

    #[test]
    fn an_idle_assembler_is_two_words() {
        assert_eq!(size_of::<Assembler>(), 16);
    }
}
