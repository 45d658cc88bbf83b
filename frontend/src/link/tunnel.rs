//! The tunnel's end here: backends on other machines come over TCP, prove that they hold the link key, and reach the local socket.
//!
//! A stranger gets no further than one message, which is verified before anything is spent on it. Whoever replays a recorded one
//! costs one answer and then has nothing to prove itself with. How many try at a time and how often are bounded, per source and in all;
//! tunnels that stand are not touched by any of that.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use holdfast_proto::config::check_secret_file;
use holdfast_proto::secure::DeviceKey;
use holdfast_proto::throttle::{Source, Throttle, source_of};
use holdfast_proto::tunnel::{self, TunnelError, TunnelKeys};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::metrics::CauseLabel;

/// Connections that may be proving themselves at a time, in all and from one source.
pub const MAX_HANDSHAKES: usize = 256;
pub const MAX_HANDSHAKES_PER_SOURCE: usize = 4;
/// How long that may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Tunnels that may stand at a time: more than the backends that a frontend takes, since one that comes back may be earlier than
/// the news that it was gone.
pub const MAX_TUNNELS: usize = 128;
/// One source may try once a second in the long run, and so many times at once.
const SOURCE_INTERVAL_MS: u64 = 1_000;
const SOURCE_BURST: u32 = 30;
const SOURCE_SLOTS: usize = 4096;
/// A backend's machine that vanished is noticed after this: until then it holds a tunnel, while its work is long with others.
const VANISHED_AFTER: Duration = Duration::from_secs(10);
/// Pause after the listening socket could not give a connection, which most often means that there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the tunnel counts.
#[derive(Debug, Clone, Default)]
pub struct TunnelMetrics {
    pub open: Gauge,
    pub accepted: Counter,
    /// Connections that did not become a tunnel, by cause.
    pub refused: Family<CauseLabel, Counter>,
    /// Tunnels that ended by something else than an end of the link, by cause.
    pub broken: Family<CauseLabel, Counter>,
}

impl TunnelMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("tunnel");
        r.register("open", "Backends connected through the tunnel", self.open.clone());
        r.register("accepted", "Tunnels made", self.accepted.clone());
        r.register(
            "refused",
            "Connections that became no tunnel",
            self.refused.clone(),
        );
        r.register(
            "broken",
            "Tunnels that were disturbed or failed",
            self.broken.clone(),
        );
    }

    fn refuse(&self, cause: &'static str) {
        self.refused.get_or_create(&CauseLabel { cause }).inc();
    }
}

/// The link keys of a file, read again when it changes: so that a key can be replaced while both are good for a time.
pub struct LinkKeys {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    keys: Arc<[DeviceKey]>,
    changed: Option<SystemTime>,
    looked: Instant,
}

/// Link keys that are good at a time: an old one and its successor.
pub const MAX_LINK_KEYS: usize = 2;
/// How often the file is looked at, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl LinkKeys {
    /// Reads the file: one or two lines of base64url, 32 bytes each.
    ///
    /// # Errors
    /// One line that says what is wrong, without the keys.
    pub fn load(path: &Path) -> io::Result<Self> {
        let loaded = Loaded {
            keys: read_keys(path)?,
            changed: changed(path),
            looked: Instant::now(),
        };
        Ok(Self {
            path: path.to_owned(),
            loaded: Mutex::new(loaded),
        })
    }

    /// The keys as the file has them, or had them when it last could be used.
    fn current(&self) -> Arc<[DeviceKey]> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK_INTERVAL {
            loaded.looked = Instant::now();
            self.look(&mut loaded);
        }
        loaded.keys.clone()
    }

    fn look(&self, loaded: &mut Loaded) {
        let now = changed(&self.path);
        if now == loaded.changed {
            return;
        }
        loaded.changed = now;
        match read_keys(&self.path) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the link keys were read again");
                loaded.keys = keys;
            }
            Err(error) => {
                tracing::error!(%error, "the file of link keys cannot be used; the keys stay as they were");
            }
        }
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

fn read_keys(path: &Path) -> io::Result<Arc<[DeviceKey]>> {
    /// A key has 43 characters; whatever is much longer is another file.
    const MAX_FILE_BYTES: u64 = 4096;
    let metadata = std::fs::metadata(path)?;
    if let Some(warning) = check_secret_file(&metadata)? {
        tracing::warn!(path = %path.display(), "{warning}");
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Result<Vec<DeviceKey>, _> = lines.map(str::parse).collect();
    let keys = keys.map_err(|error| io::Error::other(format!("not a link key: {error}")))?;
    match keys.len() {
        1..=MAX_LINK_KEYS => Ok(keys.into()),
        count => Err(io::Error::other(format!(
            "{count} link keys; allowed are 1 to {MAX_LINK_KEYS}"
        ))),
    }
}

/// The tunnel's listener, and what is behind it.
pub struct Tunnel {
    keys: LinkKeys,
    /// The link's socket file.
    link: PathBuf,
    metrics: TunnelMetrics,
    sources: Throttle,
    started: Instant,
    handshakes: Semaphore,
    tunnels: Semaphore,
    trying: Mutex<HashMap<Source, usize>>,
}

impl Tunnel {
    pub fn new(keys: LinkKeys, link: PathBuf, metrics: TunnelMetrics) -> Arc<Self> {
        Arc::new(Self {
            keys,
            link,
            metrics,
            sources: Throttle::new(rand::random(), SOURCE_SLOTS, SOURCE_INTERVAL_MS, SOURCE_BURST),
            started: Instant::now(),
            handshakes: Semaphore::new(MAX_HANDSHAKES),
            tunnels: Semaphore::new(MAX_TUNNELS),
            trying: Mutex::default(),
        })
    }

    /// Serves until the process ends. Needs a `LocalSet` or runtime of its own: connections are tasks.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    tokio::spawn(self.clone().handle(stream, address));
                }
                Err(error) => {
                    tracing::warn!(%error, "the tunnel cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn handle(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let Some((stream, keys)) = self.admit(stream, address).await else {
            return;
        };
        let Ok(_place) = self.tunnels.try_acquire() else {
            return self.metrics.refuse("full");
        };
        let local = match UnixStream::connect(&self.link).await {
            Ok(local) => local,
            Err(error) => {
                tracing::warn!(%error, "the tunnel does not reach the link");
                return self.metrics.refuse("link");
            }
        };
        self.metrics.accepted.inc();
        self.metrics.open.inc();
        let ended = tunnel::carry(stream, local, keys).await;
        self.metrics.open.dec();
        match ended {
            Ok(()) => tracing::info!(%address, "a tunnel has ended"),
            Err(error) => {
                let cause = error.label();
                self.metrics.broken.get_or_create(&CauseLabel { cause }).inc();
                tracing::warn!(%address, %error, "a tunnel was broken");
            }
        }
    }

    /// Finds out whether the peer holds the key.
    async fn admit(&self, mut stream: TcpStream, address: SocketAddr) -> Option<(TcpStream, TunnelKeys)> {
        let source = source_of(address.ip());
        let since_start = self.started.elapsed().as_millis() as u64;
        if self.sources.check(&source, since_start).is_err() {
            self.metrics.refuse("throttled");
            return None;
        }
        let Some(_trying) = Trying::enter(&self.trying, source) else {
            self.metrics.refuse("busy");
            return None;
        };
        let Ok(_handshake) = self.handshakes.try_acquire() else {
            self.metrics.refuse("busy");
            return None;
        };
        let keys = self.keys.current();
        let accepted = async {
            prepare(&stream)?;
            tunnel::accept(&mut stream, &keys).await
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
            Ok(Ok((backend, keys))) => {
                tracing::info!(%address, backend = backend.as_str(), "a backend has come through the tunnel");
                Some((stream, keys))
            }
            Ok(Err(error)) => {
                self.metrics.refuse(error.label());
                tracing::debug!(%address, %error, "a tunnel was refused");
                None
            }
            Err(_) => {
                self.metrics.refuse("timeout");
                None
            }
        }
    }
}

fn prepare(stream: &TcpStream) -> Result<(), TunnelError> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(VANISHED_AFTER))?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(VANISHED_AFTER / 2)
        .with_interval(VANISHED_AFTER / 5);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(())
}

/// One source's place among those that are proving themselves.
struct Trying<'a> {
    all: &'a Mutex<HashMap<Source, usize>>,
    source: Source,
}

impl<'a> Trying<'a> {
    fn enter(all: &'a Mutex<HashMap<Source, usize>>, source: Source) -> Option<Self> {
        let mut map = all.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(source).or_default();
        if *count >= MAX_HANDSHAKES_PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Self { all, source })
    }
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        let mut map = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = map.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
