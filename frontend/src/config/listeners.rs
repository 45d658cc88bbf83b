//! Where devices and remote backends come in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_proto::config::Interval;
use serde::Deserialize;

use super::{Fault, MIB, within};

/// Devices over TLS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WssConfig {
    pub listen: SocketAddr,
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Devices over TCP with records of our own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WsConfig {
    pub listen: SocketAddr,
    /// Handshakes that one source (an IPv4 address, or a /64 of IPv6) may ask for, in the long run. Many devices may share an
    /// address. 6,000 by default; 0: no limit.
    #[serde(default = "default_source_attempts_per_minute")]
    pub source_attempts_per_minute: u32,
    /// The same at once. 2,000 by default; 1 to 1,000,000.
    #[serde(default = "default_source_attempts_burst")]
    pub source_attempts_burst: u32,
}

/// Devices over datagrams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UdpConfig {
    pub listen: SocketAddr,
    /// Longest UDP payload that devices are sent, in bytes: 512 to 1472. 1200 by default, which every path takes that QUIC uses; what a
    /// device asked for bounds it too.
    #[serde(default = "default_max_datagram")]
    pub max_datagram: u16,
    /// When a device must first show that it gets what is sent to its address: `"load"` (by default: when many handshakes are
    /// unfinished, or many come from its address) or `"always"`. It costs a round trip.
    #[serde(default)]
    pub cookie: CookieRule,
    /// Unfinished handshakes of one shard above which that is asked of everybody: 0 to 100,000. 64 by default.
    #[serde(default = "default_cookie_above")]
    pub cookie_above: u32,
    /// Handshakes that one source (an IPv4 address, or a /64 of IPv6) which has shown that it is there may ask for, in the long run.
    /// 6,000 by default; 0: no limit.
    #[serde(default = "default_source_attempts_per_minute")]
    pub source_attempts_per_minute: u32,
    /// The same at once. 2,000 by default; 1 to 1,000,000.
    #[serde(default = "default_source_attempts_burst")]
    pub source_attempts_burst: u32,
    /// How long a message may stay unacknowledged before its device is given up. 60s by default; 5s to 10m.
    #[serde(default = "default_give_up")]
    pub give_up: Interval,
    /// What the kernel holds for each shard of datagrams that came and were not read: 64 KiB to 256 MiB, 4 MiB by default. The
    /// kernel's own limit (`net.core.rmem_max`) may make it less.
    #[serde(default = "default_socket_buffer_bytes")]
    pub receive_buffer_bytes: usize,
    /// The same of datagrams that go out (`net.core.wmem_max`).
    #[serde(default = "default_socket_buffer_bytes")]
    pub send_buffer_bytes: usize,
}

/// When a cookie is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CookieRule {
    #[default]
    Load,
    Always,
}

/// Backends on other machines, under a key of the link.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelConfig {
    pub listen: SocketAddr,
    /// File of the link key: one line, 32 bytes in base64url; the backends have the same. A second line holds its successor. Read
    /// again when it changes.
    pub key: PathBuf,
}

impl WsConfig {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let (rate, burst) = (self.source_attempts_per_minute, self.source_attempts_burst);
        within("ws.source_attempts_per_minute", rate as usize, 0, 60_000)?;
        within("ws.source_attempts_burst", burst as usize, 1, 1_000_000)
    }
}

impl UdpConfig {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let (rate, burst) = (self.source_attempts_per_minute, self.source_attempts_burst);
        within("udp.max_datagram", self.max_datagram.into(), 512, 1472)?;
        within("udp.cookie_above", self.cookie_above as usize, 0, 100_000)?;
        within("udp.source_attempts_per_minute", rate as usize, 0, 60_000)?;
        within("udp.source_attempts_burst", burst as usize, 1, 1_000_000)?;
        let buffers = 64 * 1024..=256 * MIB;
        let (low, high) = (*buffers.start(), *buffers.end());
        within("udp.receive_buffer_bytes", self.receive_buffer_bytes, low, high)?;
        within("udp.send_buffer_bytes", self.send_buffer_bytes, low, high)?;
        let give_up = self.give_up.get();
        if give_up < Duration::from_secs(5) || give_up > Duration::from_secs(600) {
            return Err(("udp.give_up", self.give_up.to_string(), "5s to 10m".into()));
        }
        Ok(())
    }
}

fn default_source_attempts_per_minute() -> u32 {
    6_000
}

fn default_source_attempts_burst() -> u32 {
    2_000
}

fn default_max_datagram() -> u16 {
    1200
}

fn default_cookie_above() -> u32 {
    64
}

fn default_give_up() -> Interval {
    Interval::from_secs(60)
}

fn default_socket_buffer_bytes() -> usize {
    4 * MIB
}
