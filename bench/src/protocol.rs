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
    /// A bare udp server: the transport's core on one socket per core, which sends each message back.
    PacketEcho { master_key: [u8; 32] },
    /// A bare loop of `write` over accepted sockets, or of `send_to` to the addresses that wrote.
    Burst { datagrams: bool },
    /// Sockets that read what a [`Role::Burst`] writes, and count it.
    Sinks {
        address: SocketAddr,
        datagrams: bool,
        first: u32,
    },
    /// Many devices on one endpoint.
    Devices(Devices),
    /// A bare HTTP client that makes one kind of call.
    Poster(Poster),
    /// Strangers who try to get in.
    Flood(Flood),
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
    /// The same in packets over udp, on so many sockets per process in turns; 0: one for each device.
    Packets { master_key: [u8; 32], sockets: u32 },
    /// Packets, and expect back what was sent.
    PacketEcho { master_key: [u8; 32], sockets: u32 },
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
pub(crate) struct Flood {
    pub(crate) address: SocketAddr,
    /// HELLOs over udp, else upgrades over ws.
    pub(crate) datagrams: bool,
    /// What the credentials are made with: a key that is not the gateway's forges them, its own makes of them what somebody recorded.
    pub(crate) master_key: [u8; 32],
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
    /// A push to each of so many devices in turn, beginning with this one; each must be reported as written.
    Push { first: u32, devices: u32 },
    /// A push to all of so many sessions, which must be reported as written to each.
    Broadcast { sessions: u32 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// So many more devices get online.
    Connect(u32),
    Run(Run),
    /// How many pushes (sinks: bytes) have come so far.
    Pushes,
    /// What the devices' sockets have sent and received so far.
    Traffic,
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
    Traffic(Traffic),
    Flooded(Flooded),
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

/// What came of strangers' attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Flooded {
    pub(crate) seconds: f64,
    pub(crate) attempts: u64,
    /// Answered with a challenge.
    pub(crate) challenged: u64,
    /// Refused for the credential.
    pub(crate) refused: u64,
    /// Told to come again: too many attempts, no room, or on udp with a cookie.
    pub(crate) put_off: u64,
}

/// What went over sockets, seen from the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) sent: Flow,
    pub(crate) received: Flow,
    /// udp: datagrams taken for lost, which is what was sent again at most.
    pub(crate) lost: u64,
    /// udp: handshakes that were not answered, after which the device tried anew.
    pub(crate) in_vain: u64,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Flow {
    /// Datagrams; TCP segments, those without data included.
    pub(crate) packets: u64,
    /// Payload of UDP; of TCP without what was sent again.
    pub(crate) payload: u64,
    /// Payload and headers, those of IPv4 included.
    pub(crate) wire: u64,
}

impl Traffic {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            sent: self.sent.since(&before.sent),
            received: self.received.since(&before.received),
            lost: self.lost - before.lost,
            in_vain: self.in_vain - before.in_vain,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sent.add(&other.sent);
        self.received.add(&other.received);
        self.lost += other.lost;
        self.in_vain += other.in_vain;
    }
}

impl Flow {
    fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            payload: self.payload - before.payload,
            wire: self.wire - before.wire,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.payload += other.payload;
        self.wire += other.wire;
    }

    /// One datagram more.
    pub(crate) fn datagram(&mut self, payload: usize) {
        self.packets += 1;
        self.payload += payload as u64;
        self.wire += payload as u64 + UDP_HEADERS;
    }
}

/// Bytes of IPv4's header without options, and of UDP's.
const UDP_HEADERS: u64 = 20 + 8;
