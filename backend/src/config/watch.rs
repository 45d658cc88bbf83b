//! A file that may change while we run.
//!
//! It is read once a second and compared by its hash: it is small, and a time stamp can miss a change. A change counts when two
//! reads in a row agree, so that a file that is just being written is not taken half.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{ConfigError, secrets};

/// Time between two looks at the file.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a changed file is read again, to see whether it is complete.
pub(crate) const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// What one look at a watched file came to, for who acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    Unchanged,
    /// It changed; the next look tells whether it is complete.
    Settling,
    /// What it says now is in force.
    Applied,
    /// It cannot be used; what was in force stays.
    Refused,
}

/// One watched file.
pub(crate) struct WatchedFile {
    path: PathBuf,
    /// The last content that was judged.
    judged: Content,
    /// A content seen once.
    settling: Option<Content>,
}

/// The hash of a file's text; `None` when it cannot be read.
type Content = Option<[u8; 32]>;

/// What one look at the file showed.
pub(crate) enum Look {
    Unchanged,
    Settling,
    /// Another text, or that it cannot be read any more. Told once.
    Changed(Result<Zeroizing<String>, ConfigError>),
}

impl WatchedFile {
    /// Reads the file for the first time; now an error is an error.
    pub(crate) fn open(path: &Path) -> Result<(Self, Zeroizing<String>), ConfigError> {
        let text = Zeroizing::new(secrets::read_text(path)?);
        let watched = Self {
            path: path.to_owned(),
            judged: Some(hash(&text)),
            settling: None,
        };
        Ok((watched, text))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks once. Reads the file in place: it is local and at most a mebibyte.
    pub(crate) fn look(&mut self) -> Look {
        let read = secrets::read_text(&self.path).map(Zeroizing::new);
        let content = read.as_ref().ok().map(|text| hash(text));
        if content == self.judged {
            self.settling = None;
            return Look::Unchanged;
        }
        if self.settling != Some(content) {
            self.settling = Some(content);
            return Look::Settling;
        }
        self.settling = None;
        self.judged = content;
        Look::Changed(read)
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}
