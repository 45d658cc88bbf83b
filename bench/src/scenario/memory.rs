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
/// Devices on a socket of theirs: a session on udp has none at the server.
const UDP_SHARE: u32 = 100;
/// After the last handshake, before memory is read: allocators return pages late.
const SETTLE: Duration = Duration::from_millis(1500);
const LARGE_PAYLOAD_BYTES: usize = 16 * 1024;
const LARGE_PER_SECOND: u32 = 300;
/// Readings while sessions that were idle exchange a large message, and the share of all sessions that do.
const LARGE_STEPS: u32 = 3;
const LARGE_SHARE: u32 = 5;

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (mut ours_ws, mut ours_udp, mut bare_tcp) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=size.rounds {
        ours.push(
            gateway(
                size,
                bin_dir,
                ChannelKind::Wss,
                &format!("round {round}: gateway, wss"),
            )
            .await?,
        );
        bare.push(echo(size, bin_dir, true, &format!("round {round}: bare TLS echo")).await?);
        ours_ws.push(
            gateway(
                size,
                bin_dir,
                ChannelKind::Ws,
                &format!("round {round}: gateway, ws"),
            )
            .await?,
        );
        ours_udp.push(
            gateway(
                size,
                bin_dir,
                ChannelKind::Udp,
                &format!("round {round}: gateway, udp"),
            )
            .await?,
        );
        bare_tcp.push(echo(size, bin_dir, false, &format!("round {round}: bare TCP echo")).await?);
    }
    let of = |slopes: &[Slopes], f: fn(&Slopes) -> f64| slopes.iter().map(f).collect::<Vec<_>>();
    let row = |figure, f: fn(&Slopes) -> f64| {
        Row::new(figure, "B", of(&ours, f)).against("tungstenite + rustls", of(&bare, f))
    };
    let rows = vec![
        row("frontend, user space, per idle wss session", |s| s.idle).limit(Of::Value, 5120.0, 2048.0),
        row("frontend, more per session after a 16 KB echo", |s| s.large),
        Row::new(
            "frontend, user space, per idle ws session",
            "B",
            of(&ours_ws, |s| s.idle),
        )
        .against("tungstenite on TCP", of(&bare_tcp, |s| s.idle))
        .limit(Of::Value, 1536.0, 768.0),
        Row::new(
            "frontend, more per ws session after a 16 KB echo",
            "B",
            of(&ours_ws, |s| s.large),
        )
        .against("tungstenite on TCP", of(&bare_tcp, |s| s.large)),
        Row::new(
            "frontend, user space, per idle udp session",
            "B",
            of(&ours_udp, |s| s.idle),
        )
        .against("the same over wss", of(&ours, |s| s.idle))
        .limit(Of::Value, 1024.0, 512.0),
        Row::new(
            "frontend, more per udp session after a 16 KB echo",
            "B",
            of(&ours_udp, |s| s.large),
        ),
        Row::new(
            "kernel slab per udp session (both ends)",
            "B",
            of(&ours_udp, |s| s.slab),
        )
        .against("the same over wss", of(&ours, |s| s.slab)),
        Row::new("backend, user space, per session", "B", of(&ours, |s| s.backend)),
        row("kernel slab of the machine per session (both ends)", |s| s.slab),
    ];
    let notes = vec![
        format!(
            "Least-squares slope of Private_Dirty in /proc/PID/smaps_rollup over {} readings up to {} sessions, {} after the last handshake; fresh processes each round. A session is idle after its @welcome.",
            size.memory_steps, size.memory_sessions, "1.5 s"
        ),
        format!(
            "After 16 KB: the slope over sessions that then echoed one 16 KB message, {} in all; it comes on top.",
            size.memory_sessions / LARGE_SHARE
        ),
        "The gateway runs with MIMALLOC_PURGE_DELAY=0: without it, pages that handshakes freed are kept for a while and then reused, which hides what sessions hold. Slab is the whole machine's: it contains the devices' ends and whatever else went on.".to_owned(),
    ];
    Ok(Table {
        title: "memory".to_owned(),
        rows,
        notes,
    })
}

/// Bytes per session.
struct Slopes {
    idle: f64,
    large: f64,
    backend: f64,
    slab: f64,
}

async fn gateway(size: &Size, bin_dir: Option<&Path>, kind: ChannelKind, label: &str) -> Result<Slopes> {
    let setup = Setup {
        thrifty: true,
        ..Setup::default()
    };
    let gateway = Gateway::start_for(bin_dir, &setup).await?;
    let endpoint = match kind {
        ChannelKind::Udp => gateway.shared_endpoint(UDP_SHARE),
        _ => gateway.endpoint(kind),
    };
    let fleet = Fleet::start(endpoint).await?;
    fleet
        .measure(size, (gateway.frontend_pid, Some(gateway.backend_pid)), label)
        .await
}

async fn echo(size: &Size, bin_dir: Option<&Path>, with_tls: bool, label: &str) -> Result<Slopes> {
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
    fleet.measure(size, (server.pid, None), label).await
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
