//! What the core counts.

use holdfast_proto::link::frames::Channel;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::dispatch::{ADMITTED, RequestMetrics};
use crate::link::{LinkIndex, LinkState};

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LinkLabels {
    link: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AdmissionLabels {
    channel: &'static str,
    /// `admitted`, or the code of the refusal.
    outcome: &'static str,
}

/// Clones share their numbers. Links are labelled with their place in the configuration, from 0.
#[derive(Debug, Clone, Default)]
pub struct CoreMetrics {
    pub requests: RequestMetrics,
    attached: Family<LinkLabels, Gauge>,
    online: Family<LinkLabels, Gauge>,
    losses: Family<ReasonLabels, Counter>,
    binds: Family<ResultLabels, Counter>,
    admissions: Family<AdmissionLabels, Counter>,
    logins: Family<ResultLabels, Counter>,
    logouts: Family<ReasonLabels, Counter>,
    /// Epochs of ours that a frontend gave up.
    pub fenced: Counter,
    pub(super) stale_epoch: Counter,
    pub(super) malformed: Counter,
    pub(super) unanswered: Counter,
    pub(super) closes_dropped: Counter,
    pub(super) closes_repeated: Counter,
    pub(super) closes_owed: Gauge,
    pub(super) controls: Counter,
    pub(super) updates: Counter,
    pub(super) operations: Gauge,
    pub(super) credit_stalls: Counter,
    pub(super) frames_in: Counter,
    pub(super) frames_out: Counter,
    pub(super) batches_in: Counter,
    pub(super) batches_out: Counter,
}

impl CoreMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        m.requests.register(registry);
        registry.register(
            "link_attached",
            "Whether this frontend is attached",
            m.attached.clone(),
        );
        registry.register(
            "sessions_online",
            "Sessions that the frontend last reported",
            m.online.clone(),
        );
        registry.register("link_losses", "Links lost, by reason", m.losses.clone());
        registry.register("binds", "Devices admitted and denied", m.binds.clone());
        registry.register(
            "admissions",
            "Devices admitted and denied, by channel and by the code that they were told",
            m.admissions.clone(),
        );
        registry.register("logins", "Logins welcomed and denied", m.logins.clone());
        registry.register("logouts", "Logouts, by reason", m.logouts.clone());
        registry.register("fenced", "Epochs that a frontend gave up", m.fenced.clone());
        registry.register("stale_epoch", "Batches of another epoch", m.stale_epoch.clone());
        registry.register(
            "malformed_frames",
            "Frames other than requests that were dropped",
            m.malformed.clone(),
        );
        registry.register(
            "unexpected_answers",
            "Answers that nobody waited for",
            m.unanswered.clone(),
        );
        registry.register(
            "closes_dropped",
            "Closes of replaced sessions that found no room",
            m.closes_dropped.clone(),
        );
        registry.register(
            "closes_repeated",
            "Closes of replaced sessions said again to a frontend that re-attached",
            m.closes_repeated.clone(),
        );
        registry.register(
            "closes_owed",
            "Closes of replaced sessions that frontends have not acknowledged",
            m.closes_owed.clone(),
        );
        registry.register("controls", "Control messages answered", m.controls.clone());
        registry.register("updates", "Updates answered", m.updates.clone());
        registry.register(
            "operations",
            "Pushes, queries and closes under way",
            m.operations.clone(),
        );
        registry.register(
            "credit_stalls",
            "How often frames began to wait for credit",
            m.credit_stalls.clone(),
        );
        registry.register("link_frames_in", "Frames received", m.frames_in.clone());
        registry.register("link_frames_out", "Frames sent", m.frames_out.clone());
        registry.register("link_batches_in", "Batches received", m.batches_in.clone());
        registry.register("link_batches_out", "Batches sent", m.batches_out.clone());
        m
    }

    pub(super) fn set_link(&self, link: LinkIndex, state: LinkState) {
        let attached = matches!(state, LinkState::Attached | LinkState::Draining);
        self.attached
            .get_or_create(&LinkLabels {
                link: link.get() as u16,
            })
            .set(attached.into());
    }

    pub(super) fn set_online(&self, link: LinkIndex, sessions: u64) {
        self.online
            .get_or_create(&LinkLabels {
                link: link.get() as u16,
            })
            .set(sessions as i64);
    }

    pub(super) fn count_loss(&self, reason: &'static str) {
        self.losses.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(super) fn count_bind(&self, channel: Channel, outcome: &'static str) {
        let result = if outcome == ADMITTED { "admitted" } else { "denied" };
        self.binds.get_or_create(&ResultLabels { result }).inc();
        let channel = match channel {
            Channel::Wss | Channel::Unspecified => "wss",
            Channel::Ws => "ws",
            Channel::Udp => "udp",
        };
        self.admissions
            .get_or_create(&AdmissionLabels { channel, outcome })
            .inc();
    }

    pub(super) fn count_login(&self, welcomed: bool) {
        self.logins
            .get_or_create(&ResultLabels {
                result: if welcomed { "welcomed" } else { "denied" },
            })
            .inc();
    }

    /// `reason` must come from a bounded set.
    pub(super) fn count_logout(&self, reason: &'static str) {
        self.logouts.get_or_create(&ReasonLabels { reason }).inc();
    }
}
