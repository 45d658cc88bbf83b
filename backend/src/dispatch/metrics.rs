//! What requests come to.

use holdfast_proto::ErrorCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::durations::Durations;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Counts requests. Clones share their numbers.
#[derive(Debug, Clone)]
pub struct RequestMetrics {
    requests: Family<OutcomeLabels, Counter>,
    ok: Counter,
    silent: Counter,
    errors: [Counter; ErrorCode::ALL.len()],
    /// From a request's arrival here to its result, before that waits for its order.
    pub durations: Durations,
    pub(super) replays: Counter,
    pub(super) duplicates: Counter,
    pub(super) poison: Counter,
    pub(super) malformed: Counter,
    pub(super) cancelled: Counter,
    pub(super) in_flight: Gauge,
    pub(super) waiting: Gauge,
    pub(super) held_bytes: Gauge,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let requests: Family<OutcomeLabels, Counter> = Family::default();
        let outcome = |outcome| requests.get_or_create_owned(&OutcomeLabels { outcome });
        Self {
            ok: outcome("ok"),
            silent: outcome("silent"),
            errors: ErrorCode::ALL.map(|code| outcome(code.label())),
            durations: Durations::default(),
            requests,
            replays: Counter::default(),
            duplicates: Counter::default(),
            poison: Counter::default(),
            malformed: Counter::default(),
            cancelled: Counter::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            held_bytes: Gauge::default(),
        }
    }
}

impl RequestMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests answered, by outcome", self.requests.clone());
        registry.register(
            "request_seconds",
            "Time from a request's arrival to its result, without the wait for its order",
            self.durations.clone(),
        );
        registry.register(
            "replays",
            "Requests that a lost backend had before",
            self.replays.clone(),
        );
        registry.register(
            "duplicates",
            "Requests that came again while in flight",
            self.duplicates.clone(),
        );
        registry.register(
            "poison",
            "Requests answered unread: two backends were lost with them",
            self.poison.clone(),
        );
        registry.register(
            "malformed_requests",
            "Request frames that were dropped",
            self.malformed.clone(),
        );
        registry.register(
            "requests_cancelled",
            "Requests given up with their link",
            self.cancelled.clone(),
        );
        registry.register(
            "in_flight",
            "Requests taken and not answered to the link",
            self.in_flight.clone(),
        );
        registry.register("waiting", "Requests left on their credit", self.waiting.clone());
        registry.register(
            "held_reply_bytes",
            "Replies waiting for order or credit",
            self.held_bytes.clone(),
        );
    }

    /// How often requests were answered with this error.
    pub fn errors(&self, code: ErrorCode) -> u64 {
        self.errors[code as usize].get()
    }

    /// Final answers of any outcome.
    pub fn answered(&self) -> u64 {
        let errors: u64 = self.errors.iter().map(Counter::get).sum();
        self.ok.get() + self.silent.get() + errors
    }

    pub(super) fn count(&self, outcome: Result<bool, ErrorCode>) {
        match outcome {
            Ok(false) => self.ok.inc(),
            Ok(true) => self.silent.inc(),
            Err(code) => self.errors[code as usize].inc(),
        };
    }
}
