//! `holdfast up`: a gateway on one machine. Prepares DIR, starts frontend, backend and demo service, supervises them, and
//! puts another backend in the present one's place when it is asked to.
//!
//! What is deliberately not here: several frontends, more than two backends, and other machines.

mod backends;
mod binary;
mod board;
pub(crate) mod child;
mod config;
pub(crate) mod control;
mod frontend;
mod keys;
mod prepare;
mod ready;
mod record;
mod restart;
mod shares;
mod supervise;
mod supervisor;
mod upgrade;
mod upgrades;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::UpArgs;
use crate::layout::Layout;
use supervisor::Supervisor;

/// The five ports of one gateway.
#[derive(Debug, Clone, Copy)]
struct Ports {
    wss: u16,
    api: u16,
    admin: u16,
    demo: u16,
    ws: u16,
    /// The same number: it is of another protocol.
    udp: u16,
}

impl Ports {
    /// `base` is at most 65531.
    fn from_base(base: u16) -> Self {
        Self {
            wss: base,
            api: base + 1,
            admin: base + 2,
            demo: base + 3,
            ws: base + 4,
            udp: base + 4,
        }
    }
}

pub(crate) fn run(dir: &Path, args: &UpArgs) -> Result<ExitCode> {
    let layout = Layout::new(dir)?;
    // One thread: children are tied to the life of the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = StopSignals::new()?;
        let prepared = prepare::prepare(&layout, args).await?;
        let supervisor = Supervisor::start(layout, prepared).await?;
        supervisor.run(&mut stop).await
    })
}

/// Ctrl-C, SIGTERM, and the terminal's end.
pub(crate) struct StopSignals([Signal; 3]);

impl StopSignals {
    pub(crate) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

const FRONTEND: &str = "frontend";
