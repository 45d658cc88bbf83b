//! From a configuration to running threads, and back to an end.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use holdfast_proto::link::{HEADER_DELAY, LaneConfig};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};
use uuid::Uuid;

use super::gateway::{COMMANDS_CAPACITY, HubGateway, Snapshot};
use super::hub::{Hub, HubInputs};
use super::worker::{WorkerSettings, WorkerStuck, Workers};
use crate::api::{ApiKeys, ApiMetrics, ApiState, BackendStats, listen_or_inherit, router, serve};
use crate::auth::{JwtAuthenticator, TokenKeys};
use crate::config::{Config, ConfigError};
use crate::core::{Backend, CoreMetrics, CoreSettings};
use crate::link::LinkSettings;
use crate::link::edge::ZmqSockets;
use crate::metrics::new_registry;
use crate::route::RouteTable;
use crate::route::breaker::BreakerSettings;
use crate::route::watch::{RouteMetrics, RouteWatcher};
use crate::service::{ReplyMemory, ServiceMetrics, ServiceSettings, Signer, client_tls};

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
    #[error("threads cannot be started: {0}")]
    Threads(#[from] io::Error),
    /// The process must end: it cannot do its work.
    #[error(transparent)]
    Stuck(#[from] WorkerStuck),
    #[error("the link thread ended by itself")]
    LinkEnded,
}

const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Reads every file that the configuration names, and uses nothing of it.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    ApiKeys::load(&config.api_keys)?;
    TokenKeys::load(&config.token_keys)?;
    Signer::load(&config.signing.key)?;
    client_tls(config.service_ca.as_deref())?;
    RouteWatcher::start(&config.routes, RouteMetrics::default()).map(drop)
}

/// Runs a backend until `stop` becomes true and everything is drained. Must be called on a tokio runtime, which serves the
/// API; the link and the workers get threads of their own.
pub async fn run(config: &Config, stop: watch::Receiver<bool>) -> Result<(), StartError> {
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
    let authenticator = Arc::new(JwtAuthenticator::new(TokenKeys::load(&config.token_keys)?));
    let keys = ApiKeys::load(&config.api_keys)?;
    let listener = listen(config)?;

    let (commands, api_commands) = mpsc::channel(COMMANDS_CAPACITY);
    let link = LinkThread {
        config: config.clone(),
        boot: Uuid::new_v4(),
        workers: WorkerSettings {
            services,
            authenticator,
        },
        metrics: core_metrics,
        routes,
        commands: api_commands,
        stop: stop.clone(),
        snapshot: Arc::default(),
    };
    let backend = BackendStats {
        name: config.name.clone(),
        version: BUILD.to_owned(),
        epoch: link.boot.to_string(),
    };
    let gateway = HubGateway::new(commands, link.snapshot.clone(), backend);
    let state = ApiState::new(Arc::new(gateway), keys, Arc::new(registry), api_metrics);
    let address = listener.local_addr()?;
    let snapshot = link.snapshot.clone();
    let quiet = until_quiet(stop.clone(), snapshot.clone());
    let api = tokio::spawn(serve(listener, router(state), quiet, stop.clone()));
    tokio::spawn(watcher.run());
    info!(api = %address, frontends = config.frontends.len(), workers = config.workers, "the backend is running");

    link.start()?.await.map_err(|_| StartError::LinkEnded)??;
    // Also when the grace was over before the work was.
    snapshot.store(Arc::new(Snapshot {
        draining: true,
        ..Snapshot::default()
    }));
    // The API has stopped accepting; what it was asked is answered by now, or never will be.
    match api.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => error!(%error, "the API failed"),
        Err(error) => error!(%error, "the API panicked"),
    }
    Ok(())
}

fn listen(config: &Config) -> Result<TcpListener, StartError> {
    listen_or_inherit(config.api).map_err(|error| StartError::Listen {
        address: config.api,
        error,
    })
}

/// How often a leaving backend looks whether its devices' work is done.
const QUIET_POLL: Duration = Duration::from_millis(20);

/// Resolves when the backend was told to stop and its devices' work is done: until then the API goes on, and tells callers
/// to come back elsewhere; from then on no further call may hold the backend up.
async fn until_quiet(mut stop: watch::Receiver<bool>, snapshot: Arc<ArcSwap<Snapshot>>) {
    // An error means that nobody can stop it any more, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
    while !snapshot.load().is_quiet() {
        tokio::time::sleep(QUIET_POLL).await;
    }
}

/// Everything that moves to the link thread.
struct LinkThread {
    config: Config,
    boot: Uuid,
    workers: WorkerSettings,
    metrics: CoreMetrics,
    routes: watch::Receiver<Arc<RouteTable>>,
    commands: mpsc::Receiver<super::ApiCommand>,
    stop: watch::Receiver<bool>,
    snapshot: Arc<ArcSwap<Snapshot>>,
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
                let settings = core_settings(&self.config, self.boot);
                let (endpoints, links) = (self.config.frontends, settings.links);
                let (sockets, news) = ZmqSockets::new(endpoints, settings.link.lane.timeout);
                let table = self.routes.borrow().clone();
                let core = Backend::new(settings, table, self.metrics, Instant::now());
                let (commands, routes, stop) = (self.commands, self.routes, self.stop);
                let inputs = HubInputs {
                    news,
                    results,
                    commands,
                    routes,
                    stop,
                };
                Hub::new(core, sockets, workers, links, self.snapshot)
                    .run(inputs)
                    .await
            });
            // The receiver is gone only when the process ends.
            let _ = ended.send(result);
        })?;
        Ok(end)
    }
}

fn core_settings(config: &Config, boot: Uuid) -> CoreSettings {
    let lane = LaneConfig {
        heartbeat: config.link.heartbeat.get(),
        timeout: config.link.timeout.get(),
        header_delay: HEADER_DELAY,
        ..LaneConfig::default()
    };
    let link = LinkSettings {
        name: config.name.clone(),
        build: BUILD.to_owned(),
        boot: boot.as_u128(),
        lane,
        retry: config.link.reconnect.get(),
        share: holdfast_proto::Share::FULL,
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
