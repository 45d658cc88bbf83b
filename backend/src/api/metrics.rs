//! What the API is asked and answers.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{PushReport, PushStatus};
use crate::metrics::duration_buckets;

/// Bounded: a path is one of the router's patterns, a method one of a few.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    path: String,
    status: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatusLabels {
    status: &'static str,
}

/// Clones share their numbers.
#[derive(Debug, Clone)]
pub struct ApiMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Histogram,
    written: Counter,
    offline: Counter,
    unknown: Counter,
    unconfirmed: Counter,
    dropped: Counter,
}

impl ApiMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let pushes: Family<StatusLabels, Counter> = Family::default();
        let status = |status| pushes.get_or_create_owned(&StatusLabels { status });
        let metrics = Self {
            requests: Family::default(),
            seconds: Histogram::new(duration_buckets()),
            written: status("written"),
            offline: status("offline"),
            unknown: status("unknown"),
            unconfirmed: status("unconfirmed"),
            dropped: status("dropped"),
        };
        registry.register(
            "api_requests",
            "Requests to the HTTP API by answer",
            metrics.requests.clone(),
        );
        registry.register(
            "api_request_seconds",
            "Time of requests to the HTTP API",
            metrics.seconds.clone(),
        );
        registry.register("push_results", "Targets of pushes by what became of them", pushes);
        metrics
    }

    pub(super) fn count_push(&self, report: &PushReport) {
        match report {
            PushReport::Results(results) => results.iter().for_each(|result| {
                self.push_counter(result.status).inc();
            }),
            PushReport::Counts(counts) => {
                self.written.inc_by(counts.written);
                self.dropped.inc_by(counts.dropped);
                self.unconfirmed.inc_by(counts.unconfirmed);
            }
        }
    }

    fn push_counter(&self, status: PushStatus) -> &Counter {
        match status {
            PushStatus::Written => &self.written,
            PushStatus::Offline => &self.offline,
            PushStatus::Unknown => &self.unknown,
            PushStatus::Unconfirmed => &self.unconfirmed,
            PushStatus::Dropped => &self.dropped,
        }
    }
}

pub(super) async fn count(State(metrics): State<ApiMetrics>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".to_owned(), |p| p.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    metrics
        .requests
        .get_or_create(&RequestLabels { method, path, status })
        .inc();
    metrics.seconds.observe(started.elapsed().as_secs_f64());
    response
}

/// A method is text that the caller chooses: only those that the API knows become labels.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
