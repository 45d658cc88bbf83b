//! What bounds a shard's sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_proto::throttle::{Source, Throttle};

use super::unfinished::Unfinished;
use super::window::WindowLimits;
use holdfast_proto::{ChannelKind, FrontendEpoch, FrontendId, ShardId};

/// Limits and times of one shard. The defaults are those of the frontend's configuration.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    pub frontend: FrontendId,
    pub epoch: FrontendEpoch,
    pub shard: ShardId,
    /// Sessions of all states, the closing ones whose LOGOUT is owed included.
    pub max_sessions: u32,
    /// Sessions that may wait for a backend before they are online.
    pub max_waiting: u32,
    pub window: WindowLimits,
    /// Unanswered request bytes over all sessions, within which each may always hold one request.
    pub window_total_bytes: usize,
    /// Bytes of one session that the socket has not taken.
    pub output_bytes: usize,
    /// The same over all sessions.
    pub output_total_bytes: usize,
    /// Pushes of one session that the socket has not taken.
    pub output_pushes: usize,
    /// How long the transport's set-up may take.
    pub accept_timeout: Duration,
    /// How long a backend may take to answer BIND, LOGIN, LOGOUT or a control message before another one is asked.
    pub backend_timeout: Duration,
    /// How long a connecting device waits for a backend (P6).
    pub wait_limit: Duration,
    /// How long the first message may stay away where it proves nothing.
    pub hello_timeout: Duration,
    /// How long a device may take to prove that it holds its key.
    pub challenge_timeout: Duration,
    /// Unfinished handshakes by device, shared by all shards.
    pub unfinished: Arc<Unfinished>,
    /// How often one source may ask for a handshake.
    pub sources: Sources,
    /// Silence after which the frontend pings.
    pub ping_after: Duration,
    /// Silence after which it closes.
    pub close_after: Duration,
    /// What a request may take in all before backends refuse to begin it.
    pub request_deadline: Duration,
    /// A retry hint is drawn between this and twice this.
    pub retry_hint: Duration,
    pub seed: u64,
}

/// How often one source may ask for a handshake, by the kind of channel. `None`: as often as it likes. There is none for `wss`: TLS
/// protects itself, and costs more before anything comes here.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub ws: Option<SourceLimit>,
    pub udp: Option<SourceLimit>,
}

impl Sources {
    pub fn of(&self, kind: ChannelKind) -> Option<&SourceLimit> {
        match kind {
            ChannelKind::Ws => self.ws.as_ref(),
            ChannelKind::Udp => self.udp.as_ref(),
            ChannelKind::Wss => None,
        }
    }
}

/// A bound on attempts per source. Clones, one in each shard, share the counts and what they count time from.
#[derive(Debug, Clone)]
pub struct SourceLimit {
    throttle: Arc<Throttle>,
    born: Instant,
}

impl SourceLimit {
    pub fn new(throttle: Throttle, born: Instant) -> Self {
        Self {
            throttle: Arc::new(throttle),
            born,
        }
    }

    /// Counts an attempt, or says how long the source is to stay away.
    pub fn check(&self, now: Instant, source: &Source) -> Result<(), Duration> {
        let since_start = now.saturating_duration_since(self.born).as_millis() as u64;
        let checked = self.throttle.check(source, since_start);
        checked.map_err(Duration::from_millis)
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            frontend: FrontendId(1),
            epoch: FrontendEpoch(1),
            shard: ShardId(0),
            max_sessions: 1_000_000,
            max_waiting: 10_000,
            window: WindowLimits {
                requests: 32,
                bytes: 256 * 1024,
                held_bytes: 4 * MIB,
            },
            window_total_bytes: 256 * MIB,
            output_bytes: 4 * MIB,
            output_total_bytes: 256 * MIB,
            output_pushes: 64,
            accept_timeout: Duration::from_secs(10),
            backend_timeout: Duration::from_secs(10),
            wait_limit: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(1),
            challenge_timeout: Duration::from_secs(10),
            unfinished: Arc::new(Unfinished::new(1)),
            sources: Sources::default(),
            ping_after: Duration::from_secs(30),
            close_after: Duration::from_secs(75),
            request_deadline: Duration::from_secs(30),
            retry_hint: Duration::from_secs(2),
            seed: 1,
        }
    }
}
