//! The tunnel's end here: for each frontend on another machine a local socket, whose bytes travel there in records.
//!
//! ZeroMQ connects to that local socket as to a frontend's own. Each of its connections makes one tunnel; when that ends, so does
//! the connection, and the link's own supervision does the rest. Nothing is retried here.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_proto::DeviceId;
use holdfast_proto::secure::DeviceKey;
use holdfast_proto::tunnel::{self, TunnelError};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tracing::{debug, info, warn};

use crate::config::{Config, ConfigError, secrets};
use crate::control::make_private;

/// Time for TCP and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A frontend's machine that vanished is let go of after this; the link notices much earlier and tries again by itself.
const VANISHED_AFTER: Duration = Duration::from_secs(10);
/// How a local socket's name ends: `<pid>-<index>.tunnel`.
const SUFFIX: &str = ".tunnel";
/// What names a frontend on another machine.
pub const REMOTE: &str = "tcp://";

/// Why there are no tunnels.
#[derive(Debug, thiserror::Error)]
pub enum TunnelStartError {
    #[error(transparent)]
    Key(#[from] ConfigError),
    #[error("the tunnels' local sockets in {}: {error}", directory.display())]
    Local { directory: PathBuf, error: io::Error },
}

/// The local sockets of the frontends on other machines; they are removed when this is dropped.
#[derive(Debug)]
pub struct Tunnels {
    /// What ZeroMQ connects to, for each configured frontend in order.
    endpoints: Vec<String>,
    paths: Vec<PathBuf>,
}

impl Tunnels {
    /// Serves a local socket for each frontend that is named `tcp://…`. Needs a runtime to spawn on.
    ///
    /// # Errors
    /// The key cannot be read, or the sockets cannot be made.
    pub fn start(config: &Config) -> Result<Self, TunnelStartError> {
        let mut tunnels = Self {
            endpoints: Vec::new(),
            paths: Vec::new(),
        };
        let key = load_key(config)?.map(Arc::new);
        let directory = directory(config);
        for (index, frontend) in config.frontends.iter().enumerate() {
            let endpoint = match (frontend.strip_prefix(REMOTE), &key) {
                (Some(remote), Some(key)) => {
                    let local = tunnels
                        .open(&directory, index)
                        .map_err(|error| TunnelStartError::Local {
                            directory: directory.clone(),
                            error,
                        })?;
                    let tunnel = Remote {
                        address: remote.to_owned(),
                        key: key.clone(),
                        name: config.name.clone(),
                        failed: AtomicBool::new(false),
                    };
                    let path = tunnels.paths[tunnels.paths.len() - 1].display().to_string();
                    tokio::spawn(Arc::new(tunnel).serve(local));
                    format!("ipc://{path}")
                }
                _ => frontend.clone(),
            };
            tunnels.endpoints.push(endpoint);
        }
        Ok(tunnels)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.endpoints.clone()
    }

    fn open(&mut self, directory: &Path, index: usize) -> io::Result<UnixListener> {
        if self.paths.is_empty() {
            take(directory)?;
        }
        let path = directory.join(format!("{}-{index}{SUFFIX}", std::process::id()));
        remove(&path)?;
        let listener = UnixListener::bind(&path)?;
        self.paths.push(path);
        Ok(listener)
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = remove(path);
        }
    }
}

/// Reads the link key, if a frontend needs one.
pub fn load_key(config: &Config) -> Result<Option<DeviceKey>, ConfigError> {
    let Some(path) = &config.link_key else {
        return Ok(None);
    };
    let text = zeroize::Zeroizing::new(secrets::read_secret(path)?);
    let key = text.trim().parse().map_err(|error| ConfigError::Parse {
        path: path.clone(),
        message: format!("not a link key: {error}"),
    })?;
    Ok(Some(key))
}

/// Beside the control sockets, or a directory of this user's among the temporary ones.
fn directory(config: &Config) -> PathBuf {
    let own = || std::env::temp_dir().join(format!("holdfast-{}", own_uid().unwrap_or_default()));
    config.control_dir.clone().unwrap_or_else(own)
}

/// Makes the directory private and clears it of what killed processes left.
fn take(directory: &Path) -> io::Result<()> {
    if !make_private(directory)? {
        return Err(io::Error::other(
            "it is open to others and holds files: chmod 700 it",
        ));
    }
    if std::fs::metadata(directory)?.uid() != own_uid()? {
        return Err(io::Error::other("it belongs to somebody else"));
    }
    for entry in std::fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_suffix(SUFFIX)?.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<i32>().ok());
        let gone = |pid| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
        };
        if pid.is_some_and(gone) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn own_uid() -> io::Result<u32> {
    Ok(std::fs::metadata("/proc/self")?.uid())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One frontend on another machine.
struct Remote {
    /// `host:port`.
    address: String,
    key: Arc<DeviceKey>,
    name: String,
    /// The last try failed: further failures of the same kind are not news.
    failed: AtomicBool,
}

impl Remote {
    async fn serve(self: Arc<Self>, local: UnixListener) {
        loop {
            match local.accept().await {
                Ok((stream, _)) => {
                    let remote = self.clone();
                    tokio::spawn(async move { remote.carry(stream).await });
                }
                Err(error) => {
                    warn!(%error, "a tunnel's local socket gives no connection");
                    tokio::time::sleep(VANISHED_AFTER / 100).await;
                }
            }
        }
    }

    /// The local connection ends with the tunnel, whatever ended that.
    async fn carry(&self, local: UnixStream) {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let (stream, keys) = match connected {
            Ok(connected) => connected,
            Err(error) if !self.failed.swap(true, Ordering::Relaxed) => {
                return warn!(frontend = %self.address, %error, "no tunnel to the frontend; is the link key the same, and are both clocks right?");
            }
            Err(error) => return debug!(frontend = %self.address, %error, "no tunnel to the frontend"),
        };
        self.failed.store(false, Ordering::Relaxed);
        info!(frontend = %self.address, "a tunnel to the frontend stands");
        if let Err(error) = tunnel::carry(stream, local, keys).await {
            warn!(frontend = %self.address, %error, "the tunnel to the frontend was broken");
        }
    }

    async fn connect(&self) -> Result<(TcpStream, tunnel::TunnelKeys), TunnelError> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(VANISHED_AFTER))?;
        let name = DeviceId::from_bytes(self.name.clone().into()).unwrap_or_else(|_| unnamed());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let keys = tunnel::connect(&mut stream, &self.key, name, now.as_millis() as u64).await?;
        Ok((stream, keys))
    }
}

/// Whatever a backend may be called is a good name here; a device could not be called otherwise either.
fn unnamed() -> DeviceId {
    DeviceId::from_bytes("backend".into()).expect("a constant of the right form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn config(directory: &Path, frontend: &str) -> Config {
        let key = directory.join("link.key");
        std::fs::write(&key, DeviceKey::from_bytes(&[1; 32]).unwrap().to_text()).unwrap();
        let text = format!(
            "frontends = [\"ipc:///f\", \"{frontend}\"]\napi_keys = \"k\"\ntoken_keys = \"t\"\nroutes = \"r\"\n\
             link_key = \"{}\"\ncontrol_dir = \"{}\"\n[signing]\nkey = \"s\"\n",
            key.display(),
            directory.join("control").display()
        );
        Config::parse(Path::new("backend.toml"), &text).unwrap()
    }

    #[tokio::test]
    async fn zeromqs_bytes_reach_the_other_machine_and_local_frontends_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tunnels = Tunnels::start(&config(directory.path(), &format!("tcp://{address}"))).unwrap();
        let endpoints = tunnels.endpoints();
        assert_eq!(endpoints[0], "ipc:///f");
        let path = endpoints[1].strip_prefix("ipc://").unwrap().to_owned();
        let mut local = UnixStream::connect(&path).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let claim = tunnel::hear(&mut stream).await.unwrap();
        let caller = claim.verify(&[DeviceKey::from_bytes(&[1; 32]).unwrap()]).unwrap();
        assert_eq!(caller.name().as_str(), "backend");
        let keys = caller.prove(&mut stream).await.unwrap();
        let (here, mut there) = tokio::io::duplex(64);
        let carrying = tokio::spawn(tunnel::carry(stream, here, keys));
        local.write_all(b"greeting").await.unwrap();
        let mut got = [0; 8];
        there.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"greeting");
        carrying.abort();
        assert_eq!(local.read(&mut got).await.unwrap_or(0), 0, "the end is passed on");
        drop(tunnels);
        assert!(!Path::new(&path).exists());
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_removed_and_what_lives_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control");
        assert!(make_private(&control).unwrap());
        // No process has this number: it is above the kernel's limit.
        let dead = control.join(format!("{}-0{SUFFIX}", i32::MAX));
        let alive = control.join(format!("1-0{SUFFIX}"));
        let other = control.join("backend.sock");
        for path in [&dead, &alive, &other] {
            std::fs::write(path, "").unwrap();
        }
        let _tunnels = Tunnels::start(&config(directory.path(), "tcp://127.0.0.1:9")).unwrap();
        assert!(!dead.exists() && alive.exists() && other.exists());
    }

    #[test]
    fn a_bad_key_is_named_without_being_shown() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "tcp://127.0.0.1:9");
        std::fs::write(directory.path().join("link.key"), "secret").unwrap();
        let error = load_key(&config).unwrap_err().to_string();
        assert!(
            error.contains("link.key: not a link key") && !error.contains("secret"),
            "{error}"
        );
    }
}
