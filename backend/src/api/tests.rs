//! The API over real HTTP on an ephemeral port, with a gateway that records what it is asked.

mod push;
mod rest;
mod serving;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_proto::{DeviceId, FrontendEpoch, FrontendId, Share};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::new_registry;

const PUSH: &str = "push_0123456789012345678901234567890";
const READ: &str = "read_0123456789012345678901234567890";
const ADMIN: &str = "admin_012345678901234567890123456789";
const SESSION: &str = "00010000-0000-8001-8000-000000000004";

/// Answers what the test says.
#[derive(Default)]
struct FakeGateway {
    pushes: Mutex<Vec<PushRequest>>,
    error: Mutex<Option<GatewayError>>,
    not_ready: Mutex<Option<String>>,
    /// When set, a push says that it began and waits for leave to end.
    gate: Option<(Notify, Notify)>,
}

impl FakeGateway {
    fn fail(&self) -> Result<(), GatewayError> {
        self.error.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

fn result(device: Option<DeviceId>) -> PushResult {
    let session = Some(SESSION.parse().unwrap());
    PushResult {
        device,
        session,
        status: PushStatus::Written,
        reason: None,
    }
}

#[async_trait]
impl Gateway for FakeGateway {
    async fn push(&self, request: PushRequest) -> Result<PushReport, GatewayError> {
        self.fail()?;
        let target = request.target.clone();
        self.pushes.lock().unwrap().push(request);
        if let Some((began, leave)) = &self.gate {
            began.notify_one();
            leave.notified().await;
        }
        Ok(match target {
            PushTarget::Device(device) => PushReport::Results(vec![result(Some(device))]),
            PushTarget::Session(_) => PushReport::Results(vec![PushResult {
                status: PushStatus::Dropped,
                reason: Some("slow_consumer".to_owned()),
                ..result(None)
            }]),
            PushTarget::All => PushReport::Counts(PushCounts {
                written: 3,
                dropped: 1,
                unconfirmed: 2,
                frontends_unconfirmed: 1,
            }),
        })
    }

    async fn presence(&self, device: DeviceId) -> Result<Presence, GatewayError> {
        self.fail()?;
        let session = SessionInfo {
            session: SESSION.parse().unwrap(),
            channel: "wss".to_owned(),
            address: "192.0.2.1:5000".to_owned(),
            since: UNIX_EPOCH,
        };
        Ok(Presence {
            device,
            presence: PresenceState::Online,
            sessions: vec![session],
        })
    }

    async fn close(&self, device: DeviceId) -> Result<u64, GatewayError> {
        self.fail()?;
        Ok(u64::from(device.as_str() != "absent"))
    }

    fn readiness(&self) -> Readiness {
        self.not_ready
            .lock()
            .unwrap()
            .clone()
            .map_or(Readiness::Ready, Readiness::NotReady)
    }

    fn stats(&self) -> Stats {
        Stats {
            backend: BackendStats {
                name: "b".to_owned(),
                version: "1".to_owned(),
                epoch: "e".to_owned(),
            },
            frontends: vec![Frontend {
                id: Some(FrontendId(1)),
                epoch: Some(FrontendEpoch(5)),
                state: "active",
                sessions: 7,
            }],
            in_flight: 2,
        }
    }
}

struct Api {
    address: SocketAddr,
    gateway: Arc<FakeGateway>,
    client: Client<HttpConnector, Full<Bytes>>,
    draining: watch::Sender<bool>,
    share: watch::Sender<Share>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

/// An answer: status, headers, and the body as text.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Checks that this is a whole problem document and returns `(status, code, detail)`.
    fn problem(&self) -> (u16, String, String) {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{}",
            self.body
        );
        let document = self.json();
        assert_eq!(document["type"], "about:blank");
        assert_eq!(document["status"], self.status);
        assert!(document["title"].is_string() && document["retryable"].is_boolean());
        assert_eq!(document["retryable"], self.headers.contains_key("retry-after"));
        let text = |name: &str| document[name].as_str().unwrap().to_owned();
        (self.status, text("code"), text("detail"))
    }

    fn is(&self, status: u16, code: &str) {
        let (found, found_code, detail) = self.problem();
        assert_eq!((found, found_code.as_str()), (status, code), "{detail}");
    }
}

impl Api {
    fn start() -> Self {
        Self::start_with(FakeGateway::default())
    }

    fn start_with(gateway: FakeGateway) -> Self {
        Self::start_as(Share::FULL, gateway)
    }

    fn start_as(share: Share, gateway: FakeGateway) -> Self {
        let gateway = Arc::new(gateway);
        let key = |id: &str, secret: &str| {
            format!("[[key]]\nid = {id:?}\nsecret = {secret:?}\nscopes = [{id:?}]\n")
        };
        let keys = [key("push", PUSH), key("read", READ), key("admin", ADMIN)].concat();
        let mut registry = new_registry();
        let metrics = ApiMetrics::register(&mut registry);
        let state = ApiState::new(
            gateway.clone(),
            ApiKeys::parse(&keys).unwrap(),
            Arc::new(registry),
            metrics,
        );
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (draining, drains) = watch::channel(false);
        let (share, shares) = watch::channel(share);
        let duty = Duty {
            draining: drains,
            share: shares,
        };
        let shutdown = async { drop(stopped.await) };
        let serving = tokio::spawn(serve(listener, router(state), shutdown, duty));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            address,
            gateway,
            client,
            draining,
            share,
            stop: Some(stop),
            serving,
        }
    }

    fn request(&self, method: &str, path: &str, key: &str) -> http::request::Builder {
        let builder = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        if key.is_empty() {
            builder
        } else {
            builder.header("authorization", format!("Bearer {key}"))
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.client.request(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer {
            status,
            headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn call(&self, method: &str, path: &str, key: &str) -> Answer {
        self.send(self.request(method, path, key).body(Full::default()).unwrap())
            .await
    }

    async fn push(&self, body: impl Into<Bytes>) -> Answer {
        self.send(
            self.request("POST", "/v1/messages", PUSH)
                .body(Full::new(body.into()))
                .unwrap(),
        )
        .await
    }

    fn last_push(&self) -> PushRequest {
        self.gateway.pushes.lock().unwrap().last().unwrap().clone()
    }

    fn fail_with(&self, error: GatewayError) {
        *self.gateway.error.lock().unwrap() = Some(error);
    }
}

const SOON: Duration = Duration::from_millis(1500);
