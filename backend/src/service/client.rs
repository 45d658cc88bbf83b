//! The HTTP client of one worker thread.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use holdfast_proto::DeviceId;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;

use super::connect::Bounded;
use super::headers::{self, Moment};
use super::memory::ReplyMemory;
use super::metrics::ServiceMetrics;
use super::reply::{self, Limits};
use super::sign::Signer;
use super::{CallOutcome, Called, FailureDetail, ReplyRoom, ServiceRequest};

/// Longest wait for a TCP connection.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a connection that can be used: its name, TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept. Common servers close theirs after 5 s or more; shorter means fewer calls that
/// meet a closing one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Unused connections kept per service and worker: about 20 KiB each, with the kernel's part. Above the concurrency that
/// routes have by default: below it, each burst would close connections that the next one opens again, which more than
/// doubled the cost of a call.
const MAX_IDLE_PER_SERVICE: usize = 1024;
/// Most headers that a reply may have.
const MAX_REPLY_HEADERS: usize = 100;
/// Largest head of a reply, and the most of a body that is read ahead.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// What all workers' clients have in common.
#[derive(Clone)]
pub struct ServiceSettings {
    pub signer: Signer,
    /// From [`client_tls`](super::client_tls).
    pub tls: rustls::ClientConfig,
    pub metrics: ServiceMetrics,
    pub memory: ReplyMemory,
}

/// A question of our own to an address of the operator's, with a small JSON answer.
pub(super) struct Question<'a> {
    pub(super) url: &'a Uri,
    pub(super) host: &'a HeaderValue,
    /// The `ce-type`, and what is asked about.
    pub(super) kind: &'static str,
    pub(super) device: &'a DeviceId,
    pub(super) id: Uuid,
    pub(super) body: Bytes,
    pub(super) max_answer_bytes: usize,
}

/// Calls services over pooled connections. Use it on one runtime only; clones share the pool.
#[derive(Clone)]
pub struct ServiceClient {
    http: Client<Bounded<HttpsConnector<HttpConnector>>, Full<Bytes>>,
    signer: Signer,
    metrics: ServiceMetrics,
    memory: ReplyMemory,
}

impl ServiceClient {
    /// Connects to nothing yet.
    pub fn new(settings: ServiceSettings) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(settings.tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_PER_SERVICE)
            .http1_max_headers(MAX_REPLY_HEADERS)
            .http1_max_buf_size(MAX_BUFFER_BYTES)
            .set_host(false)
            .build(Bounded::new(connector, CONNECT_TIMEOUT));
        Self {
            http,
            signer: settings.signer,
            metrics: settings.metrics,
            memory: settings.memory,
        }
    }

    /// Makes one call, within the route's timeout. Dropping the future ends the call and closes its connection.
    pub async fn call(&self, request: ServiceRequest) -> Called {
        let started = Instant::now();
        let in_progress = self.metrics.begin();
        let limit = request.route.timeout;
        let route = request.route.clone();
        // The rest is for reading the body, or for saying in time that there was no room.
        let room_by = started + limit / 8 * 7;
        let (outcome, room) = match timeout(limit, self.exchange(request, room_by)).await {
            Ok(Ok(done)) => done,
            Ok(Err(detail)) => (detail.into(), ReplyRoom::default()),
            Err(_) => (FailureDetail::Timeout.into(), ReplyRoom::default()),
        };
        if let CallOutcome::Failed { detail, .. } = &outcome {
            debug!(route = %route.key, %detail, "a service call failed");
        }
        in_progress.end(&outcome, started.elapsed());
        Called { outcome, room }
    }

    async fn exchange(
        &self,
        request: ServiceRequest,
        room_by: Instant,
    ) -> Result<(CallOutcome, ReplyRoom), FailureDetail> {
        let (route, binary) = (request.route.clone(), request.binary);
        let message = self.message(request)?;
        let response = self.http.request(message).await.map_err(|e| failure(&e))?;
        let limits = Limits {
            route: &route,
            memory: &self.memory,
            room_by,
        };
        reply::read(response, limits, binary).await
    }

    /// The status and what was said with it. Without a bound on time: dropping the future ends it. An answer over the limit, or
    /// with another status than 2xx, has an empty body.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<(StatusCode, Bytes), FailureDetail> {
        let headers = headers::build_question(&question, &self.signer, &Moment::now())
            .map_err(|_| FailureDetail::Unsendable)?;
        let mut message = Request::new(Full::new(question.body));
        *message.method_mut() = Method::POST;
        *message.uri_mut() = question.url.clone();
        *message.headers_mut() = headers;
        let response = self.http.request(message).await.map_err(|e| failure(&e))?;
        let status = response.status();
        if !status.is_success() {
            return Ok((status, Bytes::new()));
        }
        let body = Limited::new(response.into_body(), question.max_answer_bytes)
            .collect()
            .await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                FailureDetail::ReplyTooLarge
            } else {
                FailureDetail::Broken
            }
        })?;
        Ok((status, body.to_bytes()))
    }

    fn message(&self, request: ServiceRequest) -> Result<Request<Full<Bytes>>, FailureDetail> {
        let headers =
            headers::build(&request, &self.signer, &Moment::now()).map_err(|_| FailureDetail::Unsendable)?;
        let mut message = Request::new(Full::new(request.payload));
        *message.method_mut() = Method::POST;
        *message.uri_mut() = request.route.url.clone();
        *message.headers_mut() = headers;
        Ok(message)
    }
}

fn failure(error: &hyper_util::client::legacy::Error) -> FailureDetail {
    if error.is_connect() {
        FailureDetail::Connect
    } else {
        FailureDetail::Broken
    }
}

impl Moment {
    fn now() -> Self {
        Self {
            now: SystemTime::now(),
            trace_id: rand::random(),
            span_id: rand::random(),
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "client_memory_tests.rs"]
mod memory_tests;
