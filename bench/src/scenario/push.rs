//! CPU per push through the HTTP API to one of many devices, beside the least that does the same.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use holdfast_proto::ChannelKind;

use super::usage::Usage;
use super::{PAYLOAD_BYTES, progress};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::protocol::{Call, Devices, Endpoint, Outcome, Pace, Poster, Role, Run, Speak};
use crate::report::{Of, Row, Table};

/// Keep-alive connections of the pusher at most, and with them calls at a time.
const CONNECTIONS: u32 = 16;
const WARM_UP: u64 = 500;

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Vec<Table>> {
    progress("push", &format!("connecting twice {} devices", size.sessions));
    let gateway = Gateway::start(bin_dir).await?;
    let key = ("authorization".to_owned(), format!("Bearer {}", gateway.api_key));
    let mut ours = Side::start(gateway.endpoint(ChannelKind::Wss), (gateway.api, Some(key)), size).await?;
    let bare_server = Worker::start("bare push server", &Role::Mailbox { tls: gateway.tls() }).await?;
    let bare_endpoint = Endpoint {
        address: bare_server.address,
        ca: Some(gateway.ca()),
        speak: Speak::Mailbox,
    };
    let mut bare = Side::start(bare_endpoint, (bare_server.http, None), size).await?;

    let mut tables = Vec::new();
    for pace in [Pace::PerSecond(size.push_rate), Pace::Saturated] {
        let mut found = Found::default();
        for round in 1..=size.rounds {
            ours.push(WARM_UP, pace).await?;
            let before = gateway.cpu()?;
            found.outcomes.push(ours.push(size.requests, pace).await?);
            let after = gateway.cpu()?;
            found.frontend.add(after[0].since(&before[0]), size.requests);
            found.backend.add(after[1].since(&before[1]), size.requests);

            bare.push(WARM_UP, pace).await?;
            let before = bare_server.cpu()?;
            bare.push(size.requests, pace).await?;
            found.server.add(bare_server.cpu()?.since(&before), size.requests);
            progress("push", &format!("{pace:?} round {round} done"));
        }
        tables.push(found.table(size, pace));
    }
    Ok(tables)
}

/// CPU of everyone, and how pushing to the gateway went.
#[derive(Default)]
struct Found {
    frontend: Usage,
    backend: Usage,
    server: Usage,
    outcomes: Vec<Outcome>,
}

impl Found {
    fn table(&self, size: &Size, pace: Pace) -> Table {
        let (in_front, behind) = (self.frontend.per_operation(), self.backend.per_operation());
        let both = in_front.iter().zip(&behind).map(|(a, b)| a + b).collect();
        let name = "bare push server";
        let rows = vec![
            Row::new("frontend and backend per push", "µs", both)
                .against(name, self.server.per_operation())
                .limit(Of::Value, 35.0, 25.0),
            Row::new("frontend per push", "µs", in_front),
            Row::new("backend per push", "µs", behind),
        ];
        let seen = |o: &Outcome| {
            let rate = o.requests as f64 / o.seconds;
            format!("{rate:.0}/s p50 {:.0} µs p99 {:.0} µs", o.p50_us, o.p99_us)
        };
        let seen: Vec<String> = self.outcomes.iter().map(seen).collect();
        let notes = vec![
            self.frontend.parts("frontend"),
            self.backend.parts("backend"),
            self.server.parts(name),
            format!(
                "{} rounds of {} pushes each in turns, {PAYLOAD_BYTES} B payload, to {} wss devices one after the other, over at most {CONNECTIONS} keep-alive connections. Each was reported as written and arrived. Calls to the gateway: {}",
                size.rounds,
                size.requests,
                size.sessions,
                seen.join(", ")
            ),
        ];
        let title = match pace {
            Pace::PerSecond(rate) => format!("push, unicast through the HTTP API, paced: {rate} pushes/s"),
            Pace::Saturated => format!("push, saturated: {CONNECTIONS} calls at a time"),
        };
        Table { title, rows, notes }
    }
}

/// A server's devices, and who pushes to them.
struct Side {
    devices: Worker,
    pusher: Worker,
    pushed: u64,
}

impl Side {
    async fn start(
        endpoint: Endpoint,
        (api, key): (SocketAddr, Option<(String, String)>),
        size: &Size,
    ) -> Result<Self> {
        let role = Role::Devices(Devices { endpoint, first: 0 });
        let mut devices = Worker::start("load generator", &role).await?;
        devices.connect(size.sessions).await?;
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        headers.extend(key);
        let poster = Poster {
            url: format!("http://{api}/v1/messages"),
            headers,
            call: Call::Push {
                devices: size.sessions,
            },
        };
        Ok(Self {
            devices,
            pusher: Worker::start("pusher", &Role::Poster(poster)).await?,
            pushed: 0,
        })
    }

    /// Pushes, and checks that each one arrived.
    async fn push(&mut self, count: u64, pace: Pace) -> Result<Outcome> {
        let run = Run {
            requests: count,
            pace,
            depth: CONNECTIONS,
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
