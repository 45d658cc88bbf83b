//! Serving HTTP: connections with bounds and time limits, and an end without losing an answer.
//!
//! The API's listening socket may be inherited, and then outlives this process: another one accepts from it during an upgrade.
//! A backend that is not a full member holds it without accepting: who connects waits in the kernel's queue, which all
//! processes that have the socket share.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Request, Response};
use holdfast_proto::Share;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use listenfd::ListenFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::patience::Patient;

/// Connections at once; more wait in the kernel's queue. Each costs about 20 KiB.
pub const MAX_CONNECTIONS: usize = 1024;
/// Longest time for a request's head to arrive, and for a kept-alive connection to stay unused.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for the first request of a connection that was taken just before the stop. Callers send it at once.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
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

/// What connections are accepted from.
pub(crate) trait Acceptor {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Cancel-safe: a connection that is not returned stays in the kernel's queue, for this process or another one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Acceptor for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(tokio::net::UnixListener::accept(self).await?.0)
    }
}

impl Acceptor for tokio::net::TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = tokio::net::TcpListener::accept(self).await?;
        // Answers are small and written at once.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// What a server is made of.
pub(crate) struct Server<A> {
    pub(crate) acceptor: A,
    pub(crate) router: Router,
    /// Connections at once; more wait in the kernel's queue.
    pub(crate) max_connections: usize,
    /// How long requests may take to finish when told to stop.
    pub(crate) stop_grace: Duration,
    pub(crate) duty: Duty,
}

/// What a server owes to its callers at the moment.
#[derive(Debug, Clone)]
pub struct Duty {
    /// The process leaves: callers are told to come back to another one.
    pub draining: watch::Receiver<bool>,
    /// Only a full member accepts connections; what others had accepted before they tell to come back elsewhere.
    pub share: watch::Receiver<Share>,
}

impl Duty {
    fn sends_away(&self) -> bool {
        *self.draining.borrow() || !self.share.borrow().is_full()
    }
}

/// Serves the API until `shutdown` resolves, then finishes what is in progress, for at most [`STOP_GRACE`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    duty: Duty,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let server = Server {
        acceptor: tokio::net::TcpListener::from_std(listener)?,
        router,
        max_connections: MAX_CONNECTIONS,
        stop_grace: STOP_GRACE,
        duty,
    };
    server.run(shutdown).await;
    Ok(())
}

impl<A: Acceptor> Server<A> {
    /// Serves until `shutdown` resolves, then finishes what is in progress, for at most the grace.
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            acceptor,
            router,
            max_connections,
            stop_grace,
            mut duty,
        } = self;
        let places = Arc::new(Semaphore::new(max_connections));
        let leaving = watch::Sender::new(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepts = duty.share.borrow_and_update().is_full();
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                Ok(()) = duty.share.changed() => {}
                (stream, place) = accept(&acceptor, &places), if accepts => {
                    let connection = converse(stream, router.clone(), duty.clone(), leaving.subscribe());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
            }
        }
        drop(acceptor);
        leaving.send_replace(true);
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(stop_grace, finished).await.is_err() {
            warn!(
                connections = connections.len(),
                "HTTP requests did not finish in time"
            );
            connections.shutdown().await;
        }
    }
}

/// Serves one connection until its end, or until told to leave: then to the end of the answer in progress. One that was just
/// taken has its first request on the way, which nobody else could answer: that is waited for.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    duty: Duty,
    mut leaving: watch::Receiver<bool>,
) {
    let asked = Arc::new(Notify::new());
    let stream = TokioIo::new(Patient::new(stream, WRITE_TIMEOUT));
    let service = service(router, duty, asked.clone());
    let mut connection = std::pin::pin!(builder().serve_connection(stream, service));
    let told = async {
        // Gone without a word means the same.
        let _ = leaving.wait_for(|leaving| *leaving).await;
        let _ = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, asked.notified()).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended");
    }
}

/// The next connection, with its place among those allowed.
async fn accept<A: Acceptor>(acceptor: &A, places: &Arc<Semaphore>) -> (A::Stream, OwnedSemaphorePermit) {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match acceptor.accept().await {
            Ok(stream) => return (stream, place),
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
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
    duty: Duty,
    asked: Arc<Notify>,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
{
    let router = TowerToHyperService::new(router);
    service_fn(move |request| {
        // Kept for who comes to wait for it.
        asked.notify_one();
        let answer = router.call(request);
        let duty = duty.clone();
        async move {
            let mut response = answer.await?;
            if duty.sends_away() {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    })
}
