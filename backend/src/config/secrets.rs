//! Reading the small files that the configuration names: bounded, and those with secrets only if others cannot change them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use holdfast_proto::config::check_secret_file;
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

/// Reads a file that holds a secret, as [`check_secret`] allows.
pub fn read_secret(path: &Path) -> Result<String, ConfigError> {
    check_secret(path)?;
    read_text(path)
}

/// Refuses a file that holds a secret if others can write it, and logs a warning if they can read it.
fn check_secret(path: &Path) -> Result<(), ConfigError> {
    if let Some(warning) = judge_secret(path)? {
        warn!(path = %path.display(), "{warning}");
    }
    Ok(())
}

/// The same, with the warning for the caller to log.
pub(crate) fn judge_secret(path: &Path) -> Result<Option<String>, ConfigError> {
    std::fs::metadata(path)
        .and_then(|file| check_secret_file(&file))
        .map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
    fn a_secret_that_others_can_write_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "text").unwrap();
        for mode in [0o600, 0o640, 0o444] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(read_secret(&path).unwrap(), "text", "{mode:o}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o646)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(
            error.contains("/secret: it holds a secret and has mode 0646"),
            "{error}"
        );
    }
}
