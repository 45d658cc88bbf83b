//! What the gateway adds to calling the service directly, when little else goes on.

use std::path::Path;

use anyhow::Result;
use holdfast_proto::ChannelKind;

use super::{PAYLOAD_BYTES, direct_calls, progress};
use crate::args::Size;
use crate::conductor::Worker;
use crate::gateway::Gateway;
use crate::protocol::{Pace, Role, Run};
use crate::report::{Of, Row, Table};
use crate::stats::Sample;

/// Requests of each kind per second.
const RATE: u32 = 50;
/// Requests of each kind before the first round.
const WARM_UP: u64 = 20;

pub(super) async fn run(size: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let gateway = Gateway::start(bin_dir).await?;
    let role = Role::Latency {
        device: gateway.endpoint(ChannelKind::Wss),
        direct: direct_calls(gateway.service.address),
    };
    let mut pair = Worker::start("device beside an HTTP client", &role).await?;
    let run = |requests| Run {
        requests,
        pace: Pace::PerSecond(RATE),
        depth: 1,
        payload: PAYLOAD_BYTES,
        devices: (0, 0),
    };
    pair.run_both(run(WARM_UP)).await?;
    let mut rounds = Vec::new();
    for round in 1..=size.rounds {
        let both = pair.run_both(run(size.latency_requests.into())).await?;
        progress(
            "latency",
            &format!(
                "round {round}: p50 {:.0} µs, directly {:.0} µs",
                both.0.p50_us, both.1.p50_us
            ),
        );
        rounds.push(both);
    }
    let p50 = |f: fn(&(crate::protocol::Outcome, crate::protocol::Outcome)) -> f64| {
        rounds.iter().map(f).collect::<Vec<_>>()
    };
    let (ours, direct) = (p50(|r| r.0.p50_us), p50(|r| r.1.p50_us));
    let (ours_p99, direct_p99) = (p50(|r| r.0.p99_us), p50(|r| r.1.p99_us));
    let added = |a: &[f64], b: &[f64]| Sample::new(a.to_vec()).minus(&Sample::new(b.to_vec())).rounds;
    let rows = vec![
        Row::new("added by the gateway, p50", "µs", added(&ours, &direct)).limit(Of::Value, 200.0, 120.0),
        Row::new("added by the gateway, p99", "µs", added(&ours_p99, &direct_p99)),
        Row::new("request to reply of a wss device, p50", "µs", ours).against("bare HTTP client", direct),
        Row::new("request to reply of a wss device, p99", "µs", ours_p99)
            .against("bare HTTP client", direct_p99),
    ];
    let notes = vec![format!(
        "One device and one bare HTTP client in one process take turns, {RATE} requests/s each, {PAYLOAD_BYTES} B payload, {} of each per round; the same service answers both. p99 is the machine's as much as the gateway's.",
        size.latency_requests
    )];
    Ok(Table {
        title: "latency, low load".to_owned(),
        rows,
        notes,
    })
}
