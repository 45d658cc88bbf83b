//! A bare HTTP client: hyper-util's pooled one as it comes, on one current-thread runtime.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::device::{payload_text, push_body};
use super::dial::device_id;
use crate::protocol::{Call, Poster};

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
            Call::Push { devices } => push_body(&device_id((seq % u64::from(devices)) as u32), seq, payload),
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
        };
        if !status.is_success() || !good {
            bail!("{status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}
