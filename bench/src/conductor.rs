//! A role's process, seen from the conductor.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command as Process};

use crate::process::Cpu;
use crate::protocol::{Answer, Command, Flooded, Outcome, Role, Run, Traffic};

/// One process. Dropping it kills it.
pub(crate) struct Worker {
    pub(crate) pid: u32,
    /// Where it listens, if it is a server.
    pub(crate) address: SocketAddr,
    /// Where a mailbox server takes pushes.
    pub(crate) http: SocketAddr,
    name: &'static str,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Worker {
    /// Starts this program again as `role` and waits until it stands.
    pub(crate) async fn start(name: &'static str, role: &Role) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Process::new(program)
            .arg("--role")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let (Some(pid), Some(stdin), Some(stdout)) = (child.id(), child.stdin.take(), child.stdout.take())
        else {
            bail!("the {name} did not start");
        };
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut worker = Self {
            pid,
            address: nowhere,
            http: nowhere,
            name,
            stdin,
            answers: BufReader::new(stdout).lines(),
            _child: child,
        };
        worker.say(serde_json::to_string(role)?).await?;
        match worker.hear().await? {
            Answer::Ready(address, http) => {
                worker.address = address.unwrap_or(nowhere);
                worker.http = http.unwrap_or(nowhere);
                Ok(worker)
            }
            other => bail!("the {name} answered {other:?}"),
        }
    }

    /// Lets so many more devices get online.
    pub(crate) async fn connect(&mut self, count: u32) -> Result<()> {
        self.ask(&Command::Connect(count)).await.map(drop)
    }

    pub(crate) async fn run(&mut self, run: Run) -> Result<Outcome> {
        match self.ask(&Command::Run(run)).await? {
            Answer::Done(outcome) => Ok(outcome),
            other => bail!("the {} answered {other:?}", self.name),
        }
    }

    /// Outcomes of the device and of the direct call.
    pub(crate) async fn run_both(&mut self, run: Run) -> Result<(Outcome, Outcome)> {
        match self.ask(&Command::Run(run)).await? {
            Answer::Both(device, direct) => Ok((device, direct)),
            other => bail!("the {} answered {other:?}", self.name),
        }
    }

    /// What came of a flood's run.
    pub(crate) async fn flood(&mut self, run: Run) -> Result<Flooded> {
        match self.ask(&Command::Run(run)).await? {
            Answer::Flooded(flooded) => Ok(flooded),
            other => bail!("the {} answered {other:?}", self.name),
        }
    }

    pub(crate) async fn pushes(&mut self) -> Result<u64> {
        match self.ask(&Command::Pushes).await? {
            Answer::Pushes(count) => Ok(count),
            other => bail!("the {} answered {other:?}", self.name),
        }
    }

    /// What the devices' sockets have sent and received.
    pub(crate) async fn traffic(&mut self) -> Result<Traffic> {
        match self.ask(&Command::Traffic).await? {
            Answer::Traffic(traffic) => Ok(traffic),
            other => bail!("the {} answered {other:?}", self.name),
        }
    }

    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::read(self.pid)
    }

    async fn ask(&mut self, command: &Command) -> Result<Answer> {
        self.say(serde_json::to_string(command)?).await?;
        self.hear().await
    }

    async fn say(&mut self, mut line: String) -> Result<()> {
        line.push('\n');
        let said = self.stdin.write_all(line.as_bytes()).await;
        said.with_context(|| format!("the {} is gone", self.name))
    }

    async fn hear(&mut self) -> Result<Answer> {
        let line = self.answers.next_line().await?;
        let line = line.with_context(|| format!("the {} ended", self.name))?;
        match serde_json::from_str(&line)? {
            Answer::Failed(why) => bail!("the {} failed: {why}", self.name),
            answer => Ok(answer),
        }
    }
}
