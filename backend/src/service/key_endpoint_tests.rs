//! Against real HTTP servers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::config::http_address;
use crate::metrics::{new_registry, render};
use crate::service::ReplyMemory;
use crate::service::client::tests::{client_with, serve};

const KEY: [u8; 32] = [5; 32];

struct Setup {
    endpoint: Arc<KeyEndpoint>,
    registry: Registry,
}

fn setup(url: &str, timeout: Duration, concurrency: usize) -> Setup {
    let (url, host) = http_address("endpoint", url).unwrap();
    let mut registry = new_registry();
    let metrics = KeyEndpointMetrics::register(&mut registry);
    let settings = KeyEndpointSettings {
        url,
        host,
        timeout,
        concurrency,
        concurrency_per_source: concurrency.div_ceil(2),
    };
    Setup {
        endpoint: Arc::new(KeyEndpoint::new(settings, metrics)),
        registry,
    }
}

impl Setup {
    async fn look_up(&self) -> Result<Option<DeviceKey>, LookupError> {
        let client = client_with(ReplyMemory::new(1 << 20));
        look_up(&self.endpoint, &client, [1; 8]).await
    }

    fn counts(&self, outcome: &str, number: usize) {
        let line = format!("key_endpoint_questions_total{{outcome=\"{outcome}\"}} {number}\n");
        let text = render(&self.registry);
        assert!(text.contains(&line), "{text}");
    }
}

async fn look_up(
    endpoint: &KeyEndpoint,
    client: &ServiceClient,
    source: Source,
) -> Result<Option<DeviceKey>, LookupError> {
    let question = KeyQuestion {
        identity: &identity(),
        channel: "ws",
        source,
    };
    endpoint.look_up(client, question).await
}

fn identity() -> Identity {
    Identity {
        key_id: "cloud".into(),
        product: "tv".into(),
        class: "home".into(),
        device: "a:b".parse().unwrap(),
        key_version: 7,
    }
}

fn key_text() -> String {
    DeviceKey::from_bytes(&KEY).unwrap().to_text()
}

/// What the endpoint's answer comes to.
async fn answered(status: u16, body: impl Into<Body>) -> Result<Option<DeviceKey>, LookupError> {
    let body = Arc::new(std::sync::Mutex::new(Some(body.into())));
    let answer = move || async move {
        let body = body.lock().unwrap().take().unwrap();
        (StatusCode::from_u16(status).unwrap(), body)
    };
    let url = serve(Router::new().route("/svc", post(answer))).await;
    setup(&url, Duration::from_secs(20), 1).look_up().await
}

#[tokio::test]
async fn the_question_is_signed_and_names_the_identity() {
    async fn check(headers: HeaderMap, body: Bytes) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap();
        let stamp = headers["holdfast-timestamp"].as_bytes();
        for part in [stamp, b".", headers["ce-id"].as_bytes(), b".", &body] {
            mac.update(part);
        }
        let mut hex = String::from("v1=");
        for byte in mac.finalize().into_bytes() {
            hex.push_str(&format!("{byte:02x}"));
        }
        assert_eq!(headers["holdfast-signature"].to_str().unwrap(), hex);
        assert_eq!(headers["ce-type"], "Holdfast.DeviceKey");
        assert_eq!(
            (&headers["ce-subject"], &headers["ce-specversion"]),
            (&"a:b".parse().unwrap(), &"1.0".parse().unwrap())
        );
        assert_eq!(headers["content-type"], "application/json");
        let fields: Value = serde_json::from_slice(&body).unwrap();
        let wanted = json!({
            "key_id": "cloud", "product": "tv", "class": "home", "device": "a:b", "key_version": 7, "channel": "ws",
        });
        assert_eq!(fields, wanted);
        json!({"key": key_text(), "more": [1]}).to_string()
    }
    let url = serve(Router::new().route("/svc", post(check))).await;
    let setup = setup(&url, Duration::from_secs(20), 1);
    assert_eq!(setup.look_up().await, Ok(DeviceKey::from_bytes(&KEY)));
    setup.counts("found", 1);
}

#[tokio::test]
async fn statuses_are_told_apart() {
    assert_eq!(answered(404, "{}").await, Ok(None));
    for status in [204, 201, 302, 400, 401, 403, 410, 429, 500, 503] {
        assert_eq!(answered(status, "").await, Err(LookupError::Status(status)));
    }
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let short = json!({"key": &key_text()[1..]}).to_string();
    let padded = json!({"key": format!("{}=", key_text())}).to_string();
    for garbage in [
        "",
        "{}",
        "null",
        "key",
        "{\"key\":1}",
        "{\"key\":null}",
        "[]",
        "\u{fffd}",
        &short,
        &padded,
    ] {
        assert_eq!(
            answered(200, garbage.to_owned()).await,
            Err(LookupError::BadAnswer),
            "{garbage}"
        );
    }
}

#[tokio::test]
async fn an_answer_is_read_up_to_the_limit() {
    let padded = |length: usize| {
        let text = json!({"key": key_text()}).to_string();
        text.clone() + &" ".repeat(length - text.len())
    };
    let whole = answered(200, padded(MAX_KEY_ANSWER_BYTES)).await;
    assert_eq!(whole, Ok(DeviceKey::from_bytes(&KEY)));
    let longer = answered(200, padded(MAX_KEY_ANSWER_BYTES + 1)).await;
    assert_eq!(longer, Err(LookupError::Failed(FailureDetail::ReplyTooLarge)));
    let endless = futures_util::stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from_static(
        &[b' '; 1024],
    )));
    let endless = answered(200, Body::from_stream(endless)).await;
    assert_eq!(endless, Err(LookupError::Failed(FailureDetail::ReplyTooLarge)));
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_or_hangs_is_given_up() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", closed.local_addr().unwrap());
    drop(closed);
    let gone = setup(&url, Duration::from_secs(20), 1);
    assert_eq!(
        gone.look_up().await,
        Err(LookupError::Failed(FailureDetail::Connect))
    );
    gone.counts("unreachable", 1);

    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", hangs.local_addr().unwrap());
    let hanging = setup(&url, Duration::from_millis(50), 1);
    assert_eq!(hanging.look_up().await, Err(LookupError::Timeout));
    hanging.counts("timeout", 1);
}

/// Says that a question has come, then waits for leave to answer it.
type Turnstile = Arc<(mpsc::UnboundedSender<()>, tokio::sync::Semaphore)>;

#[tokio::test]
async fn questions_under_way_are_bounded_in_all_and_per_source_and_their_places_come_back() {
    async fn wait(State(turnstile): State<Turnstile>) -> String {
        turnstile.0.send(()).unwrap();
        turnstile.1.acquire().await.unwrap().forget();
        json!({"key": key_text()}).to_string()
    }
    let (came, mut coming) = mpsc::unbounded_channel();
    let turnstile = Arc::new((came, tokio::sync::Semaphore::new(0)));
    let router = Router::new()
        .route("/svc", post(wait))
        .with_state(turnstile.clone());
    let setup = setup(&serve(router).await, Duration::from_secs(20), 2);
    let client = client_with(ReplyMemory::new(1 << 20));
    let ask = |source: u8| {
        let (endpoint, client) = (setup.endpoint.clone(), client.clone());
        tokio::spawn(async move { look_up(&endpoint, &client, [source; 8]).await })
    };
    let first = ask(1);
    coming.recv().await.unwrap();
    assert_eq!(ask(1).await.unwrap(), Err(LookupError::SourceBusy));
    assert!(!setup.endpoint.failing.load(Ordering::Relaxed));
    let second = ask(2);
    coming.recv().await.unwrap();
    assert_eq!(ask(3).await.unwrap(), Err(LookupError::Busy));
    assert!(render(&setup.registry).contains("key_endpoint_questions_in_progress 2\n"));
    turnstile.1.add_permits(1);
    second.abort();
    assert!(second.await.is_err() | first.await.unwrap().is_ok());
    turnstile.1.add_permits(2);
    for source in [1, 2] {
        assert!(ask(source).await.unwrap().is_ok());
    }
    assert!(setup.endpoint.sources.lock().unwrap().is_empty());
    assert!(render(&setup.registry).contains("key_endpoint_questions_in_progress 0\n"));
    setup.counts("busy", 1);
    setup.counts("source_busy", 1);
}
