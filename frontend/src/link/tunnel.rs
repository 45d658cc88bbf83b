//! The tunnel's end here: backends on other machines come over TCP, prove that they hold the link key, and reach the local socket.
//!
//! A stranger gets no further than one message, which is verified before anything is spent on it; so is whoever says again what a
//! backend said ([`fresh`]). How many try at a time and how often are bounded, per source and in all, and strangers cannot keep
//! whoever has the key from getting a place ([`places`]); tunnels that stand are not touched by any of that.

mod fresh;
mod places;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_proto::config::check_secret_file;
use holdfast_proto::secure::DeviceKey;
use holdfast_proto::throttle::{Source, Throttle, source_of};
use holdfast_proto::tunnel::{self, Caller, TunnelError, TunnelKeys};
use holdfast_proto::watch::{Look, POLL_INTERVAL, SETTLE_INTERVAL, Watch};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore};
use zeroize::Zeroizing;

use self::fresh::{Fresh, Stale};
pub use self::fresh::{MAX_CLOCK_SKEW, MAX_REMEMBERED};
use self::places::{NoPlace, PlaceId, Places};
use super::metrics::CauseLabel;

/// Connections that may be proving themselves at a time, in all and from one source. One that is silent makes room for another.
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
/// 512 KiB. So many that strangers from many sources would have to come tens of thousands of times a second to use up those that
/// backends' sources have: the listener takes no more connections than that anyway.
const SOURCE_SLOTS: usize = 1 << 16;
/// A backend's machine that vanished is noticed after this: until then it holds a tunnel, while its work is long with others.
const VANISHED_AFTER: Duration = Duration::from_secs(10);
/// Pause after the listening socket could not give a connection, which most often means that there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the tunnel counts.
#[derive(Debug, Clone, Default)]
pub struct TunnelMetrics {
    pub open: Gauge,
    pub accepted: Counter,
    /// Link keys that are good: 2 while one is being replaced.
    pub keys: Gauge,
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
        r.register("keys", "Link keys in force", self.keys.clone());
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

    fn refuse(&self, refused: &Refused) {
        let cause = refused.label();
        self.refused.get_or_create(&CauseLabel { cause }).inc();
    }
}

/// Why a connection became no tunnel.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("its source has tried too often")]
    Throttled,
    #[error("as many as allowed are proving themselves, and all have shown the key")]
    Busy,
    #[error("it was silent while others came")]
    Silent,
    #[error("it took too long")]
    Timeout,
    #[error("{0}")]
    Stale(#[from] Stale),
    #[error("{0}")]
    Peer(#[from] TunnelError),
    #[error("as many tunnels stand as may")]
    Full,
    #[error("the link's socket: {0}")]
    Link(io::Error),
}

impl Refused {
    fn label(&self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Busy => "busy",
            Self::Silent => "silent",
            Self::Timeout => "timeout",
            Self::Stale(Stale::Clock) => "clock",
            Self::Stale(Stale::Replayed) => "replayed",
            Self::Peer(error) => error.label(),
            Self::Full => "full",
            Self::Link(_) => "link",
        }
    }
}

/// The link keys of a file, read again when it changes: so that a key can be replaced while both are good for a time.
pub struct LinkKeys {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    keys: Arc<[DeviceKey]>,
    watch: Watch,
}

/// Link keys that are good at a time: an old one and its successor.
pub const MAX_LINK_KEYS: usize = 2;

impl LinkKeys {
    /// Reads the file: one or two lines of base64url, 32 bytes each.
    ///
    /// # Errors
    /// One line that says what is wrong, without the keys.
    pub fn load(path: &Path) -> io::Result<Self> {
        let (text, warning) = read_file(path)?;
        warn_of(path, warning);
        let loaded = Loaded {
            keys: parse_keys(&text)?,
            watch: Watch::new(&text),
        };
        Ok(Self {
            path: path.to_owned(),
            loaded: Mutex::new(loaded),
        })
    }

    /// The keys as the file has them, or had them when it last could be used.
    fn current(&self) -> Arc<[DeviceKey]> {
        self.loaded().keys.clone()
    }

    /// Watches the file for as long as this is polled.
    async fn watch(&self, metrics: &TunnelMetrics) {
        loop {
            metrics.keys.set(self.current().len() as i64);
            let settling = self.look();
            tokio::time::sleep(if settling { SETTLE_INTERVAL } else { POLL_INTERVAL }).await;
        }
    }

    /// Looks at the file once, and says whether it must soon be looked at again. Reads in place: it is local and small.
    fn look(&self) -> bool {
        let (read, warning) = match read_file(&self.path) {
            Ok((text, warning)) => (Ok(text), warning),
            Err(error) => (Err(error), None),
        };
        let mut loaded = self.loaded();
        let keys = match loaded.watch.look(read) {
            Look::Unchanged => return false,
            Look::Settling => return true,
            Look::Changed(read) => read.and_then(|text| parse_keys(&text)),
        };
        warn_of(&self.path, warning);
        match keys {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the link keys were read again");
                loaded.keys = keys;
            }
            Err(error) => {
                tracing::error!(%error, "the file of link keys cannot be used; the keys stay as they were");
            }
        }
        false
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text, and what is to be warned of.
fn read_file(path: &Path) -> io::Result<(Zeroizing<String>, Option<String>)> {
    /// A key has 43 characters; whatever is much longer is another file.
    const MAX_FILE_BYTES: u64 = 4096;
    let metadata = std::fs::metadata(path)?;
    let warning = check_secret_file(&metadata)?;
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    Ok((text, warning))
}

fn warn_of(path: &Path, warning: Option<String>) {
    if let Some(warning) = warning {
        tracing::warn!(path = %path.display(), "{warning}");
    }
}

fn parse_keys(text: &str) -> io::Result<Arc<[DeviceKey]>> {
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

/// How much the tunnel's listener takes on.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    pub handshakes: usize,
    pub handshakes_per_source: usize,
    pub handshake_timeout: Duration,
    pub tunnels: usize,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            handshakes: MAX_HANDSHAKES,
            handshakes_per_source: MAX_HANDSHAKES_PER_SOURCE,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            tunnels: MAX_TUNNELS,
        }
    }
}

/// The tunnel's listener, and what is behind it.
pub struct Tunnel {
    keys: LinkKeys,
    /// The link's socket file.
    link: PathBuf,
    metrics: TunnelMetrics,
    handshake_timeout: Duration,
    sources: Throttle,
    started: Instant,
    places: Mutex<Places<Arc<Notify>>>,
    fresh: Mutex<Fresh>,
    tunnels: Semaphore,
}

impl Tunnel {
    pub fn new(keys: LinkKeys, link: PathBuf, metrics: TunnelMetrics, limits: TunnelLimits) -> Arc<Self> {
        let places = Places::new(limits.handshakes, limits.handshakes_per_source);
        Arc::new(Self {
            keys,
            link,
            metrics,
            handshake_timeout: limits.handshake_timeout,
            sources: Throttle::new(rand::random(), SOURCE_SLOTS, SOURCE_INTERVAL_MS, SOURCE_BURST),
            started: Instant::now(),
            places: Mutex::new(places),
            fresh: Mutex::default(),
            tunnels: Semaphore::new(limits.tunnels),
        })
    }

    /// Serves until the process ends. Needs a `LocalSet` or runtime of its own: connections are tasks.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        tokio::join!(self.accept_all(listener), self.keys.watch(&self.metrics));
    }

    async fn accept_all(self: &Arc<Self>, listener: TcpListener) {
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
        if let Err(refused) = self.carry(stream, address).await {
            self.metrics.refuse(&refused);
            match refused {
                Refused::Link(_) => tracing::warn!(%refused, "a tunnel does not reach the link"),
                _ => tracing::debug!(%address, %refused, "a tunnel was refused"),
            }
        }
    }

    async fn carry(&self, mut stream: TcpStream, address: SocketAddr) -> Result<(), Refused> {
        let proving = tokio::time::timeout(self.handshake_timeout, self.admit(&mut stream, address));
        let keys = proving.await.unwrap_or(Err(Refused::Timeout))?;
        let _place = self.tunnels.try_acquire().map_err(|_| Refused::Full)?;
        let local = UnixStream::connect(&self.link).await.map_err(Refused::Link)?;
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
        Ok(())
    }

    /// Finds out whether the peer holds the key.
    async fn admit(&self, stream: &mut TcpStream, address: SocketAddr) -> Result<TunnelKeys, Refused> {
        let source = source_of(address.ip());
        let since_start = self.started.elapsed().as_millis() as u64;
        let tried = self.sources.check(&source, since_start);
        tried.map_err(|_| Refused::Throttled)?;
        let mut place = Place::enter(&self.places, source)?;
        prepare(stream)?;
        let claim = tokio::select! {
            // What has come is looked at, whoever wants the place.
            biased;
            claim = tunnel::hear(stream) => claim?,
            () = place.lost.notified() => return Err(Refused::Silent),
        };
        let caller = claim.verify(&self.keys.current())?;
        self.check_fresh(&caller)?;
        place.confirm()?;
        let name = caller.name().clone();
        let keys = caller.prove(stream).await?;
        tracing::info!(%address, backend = name.as_str(), "a backend has come through the tunnel");
        Ok(keys)
    }

    fn check_fresh(&self, caller: &Caller) -> Result<(), Stale> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.check(caller.ephemeral(), caller.timestamp_ms(), now.as_millis() as u64)
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

/// One connection's place among those that are proving themselves.
struct Place<'a> {
    all: &'a Mutex<Places<Arc<Notify>>>,
    id: PlaceId,
    source: Source,
    lost: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn enter(all: &'a Mutex<Places<Arc<Notify>>>, source: Source) -> Result<Self, Refused> {
        let lost = Arc::new(Notify::new());
        let entered = lock(all).enter(source, lost.clone());
        let id = tell(entered)?;
        Ok(Self {
            all,
            id,
            source,
            lost,
        })
    }

    /// Nobody takes this place any more.
    fn confirm(&mut self) -> Result<(), Refused> {
        let confirmed = lock(self.all).confirm(self.id, self.source, self.lost.clone());
        self.id = tell(confirmed)?;
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.all).leave(self.id);
    }
}

fn lock(places: &Mutex<Places<Arc<Notify>>>) -> MutexGuard<'_, Places<Arc<Notify>>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells whoever lost its place.
fn tell(entered: Result<(PlaceId, Option<Arc<Notify>>), NoPlace>) -> Result<PlaceId, Refused> {
    let (id, lost) = entered.map_err(|NoPlace| Refused::Busy)?;
    if let Some(lost) = lost {
        lost.notify_one();
    }
    Ok(id)
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
