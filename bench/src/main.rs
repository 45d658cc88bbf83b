//! `holdfast-bench`: what the gateway costs, beside what bare servers and clients cost in the same run.
//!
//! One process conducts; all others are the gateway's two binaries and this program again in a [`role`]: the service behind
//! the gateway, bare baselines, and load generators. Conductor and roles speak JSON lines over stdin and stdout, so a role
//! ends when its conductor does. [`scenario`] says what is measured, [`report`] how it is shown.
//!
//! Deliberately absent: any assertion on time. Figures are CPU time and bytes from /proc, as ratios and slopes; only added
//! latency is a time, and it is reported like the rest.

mod args;
mod conductor;
mod gateway;
mod keys;
mod machine;
mod process;
mod protocol;
mod report;
mod role;
mod scenario;
mod stats;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use args::Args;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// The frontend's allocator, also for the baselines: a ratio shall compare code, not allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = if args.role { role::main() } else { conduct(&args) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn conduct(args: &Args) -> Result<()> {
    machine::raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Whichever ends first: dropping the other kills every process and removes the directory.
        tokio::select! {
            report = scenario::run(args) => report,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; all processes are stopped"),
            _ = terminate.recv() => bail!("terminated; all processes are stopped"),
        }
    })?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{report}");
    Ok(())
}
