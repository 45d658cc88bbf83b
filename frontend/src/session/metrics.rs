//! What a shard counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FrameLabel {
    pub frame: &'static str,
}

/// Counters of one shard; clones share them. Each shard has its own, so that no two threads write one cache line.
#[derive(Debug, Clone, Default)]
pub struct ShardMetrics {
    pub sessions: Gauge,
    pub online: Gauge,
    pub waiting: Gauge,
    pub accepted: Counter,
    pub requests: Counter,
    pub replies: Counter,
    pub replayed_requests: Counter,
    pub duplicate_replies: Counter,
    pub late_frames: Counter,
    pub malformed_frames: Counter,
    pub blob_conflicts: Counter,
    pub stalls: Counter,
    pub pushes_written: Counter,
    pub pushes_dropped: Family<ReasonLabel, Counter>,
    pub pushes_unconfirmed: Counter,
    pub repeated_frames: Family<FrameLabel, Counter>,
    pub refused: Family<ReasonLabel, Counter>,
    pub closed: Family<ReasonLabel, Counter>,
    pub device_closes: Family<ReasonLabel, Counter>,
    pub moves: Counter,
}

impl ShardMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("frontend");
        r.register("sessions", "Sessions in any state", self.sessions.clone());
        r.register("sessions_online", "Sessions that are online", self.online.clone());
        r.register(
            "sessions_waiting",
            "Sessions that wait for a backend before they are online",
            self.waiting.clone(),
        );
        r.register("accepted", "Connections taken", self.accepted.clone());
        r.register("requests", "Requests taken into a window", self.requests.clone());
        r.register(
            "replies",
            "Final replies handed to a channel",
            self.replies.clone(),
        );
        r.register(
            "duplicate_replies",
            "Replies to what was answered",
            self.duplicate_replies.clone(),
        );
        r.register(
            "late_frames",
            "Frames for a session or a state that is over",
            self.late_frames.clone(),
        );
        r.register(
            "malformed_frames",
            "Frames that could not be understood",
            self.malformed_frames.clone(),
        );
        r.register(
            "blob_conflicts",
            "Blob writes that came too late",
            self.blob_conflicts.clone(),
        );
        r.register(
            "window_stalls",
            "Times a full window stopped the reading",
            self.stalls.clone(),
        );
        self.register_pushes(r);
        r.register(
            "repeated_frames",
            "Frames asked again because a backend that is there did not answer them, by command",
            self.repeated_frames.clone(),
        );
        self.register_ends(r);
        r.register(
            "moves",
            "Times a device's address changed while it was connected",
            self.moves.clone(),
        );
        let link = registry.sub_registry_with_prefix("link");
        link.register(
            "replayed_requests",
            "Requests asked again after a backend was lost",
            self.replayed_requests.clone(),
        );
    }

    fn register_ends(&self, r: &mut Registry) {
        r.register(
            "refused",
            "Connections refused before they were online, by reason",
            self.refused.clone(),
        );
        r.register(
            "closed",
            "Sessions closed, by reason; those that were refused, or whose channel failed, by a reason of their own",
            self.closed.clone(),
        );
        r.register(
            "device_closes",
            "Closes that devices sent, by the code that they gave",
            self.device_closes.clone(),
        );
    }

    fn register_pushes(&self, r: &mut Registry) {
        r.register(
            "pushes_written",
            "Pushes that a socket took",
            self.pushes_written.clone(),
        );
        r.register(
            "pushes_dropped",
            "Pushes not written, by reason",
            self.pushes_dropped.clone(),
        );
        r.register(
            "pushes_unconfirmed",
            "Pushes of which it is not known whether they were written: the session ended, or the wait for a push to all was over",
            self.pushes_unconfirmed.clone(),
        );
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn repeated(&self, frame: &'static str) {
        self.repeated_frames.get_or_create(&FrameLabel { frame }).inc();
    }

    pub(super) fn closed(&self, reason: &'static str) {
        self.closed.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn device_closed(&self, reason: &'static str) {
        self.device_closes.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn push_dropped(&self, reason: &'static str) {
        self.pushes_dropped(reason, 1);
    }

    pub(super) fn pushes_dropped(&self, reason: &'static str, count: u64) {
        self.pushes_dropped
            .get_or_create(&ReasonLabel { reason })
            .inc_by(count);
    }
}
