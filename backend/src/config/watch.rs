//! A file that may change while we run: read once a second, and judged by [`holdfast_proto::watch`].

use std::path::{Path, PathBuf};

use holdfast_proto::watch::Watch;
pub(crate) use holdfast_proto::watch::{POLL_INTERVAL, SETTLE_INTERVAL};
use zeroize::Zeroizing;

use super::{ConfigError, secrets};

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
    watch: Watch,
}

/// What one look at the file showed.
pub(crate) type Look = holdfast_proto::watch::Look<ConfigError>;

impl WatchedFile {
    /// Reads the file for the first time; now an error is an error.
    pub(crate) fn open(path: &Path) -> Result<(Self, Zeroizing<String>), ConfigError> {
        let text = Zeroizing::new(secrets::read_text(path)?);
        let watched = Self {
            path: path.to_owned(),
            watch: Watch::new(&text),
        };
        Ok((watched, text))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks once. Reads the file in place: it is local and at most a mebibyte. One that `allows` refuses counts as one that cannot be
    /// read: when it is allowed again, that is a change, whatever it says.
    pub(crate) fn look(&mut self, allows: impl FnOnce(&Path) -> Result<(), ConfigError>) -> Look {
        let read = allows(&self.path).and_then(|()| secrets::read_text(&self.path));
        self.watch.look(read.map(Zeroizing::new))
    }
}
