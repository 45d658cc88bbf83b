//! Writing files so that nobody sees half of one, and private ones privately from the start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use holdfast_proto::config::check_secret_file;
use zeroize::Zeroizing;

/// Who may read a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access {
    Private,
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Replaces `path` by a rename, once it is on the disk; what is there before stays whole if this fails.
pub(crate) fn write(path: &Path, contents: &[u8], access: Access) -> Result<()> {
    put(path, contents, access, File::sync_all)
}

/// The same without waiting for the disk: for what only those need who run now.
pub(crate) fn replace(path: &Path, contents: &[u8], access: Access) -> Result<()> {
    put(path, contents, access, |_| Ok(()))
}

fn put(
    path: &Path,
    contents: &[u8],
    access: Access,
    sync: impl Fn(&File) -> std::io::Result<()>,
) -> Result<()> {
    let temporary = path.with_extension(format!("tmp.{}", std::process::id()));
    let attempt = || -> std::io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(access.mode())
            .open(&temporary)?;
        file.write_all(contents)?;
        sync(&file)?;
        fs::rename(&temporary, path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

/// The file's text; `None` if there is none.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The same of a file that holds a secret, as the gateway itself would take it.
pub(crate) fn read_secret_if_there(path: &Path) -> Result<Option<Zeroizing<String>>> {
    let checked = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.and_then(|file| check_secret_file(&file)),
    };
    if let Some(warning) = checked.with_context(|| format!("cannot use {}", path.display()))? {
        say!("holdfast: warning: {}: {warning}", path.display());
    }
    Ok(read_if_there(path)?.map(Zeroizing::new))
}

/// Makes `path` a directory that only its owner may enter.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    let attempt = || -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    };
    attempt().with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Takes the group's and others' rights away from a file that holds a secret.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(Access::Private.mode()))
        .with_context(|| format!("cannot make {} private", path.display()))
}
