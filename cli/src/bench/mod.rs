//! `holdfast bench upgrade`: shows on this machine what devices notice of a backend's upgrades and deaths.
//!
//! A gateway of its own runs as a child (`gateway`), a service in a thread (`service`), devices in others (`generator`). The
//! conductor here walks through the planned `events` while requests flow, and writes down what came of it: `order`, `payload`
//! and `tally` judge replies as they come, `book` and `crash` judge calls at the service, `timeline` draws time, `verdict` decides. All of
//! those are pure and hold only what is open, so that a run may last for hours.
//!
//! What it deliberately is not: a measure of what the gateway can carry (`holdfast-bench` compares that with baselines). It
//! uses the commands and signals that an operator has, and nothing of the gateway's inside.

mod book;
mod channel;
mod conductor;
mod cpu;
mod crash;
mod events;
mod gateway;
mod generator;
mod html;
mod machine;
mod options;
mod order;
mod payload;
mod phase;
mod plan;
mod progress;
mod report;
#[cfg(test)]
mod sample;
mod script;
mod service;
mod table;
mod tally;
mod timeline;
mod verdict;

use std::process::ExitCode;

use anyhow::{Result, anyhow};

use options::Bench;
pub(crate) use options::BenchArgs;

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let Bench::Upgrade(options) = &args.what;
    options.check().map_err(|what| anyhow!(what))?;
    machine::allow_descriptors(options.devices)?;
    // One thread: the gateway's life is tied to the thread that starts it. Devices and service have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(conductor::conduct(options))
}
