//! The socket's place in the file system: `<control_dir>/<name>.sock`.
//!
//! Taking and leaving a place happen under a lock on the directory, so that no process removes or replaces another's socket:
//! one that answers is alive and keeps its place, one that refuses connections was left by a dead process.

use std::fs::{DirBuilder, File, Metadata, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "control_dir: {} is {} bytes long: a socket's path may have {MAX_SOCKET_PATH} at most",
        path.display(),
        path.as_os_str().len()
    )]
    TooLong { path: PathBuf },
    #[error("control_dir: another backend answers on {}: each needs a name of its own", path.display())]
    Taken { path: PathBuf },
    #[error("control_dir: {} is open to others and holds files: chmod 700 it, or name another", path.display())]
    Open { path: PathBuf },
    #[error("control_dir: {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// What a Unix socket's address has room for (`sun_path`), without the final NUL.
const MAX_SOCKET_PATH: usize = 107;
/// Where a socket is bound before it is renamed, so that nobody finds it before it listens. The lock makes it ours; no name of
/// a socket is shorter.
const TEMPORARY: &str = ".new";
/// Taking a place takes others a millisecond; longer than this nobody waits.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// A bound socket. Dropping it leaves its place.
#[derive(Debug)]
pub struct ControlSocket {
    place: Place,
    listener: UnixListener,
}

/// Removes the socket file when dropped, unless it is not ours any more.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Device and inode of what we bound.
    file: (u64, u64),
}

impl ControlSocket {
    /// The path of the socket of the backend with this name, if it can be one.
    pub fn path(directory: &Path, name: &str) -> Result<PathBuf, ControlError> {
        let path = directory.join(format!("{name}.sock"));
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ControlError::TooLong { path });
        }
        Ok(path)
    }

    /// Binds the socket of the backend with this name, in place of one that a dead process left. The directory is made with
    /// mode 0700; one that was there and open to others is closed to them if it holds nothing.
    pub fn bind(directory: &Path, name: &str) -> Result<Self, ControlError> {
        let path = Self::path(directory, name)?;
        let at = |error| ControlError::Io {
            path: path.clone(),
            error,
        };
        if !make_private(directory).map_err(at)? {
            return Err(ControlError::Open {
                path: directory.to_owned(),
            });
        }
        let _lock = lock(directory).map_err(at)?;
        if is_alive(&path).map_err(at)? {
            return Err(ControlError::Taken { path });
        }
        bind(directory, &path).map_err(at)
    }

    pub(super) fn into_parts(self) -> (Place, UnixListener) {
        (self.place, self.listener)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        // Without the lock the file stays: a successor finds that nobody answers.
        let Ok(_lock) = lock(directory) else { return };
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(directory: &Path, path: &Path) -> io::Result<ControlSocket> {
    let temporary = directory.join(TEMPORARY);
    remove(&temporary)?;
    let listener = UnixListener::bind(&temporary)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    let file = identity(&std::fs::symlink_metadata(&temporary)?);
    std::fs::rename(&temporary, path)?;
    let path = path.to_owned();
    Ok(ControlSocket {
        place: Place { path, file },
        listener,
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Whether a process listens there: its queue may be full, it may be stopped, but it is there.
fn is_alive(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something else than a socket is in its place"));
        }
        Ok(_) => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(false),
            io::ErrorKind::WouldBlock => Ok(true),
            _ => Err(error),
        },
    }
}

/// Whether the directory is there and closed to others. One that holds something is not closed: nobody wants `/run` closed
/// because a path was chosen carelessly.
pub(crate) fn make_private(directory: &Path) -> io::Result<bool> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if std::fs::metadata(directory)?.permissions().mode() & 0o077 == 0 {
        return Ok(true);
    }
    if std::fs::read_dir(directory)?.next().is_some() {
        return Ok(false);
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    Ok(true)
}

/// Held for as long as the file lives.
fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if waited >= LOCK_PATIENCE => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process holds the directory's lock",
                ));
            }
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_is_bound_in_a_directory_of_its_own_and_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/control");
        let socket = ControlSocket::bind(&directory, "backend-1").unwrap();
        let other = ControlSocket::bind(&directory, "backend-2").unwrap();
        let path = directory.join("backend-1.sock");
        assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
        assert!(UnixStream::connect(&path).is_ok());
        drop((socket, other));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_one_s_place_is_taken_and_a_live_one_s_is_not() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("control");
        let socket = ControlSocket::bind(&directory, "b").unwrap();
        let error = ControlSocket::bind(&directory, "b").unwrap_err().to_string();
        assert!(error.contains("b.sock: each needs a name of its own"), "{error}");
        // As after a kill: the file stays, nobody listens; and one who died between bind and rename.
        let (place, listener) = socket.into_parts();
        std::mem::forget(place);
        drop(listener);
        drop(UnixListener::bind(directory.join(TEMPORARY)).unwrap());
        let again = ControlSocket::bind(&directory, "b").unwrap();
        assert!(UnixStream::connect(directory.join("b.sock")).is_ok());
        drop(again);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn a_successor_s_socket_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("control");
        let path = directory.join("b.sock");
        let old = ControlSocket::bind(&directory, "b").unwrap();
        std::fs::remove_file(&path).unwrap();
        let _new = ControlSocket::bind(&directory, "b").unwrap();
        drop(old);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn many_starters_of_one_name_leave_one_alive() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("control");
        let start = || {
            let directory = directory.clone();
            std::thread::spawn(move || ControlSocket::bind(&directory, "b"))
        };
        let threads: Vec<_> = (0..16).map(|_| start()).collect();
        let bound: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(bound.iter().filter(|b| b.is_ok()).count(), 1);
        let taken = |b: &Result<_, _>| matches!(b, Ok(_) | Err(ControlError::Taken { .. }));
        assert!(bound.iter().all(taken), "{bound:?}");
        assert!(UnixStream::connect(directory.join("b.sock")).is_ok());
    }

    #[test]
    fn a_directory_that_is_open_to_others_is_closed_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("control");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        drop(ControlSocket::bind(&directory, "b").unwrap());
        assert_eq!(mode(&directory), 0o700);
        std::fs::set_permissions(&directory, Permissions::from_mode(0o750)).unwrap();
        std::fs::write(directory.join("other"), "").unwrap();
        let error = ControlSocket::bind(&directory, "b").unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
        assert_eq!(mode(&directory), 0o750);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_and_said() {
        let root = tempfile::tempdir().unwrap();
        let room = MAX_SOCKET_PATH - root.path().as_os_str().len() - "/b.sock".len();
        // One byte is the separator's.
        let fits = root.path().join("d".repeat(room - 1));
        drop(ControlSocket::bind(&fits, "b").unwrap());
        let error = ControlSocket::bind(&root.path().join("d".repeat(room)), "b").unwrap_err();
        assert!(matches!(error, ControlError::TooLong { .. }));
        assert!(error.to_string().contains("107 at most"), "{error}");
    }

    #[test]
    fn what_is_not_a_socket_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("control");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        std::fs::write(directory.join("b.sock"), "precious").unwrap();
        let error = ControlSocket::bind(&directory, "b").unwrap_err();
        assert!(error.to_string().contains("something else"), "{error}");
        assert_eq!(std::fs::read(directory.join("b.sock")).unwrap(), b"precious");
    }
}
