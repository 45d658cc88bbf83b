//! CPU per packet of the udp transport alone: two connections in one thread, no socket, beside the encryption of the same bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::secure::{Credential, Identity, Initiator, MasterKey, SecureChannel, Verified};

use holdfast_proto::udp::{
    Config, Connection, ConnectionId, Event, HEADER_BYTES, INITIAL_SERVER_CREDIT, Opening, Parameters,
    PeerCredit, Side,
};
use nix::time::{ClockId, clock_gettime};
use tokio::task::spawn_blocking;

use super::{PAYLOAD_BYTES, progress};
use crate::args::Size;
use crate::report::{Row, Table};

/// What is sent, and how.
#[derive(Clone, Copy)]
struct Pattern {
    name: &'static str,
    bytes: usize,
    /// Messages sent before the peer gets any of them.
    at_once: usize,
}

const PATTERNS: [Pattern; 3] = [
    Pattern {
        name: "one message of 128 B at a time",
        bytes: PAYLOAD_BYTES,
        at_once: 1,
    },
    Pattern {
        name: "8 messages of 128 B at a time",
        bytes: PAYLOAD_BYTES,
        at_once: 8,
    },
    Pattern {
        name: "one message of 8 KiB at a time",
        bytes: 8 * 1024,
        at_once: 1,
    },
];

/// Rounds until window and buffers are what they stay.
const WARM_UP_PACKETS: u64 = 1000;

pub(super) async fn run(size: &Size) -> Result<Table> {
    let mut rows = Vec::new();
    for pattern in PATTERNS {
        let (mut ours, mut bare, mut rates, mut messages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..size.rounds {
            let packets = size.packets;
            let found = spawn_blocking(move || round(pattern, packets)).await??;
            ours.push(found.ns / found.packets);
            bare.push(found.bare_ns / found.packets);
            rates.push(found.packets * 1e9 / found.ns);
            messages.push(found.ns / found.messages);
        }
        let last = ours.last().copied().unwrap_or_default();
        progress("core", &format!("{}: {last:.0} ns per packet", pattern.name));
        let name = pattern.name;
        rows.push(
            Row::new(format!("{name}: per packet, both ends"), "ns", ours).against("AES-256-GCM alone", bare),
        );
        rows.push(Row::new(
            format!("{name}: per message, acknowledged"),
            "ns",
            messages,
        ));
        rows.push(Row::new(format!("{name}: packets per CPU-second"), "", rates));
    }
    let notes = vec![
        "A packet is made by one connection and taken by another in the same thread; acknowledgements are packets too, and travel late, by the timer, where nothing asks for them earlier. No socket, no allocation but the library's own, virtual time.".to_owned(),
        "AES-256-GCM alone: sealing and opening as many bytes with the header as associated data, in place, the key expanded once.".to_owned(),
    ];
    Ok(Table {
        title: "core: the udp transport alone".to_owned(),
        rows,
        notes,
    })
}

struct Found {
    packets: f64,
    messages: f64,
    ns: f64,
    bare_ns: f64,
}

fn round(pattern: Pattern, packets: u64) -> Result<Found> {
    let mut pair = Pair::new()?;
    while pair.lengths.len() < WARM_UP_PACKETS as usize {
        pair.exchange(pattern)?;
    }
    pair.lengths.clear();
    let (mut messages, started) = (0, cpu_ns()?);
    while (pair.lengths.len() as u64) < packets {
        pair.exchange(pattern)?;
        messages += pattern.at_once;
    }
    let ns = cpu_ns()? - started;
    Ok(Found {
        packets: pair.lengths.len() as f64,
        messages: messages as f64,
        ns,
        bare_ns: bare(&pair.lengths)?,
    })
}

/// CPU time of this thread.
fn cpu_ns() -> Result<f64> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(now).as_nanos() as f64)
}

/// Seals and opens datagrams of these lengths.
fn bare(lengths: &[u16]) -> Result<f64> {
    let cipher = Aes256Gcm::new(&[7; 32].into());
    let mut buffer = vec![0; 2048];
    let started = cpu_ns()?;
    for (number, length) in lengths.iter().enumerate() {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
        let nonce = nonce.into();
        let plain = &mut buffer[..usize::from(*length) - HEADER_BYTES - TAG_BYTES];
        let header = [0; HEADER_BYTES];
        let sealed = cipher.encrypt_in_place_detached(&nonce, &header, plain);
        let tag = sealed.ok().context("sealing")?;
        let opened = cipher.decrypt_in_place_detached(&nonce, &header, plain, &tag);
        opened.ok().context("opening")?;
    }
    Ok(cpu_ns()? - started)
}

const TAG_BYTES: usize = 16;

/// Two ends, and the time that both see.
struct Pair {
    server: Connection,
    device: Connection,
    server_at: SocketAddr,
    device_at: SocketAddr,
    config: Config,
    now: Instant,
    datagram: Vec<u8>,
    /// Of each datagram so far.
    lengths: Vec<u16>,
    /// Messages that the device got, and that the server knows to be there.
    taken: usize,
    delivered: usize,
}

impl Pair {
    fn new() -> Result<Self> {
        let (server_at, device_at) = (
            SocketAddr::from(([127, 0, 0, 1], 1)),
            SocketAddr::from(([127, 0, 0, 1], 2)),
        );
        let (config, now) = (Config::default(), Instant::now());
        let (server, device) = open(&config, now, (server_at, device_at))?;
        let mut pair = Self {
            server,
            device,
            server_at,
            device_at,
            config,
            now,
            datagram: Vec::new(),
            lengths: Vec::new(),
            taken: 0,
            delivered: 0,
        };
        // The server is silent until it has heard the device.
        pair.device.ping();
        pair.until_quiet()?;
        Ok(pair)
    }

    /// Messages from the server to the device, until they are acknowledged.
    fn exchange(&mut self, pattern: Pattern) -> Result<()> {
        let message = Bytes::from(vec![b'x'; pattern.bytes]);
        for _ in 0..pattern.at_once {
            self.server
                .send(&self.config, MessageKind::Text, message.clone())?;
        }
        let until = (self.taken + pattern.at_once, self.delivered + pattern.at_once);
        self.until_quiet()?;
        ensure!((self.taken, self.delivered) == until, "messages are missing");
        Ok(())
    }

    /// Until there is nothing to send, and nothing to wait for but a keep-alive.
    fn until_quiet(&mut self) -> Result<()> {
        for _ in 0..MOST_TURNS {
            while self.feed_device()? | self.feed_server()? {}
            if self.server.is_idle() && self.device.is_idle() {
                return Ok(());
            }
            let due = [self.server.poll_timeout(), self.device.poll_timeout()];
            self.now = due
                .into_iter()
                .flatten()
                .min()
                .context("nothing is due")?
                .max(self.now);
            for end in [&mut self.server, &mut self.device] {
                if end.poll_timeout().is_some_and(|at| at <= self.now) {
                    end.handle_timeout(&self.config, self.now);
                }
            }
        }
        bail!("the two do not get quiet")
    }

    fn feed_device(&mut self) -> Result<bool> {
        let mut moved = false;
        self.now += STEP;
        while self
            .server
            .poll_transmit(&self.config, self.now, &mut self.datagram)
            .is_some()
        {
            self.lengths.push(self.datagram.len() as u16);
            let (config, from) = (&self.config, self.server_at);
            self.device
                .handle_datagram(config, self.now, from, &mut self.datagram, 1);
            self.datagram.clear();
            moved = true;
        }
        while let Some(event) = self.device.poll_event(&self.config) {
            match event {
                Event::Message(..) => self.taken += 1,
                Event::Delivered(_) => {}
                other => bail!("{other:?}"),
            }
        }
        Ok(moved)
    }

    fn feed_server(&mut self) -> Result<bool> {
        let mut moved = false;
        self.now += STEP;
        while self
            .device
            .poll_transmit(&self.config, self.now, &mut self.datagram)
            .is_some()
        {
            self.lengths.push(self.datagram.len() as u16);
            let (config, from) = (&self.config, self.device_at);
            self.server
                .handle_datagram(config, self.now, from, &mut self.datagram, 1);
            self.datagram.clear();
            moved = true;
        }
        while let Some(event) = self.server.poll_event(&self.config) {
            match event {
                Event::Delivered(count) => self.delivered += count,
                Event::PeerMoved(_) => {}
                other => bail!("{other:?}"),
            }
        }
        Ok(moved)
    }
}

/// One way.
const STEP: Duration = Duration::from_micros(500);
/// Of the clock in one exchange.
const MOST_TURNS: u32 = 1000;

/// Both ends, after the handshake.
fn open(
    config: &Config,
    now: Instant,
    (server_at, device_at): (SocketAddr, SocketAddr),
) -> Result<(Connection, Connection)> {
    let identity = Identity {
        key_id: "k".to_owned(),
        product: "bench".to_owned(),
        class: String::new(),
        device: "d".parse()?,
        key_version: 1,
    };
    let parameters = Parameters {
        attempt: 1,
        max_datagram: config.max_datagram,
        receive_bytes: config.receive_bytes,
        receive_messages: config.receive_messages,
    }
    .encode();
    let key = MasterKey::from_bytes(&[7; 32])
        .context("a master key has 32 bytes")?
        .device_key(&identity);
    let (initiator, credential) = Initiator::for_datagrams(&parameters, &identity, &key, None)?;
    let credential = Credential::parse_datagram(&parameters, &credential)?;
    let (message2, keys) = Verified::verify(SecureChannel::Udp, &credential, &key)?.answer()?;
    let device_credit = PeerCredit {
        messages: config.receive_messages.into(),
        bytes: config.receive_bytes.into(),
    };
    let cid = ConnectionId::new(0, 1, 2);
    let server = Opening {
        cid,
        keys,
        peer: device_at,
        peer_max_datagram: config.max_datagram,
        peer_credit: device_credit,
        own_credit: INITIAL_SERVER_CREDIT,
        reset_token: None,
    };
    let device = Opening {
        cid,
        keys: initiator.finish(&message2)?,
        peer: server_at,
        peer_max_datagram: config.max_datagram,
        peer_credit: INITIAL_SERVER_CREDIT,
        own_credit: device_credit,
        reset_token: None,
    };
    Ok((
        Connection::new(Side::Server, server, now),
        Connection::new(Side::Device, device, now),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_delivered_and_acknowledged() {
        for pattern in PATTERNS {
            let found = round(pattern, 100).unwrap();
            assert!(found.messages >= 1.0 && found.packets > found.messages.min(100.0) / 2.0);
        }
    }
}
