//! What is measured. Each scenario starts what it needs, lets gateway and baseline take turns, and ends with a table.

mod connect;
mod core;
mod cpu;
mod fanout;
mod fleet;
mod flood;
mod idle;
mod latency;
mod memory;
mod push;
mod usage;
mod wire;

use anyhow::Result;

use crate::args::{Args, Scenario, Size};
use crate::conductor::Worker;
use crate::machine::Machine;
use crate::protocol::{Call, Poster, Role};
use crate::report::Report;

pub(crate) async fn run(args: &Args) -> Result<Report> {
    let machine = Machine::read();
    let size = Size::of(args);
    let bin_dir = args.bin_dir.as_deref();
    let mut tables = Vec::new();
    for scenario in Scenario::ALL {
        if !args.only.is_empty() && !args.only.contains(&scenario) {
            continue;
        }
        match scenario {
            Scenario::Memory => tables.push(memory::run(&size, bin_dir).await?),
            Scenario::Connect => tables.push(connect::run(&size, bin_dir).await?),
            Scenario::Latency => tables.push(latency::run(&size, bin_dir).await?),
            Scenario::Cpu => tables.extend(Box::pin(cpu::run(&size, bin_dir)).await?),
            Scenario::Push => tables.extend(push::run(&size, bin_dir).await?),
            Scenario::Fanout => tables.push(fanout::run(&size, bin_dir).await?),
            Scenario::Wire => tables.push(wire::run(&size, bin_dir).await?),
            Scenario::Core => tables.push(core::run(&size).await?),
            Scenario::Flood => tables.push(Box::pin(flood::run(&size, bin_dir)).await?),
            Scenario::Idle => tables.push(idle::run(&size, bin_dir).await?),
        }
    }
    let binaries = bin_dir.map_or_else(
        || "beside this program".to_owned(),
        |dir| dir.display().to_string(),
    );
    Ok(Report {
        machine,
        binaries,
        tables,
    })
}

/// Says what is going on, on stderr.
fn progress(scenario: &str, what: &str) {
    eprintln!("[{scenario}] {what}");
}

/// Bytes of a payload where nothing else is said.
const PAYLOAD_BYTES: usize = 128;

/// Who makes calls to the HTTP API, or to a bare one.
async fn pusher(api: std::net::SocketAddr, key: Option<&str>, call: Call) -> Result<Worker> {
    let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    headers.extend(key.map(|key| ("authorization".to_owned(), format!("Bearer {key}"))));
    let poster = Poster {
        url: format!("http://{api}/v1/messages"),
        headers,
        call,
    };
    Worker::start("pusher", &Role::Poster(poster)).await
}

/// A bare client making the call that the backend makes: same service, same payload, headers of the same names and lengths,
/// but not computed.
fn direct_calls(service: std::net::SocketAddr) -> Poster {
    let headers = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "123456"),
        ("ce-source", "/holdfast/1/bench-000001"),
        ("ce-type", "Bench.Echo"),
        ("ce-subject", "bench-000001"),
        ("ce-time", "2026-01-31T09:05:07.042Z"),
        ("ce-hfnamespace", "Bench"),
        ("ce-hfname", "Echo"),
        ("ce-hfsession", "00010000-0000-8001-8000-000000000004"),
        ("ce-hfsequence", "123456"),
        ("ce-hfattempt", "1"),
        (
            "idempotency-key",
            "\"00010000-0000-8001-8000-000000000004-123456\"",
        ),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("holdfast-timestamp", "1769850307"),
        (
            "holdfast-signature",
            "v1=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8",
        ),
    ];
    Poster {
        url: format!("http://{service}/"),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        call: Call::Echo,
    }
}
