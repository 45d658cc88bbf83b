//! The other end of stdin: this program as one of the processes of a run.

mod burst;
mod call;
mod crew;
mod device;
mod devices;
mod dial;
mod echo;
mod exchange;
mod flood;
mod latency;
mod line;
mod load;
mod mailbox;
mod pace;
mod packet_echo;
mod packets;
mod poster;
mod service;
mod sinks;
mod tcp_info;
mod tls;

use std::io::{BufRead as _, Write as _};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::protocol::{Answer, Command, Role};

/// Reads the role from stdin, is it, and ends with stdin.
pub(crate) fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = LocalSet::new().block_on(&runtime, be());
    if let Err(error) = &outcome {
        answer(&Answer::Failed(format!("{error:#}")))?;
    }
    // At once: the thread that reads stdin ends only with its writer.
    std::process::exit(i32::from(outcome.is_err()))
}

async fn be() -> Result<()> {
    let mut commands = Commands::read()?;
    let line = commands.0.recv().await.context("no role")?;
    match serde_json::from_str(&line)? {
        Role::Service => service::serve(commands).await,
        Role::Echo { tls } => echo::serve(tls, commands).await,
        Role::Mailbox { tls } => mailbox::serve(tls, commands).await,
        Role::PacketEcho { master_key } => packet_echo::serve(&master_key, commands).await,
        Role::Burst { datagrams } => burst::serve(datagrams, commands).await,
        Role::Sinks {
            address,
            datagrams,
            first,
        } => sinks::serve(address, datagrams, first, commands).await,
        Role::Devices(devices) => devices::serve(devices, commands).await,
        Role::Poster(poster) => poster::serve(&poster, commands).await,
        Role::Flood(flood) => flood::serve(&flood, commands).await,
        Role::Latency { device, direct } => latency::serve(device, &direct, commands).await,
    }
}

/// What the conductor says, line by line. At most one command is ever under way.
struct Commands(mpsc::Receiver<String>);

impl Commands {
    /// A thread waits for stdin, where nothing else could.
    fn read() -> Result<Self> {
        let (sender, receiver) = mpsc::channel(1);
        let read = move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
        Ok(Self(receiver))
    }

    /// None when the conductor is gone.
    async fn next(&mut self) -> Result<Option<Command>> {
        match self.0.recv().await {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }

    /// Servers take no commands: they end with their conductor.
    async fn until_end(mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

fn answer(answer: &Answer) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    out.flush().context("the conductor is gone")
}
