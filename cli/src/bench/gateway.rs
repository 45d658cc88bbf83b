//! The gateway under test: `holdfast up` of this very program, in a directory and on ports of its own.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::files::{self, Access};
use crate::layout::Layout;
use crate::up_json::UpJson;

/// Where it runs. A temporary directory is removed at the end unless it was kept.
pub(crate) struct Home {
    layout: Layout,
    temporary: Option<tempfile::TempDir>,
}

impl Home {
    /// The directory named, which must be empty or not there, or a temporary one.
    pub(crate) fn make(named: Option<&Path>) -> Result<Self> {
        let (dir, temporary) = match named {
            Some(dir) => {
                let is_used = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
                if is_used {
                    bail!("--keep {}: the directory is not empty", dir.display());
                }
                (dir.to_owned(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("holdfast-bench-").tempdir();
                let made = made.context("cannot make a temporary directory")?;
                (made.path().to_owned(), Some(made))
            }
        };
        let layout = Layout::new(&dir)?;
        files::private_dir(layout.root())?;
        files::private_dir(&layout.logs())?;
        Ok(Self { layout, temporary })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.layout.root()
    }

    /// Sends all the bench's requests to one address.
    pub(crate) fn write_routes(&self, namespace: &str, address: SocketAddr) -> Result<()> {
        let text = format!(
            "# Made by `holdfast bench upgrade`.\n[[route]]\nnamespace = \"{namespace}\"\nname = \"*\"\n\
             url = \"http://{address}/bench\"\ntimeout = \"20s\"\nconcurrency = {SERVICE_CONNECTIONS}\nqueue = {SERVICE_QUEUE}\n"
        );
        files::write(&self.layout.routes(), text.as_bytes(), Access::Public)
    }

    pub(crate) fn up_json(&self) -> Result<UpJson> {
        // It is this run's own, and asked for many times a second.
        UpJson::read_unchecked(self.dir())
    }

    pub(crate) fn open_log(&self, name: &str) -> Result<File> {
        let path = self.layout.log(name);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        log.with_context(|| format!("cannot open {}", path.display()))
    }

    /// This program on this directory, in a process group of its own: a Ctrl-C at the terminal is for the bench alone.
    pub(crate) fn command(&self, args: &[&str]) -> Result<Command> {
        let myself = myself()?;
        let mut command = std::process::Command::new(&myself);
        // Ends with this process, however that ends.
        command
            .args(["supervised-exec", "--parent"])
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(myself)
            .arg("--dir")
            .arg(self.dir())
            .args(args)
            .stdin(Stdio::null())
            .process_group(0);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        Ok(command)
    }

    /// Keeps a temporary directory; gives where it is.
    pub(crate) fn keep(&mut self) -> PathBuf {
        match self.temporary.take() {
            Some(temporary) => temporary.keep(),
            None => self.dir().to_owned(),
        }
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

/// A running `holdfast up`.
pub(crate) struct Up {
    child: Child,
}

impl Up {
    /// Starts it and waits until all of it is ready.
    pub(crate) async fn start(home: &Home) -> Result<(Self, UpJson)> {
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            let mut up = Self::spawn(home, free_ports()?)?;
            match up.ready(home).await {
                Ok(json) => return Ok((up, json)),
                Err(error) => last = Some(error),
            }
            // Somebody may have been faster with a port.
            up.stop().await;
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("the gateway was not started")))
    }

    fn spawn(home: &Home, port_base: u16) -> Result<Self> {
        let log = home.open_log(LOG)?;
        let mut command = home.command(&["up", "--port-base", &port_base.to_string()])?;
        command.stdout(log.try_clone().context("log")?).stderr(log);
        let child = command.spawn().context("cannot start `holdfast up`")?;
        Ok(Self { child })
    }

    async fn ready(&mut self, home: &Home) -> Result<UpJson> {
        let until = Instant::now() + READY_TIMEOUT;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context("`holdfast up`")? {
                let log = home.layout.log(LOG);
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let last = text.lines().last().unwrap_or_default().to_owned();
                bail!("`holdfast up` ended with {status}: {last}");
            }
            if let Ok(json) = home.up_json() {
                return Ok(json);
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("`holdfast up` was not ready within {READY_TIMEOUT:?}")
    }

    /// Waits for its end, which nobody asked for.
    pub(crate) async fn exited(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.context("`holdfast up`")
    }

    /// SIGTERM, and after a while SIGKILL; it stops what it started.
    pub(crate) async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            // It may have ended by itself.
            let _ = signal(pid, Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            // Its children end with it.
            let _ = self.child.kill().await;
        }
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).context("a process id")?;
    if pid <= 0 {
        bail!("there is no such process");
    }
    kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to process {pid}"))
}

pub(crate) fn myself() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program")
}

/// The first of five ports in a row that nobody uses now, the last of them for datagrams neither.
fn free_ports() -> Result<u16> {
    for _ in 0..PORT_TRIES {
        let base = FIRST_PORT + rand::random::<u16>() % PORT_RANGE;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        let takes_datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, base + 4)).is_ok();
        if takes_datagrams && (base..base + 5).all(is_free) {
            return Ok(base);
        }
    }
    bail!(
        "no five free ports in a row between {FIRST_PORT} and {}",
        FIRST_PORT + PORT_RANGE
    )
}

const LOG: &str = "up";
/// Calls at once: more than any load here needs, and few enough to leave descriptors for devices.
pub(crate) const SERVICE_CONNECTIONS: u32 = 1024;
/// All that the windows of many devices hold, when a backend has been away.
const SERVICE_QUEUE: u32 = 500_000;
/// Below the range from which the kernel takes ports for connections.
const FIRST_PORT: u16 = 20_000;
const PORT_RANGE: u16 = 12_000;
const PORT_TRIES: usize = 100;
const PORT_ATTEMPTS: usize = 3;
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_is_refused_and_a_new_one_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        let mut home = Home::make(Some(&new)).unwrap();
        assert_eq!(home.keep(), new);
        let Err(error) = Home::make(Some(&new)) else {
            panic!("it holds logs/");
        };
        assert!(error.to_string().contains("not empty"), "{error}");
    }

    #[test]
    fn routes_lead_to_the_service() {
        let home = Home::make(None).unwrap();
        home.write_routes("Bench", "127.0.0.1:99".parse().unwrap())
            .unwrap();
        let text = std::fs::read_to_string(home.layout.routes()).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(
            table["route"][0]["url"].as_str(),
            Some("http://127.0.0.1:99/bench")
        );
        assert!(home.is_temporary());
    }
}
