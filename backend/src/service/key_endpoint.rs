//! Asking the operator's endpoint for a device's key.
//!
//! A question is a POST of the identity's fields as JSON, signed as calls to services are; the answer is `{"key": "<base64url>"}`, or
//! 404 when there is no such device. Anything else is no answer. Questions are bounded in number: one that finds no place is not
//! asked, so that an endpoint that hangs holds up nobody else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::secure::{DeviceKey, Identity};
use http::{HeaderValue, StatusCode, Uri};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{error, info};
use uuid::Uuid;
use zeroize::Zeroize;

use super::FailureDetail;
use super::client::{Question, ServiceClient};

/// Largest answer that is read: a key is 43 characters.
pub const MAX_KEY_ANSWER_BYTES: usize = 4096;
const KIND: &str = "Holdfast.DeviceKey";

/// The endpoint, shared by all workers.
pub struct KeyEndpoint {
    settings: KeyEndpointSettings,
    places: Semaphore,
    /// Whether the last question came to nothing: the log says when that changes.
    failing: AtomicBool,
    metrics: KeyEndpointMetrics,
}

/// Where it is, and what it may take.
#[derive(Debug, Clone)]
pub struct KeyEndpointSettings {
    pub url: Uri,
    pub host: HeaderValue,
    pub timeout: Duration,
    /// Questions under way.
    pub concurrency: usize,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("as many questions as allowed are under way")]
    Busy,
    #[error("no complete answer within endpoint_timeout")]
    Timeout,
    #[error("{0}")]
    Failed(FailureDetail),
    #[error("status {0}")]
    Status(u16),
    #[error("the answer is not {{\"key\": \"<43 characters of base64url>\"}}")]
    BadAnswer,
}

impl LookupError {
    fn label(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Failed(FailureDetail::ReplyTooLarge) | Self::BadAnswer => "bad_answer",
            Self::Failed(_) => "unreachable",
            Self::Status(_) => "status",
        }
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Clones share their numbers.
#[derive(Debug, Clone, Default)]
pub struct KeyEndpointMetrics {
    questions: Family<OutcomeLabels, Counter>,
    under_way: Gauge,
}

impl KeyEndpointMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "key_endpoint_questions",
            "Questions to the key endpoint by how they ended",
            metrics.questions.clone(),
        );
        registry.register(
            "key_endpoint_questions_in_progress",
            "Questions to the key endpoint under way",
            metrics.under_way.clone(),
        );
        metrics
    }
}

#[derive(Serialize)]
struct Fields<'a> {
    key_id: &'a str,
    product: &'a str,
    class: &'a str,
    device: &'a str,
    key_version: u32,
    channel: &'a str,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    key: &'a str,
}

impl KeyEndpoint {
    pub fn new(settings: KeyEndpointSettings, metrics: KeyEndpointMetrics) -> Self {
        Self {
            places: Semaphore::new(settings.concurrency),
            settings,
            failing: AtomicBool::new(false),
            metrics,
        }
    }

    /// The device's key, or `None` when the endpoint says that there is none. `channel`: the kind that the device came on.
    pub async fn look_up(
        &self,
        client: &ServiceClient,
        identity: &Identity,
        channel: &str,
    ) -> Result<Option<DeviceKey>, LookupError> {
        let answer = match self.places.try_acquire() {
            Ok(_place) => {
                let _under_way = UnderWay::begin(&self.metrics.under_way);
                timeout(self.settings.timeout, self.ask(client, identity, channel))
                    .await
                    .unwrap_or(Err(LookupError::Timeout))
            }
            Err(_) => Err(LookupError::Busy),
        };
        self.note(&answer);
        answer
    }

    async fn ask(
        &self,
        client: &ServiceClient,
        identity: &Identity,
        channel: &str,
    ) -> Result<Option<DeviceKey>, LookupError> {
        let fields = Fields {
            key_id: &identity.key_id,
            product: &identity.product,
            class: &identity.class,
            device: identity.device.as_str(),
            key_version: identity.key_version,
            channel,
        };
        let body = serde_json::to_vec(&fields).map_err(|_| LookupError::Failed(FailureDetail::Unsendable))?;
        let question = Question {
            url: &self.settings.url,
            host: &self.settings.host,
            kind: KIND,
            device: &identity.device,
            id: Uuid::new_v4(),
            body: body.into(),
            max_answer_bytes: MAX_KEY_ANSWER_BYTES,
        };
        match client.ask(question).await.map_err(LookupError::Failed)? {
            (StatusCode::OK, body) => {
                let key = read_key(&body);
                wipe(body);
                key.map(Some)
            }
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (other, _) => Err(LookupError::Status(other.as_u16())),
        }
    }

    fn note(&self, answer: &Result<Option<DeviceKey>, LookupError>) {
        let outcome = match answer {
            Ok(Some(_)) => "found",
            Ok(None) => "not_found",
            Err(error) => error.label(),
        };
        self.metrics
            .questions
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
        match answer {
            Ok(_) if self.failing.swap(false, Ordering::Relaxed) => info!("the key endpoint answers again"),
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                error!(%error, "the key endpoint gives no answer that can be used; devices are told to come back");
            }
            _ => {}
        }
    }
}

/// Counts a question until it is dropped, however that comes about.
struct UnderWay<'a>(&'a Gauge);

impl<'a> UnderWay<'a> {
    fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn read_key(body: &Bytes) -> Result<DeviceKey, LookupError> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|_| LookupError::BadAnswer)?;
    answer.key.parse().map_err(|_| LookupError::BadAnswer)
}

/// If nobody else has a handle on it. An answer that came in one piece lies in the HTTP client's buffer, which is not ours.
fn wipe(body: Bytes) {
    if let Ok(mut body) = body.try_into_mut() {
        body.as_mut().zeroize();
    }
}

#[cfg(test)]
#[path = "key_endpoint_tests.rs"]
mod tests;
