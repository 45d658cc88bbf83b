//! What the hub counts.

use holdfast_proto::link::Epoch;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::status::HandOverKind;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CauseLabel {
    pub cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: &'static str,
}

/// Bounded by the backends that may be attached: a backend's labels go with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BackendLabels {
    pub name: String,
    pub version: String,
    pub epoch: String,
}

/// Counters of the hub; clones share them.
#[derive(Debug, Clone, Default)]
pub struct LinkMetrics {
    pub backends: Gauge,
    pub active: Gauge,
    pub attached: Counter,
    /// Backends declared gone, by cause.
    pub gone: Family<CauseLabel, Counter>,
    pub fenced: Counter,
    pub drained: Counter,
    pub hand_overs: Family<KindLabel, Counter>,
    pub backend_info: Family<BackendLabels, Gauge>,
    pub refused: Counter,
    pub stale_epoch: Counter,
    pub malformed: Counter,
    pub unsupported: Counter,
    pub credit_stalls: Counter,
    pub frames_in: Counter,
    pub frames_out: Counter,
    pub batches_in: Counter,
    pub batches_out: Counter,
    pub send_failures: Counter,
    pub paused: Counter,
}

impl LinkMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "backend_info",
            "1 for each backend that is attached",
            self.backend_info.clone(),
        );
        let r = registry.sub_registry_with_prefix("link");
        r.register("backends", "Backends attached", self.backends.clone());
        r.register(
            "backends_active",
            "Backends that take new work",
            self.active.clone(),
        );
        r.register("attached", "Attachments made", self.attached.clone());
        r.register(
            "gone",
            "Attachments that ended without leaving gracefully, by cause",
            self.gone.clone(),
        );
        r.register(
            "fenced",
            "Backends fenced because they were silent, stuck or broke the protocol",
            self.fenced.clone(),
        );
        r.register("drained", "Backends that left gracefully", self.drained.clone());
        r.register(
            "hand_overs",
            "Backends whose sessions went to others, by how they ended",
            self.hand_overs.clone(),
        );
        r.register(
            "refused",
            "Backends that could not be spoken with",
            self.refused.clone(),
        );
        self.register_traffic(r);
    }

    fn register_traffic(&self, r: &mut Registry) {
        r.register(
            "stale_epoch",
            "Batches dropped because their epoch is over",
            self.stale_epoch.clone(),
        );
        r.register(
            "malformed",
            "Batches and frames that could not be understood",
            self.malformed.clone(),
        );
        r.register(
            "unsupported",
            "Frames for what this build does not do",
            self.unsupported.clone(),
        );
        r.register(
            "credit_stall",
            "Times a class of frames ran out of credit",
            self.credit_stalls.clone(),
        );
        r.register(
            "frames_received",
            "Frames received from backends",
            self.frames_in.clone(),
        );
        r.register("frames_sent", "Frames sent to backends", self.frames_out.clone());
        r.register(
            "batches_received",
            "Batches received from backends",
            self.batches_in.clone(),
        );
        r.register(
            "batches_sent",
            "Batches sent to backends",
            self.batches_out.clone(),
        );
        r.register(
            "send_failures",
            "Batches that the socket refused",
            self.send_failures.clone(),
        );
        r.register(
            "paused",
            "Times our own loop was late and clocks were restarted",
            self.paused.clone(),
        );
    }

    pub(super) fn handed_over(&self, kind: HandOverKind) {
        let kind = kind.label();
        self.hand_overs.get_or_create(&KindLabel { kind }).inc();
    }

    pub(super) fn info(&self, name: &str, version: &str, epoch: Epoch) -> Gauge {
        self.backend_info
            .get_or_create_owned(&backend_labels(name, version, epoch))
    }

    pub(super) fn remove_info(&self, name: &str, version: &str, epoch: Epoch) {
        self.backend_info.remove(&backend_labels(name, version, epoch));
    }

    pub(super) fn gone(&self, cause: &'static str) {
        self.gone.get_or_create(&CauseLabel { cause }).inc();
    }
}

fn backend_labels(name: &str, version: &str, epoch: Epoch) -> BackendLabels {
    BackendLabels {
        name: name.to_owned(),
        version: version.to_owned(),
        epoch: epoch.to_string(),
    }
}
