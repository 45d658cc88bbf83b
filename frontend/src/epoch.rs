//! Which life of a frontend this is: 40 bits that grow with each start, kept on disk.

use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_proto::FrontendEpoch;
use holdfast_proto::udp::RESET_KEY_BYTES;
use nix::fcntl::Flock;

use crate::link::edge::lock;

/// 2025-01-01T00:00:00Z, in milliseconds since 1970.
const EPOCH_ORIGIN_MS: u64 = 1_735_689_600_000;
const MAX_EPOCH: u64 = (1 << 40) - 1;

/// The data directory, locked, and this life's epoch.
#[derive(Debug)]
pub struct DataDir {
    pub epoch: FrontendEpoch,
    directory: PathBuf,
    _lock: Flock<std::fs::File>,
}

impl DataDir {
    /// Makes the directory, takes its lock, and begins the next epoch: the greater of the time and the last one + 1, on
    /// disk before it is used.
    ///
    /// # Errors
    /// Another frontend uses the directory, the file is not what we wrote, or what the system says.
    pub fn open(directory: &Path, now: SystemTime) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let lock = lock(&directory.join("lock"))?;
        let file = directory.join("epoch");
        let last = match std::fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} does not hold an epoch", file.display()),
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let epoch = next_epoch(last, now).ok_or_else(|| io::Error::other("the epochs are used up"))?;
        store(directory, &file, epoch)?;
        Ok(Self {
            epoch: FrontendEpoch(epoch),
            directory: directory.into(),
            _lock: lock,
        })
    }

    /// The key that proves to devices on `udp` that their connection is gone, also after a restart: made when it is first asked for,
    /// readable by this user only.
    ///
    /// # Errors
    /// The file is not what we wrote, others may read it, or what the system says.
    pub fn reset_key(&self) -> io::Result<[u8; RESET_KEY_BYTES]> {
        let file = self.directory.join("reset.key");
        match std::fs::read(&file) {
            Ok(bytes) => {
                let wrong = |what| {
                    let text = format!("{} {what}", file.display());
                    io::Error::new(io::ErrorKind::InvalidData, text)
                };
                if std::fs::metadata(&file)?.permissions().mode() & 0o077 != 0 {
                    return Err(wrong("may be read by others: its mode must be 0600"));
                }
                let key = bytes.try_into();
                key.map_err(|_| wrong("does not hold a key of 32 bytes"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key: [u8; RESET_KEY_BYTES] = rand::random();
                replace(&self.directory, &file, &key)?;
                Ok(key)
            }
            Err(error) => Err(error),
        }
    }
}

fn next_epoch(last: u64, now: SystemTime) -> Option<u64> {
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let since_origin = u64::try_from(since_1970)
        .unwrap_or(u64::MAX)
        .saturating_sub(EPOCH_ORIGIN_MS);
    Some(since_origin.max(last.checked_add(1)?)).filter(|epoch| *epoch <= MAX_EPOCH)
}

fn store(directory: &Path, file: &Path, epoch: u64) -> io::Result<()> {
    replace(directory, file, format!("{epoch}\n").as_bytes())
}

/// Puts the whole file there, on disk, or leaves what was there.
fn replace(directory: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("new");
    // One that was left half done keeps the mode that it was made with.
    if let Err(error) = std::fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&temporary, file)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn epochs_grow_even_when_the_clock_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_millis(EPOCH_ORIGIN_MS + 5000);
        let first = DataDir::open(directory.path(), now).unwrap();
        assert_eq!(first.epoch, FrontendEpoch(5000));
        assert!(
            DataDir::open(directory.path(), now).is_err(),
            "one frontend at a time"
        );
        drop(first);
        let earlier = now - Duration::from_secs(3600 * 24 * 365 * 40);
        assert_eq!(
            DataDir::open(directory.path(), earlier).unwrap().epoch,
            FrontendEpoch(5001)
        );
    }

    #[test]
    fn a_file_that_is_not_ours_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("epoch"), "what").unwrap();
        let error = DataDir::open(directory.path(), SystemTime::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_reset_key_is_made_once_and_for_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let open = || DataDir::open(directory.path(), SystemTime::now()).unwrap();
        let key = open().reset_key().unwrap();
        assert_ne!(key, [0; 32]);
        assert_eq!(open().reset_key().unwrap(), key);
        let file = directory.path().join("reset.key");
        let mode = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        mode(0o640);
        assert!(open().reset_key().unwrap_err().to_string().contains("0600"));
        mode(0o600);
        std::fs::write(&file, [1; 31]).unwrap();
        assert!(open().reset_key().unwrap_err().to_string().contains("32 bytes"));
    }

    #[test]
    fn the_last_epoch_is_the_last() {
        assert_eq!(next_epoch(MAX_EPOCH, UNIX_EPOCH), None);
        assert_eq!(next_epoch(MAX_EPOCH - 1, UNIX_EPOCH), Some(MAX_EPOCH));
    }
}
