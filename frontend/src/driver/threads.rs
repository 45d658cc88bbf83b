//! The process: its threads, in the order in which they start and stop.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use holdfast_proto::link::{HEADER_DELAY, LaneConfig, MAX_REPLY_BYTES};
use holdfast_proto::throttle::Throttle;
use holdfast_proto::{ChannelKind, FrontendEpoch, FrontendId, ShardId, descriptors};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

use super::datagrams::Datagrams;
use super::intake::{Intake, connections_within};
use super::shard::{DeviceListener, ListenerKind, Shard, ShardSetup};
use super::udp::UdpSetup;
use crate::admin::{self, AdminState};
use crate::channel::listener::{AcceptMetrics, AcceptOptions, Listener};
use crate::channel::{Budgets, Strangers, TlsConfigError, load_server_config};
use crate::config::{Config, LimitsConfig, TunnelConfig};
use crate::epoch::DataDir;
use crate::exchange::{ToHub, ToShard};
use crate::link::edge::{self, LinkSetup, LinkSocket};
use crate::link::tunnel::{LinkKeys, Tunnel, TunnelLimits, TunnelMetrics};
use crate::link::{Hub, HubConfig, LinkMetrics, LinkStatus};
use crate::session::{ShardConfig, ShardMetrics, SourceLimit, Sources, Unfinished};

/// Why the frontend did not start, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("data_dir: {0}")]
    Data(std::io::Error),
    #[error("link: {0}")]
    Link(std::io::Error),
    #[error("{key} = \"{address}\": {source}")]
    Listen {
        key: &'static str,
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("udp.listen: {0}")]
    Datagrams(std::io::Error),
    #[error("tunnel.key = \"{}\": {error}", path.display())]
    LinkKey { path: PathBuf, error: std::io::Error },
    #[error("wss: {0}")]
    Tls(#[from] TlsConfigError),
    #[error("a thread did not start: {0}")]
    Thread(std::io::Error),
}

type ToShards = Vec<mpsc::UnboundedSender<Vec<ToShard>>>;

/// A running frontend.
pub struct Frontend {
    stop: watch::Sender<bool>,
    ready: Arc<AtomicBool>,
    stopped: oneshot::Receiver<()>,
    /// Where devices connect, by kind of channel.
    pub devices: Vec<(ChannelKind, SocketAddr)>,
    /// Where `/metrics` is.
    pub admin: SocketAddr,
}

impl Frontend {
    /// Starts every thread; on return devices and backends may connect.
    ///
    /// # Errors
    /// Whatever kept it from starting; nothing is left running that matters: the caller exits.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let data = DataDir::open(&config.data_dir, SystemTime::now()).map_err(StartError::Data)?;
        let mut registry = Registry::with_prefix("holdfast");
        let link_metrics = LinkMetrics::default();
        link_metrics.register(&mut registry);
        let admin_listener = listen("admin", config.admin)?;
        let admin_address = admin_listener.local_addr().unwrap_or(config.admin);
        let places = places(config)?;
        let mut datagrams = Datagrams::bind(config, &data)?;
        let intake = Arc::new(intake(config));
        let strangers = Strangers::of(config.limits.input_total_bytes);
        strangers.register(&mut registry);

        let (to_hub, from_shards) = mpsc::unbounded_channel();
        let mut to_shards: ToShards = Vec::new();
        let mut shard_metrics = Vec::new();
        for shard in shard_configs(config, data.epoch) {
            let label = ("shard".into(), shard.shard.0.to_string().into());
            let labelled = registry.sub_registry_with_label(label);
            let own = ShardOwn::new(config, labelled, (datagrams.as_mut(), &strangers));
            shard_metrics.push(own.metrics.clone());
            let (sender, receiver) = mpsc::unbounded_channel();
            to_shards.push(sender);
            let parts = ShardParts {
                shard,
                own,
                intake: intake.clone(),
                places: places.clone(),
                to_hub: to_hub.clone(),
                from_hub: receiver,
            };
            start_shard(config, parts)?;
        }
        drop(to_hub);

        let (status, link) = watch::channel(LinkStatus::default());
        let (stop, stop_receiver) = watch::channel(false);
        let hub = Hub::new(
            hub_config(config, data.epoch),
            link_metrics.clone(),
            Instant::now(),
        );
        let setup = LinkSetup {
            hub,
            metrics: link_metrics,
            path: config.link_path().map(Into::into).unwrap_or_default(),
            from_shards,
            to_shards,
            stop: stop_receiver,
            status,
        };
        start_tunnel(config, &mut registry)?;
        let epoch = data.epoch.0;
        let stopped = start_link(config.frontend_id, setup, data)?;
        let ready = Arc::new(AtomicBool::new(true));
        let state = AdminState {
            registry: Arc::new(registry),
            ready: ready.clone(),
            link,
            shards: shard_metrics,
            frontend_id: config.frontend_id,
            epoch,
        };
        start_admin(admin_listener, state)?;
        Ok(Self {
            stop,
            ready,
            stopped,
            devices: devices(&places, datagrams.as_ref()),
            admin: admin_address,
        })
    }

    /// Where devices of this kind connect, if they may.
    pub fn address(&self, kind: ChannelKind) -> Option<SocketAddr> {
        self.devices
            .iter()
            .find(|(of, _)| *of == kind)
            .map(|(_, address)| *address)
    }

    /// Says goodbye to every device, tells the backends, and comes back when all is said or `grace` is over.
    pub async fn stop(self, grace: std::time::Duration) {
        self.ready.store(false, Ordering::Relaxed);
        // An error means that the link's thread has ended already.
        let _ = self.stop.send(true);
        if tokio::time::timeout(grace, self.stopped).await.is_err() {
            tracing::warn!("the grace is over before every logout was acknowledged");
        }
    }
}

/// Where devices connect, by kind of channel.
fn devices(places: &[Place], datagrams: Option<&Datagrams>) -> Vec<(ChannelKind, SocketAddr)> {
    let streams = places.iter().map(|place| (place.channel(), place.address));
    let datagrams = datagrams.map(|datagrams| (ChannelKind::Udp, datagrams.address));
    streams.chain(datagrams).collect()
}

struct ShardParts {
    shard: ShardConfig,
    own: ShardOwn,
    intake: Arc<Intake>,
    places: Vec<Place>,
    to_hub: mpsc::UnboundedSender<(ShardId, Vec<ToHub>)>,
    from_hub: mpsc::UnboundedReceiver<Vec<ToShard>>,
}

/// What a shard does not share and others look at.
struct ShardOwn {
    metrics: ShardMetrics,
    budgets: Budgets,
    accepts: AcceptMetrics,
    udp: Option<UdpSetup>,
}

impl ShardOwn {
    /// Its metrics are put into `registry`.
    fn new(
        config: &Config,
        registry: &mut Registry,
        (datagrams, strangers): (Option<&mut Datagrams>, &Strangers),
    ) -> Self {
        let own = Self {
            metrics: ShardMetrics::default(),
            budgets: budgets(config, strangers.clone()),
            accepts: AcceptMetrics::default(),
            udp: datagrams.and_then(|datagrams| datagrams.next(config, registry)),
        };
        own.metrics.register(registry);
        own.budgets.register(registry);
        own.accepts.register(registry);
        own
    }
}

/// One for each shard; what they share counts over all of them. The configuration allows no more shards than an id can name.
fn shard_configs(config: &Config, epoch: FrontendEpoch) -> impl Iterator<Item = ShardConfig> {
    let unfinished = Arc::new(Unfinished::new(rand::random()));
    let sources = Sources {
        ws: config
            .ws
            .as_ref()
            .and_then(|ws| source_limit(ws.source_attempts_per_minute, ws.source_attempts_burst)),
        udp: config
            .udp
            .as_ref()
            .and_then(|udp| source_limit(udp.source_attempts_per_minute, udp.source_attempts_burst)),
    };
    (0..config.shards).map(move |index| ShardConfig {
        unfinished: unfinished.clone(),
        sources: sources.clone(),
        frontend: FrontendId(config.frontend_id),
        epoch,
        shard: ShardId(u8::try_from(index).unwrap_or(u8::MAX)),
        seed: rand::random(),
        ..config.shard()
    })
}

fn hub_config(config: &Config, epoch: FrontendEpoch) -> HubConfig {
    let backends = &config.backends;
    HubConfig {
        frontend: FrontendId(config.frontend_id),
        epoch,
        boot: rand::random(),
        shards: u8::try_from(config.shards).unwrap_or(u8::MAX),
        lane: LaneConfig {
            heartbeat: backends.heartbeat.get(),
            timeout: backends.timeout.get(),
            progress_timeout: Some(backends.progress_timeout.get()),
            header_delay: HEADER_DELAY,
            ..LaneConfig::default()
        },
        max_backends: backends.max,
        ping_interval: backends.ping_interval.get(),
        heartbeat: config.times.ping_after.get(),
        max_message_bytes: u32::try_from(config.limits.max_message_bytes).unwrap_or(u32::MAX),
        window_requests: u32::try_from(config.limits.window_requests).unwrap_or(u32::MAX),
    }
}

/// An address that all shards listen on.
#[derive(Clone)]
struct Place {
    key: &'static str,
    address: SocketAddr,
    kind: ListenerKind,
}

impl Place {
    fn channel(&self) -> ChannelKind {
        match self.kind {
            ListenerKind::Ws => ChannelKind::Ws,
            ListenerKind::Wss(_) => ChannelKind::Wss,
        }
    }
}

fn places(config: &Config) -> Result<Vec<Place>, StartError> {
    let mut places = Vec::new();
    if let Some(wss) = &config.wss {
        let tls = load_server_config(&wss.certificate, &wss.key)?;
        places.push(probe("wss.listen", wss.listen, ListenerKind::Wss(tls))?);
    }
    if let Some(ws) = &config.ws {
        places.push(probe("ws.listen", ws.listen, ListenerKind::Ws)?);
    }
    Ok(places)
}

/// Finds out whether the address is free, which `SO_REUSEPORT` would hide, and which port it is.
fn probe(key: &'static str, address: SocketAddr, kind: ListenerKind) -> Result<Place, StartError> {
    let listener = listen(key, address)?;
    let address = listener
        .local_addr()
        .map_err(|source| StartError::Listen { key, address, source })?;
    Ok(Place { key, address, kind })
}

/// Slots of the table of sources: 512 KiB, so that 1,000 busy sources share one with another about once in 65.
const SOURCE_SLOTS: usize = 1 << 16;

fn source_limit(per_minute: u32, burst: u32) -> Option<SourceLimit> {
    let interval_ms = 60_000_u64.checked_div(per_minute.into())?;
    let throttle = Throttle::new(rand::random(), SOURCE_SLOTS, interval_ms, burst);
    Some(SourceLimit::new(throttle, Instant::now()))
}

fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).map_err(|source| StartError::Listen { key, address, source })
}

fn current_thread() -> std::io::Result<tokio::runtime::Runtime> {
    // A `LocalSet` counts as one task however much it runs: sockets are looked at after every few of its turns.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(4)
        .build()
}

/// Runs `f` on a thread of its own and waits until it says how its start went.
fn spawn<F>(name: String, f: F) -> Result<(), StartError>
where
    F: FnOnce(std::sync::mpsc::SyncSender<Result<(), StartError>>) + Send + 'static,
{
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    thread::Builder::new()
        .name(name)
        .spawn(move || f(sender))
        .map_err(StartError::Thread)?;
    receiver
        .recv()
        .unwrap_or_else(|_| Err(StartError::Thread(std::io::Error::other("it ended at once"))))
}

fn start_shard(config: &Config, parts: ShardParts) -> Result<(), StartError> {
    let options = AcceptOptions {
        user_timeout: config.times.tcp_user_timeout.get(),
    };
    let (max_message_bytes, outbox_bytes) = (config.limits.max_message_bytes, outbox_bytes(&config.limits));
    spawn(format!("shard-{}", parts.shard.shard.0), move |started| {
        let (runtime, local) = match current_thread() {
            Ok(runtime) => (runtime, LocalSet::new()),
            Err(error) => return drop(started.send(Err(StartError::Thread(error)))),
        };
        local.block_on(&runtime, async move {
            let places = parts.places.into_iter();
            let bound = places.map(|place| bind(place, options, parts.own.accepts.clone()));
            let listeners = match bound.collect() {
                Ok(listeners) => listeners,
                Err(error) => return drop(started.send(Err(error))),
            };
            let setup = ShardSetup {
                config: parts.shard,
                metrics: parts.own.metrics,
                max_message_bytes,
                outbox_bytes,
                budgets: parts.own.budgets,
                intake: parts.intake,
                listeners,
                udp: parts.own.udp,
                to_hub: parts.to_hub,
                from_hub: parts.from_hub,
            };
            match Shard::start(setup) {
                Ok(shard) => {
                    drop(started.send(Ok(())));
                    shard.run().await;
                }
                Err(error) => drop(started.send(Err(StartError::Datagrams(error)))),
            }
        });
    })
}

/// The session's own bound speaks first; what encryption adds must not make the channel's speak instead.
pub(super) fn outbox_bytes(limits: &LimitsConfig) -> usize {
    limits.output_bytes * 2 + MAX_REPLY_BYTES * 2
}

/// What one shard's connections may hold; of output the same is true.
fn budgets(config: &Config, strangers: Strangers) -> Budgets {
    let (limits, shards) = (&config.limits, usize::from(config.shards));
    let output = limits.output_total_bytes / shards * 2 + MAX_REPLY_BYTES * 2;
    Budgets::new((limits.input_total_bytes, shards), output, strangers)
}

fn intake(config: &Config) -> Intake {
    let files = descriptors::limit();
    let most = connections_within(files, config.shards.into());
    if most < config.limits.max_sessions as usize {
        tracing::info!(
            files,
            connections = most,
            "the limit of open files (RLIMIT_NOFILE) allows fewer connections than limits.max_sessions"
        );
    }
    Intake::new(rand::random(), config.limits.opening_per_source, most)
}

fn bind(place: Place, options: AcceptOptions, metrics: AcceptMetrics) -> Result<DeviceListener, StartError> {
    let Place { key, address, kind } = place;
    let listener = Listener::bind(address, options, metrics).map_err(|source| StartError::Listen {
        key,
        address,
        source,
    })?;
    Ok(DeviceListener { listener, kind })
}

fn start_link(
    frontend_id: u16,
    setup: LinkSetup,
    data: DataDir,
) -> Result<oneshot::Receiver<()>, StartError> {
    let (done, stopped) = oneshot::channel();
    spawn("link".into(), move |started| {
        let runtime = match current_thread() {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(StartError::Thread(error)))),
        };
        runtime.block_on(async move {
            // Held for as long as the link: the epoch is this process's alone.
            let _data = data;
            match LinkSocket::bind(&setup.path, &format!("frontend-{frontend_id}")).await {
                Ok(socket) => {
                    drop(started.send(Ok(())));
                    edge::run(socket, setup).await;
                }
                Err(error) => drop(started.send(Err(StartError::Link(error)))),
            }
        });
        // Nobody waits when the grace is over.
        let _ = done.send(());
    })?;
    Ok(stopped)
}

/// Backends on other machines need no place before the local socket is there: they come again.
fn start_tunnel(config: &Config, registry: &mut Registry) -> Result<(), StartError> {
    let Some(TunnelConfig { listen: address, key }) = &config.tunnel else {
        return Ok(());
    };
    let keys = LinkKeys::load(key).map_err(|error| StartError::LinkKey {
        path: key.clone(),
        error,
    })?;
    let metrics = TunnelMetrics::default();
    metrics.register(registry);
    let listener = listen("tunnel.listen", *address)?;
    let link = config.link_path().map(Into::into).unwrap_or_default();
    spawn("tunnel".into(), move |started| {
        let listening = current_thread().and_then(|runtime| {
            listener.set_nonblocking(true)?;
            let listener = runtime.block_on(async { tokio::net::TcpListener::from_std(listener) })?;
            Ok((runtime, listener))
        });
        match listening {
            Ok((runtime, listener)) => {
                drop(started.send(Ok(())));
                let tunnel = Tunnel::new(keys, link, metrics, TunnelLimits::default());
                runtime.block_on(tunnel.serve(listener));
            }
            Err(error) => drop(started.send(Err(StartError::Thread(error)))),
        }
    })
}

fn start_admin(listener: TcpListener, state: AdminState) -> Result<(), StartError> {
    spawn("admin".into(), move |started| match current_thread() {
        Ok(runtime) => {
            drop(started.send(Ok(())));
            if let Err(error) = runtime.block_on(admin::serve(listener, state)) {
                tracing::error!(%error, "the admin listener failed");
            }
        }
        Err(error) => drop(started.send(Err(StartError::Thread(error)))),
    })
}
