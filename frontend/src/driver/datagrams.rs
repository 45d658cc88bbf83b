//! What the shards' sockets for datagrams have in common: their address, their keys, and what they were configured with.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use holdfast_proto::throttle::Throttle;
use holdfast_proto::udp::{self, Cookies, ResetKey};
use prometheus_client::registry::Registry;

use super::threads::{StartError, outbox_bytes};
use super::udp::{Admission, SocketBuffers, UdpMetrics, UdpSetup, bind_group, granted};
use crate::config::{Config, CookieRule, UdpConfig};
use crate::epoch::DataDir;

/// What a device may send beyond what its session took, in bytes and messages: enough for one upload of 5 MB/s at a round trip of 50 ms.
/// A session that takes nothing more holds at most twice that.
const RECEIVE_BYTES: u32 = 256 * 1024;
const RECEIVE_MESSAGES: u16 = 64;
/// Messages to one device that it has not acknowledged, beside pushes and replies, which its session bounds: pongs, mostly, of which
/// a datagram may ask for 64.
const SEND_OTHERS: usize = 512;
/// How often one source may ask for a handshake without showing that it is there: one each six seconds in the long run, two at once.
/// A handshake that nobody finishes lasts ten seconds, so these are three at most, less than a device's unfinished handshakes may be:
/// who says again in a device's name what he has heard shall not use them up. A site that comes back as a whole pays a round trip
/// for each device.
const UNPROVEN_INTERVAL_MS: u64 = 6_000;
const UNPROVEN_BURST: u32 = 2;
/// The same for all sources of a shard together, per second and at once: senders that do not exist cost a backend no more.
const UNPROVEN_PER_SECOND: u32 = 200;
/// How often one source is told that a connection is not here: twenty times a second in the long run, and as often at once as devices
/// may share an address.
const RESET_INTERVAL_MS: u64 = 50;
const RESET_BURST: u32 = 256;
/// Slots of the tables of sources: 512 KiB each.
const SOURCE_SLOTS: usize = 1 << 16;

/// The sockets that no shard has taken yet, and what goes with each.
pub(super) struct Datagrams {
    /// Where devices come.
    pub(super) address: SocketAddr,
    sockets: std::vec::IntoIter<UdpSocket>,
    reset_key: ResetKey,
    admission: Admission,
}

impl Datagrams {
    /// Binds one socket per shard, if devices come over datagrams at all.
    pub(super) fn bind(config: &Config, data: &DataDir) -> Result<Option<Self>, StartError> {
        let Some(udp) = &config.udp else { return Ok(None) };
        let buffers = SocketBuffers {
            receive: udp.receive_buffer_bytes,
            send: udp.send_buffer_bytes,
        };
        let failed = |source| StartError::Listen {
            key: "udp.listen",
            address: udp.listen,
            source,
        };
        let sockets = bind_group(udp.listen, config.shards.into(), buffers).map_err(failed)?;
        let mut address = udp.listen;
        if let Some(first) = sockets.first() {
            address = first.local_addr().map_err(failed)?;
            say_what_was_granted(udp, granted(first).map_err(failed)?);
        }
        Ok(Some(Self {
            address,
            sockets: sockets.into_iter(),
            reset_key: ResetKey::from_bytes(data.reset_key().map_err(StartError::Data)?),
            admission: admission(udp),
        }))
    }

    /// What the next shard gets; its metrics are put into `registry`.
    pub(super) fn next(&mut self, config: &Config, registry: &mut Registry) -> Option<UdpSetup> {
        let (socket, udp) = (self.sockets.next()?, config.udp.as_ref()?);
        let metrics = UdpMetrics::default();
        metrics.register(registry);
        let limits = &config.limits;
        let send_messages = limits.output_pushes + limits.window_requests + SEND_OTHERS;
        Some(UdpSetup {
            socket,
            config: udp::Config {
                max_message_bytes: limits.max_message_bytes,
                receive_bytes: RECEIVE_BYTES,
                receive_messages: RECEIVE_MESSAGES,
                max_datagram: udp.max_datagram,
                give_up: udp.give_up.get(),
                keep_alive: None,
                send_bytes: outbox_bytes(limits) + send_messages * udp::MESSAGE_COST_BYTES,
                send_messages,
                input_share: usize::MAX,
            },
            reset_key: self.reset_key.clone(),
            admission: self.admission.clone(),
            shards: config.shards,
            max_input_bytes: limits.input_total_bytes / usize::from(config.shards),
            metrics,
        })
    }
}

fn admission(udp: &UdpConfig) -> Admission {
    let throttle = |interval_ms, burst| Throttle::new(rand::random(), SOURCE_SLOTS, interval_ms, burst);
    Admission {
        cookies: Cookies::new(rand::random()),
        born: Instant::now(),
        always: udp.cookie == CookieRule::Always,
        above: udp.cookie_above as usize,
        unproven: Arc::new(throttle(UNPROVEN_INTERVAL_MS, UNPROVEN_BURST)),
        unproven_per_second: UNPROVEN_PER_SECOND,
        resets: Arc::new(throttle(RESET_INTERVAL_MS, RESET_BURST)),
    }
}

fn say_what_was_granted(udp: &UdpConfig, granted: SocketBuffers) {
    if granted.receive < udp.receive_buffer_bytes || granted.send < udp.send_buffer_bytes {
        tracing::info!(
            receive = granted.receive,
            send = granted.send,
            "the kernel holds fewer bytes of datagrams than [udp] asks for: see net.core.rmem_max and wmem_max"
        );
    }
}
