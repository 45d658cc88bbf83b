//! A service behind the gateway: real HTTP, told by each request's payload how to answer, recording every call.
//!
//! The payload's first JSON value may be an object of [`Orders`]; a request that orders nothing is echoed byte for byte.
//! Every call is checked against what the gateway promises services (CloudEvents, signature, trace): see
//! [`Service::problems`]. Recording is compact, so that it can answer some thousand calls a second beside the rest of a
//! test.

mod log;
mod verify;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::address::own_address;

pub use log::{Call, Log};

/// How long a wait for calls may take before the test is a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// A request body over this is no test of ours.
const MAX_BODY_BYTES: usize = 16 << 20;

/// What a payload may ask of the service. The waits come first, then `kill`, then the answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Orders {
    /// Answer only after so long.
    pub delay_ms: u64,
    /// Answer only when the test calls [`Service::release`].
    pub hold: bool,
    /// Never answer.
    pub hang: bool,
    /// Run what [`Service::on_kill`] was given, then never answer.
    pub kill: bool,
    /// Drop the connection instead of an answer.
    pub close: bool,
    /// Answer with this status and a small JSON body.
    pub fail: Option<u16>,
    /// Answer with this text as `text/plain`.
    pub text: Option<String>,
    /// Answer 204.
    pub empty: bool,
    /// Answer with a JSON string of so many bytes.
    pub big: Option<usize>,
}

/// A running service. Ends when dropped.
pub struct Service {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    started: Instant,
    signing_key: Vec<u8>,
    log: Mutex<Log>,
    calls: watch::Sender<u64>,
    released: watch::Sender<bool>,
    slow_ms: AtomicU64,
    kill: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Service {
    /// Listens on an ephemeral port of a loopback address of its own.
    pub async fn start() -> Self {
        let signing_key: [u8; 32] = rand::random();
        let shared = Arc::new(Shared {
            started: Instant::now(),
            signing_key: signing_key.to_vec(),
            log: Mutex::default(),
            calls: watch::Sender::new(0),
            released: watch::Sender::new(false),
            slow_ms: AtomicU64::new(0),
            kill: Mutex::new(None),
        });
        let any = SocketAddr::new(own_address(), 0);
        let listener = TcpListener::bind(any).await.expect("an ephemeral port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let accepting = Mutex::new(Some(tokio::spawn(accept(listener, shared.clone()))));
        Self {
            shared,
            address,
            accepting,
        }
    }

    /// The key that calls must be signed with.
    pub fn signing_key(&self) -> &[u8] {
        &self.shared.signing_key
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Closes the listener and every connection: the service is down.
    pub fn down(&self) {
        if let Some(task) = lock(&self.accepting).take() {
            task.abort();
        }
    }

    /// Listens again where it did before.
    pub async fn up(&self) {
        let listener = TcpListener::bind(self.address)
            .await
            .expect("our own port is still free");
        *lock(&self.accepting) = Some(tokio::spawn(accept(listener, self.shared.clone())));
    }

    /// Adds a delay to every answer from now on.
    pub fn slow(&self, delay: Duration) {
        self.shared
            .slow_ms
            .store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Lets every call with `hold` go on, also those still to come.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Calls with `hold` wait again.
    pub fn hold_again(&self) {
        self.shared.released.send_replace(false);
    }

    /// What a call with `kill` does.
    pub fn on_kill(&self, action: impl Fn() + Send + Sync + 'static) {
        *lock(&self.shared.kill) = Some(Arc::new(action));
    }

    /// Looks into the log.
    pub fn log<R>(&self, look: impl FnOnce(&Log) -> R) -> R {
        look(&lock(&self.shared.log))
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.log(|log| log.calls.clone())
    }

    /// Waits until at least `count` calls have arrived, answered or not; panics when they do not.
    pub async fn wait_for_calls(&self, count: usize) {
        self.wait_for(&format!("{count} calls"), |log| log.calls.len() >= count)
            .await;
    }

    /// Waits until the log satisfies `ready`; panics after [`PATIENCE`].
    pub async fn wait_for(&self, what: &str, mut ready: impl FnMut(&Log) -> bool) {
        let mut changes = self.shared.calls.subscribe();
        let wait = changes.wait_for(|_| self.log(&mut ready));
        if timeout(PATIENCE, wait).await.is_err() {
            let (calls, open) = self.log(|log| (log.calls.len(), log.open()));
            panic!("the service waited in vain for {what}: {calls} calls, {open} of them open");
        }
    }

    /// What calls broke of the contract with services; at most 100 are kept.
    pub fn problems(&self) -> Vec<String> {
        self.log(|log| log.problems.clone())
    }

    /// Panics when any call broke the contract with services.
    pub fn assert_contract(&self) {
        let problems = self.problems();
        assert!(problems.is_empty(), "calls broke the contract: {problems:#?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.down();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).ok();
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(shared.clone(), request));
            // A caller that breaks off is what half of the tests are about.
            http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

/// Makes hyper close the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("told to break off")]
struct BreakOff;

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BreakOff> {
    let arrived = shared.started.elapsed();
    let (head, body) = request.into_parts();
    let body = http_body_util::Limited::new(body, MAX_BODY_BYTES).collect().await;
    let body = body.map_err(|_| BreakOff)?.to_bytes();
    let facts = verify::verify(&head.headers, &body, &shared.signing_key);
    let index = lock(&shared.log).arrive(arrived, &head, &body, facts);
    shared.calls.send_modify(|count| *count += 1);
    let orders = read_orders(&body);
    wait(&shared, &orders).await;
    let response = respond(&orders, &head.headers, body)?;
    let left = shared.started.elapsed();
    lock(&shared.log).leave(index, left);
    shared.calls.send_modify(|count| *count += 1);
    Ok(response)
}

fn read_orders(body: &[u8]) -> Orders {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Orders>();
    values.next().and_then(Result::ok).unwrap_or_default()
}

async fn wait(shared: &Shared, orders: &Orders) {
    if orders.hold {
        let mut released = shared.released.subscribe();
        released.wait_for(|released| *released).await.ok();
    }
    let delay = orders.delay_ms + shared.slow_ms.load(Ordering::Relaxed);
    if delay > 0 {
        sleep(Duration::from_millis(delay)).await;
    }
    if orders.kill {
        let action = lock(&shared.kill).clone();
        action.expect("a test that orders `kill` says how, with on_kill")();
    }
    if orders.hang || orders.kill {
        std::future::pending::<Infallible>().await;
    }
}

fn respond(orders: &Orders, headers: &HeaderMap, body: Bytes) -> Result<Response<Full<Bytes>>, BreakOff> {
    if orders.close {
        return Err(BreakOff);
    }
    let mut response = Response::builder();
    let body = if let Some(status) = orders.fail {
        response = response.status(status);
        Bytes::from_static(br#"{"error":"told to fail"}"#)
    } else if let Some(text) = &orders.text {
        response = response.header(http::header::CONTENT_TYPE, "text/plain");
        Bytes::copy_from_slice(text.as_bytes())
    } else if orders.empty {
        response = response.status(StatusCode::NO_CONTENT);
        Bytes::new()
    } else if let Some(size) = orders.big {
        Bytes::from(format!("\"{}\"", "x".repeat(size.saturating_sub(2))))
    } else {
        if let Some(kind) = headers.get(http::header::CONTENT_TYPE) {
            response = response.header(http::header::CONTENT_TYPE, kind);
        }
        body
    };
    response.body(Full::new(body)).map_err(|_| BreakOff)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
