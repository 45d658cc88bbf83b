//! CPU per push through the HTTP API to one of many devices, beside the least that does the same.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use holdfast_proto::ChannelKind;

use super::usage::Usage;
use super::{PAYLOAD_BYTES, progress, pusher};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::protocol::{Call, Devices, Endpoint, Outcome, Pace, Role, Run, Speak};
use crate::report::{Of, Row, Table};

/// Keep-alive connections of the pusher at most, and with them calls at a time.
const CONNECTIONS: u32 = 16;
const WARM_UP: u64 = 500;

/// On udp a push is written when the device has acknowledged it, up to 25 ms later: so many more calls are open at a time.
const UDP_CONNECTIONS: u32 = 256;
/// Numbers of the first devices on ws and on udp.
const WS_FIRST: u32 = 300_000;
const UDP_FIRST: u32 = 600_000;

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Vec<Table>> {
    progress(
        "push",
        &format!("connecting four times {} devices", size.sessions),
    );
    let mut stage = Stage::start(size, bin_dir).await?;
    let mut tables = Vec::new();
    for pace in [Pace::PerSecond(size.push_rate), Pace::Saturated] {
        let mut found = Found::default();
        for round in 1..=size.rounds {
            stage.round(size, pace, &mut found).await?;
            progress("push", &format!("{pace:?} round {round} done"));
        }
        tables.push(found.table(size, pace));
    }
    Ok(tables)
}

struct Stage {
    gateway: Gateway,
    wss: Side,
    ws: Side,
    udp: Side,
    bare_server: Worker,
    bare: Side,
}

impl Stage {
    async fn start(size: &Size, bin_dir: Option<&Path>) -> Result<Self> {
        let gateway = Gateway::start(bin_dir).await?;
        let api = (gateway.api, Some(gateway.api_key.as_str()));
        let endpoint = |kind| gateway.endpoint(kind);
        let bare_server = Worker::start("bare push server", &Role::Mailbox { tls: gateway.tls() }).await?;
        let bare_endpoint = Endpoint {
            address: bare_server.address,
            ca: Some(gateway.ca()),
            speak: Speak::Mailbox,
        };
        Ok(Self {
            wss: Side::start((endpoint(ChannelKind::Wss), 0), api, (size, CONNECTIONS)).await?,
            ws: Side::start((endpoint(ChannelKind::Ws), WS_FIRST), api, (size, CONNECTIONS)).await?,
            udp: Side::start(
                (endpoint(ChannelKind::Udp), UDP_FIRST),
                api,
                (size, UDP_CONNECTIONS),
            )
            .await?,
            bare: Side::start((bare_endpoint, 0), (bare_server.http, None), (size, CONNECTIONS)).await?,
            gateway,
            bare_server,
        })
    }

    async fn round(&mut self, size: &Size, pace: Pace, found: &mut Found) -> Result<()> {
        for (side, found) in [
            (&mut self.wss, &mut found.wss),
            (&mut self.ws, &mut found.ws),
            (&mut self.udp, &mut found.udp),
        ] {
            side.push(WARM_UP, pace).await?;
            let before = self.gateway.cpu()?;
            found.outcomes.push(side.push(size.requests, pace).await?);
            let after = self.gateway.cpu()?;
            found.frontend.add(after[0].since(&before[0]), size.requests);
            found.backend.add(after[1].since(&before[1]), size.requests);
        }
        self.bare.push(WARM_UP, pace).await?;
        let before = self.bare_server.cpu()?;
        self.bare.push(size.requests, pace).await?;
        found
            .server
            .add(self.bare_server.cpu()?.since(&before), size.requests);
        Ok(())
    }
}

/// CPU of everyone.
#[derive(Default)]
struct Found {
    wss: Ours,
    ws: Ours,
    udp: Ours,
    server: Usage,
}

/// CPU of both processes, and how pushing went.
#[derive(Default)]
struct Ours {
    frontend: Usage,
    backend: Usage,
    outcomes: Vec<Outcome>,
}

impl Ours {
    fn both(&self) -> Vec<f64> {
        let (in_front, behind) = (self.frontend.per_operation(), self.backend.per_operation());
        in_front.iter().zip(&behind).map(|(a, b)| a + b).collect()
    }

    fn seen(&self) -> String {
        let seen = |o: &Outcome| {
            let rate = o.requests as f64 / o.seconds;
            format!("{rate:.0}/s p50 {:.0} µs p99 {:.0} µs", o.p50_us, o.p99_us)
        };
        self.outcomes.iter().map(seen).collect::<Vec<_>>().join(", ")
    }
}

impl Found {
    fn table(&self, size: &Size, pace: Pace) -> Table {
        let name = "bare push server";
        let over_wss = "the same over wss";
        let rows = vec![
            Row::new("frontend and backend per push", "µs", self.wss.both())
                .against(name, self.server.per_operation())
                .limit(Of::Value, 35.0, 25.0),
            Row::new("frontend per push", "µs", self.wss.frontend.per_operation()),
            Row::new("backend per push", "µs", self.wss.backend.per_operation()),
            Row::new("frontend and backend per push, ws", "µs", self.ws.both())
                .against(over_wss, self.wss.both()),
            Row::new("frontend and backend per push, udp", "µs", self.udp.both())
                .against(over_wss, self.wss.both())
                .limit(Of::Value, 35.0, 25.0),
            Row::new("frontend per push, udp", "µs", self.udp.frontend.per_operation())
                .against(over_wss, self.wss.frontend.per_operation()),
        ];
        let notes = vec![
            self.wss.frontend.parts("frontend, wss"),
            self.udp.frontend.parts("frontend, udp"),
            self.wss.backend.parts("backend, wss"),
            self.server.parts(name),
            format!(
                "{} rounds of {} pushes each in turns, {PAYLOAD_BYTES} B payload, to {} devices of each kind one after the other, over at most {CONNECTIONS} keep-alive connections. Each was reported as written and arrived. Calls to the gateway: wss {}; ws {}",
                size.rounds,
                size.requests,
                size.sessions,
                self.wss.seen(),
                self.ws.seen()
            ),
            format!(
                "On udp a push is written when it is acknowledged, which a device may do 25 ms later: there are up to {UDP_CONNECTIONS} connections. Calls: udp {}",
                self.udp.seen()
            ),
        ];
        let title = match pace {
            Pace::PerSecond(rate) => format!("push, unicast through the HTTP API, paced: {rate} pushes/s"),
            Pace::Saturated => format!("push, saturated: {CONNECTIONS} calls at a time"),
        };
        Table { title, rows, notes }
    }
}

/// A server's devices of one kind, and who pushes to them.
struct Side {
    devices: Worker,
    pusher: Worker,
    connections: u32,
    pushed: u64,
}

impl Side {
    async fn start(
        (endpoint, first): (Endpoint, u32),
        (api, key): (SocketAddr, Option<&str>),
        (size, connections): (&Size, u32),
    ) -> Result<Self> {
        let role = Role::Devices(Devices { endpoint, first });
        let mut devices = Worker::start("load generator", &role).await?;
        devices.connect(size.sessions).await?;
        let call = Call::Push {
            first,
            devices: size.sessions,
        };
        Ok(Self {
            devices,
            pusher: pusher(api, key, call).await?,
            connections,
            pushed: 0,
        })
    }

    /// Pushes, and checks that each one arrived.
    async fn push(&mut self, count: u64, pace: Pace) -> Result<Outcome> {
        let run = Run {
            requests: count,
            pace,
            depth: self.connections,
            payload: PAYLOAD_BYTES,
            devices: (0, 0),
        };
        let outcome = self.pusher.run(run).await?;
        self.pushed += count;
        // Written to a socket is not yet read from it.
        let mut arrived = self.devices.pushes().await?;
        for _ in 0..READ_POLLS {
            if arrived == self.pushed {
                break;
            }
            tokio::time::sleep(READ_POLL).await;
            arrived = self.devices.pushes().await?;
        }
        ensure!(
            arrived == self.pushed,
            "{} pushes were written, {arrived} arrived",
            self.pushed
        );
        Ok(outcome)
    }
}

const READ_POLLS: u32 = 500;
const READ_POLL: std::time::Duration = std::time::Duration::from_millis(10);
