//! The records of one direction: AES-256-GCM under a key that moves on, the nonce a counter that is never sent.
//!
//! A record is `kind ‖ data`, encrypted, and a tag. Whatever is lost, doubled, swapped or changed on the way makes the next record
//! fail, and an [`Opener`] that failed once opens nothing more.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use zeroize::Zeroize;

use super::TrafficKey;
use crate::codes::CloseCode;

/// Most data in a record, in bytes: 60 KiB, so that a record and its frame fit 64 KiB buffers.
pub const MAX_CHUNK_BYTES: usize = 61_440;
/// What a record has beside its data: the kind and the tag.
pub const RECORD_OVERHEAD: usize = 1 + TAG_BYTES;
/// Longest record, in bytes.
pub const MAX_RECORD_BYTES: usize = MAX_CHUNK_BYTES + RECORD_OVERHEAD;
/// After so many records of a direction its key moves on: who learns a key learns none from before.
pub const REKEY_RECORDS: u64 = 1 << 20;

pub(super) const TAG_BYTES: usize = 16;
/// The nonce of Noise's REKEY. A direction whose counter reaches it is at its end.
const REKEY_COUNTER: u64 = u64::MAX;
const MORE: u8 = 0x80;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    Text = 0,
    Binary = 1,
    Control = 2,
}

/// What an opened record is. Its data is `record[1..record.len() - 16]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub kind: RecordKind,
    /// Whether more chunks of this message follow.
    pub more: bool,
}

/// Why a record was not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Sealing: our mistake. Opening: the peer's, since the record authenticates.
    #[error("a record's kind or length is not allowed")]
    Form,
    /// Changed, doubled, lost, cut or out of its place on the way.
    #[error("the record does not authenticate")]
    NotAuthentic,
    /// 2^64 - 1 records went this way, or an earlier one was refused.
    #[error("this direction is at its end")]
    Ended,
}

impl RecordError {
    /// The close code that tells the peer whose record was not opened.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Form => CloseCode::Protocol,
            Self::NotAuthentic | Self::Ended => CloseCode::RecordRejected,
        }
    }
}

/// Makes the records of one direction. It keeps the key and the counter only; the expanded key is made for each call, or once for
/// a run of records by [`begin`](Self::begin).
#[derive(Debug)]
pub struct Sealer(Direction);

/// Opens the records of one direction. See [`Sealer`].
#[derive(Debug)]
pub struct Opener(Direction);

impl Sealer {
    pub fn new(key: TrafficKey) -> Self {
        Self(Direction { key, counter: 0 })
    }

    /// Appends a record with this data to `out`. What does not fit the form is refused, and nothing changes.
    pub fn seal(
        &mut self,
        kind: RecordKind,
        more: bool,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        self.begin().seal(kind, more, data, out)
    }

    /// Makes `out[start..]`, which is `kind ‖ data`, a record: encrypts it there and appends the tag.
    pub fn seal_in_place(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), RecordError> {
        self.begin().seal_in_place(out, start)
    }

    /// Expands the key for a run of records.
    pub fn begin(&mut self) -> SealRun<'_> {
        SealRun(Run::new(&mut self.0))
    }
}

impl Opener {
    pub fn new(key: TrafficKey) -> Self {
        Self(Direction { key, counter: 0 })
    }

    /// Decrypts `record` in place. After an error nothing more is opened.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        self.begin().open(record)
    }

    /// Expands the key for a run of records.
    pub fn begin(&mut self) -> OpenRun<'_> {
        OpenRun(Run::new(&mut self.0))
    }
}

/// A [`Sealer`] with its key expanded.
pub struct SealRun<'a>(Run<'a>);

impl SealRun<'_> {
    /// As [`Sealer::seal`].
    pub fn seal(
        &mut self,
        kind: RecordKind,
        more: bool,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        let start = out.len();
        out.reserve(data.len() + RECORD_OVERHEAD);
        out.push(kind as u8 | if more { MORE } else { 0 });
        out.extend_from_slice(data);
        let sealed = self.seal_in_place(out, start);
        if sealed.is_err() {
            out.truncate(start);
        }
        sealed
    }

    /// As [`Sealer::seal_in_place`].
    pub fn seal_in_place(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), RecordError> {
        let record = out.get_mut(start..).ok_or(RecordError::Form)?;
        form(record)?;
        let nonce = self.0.nonce()?;
        let tag = self
            .0
            .cipher
            .encrypt_in_place_detached(&nonce, &[], record)
            .map_err(|_| RecordError::Form)?;
        out.extend_from_slice(&tag);
        self.0.advance();
        Ok(())
    }
}

/// An [`Opener`] with its key expanded.
pub struct OpenRun<'a>(Run<'a>);

impl OpenRun<'_> {
    /// As [`Opener::open`].
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let opened = self.decrypt(record);
        match opened {
            Ok(_) => self.0.advance(),
            Err(_) => self.0.direction.end(),
        }
        opened
    }

    fn decrypt(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let nonce = self.0.nonce()?;
        if !(RECORD_OVERHEAD..=MAX_RECORD_BYTES).contains(&record.len()) {
            return Err(RecordError::NotAuthentic);
        }
        let (sealed, tag) = record
            .split_last_chunk_mut::<TAG_BYTES>()
            .ok_or(RecordError::NotAuthentic)?;
        self.0
            .cipher
            .decrypt_in_place_detached(&nonce, &[], sealed, &Tag::from(*tag))
            .map_err(|_| RecordError::NotAuthentic)?;
        form(sealed)
    }
}

/// What `kind ‖ data` says it is, if it may. A message has one form: of its chunks all but the last are full.
fn form(plain: &[u8]) -> Result<Opened, RecordError> {
    let [first, data @ ..] = plain else {
        return Err(RecordError::Form);
    };
    let kind = match first & !MORE {
        0 => RecordKind::Text,
        1 => RecordKind::Binary,
        2 => RecordKind::Control,
        _ => return Err(RecordError::Form),
    };
    let more = first & MORE != 0;
    let allowed = match more {
        true => kind != RecordKind::Control && data.len() == MAX_CHUNK_BYTES,
        false => data.len() <= MAX_CHUNK_BYTES,
    };
    if allowed {
        Ok(Opened { kind, more })
    } else {
        Err(RecordError::Form)
    }
}

/// A key and the number of the next record.
#[derive(Debug)]
struct Direction {
    key: TrafficKey,
    counter: u64,
}

impl Direction {
    /// For good: the key is wiped, and the counter says so.
    fn end(&mut self) {
        self.key.zeroize();
        self.counter = REKEY_COUNTER;
    }
}

struct Run<'a> {
    direction: &'a mut Direction,
    cipher: Aes256Gcm,
}

impl<'a> Run<'a> {
    fn new(direction: &'a mut Direction) -> Self {
        let cipher = expand(&direction.key);
        Self { direction, cipher }
    }

    fn nonce(&self) -> Result<Nonce<aes_gcm::aead::consts::U12>, RecordError> {
        match self.direction.counter {
            REKEY_COUNTER => Err(RecordError::Ended),
            counter => Ok(nonce(counter)),
        }
    }

    /// Counts a record, and moves the key on when it is time.
    fn advance(&mut self) {
        self.direction.counter += 1;
        if self.direction.counter == REKEY_COUNTER {
            self.direction.end();
        } else if self.direction.counter.is_multiple_of(REKEY_RECORDS) {
            self.direction.key = rekey(&self.cipher);
            self.cipher = expand(&self.direction.key);
        }
    }
}

pub(crate) fn expand(key: &TrafficKey) -> Aes256Gcm {
    Aes256Gcm::new(key.as_bytes().into())
}

/// Noise revision 34, section 12.4: 4 zero bytes and the counter.
pub(crate) fn nonce(counter: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// Noise revision 34, section 4.2, REKEY.
pub(crate) fn rekey(cipher: &Aes256Gcm) -> TrafficKey {
    let mut next = TrafficKey::blank();
    cipher
        .encrypt_in_place_detached(&nonce(REKEY_COUNTER), &[], next.as_mut_bytes())
        .expect("32 bytes are below AES-GCM's limit");
    next
}

#[cfg(test)]
impl Sealer {
    /// One whose next record has this number, under this key.
    pub(super) fn at(key: TrafficKey, counter: u64) -> Self {
        Self(Direction { key, counter })
    }

    /// The key of the next record.
    pub(super) fn current_key(&self) -> &TrafficKey {
        &self.0.key
    }
}

#[cfg(test)]
impl Opener {
    /// As [`Sealer::at`].
    pub(super) fn at(key: TrafficKey, counter: u64) -> Self {
        Self(Direction { key, counter })
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
