//! A small HTTP client for the API and the admin listener: one call, a time limit, a size limit.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) json: Option<Bytes>,
    pub(crate) timeout: Duration,
}

impl<'a> Call<'a> {
    pub(crate) fn get(url: &'a str) -> Self {
        Self {
            method: Method::GET,
            url,
            key: None,
            json: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// What came back, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body of a 2xx; else an error with the problem document's (RFC 9457) code and title.
    pub(crate) fn success(self) -> Result<Bytes> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let problem: Problem = serde_json::from_slice(&self.body).unwrap_or_default();
        let words = [problem.code, problem.title, problem.detail];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        Err(anyhow!(
            "the API answered {} {}",
            self.status.as_u16(),
            words.join(": ")
        ))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    code: String,
    title: String,
    detail: String,
}

/// A pool of connections.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    pub(crate) fn new() -> Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .context("TLS")?
            .https_or_http()
            .enable_http1()
            .build();
        // Nothing is kept idle: a call to a restarted server must not meet a connection of the one before.
        Ok(Self(
            Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
        ))
    }

    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Answer> {
        let mut request = Request::builder().method(call.method).uri(call.url);
        if let Some(key) = call.key {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if call.json.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(call.json.unwrap_or_default()))
            .context("request")?;
        let exchange = async {
            let response = self.0.request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES)
                .collect()
                .await
                .map_err(|e| anyhow!("{e}"))?;
            Ok::<_, anyhow::Error>(Answer {
                status: head.status,
                body: body.to_bytes(),
            })
        };
        match tokio::time::timeout(call.timeout, exchange).await {
            Ok(answer) => answer.with_context(|| format!("cannot reach {}", call.url)),
            Err(_) => Err(anyhow!("{} did not answer in {:?}", call.url, call.timeout)),
        }
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// More than any answer of ours; a guard against a wrong address.
const MAX_BODY_BYTES: usize = 16 << 20;
