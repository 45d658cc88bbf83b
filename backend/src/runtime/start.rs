//! From a configuration to running threads, and back to an end.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use holdfast_proto::Share;
use holdfast_proto::link::{HEADER_DELAY, LaneConfig};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tracing::{error, info};
use uuid::Uuid;

use super::gateway::{COMMANDS_CAPACITY, HubGateway, HubMember, SHARES_CAPACITY, ShareCommand, Snapshot};
use super::hub::{Hub, HubInputs, HubOutputs};
use super::supervisor;
use super::worker::{WorkerSettings, WorkerStuck, Workers};
use crate::api::{ApiKeys, ApiMetrics, ApiState, BackendStats, Duty, listen_or_inherit, router, serve};
use crate::auth::{
    Admission, DeviceAuthenticator, DeviceKeySettings, JwtAuthenticator, KeyFiles, KeyMetrics, TokenKeys,
};
use crate::config::{Config, ConfigError};
use crate::control::{self, ControlError, ControlSocket};
use crate::core::{Backend, CoreMetrics, CoreSettings};
use crate::link::LinkSettings;
use crate::link::edge::ZmqSockets;
use crate::link::tunnel::{TunnelStartError, Tunnels};
use crate::metrics::{BUILD, new_registry};
use crate::route::RouteTable;
use crate::route::breaker::BreakerSettings;
use crate::route::watch::{RouteMetrics, RouteWatcher};
use crate::service::{
    KeyEndpoint, KeyEndpointMetrics, KeyEndpointSettings, ReplyMemory, ServiceMetrics, ServiceSettings,
    Signer, client_tls,
};

/// Why a backend did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the API cannot listen on {address}: {error}")]
    Listen {
        address: std::net::SocketAddr,
        error: io::Error,
    },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Tunnel(#[from] TunnelStartError),
    #[error("threads cannot be started: {0}")]
    Threads(#[from] io::Error),
    /// The process must end: it cannot do its work.
    #[error(transparent)]
    Stuck(#[from] WorkerStuck),
    #[error("the link thread ended by itself")]
    LinkEnded,
}

/// Reads every file that the configuration names, and uses nothing of it.
pub fn check(config: &Config) -> Result<(), StartError> {
    if let Some(directory) = &config.control_dir {
        ControlSocket::path(directory, &config.name)?;
    }
    ApiKeys::load(&config.api_keys)?;
    TokenKeys::load(&config.token_keys)?;
    Signer::load(&config.signing.key)?;
    client_tls(config.service_ca.as_deref())?;
    crate::link::tunnel::load_key(config)?;
    RouteWatcher::start(&config.routes, RouteMetrics::default())?;
    if let Some(keys) = &config.device_keys {
        KeyFiles::start(
            keys.master.as_deref(),
            keys.deny.as_deref(),
            KeyMetrics::default(),
        )?;
    }
    Ok(())
}

/// Runs a backend until `stop` becomes true and everything is drained; `share` is what it wants of the sessions at first. Must
/// be called on a tokio runtime, which serves the API; the link and the workers get threads of their own.
pub async fn run(config: &Config, share: Share, stop: watch::Receiver<bool>) -> Result<(), StartError> {
    let prepared = Prepared::new(config)?;
    let (commands, api_commands) = mpsc::channel(COMMANDS_CAPACITY);
    let (shares, share_commands) = mpsc::channel(SHARES_CAPACITY);
    let (share_now, share_watch) = watch::channel(share);
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::starting(share)));
    let link = LinkThread {
        tunnels: Tunnels::start(config)?,
        config: config.clone(),
        boot: Uuid::new_v4(),
        share,
        workers: prepared.workers,
        metrics: prepared.core_metrics.clone(),
        routes: prepared.routes,
        commands: api_commands,
        shares: share_commands,
        stop: stop.clone(),
        outputs: HubOutputs {
            snapshot: snapshot.clone(),
            share: share_now,
        },
    };
    let backend = BackendStats {
        name: config.name.clone(),
        version: BUILD.clone(),
        epoch: link.boot.to_string(),
    };
    let member = HubMember {
        backend: backend.clone(),
        addresses: config.frontends.clone(),
        requests: prepared.core_metrics.requests,
        snapshot: snapshot.clone(),
        shares,
    };
    let control = ControlTask::start(prepared.socket, member, prepared.registry.clone());
    let gateway = Arc::new(HubGateway::new(commands, snapshot.clone(), backend));
    let state = ApiState::new(gateway, prepared.keys, prepared.registry, prepared.api_metrics);
    let address = prepared.listener.local_addr()?;
    let quiet = until_quiet(stop.clone(), snapshot.clone());
    tokio::spawn(supervisor::tell(stop.clone(), snapshot.clone()));
    let duty = Duty {
        draining: stop,
        share: share_watch,
    };
    let api = tokio::spawn(serve(prepared.listener, router(state), quiet, duty));
    tokio::spawn(prepared.watcher.run());
    if let Some(files) = prepared.key_files {
        tokio::spawn(files.run());
    }
    info!(api = %address, %share, frontends = config.frontends.len(), workers = config.workers, "the backend is running");

    link.start()?.await.map_err(|_| StartError::LinkEnded)??;
    // Also when the grace was over before the work was.
    snapshot.store(Arc::new(Snapshot {
        draining: true,
        ..Snapshot::starting(snapshot.load().share)
    }));
    // The API has stopped accepting; what it was asked is answered by now, or never will be.
    log_end("the API", api.await);
    control.end().await;
    Ok(())
}

fn log_end(what: &str, ended: Result<io::Result<()>, JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => error!(%error, "{what} failed"),
        Err(error) => error!(%error, "{what} panicked"),
    }
}

/// What may be missing or wrong, read and bound before anything runs.
struct Prepared {
    registry: Arc<Registry>,
    core_metrics: CoreMetrics,
    api_metrics: ApiMetrics,
    workers: WorkerSettings,
    watcher: RouteWatcher,
    key_files: Option<KeyFiles>,
    routes: watch::Receiver<Arc<RouteTable>>,
    keys: ApiKeys,
    listener: TcpListener,
    socket: Option<ControlSocket>,
}

impl Prepared {
    fn new(config: &Config) -> Result<Self, StartError> {
        let mut registry = new_registry();
        let core_metrics = CoreMetrics::register(&mut registry);
        let api_metrics = ApiMetrics::register(&mut registry);
        let services = ServiceSettings {
            signer: Signer::load(&config.signing.key)?,
            tls: client_tls(config.service_ca.as_deref())?,
            metrics: ServiceMetrics::register(&mut registry),
            memory: ReplyMemory::new(config.max_reply_memory_bytes),
        };
        services.memory.register(&mut registry);
        let (watcher, routes) = RouteWatcher::start(&config.routes, RouteMetrics::register(&mut registry))?;
        let tokens = JwtAuthenticator::new(TokenKeys::load(&config.token_keys)?);
        let device_keys = DeviceKeys::prepare(config, &mut registry)?;
        let keys = ApiKeys::load(&config.api_keys)?;
        let listener = listen(config)?;
        let directory = config.control_dir.as_deref();
        let socket = directory.map(|directory| ControlSocket::bind(directory, &config.name));
        Ok(Self {
            registry: Arc::new(registry),
            core_metrics,
            api_metrics,
            workers: WorkerSettings {
                services,
                authenticator: Arc::new(Admission::new(tokens, device_keys.authenticator)),
                key_endpoint: device_keys.endpoint,
            },
            watcher,
            key_files: device_keys.files,
            routes,
            keys,
            listener,
            socket: socket.transpose()?,
        })
    }
}

/// What `[device_keys]` asks for.
#[derive(Default)]
struct DeviceKeys {
    authenticator: Option<DeviceAuthenticator>,
    files: Option<KeyFiles>,
    endpoint: Option<Arc<KeyEndpoint>>,
}

impl DeviceKeys {
    fn prepare(config: &Config, registry: &mut Registry) -> Result<Self, ConfigError> {
        let Some(keys) = &config.device_keys else {
            return Ok(Self::default());
        };
        let metrics = KeyMetrics::register(registry);
        let files = KeyFiles::start(keys.master.as_deref(), keys.deny.as_deref(), metrics)?;
        let in_force = (files.keys(), files.denied());
        let settings = DeviceKeySettings::new(keys, in_force, rand::random(), Instant::now());
        let endpoint = keys.endpoint().map(|(url, host)| {
            let settings = KeyEndpointSettings {
                url,
                host,
                timeout: keys.endpoint_timeout.get(),
                concurrency: keys.endpoint_concurrency,
                concurrency_per_source: keys.endpoint_concurrency_per_source(),
            };
            Arc::new(KeyEndpoint::new(settings, KeyEndpointMetrics::register(registry)))
        });
        Ok(Self {
            authenticator: Some(DeviceAuthenticator::new(settings)),
            files: Some(files),
            endpoint,
        })
    }
}

/// The control socket's server, when there is one. It goes when the backend has ended, also when that ends in an error.
struct ControlTask {
    running: Option<(oneshot::Sender<()>, JoinHandle<io::Result<()>>)>,
}

impl ControlTask {
    fn start(socket: Option<ControlSocket>, member: HubMember, registry: Arc<Registry>) -> Self {
        let running = socket.map(|socket| {
            let (end, ended) = oneshot::channel();
            // An error means that the other end is gone: then it is time as well.
            let ended = async { drop(ended.await) };
            let server = control::serve(socket, Arc::new(member), registry, ended);
            (end, tokio::spawn(server))
        });
        Self { running }
    }

    async fn end(self) {
        let Some((end, task)) = self.running else { return };
        let _ = end.send(());
        log_end("the control socket", task.await);
    }
}

fn listen(config: &Config) -> Result<TcpListener, StartError> {
    listen_or_inherit(config.api).map_err(|error| StartError::Listen {
        address: config.api,
        error,
    })
}

/// How often somebody looks at what the link thread last said of itself.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Resolves when the backend was told to stop and its devices' work is done: until then the API goes on, and tells callers
/// to come back elsewhere; from then on no further call may hold the backend up.
async fn until_quiet(mut stop: watch::Receiver<bool>, snapshot: Arc<ArcSwap<Snapshot>>) {
    // An error means that nobody can stop it any more, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
    while !snapshot.load().is_quiet() {
        tokio::time::sleep(POLL).await;
    }
}

/// Everything that moves to the link thread.
struct LinkThread {
    tunnels: Tunnels,
    config: Config,
    boot: Uuid,
    share: Share,
    workers: WorkerSettings,
    metrics: CoreMetrics,
    routes: watch::Receiver<Arc<RouteTable>>,
    commands: mpsc::Receiver<super::ApiCommand>,
    shares: mpsc::Receiver<ShareCommand>,
    stop: watch::Receiver<bool>,
    outputs: HubOutputs,
}

impl LinkThread {
    /// Starts the workers and the thread; the receiver tells how it ended.
    fn start(self) -> io::Result<oneshot::Receiver<Result<(), WorkerStuck>>> {
        let (workers, results) =
            Workers::start(self.config.workers, self.config.max_in_flight, &self.workers)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("link".to_owned()).spawn(move || {
            let result = runtime.block_on(async move {
                let settings = core_settings(&self.config, self.boot, self.share);
                let (endpoints, links) = (self.tunnels.endpoints(), settings.links);
                let (sockets, news) = ZmqSockets::new(endpoints, settings.link.lane.timeout);
                let table = self.routes.borrow().clone();
                let core = Backend::new(settings, table, self.metrics, Instant::now());
                let inputs = HubInputs {
                    news,
                    results,
                    commands: self.commands,
                    shares: self.shares,
                    routes: self.routes,
                    stop: self.stop,
                };
                Hub::new(core, sockets, workers, links, self.outputs)
                    .run(inputs)
                    .await
            });
            // The receiver is gone only when the process ends.
            let _ = ended.send(result);
        })?;
        Ok(end)
    }
}

fn core_settings(config: &Config, boot: Uuid, share: Share) -> CoreSettings {
    let lane = LaneConfig {
        heartbeat: config.link.heartbeat.get(),
        timeout: config.link.timeout.get(),
        header_delay: HEADER_DELAY,
        ..LaneConfig::default()
    };
    let link = LinkSettings {
        name: config.name.clone(),
        build: BUILD.clone(),
        boot: boot.as_u128(),
        lane,
        retry: config.link.reconnect.get(),
        share,
    };
    CoreSettings {
        link,
        links: config.frontends.len(),
        max_in_flight: config.max_in_flight,
        last_seen_capacity: config.last_seen_capacity,
        push_timeout: config.push_timeout.get(),
        query_timeout: config.query_timeout.get(),
        drain_grace: config.drain_grace.get(),
        breaker: BreakerSettings::default(),
        seed: rand::random(),
    }
}
