//! Reading the small files that the configuration names: bounded, with a warning where others may read a secret.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tracing::warn;

use super::ConfigError;

/// Largest file that is read, in bytes: generous for keys and routes, and no way to fill the memory by a wrong path.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = || {
        let file = File::open(path)?;
        // Read in one piece: a secret leaves no copies behind in memory that was outgrown.
        let length = file.metadata()?.len().min(MAX_FILE_BYTES);
        let mut text = String::with_capacity(length as usize + 1);
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(std::io::Error::other(format!(
                "larger than {MAX_FILE_BYTES} bytes"
            )));
        }
        Ok(text)
    };
    read().map_err(|error| ConfigError::Read {
        path: path.to_owned(),
        error,
    })
}

/// Reads a file that holds a secret; logs a warning when any user of the machine may read it.
pub fn read_secret(path: &Path) -> Result<String, ConfigError> {
    warn_if_world_readable(path);
    read_text(path)
}

/// Logs a warning when any user of the machine may read a file that holds a secret.
pub(crate) fn warn_if_world_readable(path: &Path) {
    if is_world_readable(path) {
        warn!(path = %path.display(), "this file holds a secret and everybody can read it; chmod 600 it");
    }
}

fn is_world_readable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_secret(&path).unwrap(), "text");
        std::fs::write(&path, vec![b'x'; MAX_FILE_BYTES as usize + 1]).unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("larger than"));
        assert!(
            read_text(&dir.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("none: ")
        );
    }

    #[test]
    fn permissions_for_everybody_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "text").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(!is_world_readable(&path));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(is_world_readable(&path));
    }
}
