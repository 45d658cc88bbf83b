//! Asking the operator's endpoint for a device's key.
//!
//! A question is a POST of the identity's fields as JSON, signed as calls to services are; the answer is `{"key": "<base64url>"}`, or
//! 404 when there is no such device. Anything else is no answer. Questions are bounded in number, in all and of one source: one that
//! finds no place is not asked, so that an endpoint that hangs holds up nobody else, and no source takes all places.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::secure::{DeviceKey, Identity};
use holdfast_proto::throttle::Source;
use http::{HeaderValue, StatusCode, Uri};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
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
    /// Places that each source has.
    sources: Mutex<HashMap<Source, usize>>,
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
    /// The same of one source.
    pub concurrency_per_source: usize,
}

/// What an identity's key is asked for.
#[derive(Debug, Clone, Copy)]
pub struct KeyQuestion<'a> {
    pub identity: &'a Identity,
    /// The kind of channel that the device came on.
    pub channel: &'a str,
    /// Where it came from.
    pub source: Source,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("as many questions as allowed are under way")]
    Busy,
    #[error("as many questions as allowed are under way for one source")]
    SourceBusy,
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
            Self::SourceBusy => "source_busy",
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
            sources: Mutex::default(),
            settings,
            failing: AtomicBool::new(false),
            metrics,
        }
    }

    /// The device's key, or `None` when the endpoint says that there is none.
    pub async fn look_up(
        &self,
        client: &ServiceClient,
        question: KeyQuestion<'_>,
    ) -> Result<Option<DeviceKey>, LookupError> {
        let answer = match self.take_places(question.source) {
            Ok(_places) => {
                let _under_way = UnderWay::begin(&self.metrics.under_way);
                timeout(self.settings.timeout, self.ask(client, question))
                    .await
                    .unwrap_or(Err(LookupError::Timeout))
            }
            Err(error) => Err(error),
        };
        self.note(&answer);
        answer
    }

    /// A place of the source's, and one of all.
    fn take_places(&self, source: Source) -> Result<(SourcePlace<'_>, SemaphorePermit<'_>), LookupError> {
        let limit = self.settings.concurrency_per_source;
        let of_source = SourcePlace::take(&self.sources, source, limit).ok_or(LookupError::SourceBusy)?;
        let place = self.places.try_acquire().map_err(|_| LookupError::Busy)?;
        Ok((of_source, place))
    }

    async fn ask(
        &self,
        client: &ServiceClient,
        question: KeyQuestion<'_>,
    ) -> Result<Option<DeviceKey>, LookupError> {
        let KeyQuestion {
            identity, channel, ..
        } = question;
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
            // That says nothing of the endpoint.
            Err(LookupError::SourceBusy) => {}
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

/// One source's place among those under way.
struct SourcePlace<'a> {
    all: &'a Mutex<HashMap<Source, usize>>,
    source: Source,
}

impl<'a> SourcePlace<'a> {
    fn take(all: &'a Mutex<HashMap<Source, usize>>, source: Source, limit: usize) -> Option<Self> {
        let mut counts = all.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.get(&source).is_some_and(|count| *count >= limit) {
            return None;
        }
        *counts.entry(source).or_default() += 1;
        Some(Self { all, source })
    }
}

impl Drop for SourcePlace<'_> {
    fn drop(&mut self) {
        let mut counts = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
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
