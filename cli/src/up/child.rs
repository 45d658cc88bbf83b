//! Starting and stopping one process.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use tokio::process::{Child, Command};

use super::ready::Probe;
use crate::args::SupervisedExecArgs;

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    /// "frontend", "backend-1", …
    pub(super) name: String,
    pub(super) binary: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) log: PathBuf,
    /// Handed over as descriptor 3, as systemd does (`LISTEN_FDS`).
    pub(super) listener: Option<Arc<TcpListener>>,
    /// Tells when it is ready.
    pub(super) probe: Probe,
    /// How long it may take to stop by itself.
    pub(super) grace: Duration,
}

impl Spec {
    /// Starts it in a process group of its own, so that a Ctrl-C at the terminal reaches `up` alone, which stops what it
    /// started in the right order. Must be called on the main thread: the kernel ties the child's life to the thread.
    pub(super) fn spawn(&self) -> Result<Child> {
        let log = open_log(&self.log)?;
        let myself = std::env::current_exe().context("cannot find this program")?;
        let mut command = std::process::Command::new(myself);
        command
            .args(["supervised-exec", "--parent"])
            .arg(std::process::id().to_string())
            .arg(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("log")?)
            .stderr(log)
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            // Should `up` itself be a service: its state is not theirs to tell.
            .env_remove("NOTIFY_SOCKET")
            .process_group(0);
        if let Some(listener) = &self.listener {
            let parent_fd = listener.try_clone().context("listener")?.into();
            command.env("LISTEN_FDS", "1");
            command
                .fd_mappings(vec![FdMapping {
                    parent_fd,
                    child_fd: FIRST_LISTEN_FD,
                }])
                .context("listener")?;
        }
        let mut command = Command::from(command);
        // A panic or an early error must leave nothing behind.
        command.kill_on_drop(true);
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))
    }

    /// Notes in the child's log what its supervisor saw.
    pub(super) fn note(&self, what: &str) {
        let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        // A note that cannot be written is no reason to stop supervising.
        let _ = open_log(&self.log).and_then(|mut log| Ok(writeln!(log, "--- {now} holdfast up: {what}")?));
    }

    /// The log's last lines.
    pub(super) fn log_tail(&self) -> Vec<String> {
        let tail = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = tail().unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}

/// How a process that was stopped ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped {
    pub(super) status: ExitStatus,
    /// It did not end by itself within its grace.
    pub(super) killed: bool,
}

/// SIGTERM, the grace, SIGKILL; `hurry` ends the grace. Gives its end.
pub(super) async fn stop(
    child: &mut Child,
    grace: Duration,
    hurry: impl Future<Output = ()>,
) -> io::Result<Stopped> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended already, which `wait` tells.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    tokio::select! {
        status = child.wait() => return Ok(Stopped { status: status?, killed: false }),
        () = tokio::time::sleep(grace) => {}
        () = hurry => {}
    }
    child.start_kill()?;
    let status = child.wait().await?;
    Ok(Stopped { status, killed: true })
}

/// Becomes the program, after asking the kernel for a SIGTERM when the parent dies: so nothing is left running when `up`
/// is killed in a way that it cannot handle. This needs a step between fork and exec without `unsafe`, hence a process.
pub(crate) fn exec(args: &SupervisedExecArgs) -> Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("prctl")?;
    if getppid().as_raw() != args.parent {
        return Err(anyhow!("the supervisor is gone"));
    }
    let arguments: &[OsString] = &args.args;
    let error = std::process::Command::new(&args.program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", args.program.display()))
}

/// Moves a log that has grown large out of the way.
pub(super) fn rotate_log(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > ROTATE_BYTES => fs::rename(path, path.with_extension("log.1"))
            .with_context(|| format!("cannot rotate {}", path.display())),
        _ => Ok(()),
    }
}

fn open_log(path: &Path) -> Result<File> {
    let log = OpenOptions::new().create(true).append(true).open(path);
    log.with_context(|| format!("cannot open {}", path.display()))
}

/// `SD_LISTEN_FDS_START` of sd_listen_fds(3).
const FIRST_LISTEN_FD: i32 = 3;
const ROTATE_BYTES: u64 = 10 << 20;
const TAIL_LINES: usize = 10;
const TAIL_BYTES: u64 = 8 << 10;
