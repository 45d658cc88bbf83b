//! What a seed stands for: how many of everything, within which bounds, and what goes wrong how often.

use std::ops::RangeInclusive;
use std::time::Duration;

use holdfast_backend::core::CoreSettings;
use holdfast_backend::link::LinkSettings;
use holdfast_backend::route::breaker::BreakerSettings;
use holdfast_frontend::link::HubConfig;
use holdfast_frontend::session::ShardConfig;
use holdfast_proto::link::{Grant, Grants, HEADER_DELAY, LaneConfig};
use holdfast_proto::{FrontendEpoch, FrontendId, ShardId};

use super::rng::Rng;
use super::strangers;

/// Which faults a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Profile {
    /// None.
    Calm,
    /// Backends are replaced, each within its grace.
    Graceful,
    /// Backends also die, hang and lose their sockets.
    Crash,
    /// Frontends too.
    Storm,
}

#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) profile: Profile,
    pub(super) frontends: usize,
    pub(super) shards: u8,
    /// Backends that run when nothing is wrong.
    pub(super) backends: usize,
    pub(super) devices: usize,
    /// How long things go wrong.
    pub(super) chaos: Duration,
    pub(super) fault_every: Duration,
    pub(super) shard: ShardConfig,
    pub(super) lane: LaneConfig,
    pub(super) max_in_flight: usize,
    pub(super) drain_grace: Duration,
    /// How often, per thousand, a fault strikes right at a moment that matters.
    pub(super) strikes: u32,
    /// One way of a batch, in microseconds.
    pub(super) link_delay: RangeInclusive<u64>,
    /// How often, per thousand, a broken socket goes unnoticed by an end.
    pub(super) deaf: u32,
    /// The kernel's buffer towards one device, in bytes.
    pub(super) socket_bytes: u64,
    /// Unacknowledged bytes for this long end a connection (TCP_USER_TIMEOUT).
    pub(super) user_timeout: Duration,
    /// What devices wait between two bursts of requests.
    pub(super) pace: Duration,
    /// Requests that a device has outstanding at most: it may send more than its window takes.
    pub(super) eagerness: usize,
    /// Those who say again what devices on `ws` said.
    pub(super) strangers: usize,
    /// What they wait between two visits.
    pub(super) stranger_pace: Duration,
    /// How often one source may ask for a handshake: one each so many milliseconds, and so many at once.
    pub(super) sources: Option<(u64, u32)>,
}

const HEARTBEAT: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a backend's workers may stand still.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the push API waits, and the presence query.
pub(super) const PUSH_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_TIMEOUT: Duration = Duration::from_millis(300);
/// How often a worker shows that it works, as in the backend's runtime.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

impl Scenario {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let profile = [Profile::Calm, Profile::Graceful, Profile::Crash, Profile::Storm]
            [rng.weighted(&[5, 25, 45, 25])];
        let frontends = 1 + rng.weighted(&[60, 30, 10]);
        Self {
            profile,
            frontends,
            shards: 1 + rng.weighted(&[60, 40]) as u8,
            backends: 1 + rng.weighted(&[40, 40, 20]),
            devices: rng.range(2..=8) as usize,
            chaos: rng.millis(2000..=7000),
            fault_every: rng.millis(250..=1500),
            shard: shard_config(rng),
            lane: lane_config(rng),
            max_in_flight: rng.pick(&[3, 8, 64, 1024]),
            drain_grace: match profile {
                Profile::Calm | Profile::Graceful => Duration::from_secs(30),
                Profile::Crash | Profile::Storm => rng.millis(300..=5000),
            },
            link_delay: rng
                .pick(&[(5, 60), (20, 400), (20, 5000), (1000, 60_000)])
                .into_range(),
            strikes: match profile {
                Profile::Calm | Profile::Graceful => 0,
                Profile::Crash | Profile::Storm => rng.pick(&[0, 5, 30]),
            },
            deaf: rng.pick(&[0, 100, 500, 1000]),
            socket_bytes: rng.pick(&[600, 2000, 16_000, 64_000]),
            user_timeout: rng.pick(&[Duration::from_secs(6), Duration::from_secs(20)]),
            pace: rng.millis(5..=250),
            eagerness: rng.range(1..=14) as usize,
            strangers: rng.pick(&[0, 0, 1, 1, 2]),
            stranger_pace: rng.pick(&strangers::PACES),
            sources: rng.pick(&[None, Some((100, 4)), Some((30, 12))]),
        }
    }

    pub(super) fn hub(&self, frontend: usize, epoch: u64, boot: u128) -> HubConfig {
        HubConfig {
            frontend: frontend_id(frontend),
            epoch: FrontendEpoch(epoch),
            boot,
            shards: self.shards,
            lane: LaneConfig {
                progress_timeout: Some(PROGRESS_TIMEOUT),
                ..self.lane
            },
            max_backends: 16,
            ping_interval: Duration::from_secs(1),
            heartbeat: self.shard.ping_after,
            max_message_bytes: 1024 * 1024,
            window_requests: self.shard.window.requests as u32,
        }
    }

    pub(super) fn shard(&self, frontend: usize, epoch: u64, (shard, seed): (u8, u64)) -> ShardConfig {
        ShardConfig {
            frontend: frontend_id(frontend),
            epoch: FrontendEpoch(epoch),
            shard: ShardId(shard),
            seed,
            ..self.shard.clone()
        }
    }

    pub(super) fn core(&self, name: String, boot: u128, seed: u64) -> CoreSettings {
        CoreSettings {
            link: LinkSettings {
                name,
                build: "simulated".into(),
                boot,
                lane: self.lane,
                retry: Duration::from_millis(50),
                share: holdfast_proto::Share::FULL,
            },
            links: self.frontends,
            max_in_flight: self.max_in_flight,
            last_seen_capacity: 100,
            push_timeout: PUSH_TIMEOUT,
            query_timeout: QUERY_TIMEOUT,
            drain_grace: self.drain_grace,
            breaker: BreakerSettings {
                failures: 8,
                ..BreakerSettings::default()
            },
            seed,
        }
    }

    /// Whether backends only ever leave after having finished.
    pub(super) fn is_graceful(&self) -> bool {
        matches!(self.profile, Profile::Calm | Profile::Graceful)
    }
}

pub(super) fn frontend_id(index: usize) -> FrontendId {
    FrontendId(index as u16 + 1)
}

trait IntoRange {
    fn into_range(self) -> RangeInclusive<u64>;
}

impl IntoRange for (u64, u64) {
    fn into_range(self) -> RangeInclusive<u64> {
        self.0..=self.1
    }
}

fn shard_config(rng: &mut Rng) -> ShardConfig {
    let mut config = ShardConfig {
        max_sessions: 64,
        max_waiting: rng.pick(&[2, 64, 64]),
        window_total_bytes: rng.pick(&[1500, 20_000, 1_000_000]),
        output_bytes: rng.pick(&[6000, 30_000, 1_000_000]),
        output_total_bytes: rng.pick(&[40_000, 1_000_000]),
        output_pushes: rng.pick(&[2, 64]),
        accept_timeout: Duration::from_secs(3),
        backend_timeout: rng.millis(2000..=4000),
        wait_limit: rng.millis(500..=1500),
        hello_timeout: Duration::from_millis(200),
        challenge_timeout: rng.pick(&[
            Duration::from_millis(600),
            Duration::from_secs(2),
            Duration::from_secs(10),
        ]),
        ping_after: Duration::from_secs(2),
        close_after: Duration::from_secs(5),
        request_deadline: rng.pick(&[Duration::from_secs(4), Duration::from_secs(30)]),
        retry_hint: Duration::from_millis(200),
        ..ShardConfig::default()
    };
    config.window.requests = rng.range(1..=10) as usize;
    config.window.bytes = rng.pick(&[400, 4000, 256 * 1024]);
    config
}

fn lane_config(rng: &mut Rng) -> LaneConfig {
    let grant = |messages, bytes| Grants([Grant { messages, bytes }; 4]);
    let grants = [
        Grants::default(),
        grant(1, 300),
        grant(3, 2000),
        grant(16, 30_000),
    ];
    LaneConfig {
        header_delay: rng.pick(&[Duration::ZERO, HEADER_DELAY, HEADER_DELAY]),
        heartbeat: HEARTBEAT,
        timeout: TIMEOUT,
        progress_timeout: None,
        grants: grants[rng.weighted(&[50, 10, 20, 20])],
    }
}
