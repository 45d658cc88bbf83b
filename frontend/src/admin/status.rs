//! What `GET /status` says.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::AdminState;
use crate::BUILD;
use crate::link::{HandOver, PeerStatus};

/// The frontend, its backends, and how those before them ended.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    frontend_id: u16,
    epoch: u64,
    build: &'static str,
    version: &'static str,
    /// Devices that are online.
    sessions: u64,
    /// Devices that wait for a backend to be admitted.
    waiting: u64,
    /// Requests that backends have been given and not answered.
    in_flight: u64,
    backends: Vec<Backend>,
    /// Newest first.
    hand_overs: Vec<Ended>,
}

#[derive(Debug, Serialize)]
struct Backend {
    name: String,
    build: String,
    epoch: String,
    state: &'static str,
    share_percent: f64,
    in_flight: u64,
    requests: u64,
    /// Final ones.
    replies: u64,
    since_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct Ended {
    at_unix_ms: u64,
    kind: &'static str,
    backend: String,
    epoch: String,
    requests: u64,
    duration_ms: u64,
}

/// Both clocks at one moment: what happened is known by the one, and shown by the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    wall: SystemTime,
}

impl Clock {
    pub(super) fn read() -> Self {
        Self {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn unix_ms(self, at: Instant) -> u64 {
        let then = self.wall.checked_sub(self.instant.saturating_duration_since(at));
        let since_1970 = then.and_then(|then| then.duration_since(UNIX_EPOCH).ok());
        since_1970.map_or(0, |since| since.as_millis() as u64)
    }
}

impl Status {
    pub(super) fn read(state: &AdminState, clock: Clock) -> Self {
        let link = state.link.borrow();
        let backends: Vec<Backend> = link.backends.iter().map(|p| Backend::read(p, clock)).collect();
        let total = |gauge: fn(&crate::session::ShardMetrics) -> i64| -> u64 {
            let sum: i64 = state.shards.iter().map(gauge).sum();
            sum.try_into().unwrap_or_default()
        };
        Self {
            frontend_id: state.frontend_id,
            epoch: state.epoch,
            build: BUILD.as_str(),
            version: env!("CARGO_PKG_VERSION"),
            sessions: total(|shard| shard.online.get()),
            waiting: total(|shard| shard.waiting.get()),
            in_flight: backends.iter().map(|b| b.in_flight).sum(),
            backends,
            hand_overs: link.hand_overs.iter().map(|h| Ended::read(h, clock)).collect(),
        }
    }
}

impl Backend {
    fn read(peer: &PeerStatus, clock: Clock) -> Self {
        Self {
            name: peer.name.clone(),
            build: peer.build.clone(),
            epoch: peer.epoch.to_string(),
            state: peer.stage,
            share_percent: peer.share.percent(),
            in_flight: peer.work.in_flight(),
            requests: peer.work.requests(),
            replies: peer.work.replies(),
            since_unix_ms: clock.unix_ms(peer.since),
        }
    }
}

impl Ended {
    fn read(hand_over: &HandOver, clock: Clock) -> Self {
        Self {
            at_unix_ms: clock.unix_ms(hand_over.at),
            kind: hand_over.kind.label(),
            backend: hand_over.backend.clone(),
            epoch: hand_over.epoch.to_string(),
            requests: hand_over.requests,
            duration_ms: hand_over.duration.as_millis() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use holdfast_proto::Share;
    use holdfast_proto::link::Epoch;
    use serde_json::json;
    use tokio::sync::watch;

    use super::*;
    use crate::link::{HandOverKind, LinkStatus, Work};
    use crate::session::ShardMetrics;

    #[test]
    fn times_are_shown_by_the_wall_clock() {
        let start = Instant::now();
        let now = start + Duration::from_secs(10);
        let wall = UNIX_EPOCH + Duration::from_millis(50_000);
        let clock = Clock { instant: now, wall };
        let epoch = Epoch { boot: 7, attach: 3 };
        let backend = PeerStatus {
            name: "b".into(),
            build: "1+x".into(),
            epoch,
            stage: "active",
            share: Share::clamped(525),
            since: start,
            work: Arc::new(Work::default()),
        };
        let ended = HandOver {
            at: now - Duration::from_secs(1),
            kind: HandOverKind::GraceOver,
            backend: "a".into(),
            epoch,
            requests: 4,
            duration: Duration::from_millis(1500),
        };
        let shards = vec![ShardMetrics::default(), ShardMetrics::default()];
        for (shard, count) in shards.iter().zip([3, 4]) {
            shard.online.set(count);
            shard.waiting.set(count - 2);
        }
        let link = LinkStatus {
            backends: vec![backend],
            hand_overs: vec![ended],
        };
        let state = AdminState {
            registry: Arc::default(),
            ready: Arc::default(),
            link: watch::channel(link).1,
            shards,
            frontend_id: 2,
            epoch: 9,
        };
        let status = serde_json::to_value(Status::read(&state, clock)).unwrap();
        let name = epoch.to_string();
        let expected = json!({
            "frontend_id": 2, "epoch": 9, "build": BUILD.as_str(), "version": env!("CARGO_PKG_VERSION"),
            "sessions": 7, "waiting": 3, "in_flight": 0,
            "backends": [{
                "name": "b", "build": "1+x", "epoch": name, "state": "active", "share_percent": 5.25,
                "in_flight": 0, "requests": 0, "replies": 0, "since_unix_ms": 40_000,
            }],
            "hand_overs": [{
                "at_unix_ms": 49_000, "kind": "grace_over", "backend": "a", "epoch": name, "requests": 4,
                "duration_ms": 1500,
            }],
        });
        assert_eq!(status, expected);
    }
}
