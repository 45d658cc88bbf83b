//! What the conductor and its roles say to each other: one JSON value per line. The first line is the [`Role`], answered by
//! [`Answer::Ready`]; then each [`Command`] gets one answer.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// The HTTP service behind the gateway: answers a POST with its body.
    Service,
    /// A bare tungstenite server that sends each message back.
    Echo { tls: Option<ServerTls> },
    /// A bare server with a WebSocket per device and an HTTP endpoint that pushes to one of them.
    Mailbox { tls: ServerTls },
    /// Many devices on one endpoint.
    Devices(Devices),
    /// A bare HTTP client that makes one kind of call.
    Poster(Poster),
    /// One device and one bare HTTP client, in turns.
    Latency { device: Endpoint, direct: Poster },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerTls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Where devices connect, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// The CA to trust; none means plain TCP.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) speak: Speak,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Speak {
    /// Log in with a token signed by this Ed25519 seed, send requests, expect replies and pushes.
    Holdfast { token_seed: [u8; 32] },
    /// The same in records, with a device key derived from this master key.
    Records { master_key: [u8; 32] },
    /// Expect back what was sent.
    Echo,
    /// Say who one is; expect pushes.
    Mailbox,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Devices {
    pub(crate) endpoint: Endpoint,
    /// Number of the first device; its source addresses follow from it, too.
    pub(crate) first: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Poster {
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) call: Call,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// A JSON string as the body, which must come back.
    Echo,
    /// A push to each of so many devices in turn, which must be reported as written.
    Push { devices: u32 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// So many more devices get online.
    Connect(u32),
    Run(Run),
    /// How many pushes the devices have got so far.
    Pushes,
}

/// Requests to make and to see answered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) requests: u64,
    pub(crate) pace: Pace,
    /// Unanswered requests per device (poster: in all), at most.
    pub(crate) depth: u32,
    /// Bytes of the payload, quotes included.
    pub(crate) payload: usize,
    /// Devices that take part: from this, so many; 0 means all.
    pub(crate) devices: (u32, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Pace {
    /// Evenly, in ticks of a millisecond.
    PerSecond(u32),
    /// Each answer is followed by the next request.
    Saturated,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The role stands; servers say where. The second address is the HTTP endpoint of a mailbox server.
    Ready(Option<SocketAddr>, Option<SocketAddr>),
    Done(Outcome),
    /// Latencies of the device and of the direct call.
    Both(Outcome, Outcome),
    Pushes(u64),
    Failed(String),
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}
