//! What bound sessions notice of strangers who try to get in, and what an attempt costs the gateway.

use std::path::Path;

use anyhow::Result;
use holdfast_proto::ChannelKind;

use super::usage::Usage;
use super::{PAYLOAD_BYTES, progress};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::process::Cpu;
use crate::protocol::{Devices, Flood, Flooded, Outcome, Pace, Role, Run};
use crate::report::{Row, Table};

/// Bound sessions, and their requests per second in all.
const SESSIONS: u32 = 100;
const RATE: u32 = 500;
const DEPTH: u32 = 4;
/// Requests before the first window.
const WARM_UP: u64 = 1000;

/// Who comes, and how often.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    channel: ChannelKind,
    /// With the gateway's own keys, as somebody does who has recorded credentials without a time.
    recorded: bool,
    per_second: u32,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "ws, forged",
        channel: ChannelKind::Ws,
        recorded: false,
        per_second: 500,
    },
    Kind {
        name: "ws, recorded",
        channel: ChannelKind::Ws,
        recorded: true,
        per_second: 500,
    },
    Kind {
        name: "udp, forged",
        channel: ChannelKind::Udp,
        recorded: false,
        per_second: 5_000,
    },
];

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let (mut rows, mut notes) = (Vec::new(), vec![conditions(size)]);
    for kind in KINDS {
        let mut found = Found::default();
        let gateway = Gateway::start(bin_dir).await?;
        let mut stage = Stage::start(&gateway, kind, size).await?;
        for round in 1..=size.rounds {
            found.add(&mut stage, kind).await?;
            progress(
                "flood",
                &format!("{}, round {round}: {}", kind.name, found.last()),
            );
        }
        rows.extend(found.rows(kind));
        notes.push(found.answers(kind));
    }
    Ok(Table {
        title: "flood: requests of bound sessions while strangers try to get in".to_owned(),
        rows,
        notes,
    })
}

fn conditions(size: &Size) -> String {
    format!(
        "{SESSIONS} sessions of the flood's channel make {RATE} requests/s, {PAYLOAD_BYTES} B payload, in windows of {} s: without strangers, with them, and without once more, whose ratio to the first is the noise. Strangers come from 200 addresses; no bound on attempts of one address is set. CPU per attempt is what the window with them used more than the one before it. The strangers' own CPU is the machine's too.",
        size.flood_seconds
    )
}

/// The processes of one kind.
struct Stage<'a> {
    gateway: &'a Gateway,
    devices: Worker,
    strangers: Worker,
    seconds: u32,
}

/// What a window came to.
struct Window {
    bound: Outcome,
    frontend: Cpu,
    backend: Cpu,
}

impl<'a> Stage<'a> {
    async fn start(gateway: &'a Gateway, kind: Kind, size: &Size) -> Result<Self> {
        let endpoint = gateway.endpoint(kind.channel);
        let flood = Flood {
            address: endpoint.address,
            datagrams: kind.channel == ChannelKind::Udp,
            master_key: match kind.recorded {
                true => gateway.master_key(),
                false => rand::random(),
            },
        };
        let devices = Role::Devices(Devices { endpoint, first: 0 });
        let mut stage = Self {
            gateway,
            devices: Worker::start("load generator", &devices).await?,
            strangers: Worker::start("strangers", &Role::Flood(flood)).await?,
            seconds: size.flood_seconds,
        };
        stage.devices.connect(SESSIONS).await?;
        stage.devices.run(requests(WARM_UP, RATE)).await?;
        Ok(stage)
    }

    /// A window, beside which `flood` goes on.
    async fn window(&mut self, flood: Option<Run>) -> Result<(Window, Flooded)> {
        let [frontend, backend, _] = self.gateway.cpu()?;
        let bound = requests(u64::from(RATE * self.seconds), RATE);
        let (bound, flooded) = match flood {
            None => (self.devices.run(bound).await?, Flooded::default()),
            Some(flood) => tokio::try_join!(self.devices.run(bound), self.strangers.flood(flood))?,
        };
        let [frontend_now, backend_now, _] = self.gateway.cpu()?;
        let window = Window {
            bound,
            frontend: frontend_now.since(&frontend),
            backend: backend_now.since(&backend),
        };
        Ok((window, flooded))
    }
}

fn requests(requests: u64, rate: u32) -> Run {
    Run {
        requests,
        pace: Pace::PerSecond(rate),
        depth: DEPTH,
        payload: PAYLOAD_BYTES,
        devices: (0, 0),
    }
}

/// Round by round.
#[derive(Default)]
struct Found {
    off: Vec<Outcome>,
    on: Vec<Outcome>,
    again: Vec<Outcome>,
    flooded: Vec<Flooded>,
    frontend: Usage,
    backend: Usage,
}

impl Found {
    async fn add(&mut self, stage: &mut Stage<'_>, kind: Kind) -> Result<()> {
        let attempts = u64::from(kind.per_second * stage.seconds);
        let (off, _) = stage.window(None).await?;
        let (on, flooded) = stage.window(Some(requests(attempts, kind.per_second))).await?;
        let (again, _) = stage.window(None).await?;
        let made = flooded.attempts.max(1);
        self.frontend.add(on.frontend.since(&off.frontend), made);
        self.backend.add(on.backend.since(&off.backend), made);
        self.off.push(off.bound);
        self.on.push(on.bound);
        self.again.push(again.bound);
        self.flooded.push(flooded);
        Ok(())
    }

    fn last(&self) -> String {
        let p50 = |of: &[Outcome]| of.last().map_or(0.0, |outcome| outcome.p50_us);
        format!(
            "p50 {:.0} µs, with strangers {:.0} µs, without again {:.0} µs; {:?}",
            p50(&self.off),
            p50(&self.on),
            p50(&self.again),
            self.flooded.last()
        )
    }

    fn rows(&self, kind: Kind) -> Vec<Row> {
        let Kind { name, .. } = kind;
        let of = |windows: &[Outcome], f: fn(&Outcome) -> f64| windows.iter().map(f).collect::<Vec<_>>();
        let mut rows = Vec::new();
        for (quantile, f) in [
            ("p50", (|outcome| outcome.p50_us) as fn(&Outcome) -> f64),
            ("p99", |outcome| outcome.p99_us),
        ] {
            let compare = |figure: String, windows: &[Outcome]| {
                Row::new(figure, "µs", of(windows, f)).against("without strangers", of(&self.off, f))
            };
            rows.push(compare(format!("{name}: request to reply, {quantile}"), &self.on));
            rows.push(compare(format!("{name}: the noise, {quantile}"), &self.again));
        }
        let rate = |f: &Flooded| f.attempts as f64 / f.seconds;
        let rates = self.flooded.iter().map(rate).collect();
        rows.push(Row::new(format!("{name}: attempts per second"), "", rates));
        for (process, usage) in [("frontend", &self.frontend), ("backend", &self.backend)] {
            let figure = format!("{name}: {process} per attempt");
            rows.push(Row::new(figure, "µs", usage.per_operation()));
        }
        rows
    }

    fn answers(&self, kind: Kind) -> String {
        let sum = |f: fn(&Flooded) -> u64| self.flooded.iter().map(f).sum::<u64>();
        format!(
            "{}: of {} attempts {} were challenged, {} refused for the credential, {} put off (too many, no room, a cookie wanted).",
            kind.name,
            sum(|f| f.attempts),
            sum(|f| f.challenged),
            sum(|f| f.refused),
            sum(|f| f.put_off),
        )
    }
}
