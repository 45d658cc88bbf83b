//! Serving the API: connections with bounds and time limits, and an end without losing an answer.
//!
//! The listening socket may be inherited, and then outlives this process: another one accepts from it during an upgrade.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use listenfd::ListenFd;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::patience::Patient;

/// Connections at once; more wait in the kernel's queue. Each costs about 20 KiB.
pub const MAX_CONNECTIONS: usize = 1024;
/// Longest time for a request's head to arrive, and for a kept-alive connection to stay unused.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for an answer to be taken by its peer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 256;
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// Pause after a failed accept: it fails again at once while descriptors are out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests may take to finish when told to stop; longer than a push waits by default.
const STOP_GRACE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 1024;

/// The socket handed down by a supervisor (`LISTEN_FDS`, with or without `LISTEN_PID`), else a new one on `address`.
///
/// Call it early: it takes the variables out of the environment.
pub fn listen_or_inherit(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match ListenFd::from_env().take_tcp_listener(0)? {
        Some(inherited) => inherited,
        None => bind(address)?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until `shutdown` resolves, then finishes what is in progress, for at most [`STOP_GRACE`].
///
/// While `draining` holds true, every response closes its connection, so that callers come back to another process.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    draining: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (stream, place) = accept(&listener, &places) => {
                let service = service(router.clone(), draining.clone());
                let connection = builder().serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIMEOUT)), service);
                let connection = graceful.watch(connection);
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        debug!(%error, "an API connection ended");
                    }
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(STOP_GRACE, graceful.shutdown())
        .await
        .is_err()
    {
        warn!(
            connections = connections.len(),
            "API requests did not finish in time"
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// The next connection, with its place among those allowed.
async fn accept(
    listener: &tokio::net::TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and written at once.
                let _ = stream.set_nodelay(true);
                return (stream, place);
            }
            Err(error) => {
                warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER_BYTES);
    builder
}

fn service(
    router: Router,
    draining: watch::Receiver<bool>,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
{
    let router = TowerToHyperService::new(router);
    service_fn(move |request| {
        let answer = router.call(request);
        let draining = draining.clone();
        async move {
            let mut response = answer.await?;
            if *draining.borrow() {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    })
}
