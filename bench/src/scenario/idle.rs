//! Very many idle sessions on udp: what they hold, what their heartbeats cost, and a push to all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::fanout::once;
use super::fleet::Fleet;
use super::{PAYLOAD_BYTES, progress, pusher};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::{Gateway, Setup};
use crate::machine::slab_bytes;
use crate::process::private_dirty;
use crate::protocol::{Call, Traffic};
use crate::report::{Of, Row, Table};
use crate::stats::slope;

/// Devices on a socket: so few that its receive buffer holds a datagram for each, so that a push to all overflows none. They take
/// turns, so that what goes to neighbours goes to different addresses, as it does in the world.
const SHARE: u32 = 256;
/// Devices of one process.
const PER_PROCESS: u32 = 500_000;
const LEAST_PROCESSES: u32 = 2;
const STEPS: u32 = 20;
/// After the last handshake: allocators return pages late.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let mut stage = Stage::start(size, bin_dir).await?;
    let connecting = stage.connect(size).await?;
    sleep(SETTLE).await;
    let held = stage.memory()?.since(&connecting.before);
    let heartbeats = stage.heartbeats(size).await?;
    let mut pushes = Vec::new();
    for round in 1..=size.rounds {
        let push = stage.push(size).await?;
        progress(
            "idle",
            &format!(
                "push {round}: answered after {:.2} s, all there after {:.2} s; frontend {:.2} µs per delivery",
                push.answered, push.arrived, push.frontend
            ),
        );
        pushes.push(push);
    }
    let after = stage.memory()?.since(&connecting.before);
    Ok(table(size, (&connecting, held, after), &heartbeats, &pushes))
}

fn table(
    size: &Size,
    (connecting, held, after): (&Connecting, Memory, Memory),
    beats: &Heartbeats,
    pushes: &[Push],
) -> Table {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let of = |f: fn(&Push) -> f64| pushes.iter().map(f).collect::<Vec<_>>();
    let rows = vec![
        Row::new("frontend, user space, per session", "B", vec![connecting.slope]).limit(
            Of::Value,
            1024.0,
            512.0,
        ),
        Row::new("frontend, user space", "MiB", vec![mib(held.frontend)]),
        Row::new("backend, user space", "MiB", vec![mib(held.backend)]),
        Row::new("kernel slab of the machine", "MiB", vec![mib(held.slab)]),
        Row::new("frontend per handshake", "µs", vec![connecting.frontend]),
        Row::new("backend per handshake", "µs", vec![connecting.backend]),
        Row::new(
            "frontend, heartbeats, CPU per second",
            "ms",
            vec![beats.frontend * 1e3],
        ),
        Row::new(
            "backend, heartbeats, CPU per second",
            "ms",
            vec![beats.backend * 1e3],
        ),
        Row::new(
            "frontend per heartbeat",
            "µs",
            vec![beats.frontend * 1e6 / beats.per_second],
        ),
        Row::new("push to all: until it is answered", "s", of(|p| p.answered)),
        Row::new("push to all: until all devices have it", "s", of(|p| p.arrived)),
        Row::new("push to all: frontend per delivery", "µs", of(|p| p.frontend)).limit(Of::Value, 2.5, 1.5),
        Row::new("push to all: backend per delivery", "µs", of(|p| p.backend)),
        Row::new(
            "push to all: datagrams sent per delivery",
            "",
            of(|p| p.datagrams),
        ),
    ];
    let notes = vec![
        format!(
            "All {} devices got online ({:.0}/s, with their own side of the handshake on the same cores; {} attempts were not answered within 15 s and made anew), stayed online and sent a heartbeat after at most 25 s of silence; {:.0} heartbeats/s were counted for {:.0} s.",
            size.idle_sessions,
            connecting.per_second,
            connecting.in_vain,
            beats.per_second,
            size.idle_watch.as_secs_f64()
        ),
        format!(
            "Each of {} pushes of {PAYLOAD_BYTES} B arrived at each device exactly once: {} deliveries, none lost. Datagrams above 1 per delivery were sent again or are acknowledgements; devices are up to {SHARE} to a socket.",
            pushes.len(),
            pushes.len() as u64 * u64::from(size.idle_sessions)
        ),
        format!(
            "Memory is Private_Dirty: per session its slope while devices got online, pages that handshakes freed included (`memory` is more exact); else less that of the processes without sessions, {} s after the last handshake; after the pushes frontend {:.0} MiB, backend {:.0} MiB.",
            SETTLE.as_secs(),
            mib(after.frontend),
            mib(after.backend)
        ),
        format!(
            "Times are this machine's: the devices' own work shares its cores ({:.1} ms of CPU per second for the heartbeats).",
            beats.devices * 1e3
        ),
    ];
    Table {
        title: format!("idle: {} sessions on udp", size.idle_sessions),
        rows,
        notes,
    }
}

struct Stage {
    gateway: Gateway,
    devices: Fleet,
    pusher: Worker,
    pushed: u64,
}

#[derive(Clone, Copy)]
struct Memory {
    frontend: f64,
    backend: f64,
    slab: f64,
}

impl Memory {
    fn since(&self, before: &Self) -> Self {
        Self {
            frontend: self.frontend - before.frontend,
            backend: self.backend - before.backend,
            slab: self.slab - before.slab,
        }
    }
}

/// CPU in µs per device.
struct Connecting {
    before: Memory,
    /// Bytes of the frontend per session, while they came.
    slope: f64,
    frontend: f64,
    backend: f64,
    per_second: f64,
    in_vain: u64,
}

/// CPU in seconds per second.
struct Heartbeats {
    frontend: f64,
    devices: f64,
    backend: f64,
    per_second: f64,
}

/// Times in seconds, CPU in µs per delivery.
struct Push {
    answered: f64,
    arrived: f64,
    frontend: f64,
    backend: f64,
    datagrams: f64,
}

impl Stage {
    async fn start(size: &Size, bin_dir: Option<&Path>) -> Result<Self> {
        // Not thrifty: giving each page back at once is what its CPU would then go into.
        let setup = Setup {
            sessions: size.idle_sessions,
            ..Setup::default()
        };
        let gateway = Gateway::start_for(bin_dir, &setup).await?;
        let processes = size.idle_sessions.div_ceil(PER_PROCESS).max(LEAST_PROCESSES);
        let apart = size.idle_sessions.div_ceil(processes) + STEPS;
        let devices = Fleet::start(&gateway.shared_endpoint(apart.div_ceil(SHARE)), processes, apart).await?;
        let call = Call::Broadcast {
            sessions: size.idle_sessions,
        };
        let pusher = pusher(gateway.api, Some(&gateway.api_key), call).await?;
        Ok(Self {
            gateway,
            devices,
            pusher,
            pushed: 0,
        })
    }

    async fn connect(&mut self, size: &Size) -> Result<Connecting> {
        let (before, cpu, started) = (self.memory()?, self.gateway.cpu()?, Instant::now());
        let (mut online, mut readings) = (0, Vec::new());
        for step in 1..=STEPS {
            let until = (u64::from(size.idle_sessions) * u64::from(step) / u64::from(STEPS)) as u32;
            self.devices.connect(until - online).await?;
            online = until;
            let seconds = started.elapsed().as_secs_f64();
            let bytes = private_dirty(self.gateway.frontend_pid)?;
            readings.push((f64::from(online), bytes as f64));
            let mib = bytes >> 20;
            progress(
                "idle",
                &format!("{online} online after {seconds:.0} s; frontend {mib} MiB"),
            );
        }
        let [frontend, backend, _] = self.gateway.cpu()?;
        let each = 1e6 / f64::from(size.idle_sessions);
        // Without the first: what all share grows once.
        Ok(Connecting {
            before,
            slope: slope(&readings[1..]),
            frontend: frontend.since(&cpu[0]).total() * each,
            backend: backend.since(&cpu[1]).total() * each,
            per_second: f64::from(size.idle_sessions) / started.elapsed().as_secs_f64(),
            in_vain: self.devices.traffic().await?.in_vain,
        })
    }

    fn memory(&self) -> Result<Memory> {
        Ok(Memory {
            frontend: private_dirty(self.gateway.frontend_pid)? as f64,
            backend: private_dirty(self.gateway.backend_pid)? as f64,
            slab: slab_bytes() as f64,
        })
    }

    async fn heartbeats(&mut self, size: &Size) -> Result<Heartbeats> {
        let (traffic, cpu, started) = (self.devices.traffic().await?, self.gateway.cpu()?, Instant::now());
        let devices = self.devices.cpu()?;
        sleep(size.idle_watch).await;
        let [frontend, backend, _] = self.gateway.cpu()?;
        let seconds = started.elapsed().as_secs_f64();
        let sent: Traffic = self.devices.traffic().await?.since(&traffic);
        let beats = Heartbeats {
            frontend: frontend.since(&cpu[0]).total() / seconds,
            backend: backend.since(&cpu[1]).total() / seconds,
            devices: self.devices.cpu()?.since(&devices).total() / seconds,
            per_second: sent.sent.packets as f64 / seconds,
        };
        progress(
            "idle",
            &format!(
                "{:.0} heartbeats/s; frontend {:.1} ms/s",
                beats.per_second,
                beats.frontend * 1e3
            ),
        );
        Ok(beats)
    }

    async fn push(&mut self, size: &Size) -> Result<Push> {
        let (traffic, cpu, started) = (self.devices.traffic().await?, self.gateway.cpu()?, Instant::now());
        let outcome = self.pusher.run(once()).await?;
        self.pushed += u64::from(size.idle_sessions);
        self.devices.expect(self.pushed).await?;
        let arrived = started.elapsed().as_secs_f64();
        // Acknowledgements are up to 25 ms late.
        sleep(Duration::from_millis(200)).await;
        let [frontend, backend, _] = self.gateway.cpu()?;
        let received = self.devices.traffic().await?.since(&traffic).received;
        let each = 1.0 / f64::from(size.idle_sessions);
        Ok(Push {
            answered: outcome.seconds,
            arrived,
            frontend: frontend.since(&cpu[0]).total() * 1e6 * each,
            backend: backend.since(&cpu[1]).total() * 1e6 * each,
            datagrams: received.packets as f64 * each,
        })
    }
}
