//! What calls to services come to.

use std::time::Duration;

use holdfast_proto::ErrorCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::CallOutcome;
use crate::metrics::duration_buckets;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Clones share their numbers, so that every worker counts into the same.
#[derive(Debug, Clone)]
pub struct ServiceMetrics {
    replies: Counter,
    empty: Counter,
    failed: [Counter; ErrorCode::ALL.len()],
    abandoned: Counter,
    in_progress: Gauge,
    seconds: Histogram,
}

impl ServiceMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let calls: Family<OutcomeLabels, Counter> = Family::default();
        let outcome = |outcome| calls.get_or_create_owned(&OutcomeLabels { outcome });
        let metrics = Self {
            replies: outcome("reply"),
            empty: outcome("empty"),
            failed: ErrorCode::ALL.map(|code| outcome(code.label())),
            abandoned: outcome("abandoned"),
            in_progress: Gauge::default(),
            seconds: Histogram::new(duration_buckets()),
        };
        registry.register("service_calls", "Calls to services by how they ended", calls);
        registry.register(
            "service_calls_in_progress",
            "Calls to services under way",
            metrics.in_progress.clone(),
        );
        registry.register(
            "service_call_seconds",
            "Time of calls to services that ended",
            metrics.seconds.clone(),
        );
        metrics
    }

    /// Counts a call as under way until the result is dropped.
    pub(super) fn begin(&self) -> CallInProgress<'_> {
        self.in_progress.inc();
        CallInProgress {
            metrics: self,
            ended: false,
        }
    }

    fn outcome(&self, outcome: &CallOutcome) -> &Counter {
        match outcome {
            CallOutcome::Reply(_) => &self.replies,
            CallOutcome::Empty => &self.empty,
            CallOutcome::Failed { code, .. } => &self.failed[*code as usize],
        }
    }
}

/// A call under way; one that is dropped before it ended counts as abandoned.
pub(super) struct CallInProgress<'a> {
    metrics: &'a ServiceMetrics,
    ended: bool,
}

impl CallInProgress<'_> {
    pub(super) fn end(mut self, outcome: &CallOutcome, took: Duration) {
        self.ended = true;
        self.metrics.outcome(outcome).inc();
        self.metrics.seconds.observe(took.as_secs_f64());
    }
}

impl Drop for CallInProgress<'_> {
    fn drop(&mut self) {
        self.metrics.in_progress.dec();
        if !self.ended {
            self.metrics.abandoned.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{new_registry, render};
    use crate::service::FailureDetail;

    #[test]
    fn every_outcome_has_its_own_counter() {
        let mut registry = new_registry();
        let metrics = ServiceMetrics::register(&mut registry);
        for (place, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, place);
        }
        metrics
            .begin()
            .end(&FailureDetail::NotJson.into(), Duration::from_millis(1));
        metrics.begin().end(&CallOutcome::Empty, Duration::from_millis(1));
        drop(metrics.begin());
        let text = render(&registry);
        for line in [
            "{outcome=\"bad_reply\"} 1",
            "{outcome=\"empty\"} 1",
            "{outcome=\"abandoned\"} 1",
            "{outcome=\"reply\"} 0",
        ] {
            assert!(
                text.contains(&format!("holdfast_backend_service_calls_total{line}")),
                "{text}"
            );
        }
        assert!(text.contains("holdfast_backend_service_calls_in_progress 0"));
    }
}
