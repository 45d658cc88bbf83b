//! A bare HTTP client: hyper-util's pooled one as it comes, on one current-thread runtime.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::dial::device_id;
use super::exchange::{payload_text, push_body};
use crate::protocol::{Call, Poster};

/// What is read of the answer to a push to all.
#[derive(Deserialize)]
struct Broadcast {
    counts: Counts,
}

#[derive(Deserialize)]
struct Counts {
    written: u64,
    unconfirmed: u64,
}

impl Broadcast {
    /// Whether it went to all. What the gateway stopped waiting for may still arrive: the devices count.
    fn is_for(&self, sessions: u32) -> bool {
        let Counts { written, unconfirmed } = self.counts;
        if unconfirmed > 0 {
            eprintln!("the gateway answered with {written} written, {unconfirmed} unconfirmed");
        }
        written + unconfirmed == u64::from(sessions)
    }
}

/// Makes one kind of call.
#[derive(Clone)]
pub(super) struct Caller {
    http: Client<HttpConnector, Full<Bytes>>,
    url: Uri,
    headers: HeaderMap,
    call: Call,
}

impl Caller {
    pub(super) fn new(poster: &Poster) -> Result<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &poster.headers {
            headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        Ok(Self {
            http: Client::builder(TokioExecutor::new()).build(tcp),
            url: poster.url.parse()?,
            headers,
            call: poster.call,
        })
    }

    /// Makes call number `seq` and checks its answer.
    pub(super) async fn call(&self, seq: u64, payload: usize) -> Result<()> {
        let body = Bytes::from(match self.call {
            Call::Echo => payload_text(seq, payload),
            Call::Push { first, devices } => {
                let device = device_id(first + (seq % u64::from(devices)) as u32);
                push_body(&format!(r#""device":"{device}""#), seq, payload)
            }
            Call::Broadcast { .. } => push_body(r#""all":true"#, seq, payload),
        });
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = self.headers.clone();
        let response = self.http.request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        let good = match self.call {
            Call::Echo => answer == body,
            Call::Push { .. } => {
                let text = std::str::from_utf8(&answer).context("an answer that is not text")?;
                text.contains(r#""status":"written""#)
            }
            Call::Broadcast { sessions } => {
                serde_json::from_slice(&answer).is_ok_and(|answer: Broadcast| answer.is_for(sessions))
            }
        };
        if !status.is_success() || !good {
            bail!("{status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}
