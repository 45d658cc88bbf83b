//! CPU per delivery of one push to all sessions, beside a bare loop that writes as much to as many.

use std::path::Path;

use anyhow::Result;
use holdfast_proto::ChannelKind;

use super::fleet::Fleet;
use super::usage::Usage;
use super::{PAYLOAD_BYTES, progress, pusher};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::protocol::{Call, Pace, Role, Run, Traffic};
use crate::report::{Of, Row, Table};

/// Processes of devices, and of sinks: together with their server they share the cores.
const PROCESSES: u32 = 2;
const DEVICES_APART: u32 = 100_000;
/// What a bare loop writes: about what the event is with its header, in a WebSocket frame and a record, or in a packet.
const BARE_BYTES: usize = 240;
const WARM_UP: u64 = 2;

const KINDS: [ChannelKind; 3] = [ChannelKind::Wss, ChannelKind::Ws, ChannelKind::Udp];

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let mut sides = Vec::new();
    for kind in KINDS {
        progress(
            "fanout",
            &format!("{} {} sessions", size.fanout_sessions, kind.label()),
        );
        sides.push(Side::start(size, bin_dir, kind).await?);
    }
    let (mut tcp, mut udp) = (Bare::start(size, false).await?, Bare::start(size, true).await?);
    for round in 1..=size.rounds {
        for side in &mut sides {
            side.round(size).await?;
        }
        tcp.round(size).await?;
        udp.round(size).await?;
        let last = |usage: &Usage| usage.per_operation().last().copied().unwrap_or_default();
        let all = sides
            .iter()
            .map(|s| format!("{} {:.2}", s.kind.label(), last(&s.both)));
        let all: Vec<String> = all.collect();
        progress(
            "fanout",
            &format!(
                "round {round}, µs per delivery: {}; bare write {:.2}, bare send_to {:.2}",
                all.join(", "),
                last(&tcp.used),
                last(&udp.used)
            ),
        );
    }
    Ok(table(size, &sides, (&tcp, &udp)))
}

fn table(size: &Size, sides: &[Side], (tcp, udp): (&Bare, &Bare)) -> Table {
    let mut rows = Vec::new();
    let mut notes = vec![format!(
        "POST /v1/messages {{\"to\":{{\"all\":true}}}}, {PAYLOAD_BYTES} B payload, {} times a round, each after the one before has arrived at all {} devices, which count. Each device has a socket of its own, in {PROCESSES} processes. CPU is that of frontend and backend; on udp with the acknowledgements that come back until all have arrived.",
        size.broadcasts, size.fanout_sessions
    )];
    for side in sides {
        let figure = format!("frontend and backend per delivery, {}", side.kind.label());
        let row = Row::new(figure, "µs", side.both.per_operation());
        rows.push(match side.kind {
            ChannelKind::Udp => row
                .against("bare loop of send_to", udp.used.per_operation())
                .limit(Of::Value, 2.5, 1.5),
            _ => row
                .against("bare loop of write", tcp.used.per_operation())
                .limit(Of::Ratio, 1.3, 1.1),
        });
        notes.push(
            side.both
                .parts(&format!("frontend and backend, {}", side.kind.label())),
        );
    }
    if let [wss, .., packets] = sides {
        rows.push(
            Row::new("the same, udp", "µs", packets.both.per_operation())
                .against("the same over wss", wss.both.per_operation()),
        );
        notes.push(format!(
            "udp: {:.2} datagrams to a device and {:.2} from it per delivery; {} taken for lost by devices.",
            packets.per_delivery(packets.traffic.received.packets),
            packets.per_delivery(packets.traffic.sent.packets),
            packets.traffic.lost
        ));
    }
    notes.push(format!(
        "The bare loops write {BARE_BYTES} B to each of as many sockets, or addresses, once per turn, and wait until all of it has been read."
    ));
    Table {
        title: format!("fanout: one push to {} sessions", size.fanout_sessions),
        rows,
        notes,
    }
}

/// A gateway whose sessions are all of one kind.
struct Side {
    kind: ChannelKind,
    gateway: Gateway,
    devices: Fleet,
    pusher: Worker,
    pushed: u64,
    delivered: u64,
    both: Usage,
    traffic: Traffic,
}

impl Side {
    async fn start(size: &Size, bin_dir: Option<&Path>, kind: ChannelKind) -> Result<Self> {
        let gateway = Gateway::start(bin_dir).await?;
        let mut devices = Fleet::start(&gateway.endpoint(kind), PROCESSES, DEVICES_APART).await?;
        devices.connect(size.fanout_sessions).await?;
        let sessions = size.fanout_sessions;
        let call = Call::Broadcast { sessions };
        let pusher = pusher(gateway.api, Some(&gateway.api_key), call).await?;
        let mut side = Self {
            kind,
            gateway,
            devices,
            pusher,
            pushed: 0,
            delivered: 0,
            both: Usage::default(),
            traffic: Traffic::default(),
        };
        side.push(size, WARM_UP).await?;
        Ok(side)
    }

    async fn round(&mut self, size: &Size) -> Result<()> {
        let (before, traffic) = (self.gateway.cpu()?, self.devices.traffic().await?);
        self.push(size, size.broadcasts).await?;
        let [frontend, backend, _] = self.gateway.cpu()?;
        let used = frontend.since(&before[0]).plus(&backend.since(&before[1]));
        let deliveries = size.broadcasts * u64::from(size.fanout_sessions);
        self.both.add(used, deliveries);
        self.delivered += deliveries;
        self.traffic.add(&self.devices.traffic().await?.since(&traffic));
        Ok(())
    }

    async fn push(&mut self, size: &Size, times: u64) -> Result<()> {
        for _ in 0..times {
            self.pusher.run(once()).await?;
            self.pushed += 1;
            self.devices
                .expect(self.pushed * u64::from(size.fanout_sessions))
                .await?;
        }
        Ok(())
    }

    fn per_delivery(&self, count: u64) -> f64 {
        count as f64 / self.delivered as f64
    }
}

/// One push.
pub(super) fn once() -> Run {
    Run {
        requests: 1,
        pace: Pace::Saturated,
        depth: 1,
        payload: PAYLOAD_BYTES,
        devices: (0, 0),
    }
}

/// A bare loop and those that read.
struct Bare {
    writer: Worker,
    sinks: Fleet,
    written: u64,
    used: Usage,
}

impl Bare {
    async fn start(size: &Size, datagrams: bool) -> Result<Self> {
        let mut writer = Worker::start("bare loop", &Role::Burst { datagrams }).await?;
        let address = writer.address;
        let role = |process| Role::Sinks {
            address,
            datagrams,
            first: 500_000 + process * DEVICES_APART,
        };
        let mut sinks = Fleet::of("sinks", (0..PROCESSES).map(role)).await?;
        // In parts that a queue of connections, or a socket's buffer, holds.
        let mut left = size.fanout_sessions;
        while left > 0 {
            let part = left.min(CONNECTS_AT_ONCE);
            sinks.connect(part).await?;
            writer.connect(part).await?;
            left -= part;
        }
        let mut bare = Self {
            writer,
            sinks,
            written: 0,
            used: Usage::default(),
        };
        bare.write(size, WARM_UP).await?;
        Ok(bare)
    }

    async fn round(&mut self, size: &Size) -> Result<()> {
        let before = self.writer.cpu()?;
        self.write(size, size.broadcasts).await?;
        let used = self.writer.cpu()?.since(&before);
        self.used
            .add(used, size.broadcasts * u64::from(size.fanout_sessions));
        Ok(())
    }

    async fn write(&mut self, size: &Size, times: u64) -> Result<()> {
        for _ in 0..times {
            let run = Run {
                requests: size.fanout_sessions.into(),
                payload: BARE_BYTES,
                ..once()
            };
            self.writer.run(run).await?;
            self.written += run.requests * BARE_BYTES as u64;
            self.sinks.expect(self.written).await?;
        }
        Ok(())
    }
}

const CONNECTS_AT_ONCE: u32 = 256;
