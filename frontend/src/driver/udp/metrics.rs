//! What a shard counts of its datagrams.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use holdfast_proto::udp::Malformed;

use crate::session::ReasonLabel;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    pub outcome: &'static str,
}

/// Counters of one shard; clones share them.
#[derive(Debug, Clone, Default)]
pub struct UdpMetrics {
    pub received: Counter,
    pub received_bytes: Counter,
    pub received_batches: Counter,
    pub sent: Counter,
    pub sent_bytes: Counter,
    pub sent_batches: Counter,
    pub dropped: Family<ReasonLabel, Counter>,
    pub forged: Counter,
    pub duplicates: Counter,
    pub retransmitted: Counter,
    pub lost: Counter,
    pub retries: Counter,
    pub resets: Counter,
    pub moves: Counter,
    pub attempts: Family<OutcomeLabel, Counter>,
    pub unfinished: Gauge,
    pub connections: Gauge,
    pub held_bytes: Gauge,
    pub blocked: Counter,
    pub send_failures: Counter,
    pub receive_failures: Counter,
}

impl UdpMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("udp");
        self.register_datagrams(r);
        self.register_handshakes(r);
        let counters = [
            ("forged", "Datagrams that did not authenticate", &self.forged),
            (
                "duplicates",
                "Datagrams that had come before, or were too old to tell",
                &self.duplicates,
            ),
            (
                "retransmitted",
                "Pieces of messages sent again",
                &self.retransmitted,
            ),
            ("lost", "Datagrams of ours taken for lost", &self.lost),
            (
                "resets",
                "Datagrams of unknown connections that were answered",
                &self.resets,
            ),
            (
                "path_validations",
                "Times a device has shown to be at another address",
                &self.moves,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        r.register(
            "connections",
            "Connections, those that end included",
            self.connections.clone(),
        );
        r.register(
            "held_bytes",
            "Bytes of messages that connections hold, both ways",
            self.held_bytes.clone(),
        );
    }

    fn register_datagrams(&self, r: &mut Registry) {
        let counters = [
            ("datagrams_received", "Datagrams received", &self.received),
            (
                "bytes_received",
                "Bytes of datagrams received",
                &self.received_bytes,
            ),
            (
                "batches_received",
                "System calls that received some",
                &self.received_batches,
            ),
            ("datagrams_sent", "Datagrams sent", &self.sent),
            ("bytes_sent", "Bytes of datagrams sent", &self.sent_bytes),
            ("batches_sent", "System calls that sent some", &self.sent_batches),
            (
                "send_blocked",
                "Times the socket took no more for the moment",
                &self.blocked,
            ),
            (
                "send_failures",
                "Datagrams that the kernel refused to send",
                &self.send_failures,
            ),
            (
                "receive_failures",
                "Errors that receiving gave in place of datagrams",
                &self.receive_failures,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        r.register(
            "datagrams_dropped",
            "Datagrams received that nothing was made of, by reason",
            self.dropped.clone(),
        );
    }

    fn register_handshakes(&self, r: &mut Registry) {
        r.register(
            "attempts",
            "Handshakes that devices asked for, by outcome",
            self.attempts.clone(),
        );
        r.register(
            "retries",
            "Devices that were asked to show where they are",
            self.retries.clone(),
        );
        r.register(
            "attempts_unfinished",
            "Handshakes whose devices have yet to show that they hold their keys",
            self.unfinished.clone(),
        );
    }

    pub(super) fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn malformed(&self, error: Malformed) {
        self.dropped(match error {
            Malformed::Type => "type",
            Malformed::Version => "version",
            Malformed::Length => "length",
            Malformed::Value => "value",
        });
    }

    pub(super) fn attempt(&self, outcome: &'static str) {
        self.attempts.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
