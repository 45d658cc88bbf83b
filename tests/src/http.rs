//! A small HTTP client for the APIs under test. Plain HTTP, loopback.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// No answer of ours takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pooled client. Cloning shares the pool.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("no answer within {PATIENCE:?}")]
    Timeout,
    #[error("cannot reach it: {0}")]
    Connect(#[from] hyper_util::client::legacy::Error),
    #[error("cannot reach the socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("broke off: {0}")]
    Broken(#[from] hyper::Error),
}

impl Default for Http {
    fn default() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }
}

/// One request over a Unix socket, on a connection of its own.
pub async fn send_unix(socket: &Path, request: Request<Bytes>) -> Result<Answer, HttpError> {
    let exchange = async {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let answer = read(sender.send_request(request.map(Full::new)).await?).await;
        connection.abort();
        answer
    };
    timeout(PATIENCE, exchange)
        .await
        .unwrap_or(Err(HttpError::Timeout))
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Answer, HttpError> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
    })
}

impl Http {
    pub async fn send(&self, request: Request<Bytes>) -> Result<Answer, HttpError> {
        let exchange = async { read(self.client.request(request.map(Full::new)).await?).await };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or(Err(HttpError::Timeout))
    }

    pub async fn get(&self, url: &str) -> Result<Answer, HttpError> {
        self.send(request(Method::GET, url, None, Bytes::new())).await
    }
}

/// Asks a server on a Unix socket; `None` when it does not answer with JSON.
pub async fn get_unix(socket: &Path, path: &str) -> Option<Value> {
    let exchange = async {
        let stream = UnixStream::connect(socket).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .ok()?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(http::header::HOST, "localhost")
            .body(Full::<Bytes>::default())
            .ok()?;
        let body = sender.send_request(request).await.ok()?.into_body();
        serde_json::from_slice(&body.collect().await.ok()?.to_bytes()).ok()
    };
    timeout(PATIENCE, exchange).await.ok().flatten()
}

/// A request with an API key, if given; a body makes it JSON.
pub fn request(method: Method, url: &str, key: Option<&str>, body: Bytes) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(key) = key {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {key}"));
    }
    if !body.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    request.body(body).expect("a test's request is well formed")
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the body when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{}: {e}: {:?}", self.status, self.text()))
    }

    /// A header as text, empty if missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }

    /// Checks that this is an RFC 9457 problem document with `status` and `code`, and returns it.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        for field in ["type", "title"] {
            assert!(problem[field].is_string(), "{field} in {problem}");
        }
        assert!(problem["retryable"].is_boolean(), "{problem}");
        problem
    }
}
