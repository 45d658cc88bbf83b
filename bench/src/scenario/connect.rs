//! CPU per device that gets online, split by side: handshake, admission, login.

use std::path::Path;

use anyhow::Result;
use holdfast_proto::ChannelKind;

use super::progress;
use super::usage::Usage;
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::protocol::{Devices, Role};
use crate::report::{Row, Table};

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let mut found: [Found; 2] = Default::default();
    for round in 1..=size.rounds {
        for (kind, found) in ChannelKind::WEB_SOCKET.into_iter().zip(&mut found) {
            found.add(kind, size, bin_dir).await?;
            let last = |usage: &Usage| usage.per_operation().last().copied().unwrap_or_default();
            progress(
                "connect",
                &format!(
                    "round {round}, {}: frontend {:.0} µs, backend {:.0} µs",
                    kind.label(),
                    last(&found.frontend),
                    last(&found.backend)
                ),
            );
        }
    }
    let [ws, wss] = &found;
    let row = |figure: &str, ws: &Usage, wss: &Usage| {
        Row::new(figure, "µs", ws.per_operation()).against("the same over wss", wss.per_operation())
    };
    Ok(Table {
        title: format!("connect: {} devices get online over ws, {} over wss", size.connects, size.connects),
        rows: vec![
            row("frontend per device over ws", &ws.frontend, &wss.frontend),
            row("backend per device over ws", &ws.backend, &wss.backend),
            row("device per device over ws", &ws.devices, &wss.devices),
        ],
        notes: vec![
            "From TCP to @welcome, 16 at a time, on fresh processes each round. A million µs of CPU divided by a figure are that side's handshakes per CPU-second."
                .to_owned(),
            ws.frontend.parts("frontend, ws"),
            wss.frontend.parts("frontend, wss"),
        ],
    })
}

#[derive(Default)]
struct Found {
    frontend: Usage,
    backend: Usage,
    devices: Usage,
}

impl Found {
    async fn add(&mut self, kind: ChannelKind, size: &Size, bin_dir: Option<&Path>) -> Result<()> {
        let gateway = Gateway::start(bin_dir).await?;
        let endpoint = gateway.endpoint(kind);
        let mut devices =
            Worker::start("load generator", &Role::Devices(Devices { endpoint, first: 0 })).await?;
        devices.connect(WARM_UP).await?;
        let before = (gateway.cpu()?, devices.cpu()?);
        devices.connect(size.connects).await?;
        let [frontend, backend, _] = gateway.cpu()?;
        let n = size.connects.into();
        self.frontend.add(frontend.since(&before.0[0]), n);
        self.backend.add(backend.since(&before.0[1]), n);
        self.devices.add(devices.cpu()?.since(&before.1), n);
        Ok(())
    }
}

/// Devices before those that count.
const WARM_UP: u32 = 50;
