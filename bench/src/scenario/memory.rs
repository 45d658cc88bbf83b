//! Bytes per idle session: how a server's private dirty memory grows with its sessions, so that what is there without any does
//! not count.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use holdfast_proto::ChannelKind;
use tokio::time::sleep;

use super::progress;
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::{Gateway, Setup};
use crate::machine::slab_bytes;
use crate::process::private_dirty;
use crate::protocol::{Devices, Endpoint, Pace, Role, Run, Speak};
use crate::report::{Of, Row, Table};
use crate::stats::slope;

/// Processes of devices: no process may hold more than half as many descriptors as the server.
const PROCESSES: u32 = 3;
/// Sockets of a process of devices: a session on udp has none at the server.
const UDP_SOCKETS: u32 = 50;
/// After the last handshake, before memory is read: allocators return pages late.
const SETTLE: Duration = Duration::from_millis(1500);
const LARGE_PAYLOAD_BYTES: usize = 16 * 1024;
const LARGE_PER_SECOND: u32 = 300;
/// Readings while sessions that were idle exchange a large message, and the share of all sessions that do.
const LARGE_STEPS: u32 = 3;
const LARGE_SHARE: u32 = 5;

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let mut found = Found::default();
    for round in 1..=size.rounds {
        let ours = |kind: ChannelKind| {
            gateway(
                size,
                bin_dir,
                kind,
                format!("round {round}: gateway, {}", kind.label()),
            )
        };
        let bare = |tls, name| echo(size, bin_dir, tls, format!("round {round}: bare {name} echo"));
        found.wss.push(ours(ChannelKind::Wss).await?);
        found.bare_tls.push(bare(true, "TLS").await?);
        found.ws.push(ours(ChannelKind::Ws).await?);
        found.bare_tcp.push(bare(false, "TCP").await?);
        found.udp.push(ours(ChannelKind::Udp).await?);
    }
    Ok(Table {
        title: "memory".to_owned(),
        rows: found.rows(),
        notes: notes(size),
    })
}

/// Round by round.
#[derive(Default)]
struct Found {
    wss: Vec<Slopes>,
    ws: Vec<Slopes>,
    udp: Vec<Slopes>,
    bare_tls: Vec<Slopes>,
    bare_tcp: Vec<Slopes>,
}

impl Found {
    fn rows(&self) -> Vec<Row> {
        type Figure = fn(&Slopes) -> f64;
        let of = |slopes: &[Slopes], f: Figure| slopes.iter().map(f).collect::<Vec<_>>();
        let row = |figure: &str, slopes: &[Slopes], f: Figure| Row::new(figure, "B", of(slopes, f));
        let over_wss = |row: Row, f: Figure| row.against("the same over wss", of(&self.wss, f));
        let tls = |row: Row, f: Figure| row.against("tungstenite + rustls", of(&self.bare_tls, f));
        let tcp = |row: Row, f: Figure| row.against("tungstenite on TCP", of(&self.bare_tcp, f));
        let (idle, large, slab): (Figure, Figure, Figure) = (|s| s.idle, |s| s.large, |s| s.slab);
        let one = |kind: &str| format!("frontend, user space, per idle {kind} session");
        let more = |kind: &str| format!("frontend, more per {kind} session after a 16 KB echo");
        vec![
            tls(row(&one("wss"), &self.wss, idle), idle).limit(Of::Value, 5120.0, 2048.0),
            tls(row(&more("wss"), &self.wss, large), large),
            tcp(row(&one("ws"), &self.ws, idle), idle).limit(Of::Value, 1536.0, 768.0),
            tcp(row(&more("ws"), &self.ws, large), large),
            over_wss(row(&one("udp"), &self.udp, idle), idle).limit(Of::Value, 1024.0, 512.0),
            over_wss(row(&more("udp"), &self.udp, large), large),
            row("backend, user space, per wss session", &self.wss, |s| s.backend),
            row("backend, user space, per udp session", &self.udp, |s| s.backend),
            tls(
                row(
                    "kernel slab of the machine per wss session (both ends)",
                    &self.wss,
                    slab,
                ),
                slab,
            ),
            over_wss(
                row(
                    "kernel slab of the machine per udp session (both ends)",
                    &self.udp,
                    slab,
                ),
                slab,
            ),
        ]
    }
}

fn notes(size: &Size) -> Vec<String> {
    vec![
        format!(
            "Least-squares slope of Private_Dirty in /proc/PID/smaps_rollup over {} readings up to {} sessions, {} after the last handshake; fresh processes each round. A session is idle after its @welcome.",
            size.memory_steps, size.memory_sessions, "1.5 s"
        ),
        format!(
            "After 16 KB: the slope over sessions that then echoed one 16 KB message, {} in all; it comes on top.",
            size.memory_sessions / LARGE_SHARE
        ),
        "The gateway runs with MIMALLOC_PURGE_DELAY=0: without it, pages that handshakes freed are kept for a while and then reused, which hides what sessions hold. Slab is the whole machine's: it contains the devices' ends and whatever else went on.".to_owned(),
        format!("Devices on udp share {UDP_SOCKETS} sockets per process."),
    ]
}

/// Bytes per session.
struct Slopes {
    idle: f64,
    large: f64,
    backend: f64,
    slab: f64,
}

async fn gateway(size: &Size, bin_dir: Option<&Path>, kind: ChannelKind, label: String) -> Result<Slopes> {
    let setup = Setup {
        thrifty: true,
        ..Setup::default()
    };
    let gateway = Gateway::start_for(bin_dir, &setup).await?;
    let endpoint = match kind {
        ChannelKind::Udp => gateway.shared_endpoint(UDP_SOCKETS),
        _ => gateway.endpoint(kind),
    };
    let fleet = Fleet::start(endpoint).await?;
    fleet
        .measure(size, (gateway.frontend_pid, Some(gateway.backend_pid)), &label)
        .await
}

async fn echo(size: &Size, bin_dir: Option<&Path>, with_tls: bool, label: String) -> Result<Slopes> {
    // For its certificate; it idles meanwhile.
    let gateway = Gateway::start(bin_dir).await?;
    let tls = with_tls.then(|| gateway.tls());
    let server = Worker::start("bare echo server", &Role::Echo { tls }).await?;
    let endpoint = Endpoint {
        address: server.address,
        ca: with_tls.then(|| gateway.ca()),
        speak: Speak::Echo,
    };
    let fleet = Fleet::start(endpoint).await?;
    fleet.measure(size, (server.pid, None), &label).await
}

struct Fleet {
    workers: Vec<Worker>,
}

impl Fleet {
    async fn start(endpoint: Endpoint) -> Result<Self> {
        let mut workers = Vec::new();
        for process in 0..PROCESSES {
            let devices = Devices {
                endpoint: endpoint.clone(),
                first: process * DEVICES_APART,
            };
            workers.push(Worker::start("load generator", &Role::Devices(devices)).await?);
        }
        Ok(Self { workers })
    }

    async fn measure(mut self, size: &Size, pids: (u32, Option<u32>), label: &str) -> Result<Slopes> {
        let step = size.memory_sessions / size.memory_steps / PROCESSES;
        let (mut own, mut backend, mut slab) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=size.memory_steps {
            for worker in &mut self.workers {
                worker.connect(step).await?;
            }
            let sessions = number * step * PROCESSES;
            sleep(SETTLE).await;
            let bytes = private_dirty(pids.0)?;
            progress(
                "memory",
                &format!("{label}, {sessions} sessions: {} KiB", bytes / 1024),
            );
            own.push((f64::from(sessions), bytes as f64));
            if let Some(pid) = pids.1 {
                backend.push((f64::from(sessions), private_dirty(pid)? as f64));
            }
            slab.push((f64::from(sessions), slab_bytes() as f64));
        }
        let large = self.large(size, pids.0).await?;
        progress(
            "memory",
            &format!(
                "{label}: {:.0} B per idle session, {large:.0} B more after 16 KB",
                slope(&own)
            ),
        );
        Ok(Slopes {
            idle: slope(&own),
            large,
            backend: if backend.is_empty() { 0.0 } else { slope(&backend) },
            slab: slope(&slab),
        })
    }

    /// How memory grows with sessions that exchange a large message.
    async fn large(&mut self, size: &Size, pid: u32) -> Result<f64> {
        let step = (size.memory_sessions / LARGE_SHARE / LARGE_STEPS / PROCESSES).max(1);
        let mut readings = vec![(0.0, private_dirty(pid)? as f64)];
        for number in 0..LARGE_STEPS {
            for worker in &mut self.workers {
                let run = Run {
                    requests: step.into(),
                    pace: Pace::PerSecond(LARGE_PER_SECOND),
                    depth: 1,
                    payload: LARGE_PAYLOAD_BYTES,
                    devices: (number * step, step),
                };
                worker.run(run).await?;
            }
            sleep(SETTLE).await;
            let sessions = (number + 1) * step * PROCESSES;
            readings.push((f64::from(sessions), private_dirty(pid)? as f64));
        }
        // Without the first: buffers that all sessions share grow once.
        Ok(slope(&readings[1..]))
    }
}

/// Distance of the first device numbers of two processes.
const DEVICES_APART: u32 = 100_000;
