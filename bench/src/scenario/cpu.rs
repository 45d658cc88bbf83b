//! CPU per request and reply: the gateway's processes beside a bare echo and a bare HTTP client under the same load.

use std::path::Path;

use anyhow::Result;
use holdfast_proto::ChannelKind;

use super::usage::Usage;
use super::{PAYLOAD_BYTES, direct_calls, progress};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::protocol::{Devices, Endpoint, Outcome, Pace, Role, Run, Speak};
use crate::report::{Of, Row, Table};

/// Unanswered requests per device, at most.
const PACED_DEPTH: u32 = 4;
const SATURATED_DEPTH: u32 = 4;
/// Calls that the bare client has open at most: the route's own default.
const CLIENT_DEPTH: u32 = 256;
/// A saturated round makes so many times the requests of a paced one: it is over sooner.
const SATURATED_TIMES: u64 = 3;
/// Requests before each round, uncounted: caches, pools and buffers get warm again.
const WARM_UP: u64 = 1000;

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Vec<Table>> {
    progress("cpu", &format!("connecting six times {} devices", size.sessions));
    let mut stage = Stage::start(size, bin_dir).await?;
    let paced = stage.measure(size, Pace::PerSecond(size.rate)).await?;
    let saturated = stage.measure(size, Pace::Saturated).await?;
    let title = format!(
        "cpu, paced: {} requests/s over {} sessions of each kind, {PAYLOAD_BYTES} B payload",
        size.rate, size.sessions
    );
    Ok(vec![
        paced.table(title, size),
        saturated.table(
            format!(
                "cpu, saturated: {SATURATED_DEPTH} requests in flight on each of {} sessions",
                size.sessions
            ),
            size,
        ),
    ])
}

/// All processes, up during all rounds; those not measured idle.
struct Stage {
    gateway: Gateway,
    devices: Worker,
    ws_devices: Worker,
    udp_devices: Worker,
    packet_echo: Worker,
    packet_devices: Worker,
    tls_echo: Worker,
    tls_devices: Worker,
    tcp_echo: Worker,
    tcp_devices: Worker,
    client: Worker,
}

impl Stage {
    async fn start(size: &Size, bin_dir: Option<&Path>) -> Result<Self> {
        let gateway = Gateway::start(bin_dir).await?;
        let tls = Some(gateway.tls());
        let tls_echo = Worker::start("bare TLS echo server", &Role::Echo { tls }).await?;
        let tcp_echo = Worker::start("bare TCP echo server", &Role::Echo { tls: None }).await?;
        let master_key = rand::random();
        let packet_echo = Worker::start("bare udp echo server", &Role::PacketEcho { master_key }).await?;
        let packets = Endpoint {
            address: packet_echo.address,
            ca: None,
            speak: Speak::PacketEcho {
                master_key,
                sockets: 0,
            },
        };
        let echo = |server: &Worker, ca| Endpoint {
            address: server.address,
            ca,
            speak: Speak::Echo,
        };
        let devices = |endpoint, first| Role::Devices(Devices { endpoint, first });
        let name = "load generator";
        let client = Role::Poster(direct_calls(gateway.service.address));
        let mut stage = Self {
            devices: Worker::start(name, &devices(gateway.endpoint(ChannelKind::Wss), 0)).await?,
            ws_devices: Worker::start(name, &devices(gateway.endpoint(ChannelKind::Ws), 300_000)).await?,
            udp_devices: Worker::start(name, &devices(gateway.endpoint(ChannelKind::Udp), 600_000)).await?,
            packet_devices: Worker::start(name, &devices(packets, 700_000)).await?,
            packet_echo,
            tls_devices: Worker::start(name, &devices(echo(&tls_echo, Some(gateway.ca())), 100_000)).await?,
            tcp_devices: Worker::start(name, &devices(echo(&tcp_echo, None), 200_000)).await?,
            client: Worker::start("bare HTTP client", &client).await?,
            gateway,
            tls_echo,
            tcp_echo,
        };
        for worker in [
            &mut stage.devices,
            &mut stage.ws_devices,
            &mut stage.udp_devices,
            &mut stage.packet_devices,
            &mut stage.tls_devices,
            &mut stage.tcp_devices,
        ] {
            worker.connect(size.sessions).await?;
        }
        Ok(stage)
    }

    async fn measure(&mut self, size: &Size, pace: Pace) -> Result<Found> {
        let mut found = Found::default();
        for round in 1..=size.rounds {
            self.round(size, pace, &mut found).await?;
            let last = |usage: &Usage| usage.per_operation().last().copied().unwrap_or_default();
            progress(
                "cpu",
                &format!(
                    "{pace:?} round {round}: frontend {:.1} µs, bare TLS echo {:.1} µs; on udp {:.1} µs, bare udp echo {:.1} µs; backend {:.1} µs, bare HTTP client {:.1} µs",
                    last(&found.frontend),
                    last(&found.tls_echo),
                    last(&found.udp_frontend),
                    last(&found.packet_echo),
                    last(&found.backend),
                    last(&found.client)
                ),
            );
        }
        Ok(found)
    }

    async fn round(&mut self, size: &Size, pace: Pace, found: &mut Found) -> Result<()> {
        let (requests, depth) = match pace {
            Pace::PerSecond(_) => (size.requests, PACED_DEPTH),
            Pace::Saturated => (size.requests * SATURATED_TIMES, SATURATED_DEPTH),
        };
        let run = Run {
            requests,
            pace,
            depth,
            payload: PAYLOAD_BYTES,
            devices: (0, 0),
        };
        let warm_up = Run {
            requests: WARM_UP,
            ..run
        };
        let n = run.requests;

        self.devices.run(warm_up).await?;
        let before = (self.gateway.cpu()?, self.devices.cpu()?);
        found.gateway_runs.push(self.devices.run(run).await?);
        let [frontend, backend, service] = self.gateway.cpu()?;
        found.frontend.add(frontend.since(&before.0[0]), n);
        found.backend.add(backend.since(&before.0[1]), n);
        found.service.add(service.since(&before.0[2]), n);
        found.devices.add(self.devices.cpu()?.since(&before.1), n);

        self.ws_devices.run(warm_up).await?;
        let before = self.gateway.cpu()?;
        self.ws_devices.run(run).await?;
        found.ws_frontend.add(self.gateway.cpu()?[0].since(&before[0]), n);

        self.udp_round((warm_up, run), found).await?;

        self.tls_devices.run(warm_up).await?;
        let before = (self.tls_echo.cpu()?, self.tls_devices.cpu()?);
        found.tls_runs.push(self.tls_devices.run(run).await?);
        found.tls_echo.add(self.tls_echo.cpu()?.since(&before.0), n);
        found.tls_devices.add(self.tls_devices.cpu()?.since(&before.1), n);

        self.tcp_devices.run(warm_up).await?;
        let before = self.tcp_echo.cpu()?;
        self.tcp_devices.run(run).await?;
        found.tcp_echo.add(self.tcp_echo.cpu()?.since(&before), n);

        let calls = Run {
            depth: CLIENT_DEPTH,
            ..run
        };
        self.client
            .run(Run {
                requests: WARM_UP,
                ..calls
            })
            .await?;
        let before = (self.client.cpu()?, self.gateway.service.cpu()?);
        found.client_runs.push(self.client.run(calls).await?);
        found.client.add(self.client.cpu()?.since(&before.0), n);
        found
            .direct_service
            .add(self.gateway.service.cpu()?.since(&before.1), n);
        Ok(())
    }

    async fn udp_round(&mut self, (warm_up, run): (Run, Run), found: &mut Found) -> Result<()> {
        let n = run.requests;
        self.udp_devices.run(warm_up).await?;
        let before = self.gateway.cpu()?;
        found.udp_runs.push(self.udp_devices.run(run).await?);
        let [frontend, backend, _] = self.gateway.cpu()?;
        found.udp_frontend.add(frontend.since(&before[0]), n);
        found.udp_backend.add(backend.since(&before[1]), n);

        self.packet_devices.run(warm_up).await?;
        let before = self.packet_echo.cpu()?;
        self.packet_devices.run(run).await?;
        found.packet_echo.add(self.packet_echo.cpu()?.since(&before), n);
        Ok(())
    }
}

/// CPU of everyone, and how the runs went.
#[derive(Default)]
struct Found {
    frontend: Usage,
    ws_frontend: Usage,
    udp_frontend: Usage,
    udp_backend: Usage,
    packet_echo: Usage,
    udp_runs: Vec<Outcome>,
    backend: Usage,
    service: Usage,
    devices: Usage,
    tls_echo: Usage,
    tls_devices: Usage,
    tcp_echo: Usage,
    client: Usage,
    direct_service: Usage,
    gateway_runs: Vec<Outcome>,
    tls_runs: Vec<Outcome>,
    client_runs: Vec<Outcome>,
}

impl Found {
    fn frontend_rows(&self) -> Vec<Row> {
        let name = "frontend per request and reply";
        let (ws, udp) = (format!("{name}, ws"), format!("{name}, udp"));
        let over_wss = ("the same over wss", &self.frontend);
        vec![
            row(name, &self.frontend, ("bare TLS echo", &self.tls_echo)).limit(Of::Ratio, 1.5, 1.2),
            row(&ws, &self.ws_frontend, ("bare plain TCP echo", &self.tcp_echo)),
            row(&ws, &self.ws_frontend, over_wss),
            row(&udp, &self.udp_frontend, ("bare udp echo", &self.packet_echo)).limit(Of::Ratio, 1.5, 1.2),
            row(&udp, &self.udp_frontend, over_wss),
        ]
    }

    fn other_rows(&self) -> Vec<Row> {
        let name = "backend per request and reply";
        let called = ("called by the client", &self.direct_service);
        vec![
            row(name, &self.backend, ("bare HTTP client", &self.client)).limit(Of::Ratio, 2.0, 1.4),
            row(
                &format!("{name}, udp"),
                &self.udp_backend,
                ("the same over wss", &self.backend),
            ),
            row("service, called by the backend", &self.service, called),
            row(
                "load generator at the gateway",
                &self.devices,
                ("at the TLS echo", &self.tls_devices),
            ),
        ]
    }

    fn table(&self, title: String, size: &Size) -> Table {
        let mut rows = self.frontend_rows();
        rows.extend(self.other_rows());
        let rate = |runs: &[Outcome]| {
            let run = |o: &Outcome| format!("{:.0}/s p50 {:.0} µs", o.requests as f64 / o.seconds, o.p50_us);
            runs.iter().map(run).collect::<Vec<_>>().join(", ")
        };
        let notes = vec![
            self.frontend.parts("frontend, wss"),
            self.ws_frontend.parts("frontend, ws"),
            self.udp_frontend.parts("frontend, udp"),
            self.packet_echo.parts("bare udp echo (the transport's core)"),
            self.tls_echo.parts("bare TLS echo"),
            self.backend.parts("backend"),
            self.client.parts("bare HTTP client"),
            format!(
                "{} rounds of {} requests each in turns. Seen by the load generator: gateway {}, on udp {}; TLS echo {}; HTTP client {}",
                size.rounds,
                self.gateway_runs.first().map_or(0, |run| run.requests),
                rate(&self.gateway_runs),
                rate(&self.udp_runs),
                rate(&self.tls_runs),
                rate(&self.client_runs)
            ),
        ];
        Table { title, rows, notes }
    }
}

fn row(figure: &str, ours: &Usage, (name, bare): (&'static str, &Usage)) -> Row {
    Row::new(figure, "µs", ours.per_operation()).against(name, bare.per_operation())
}
