//! Starting and stopping one process.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use tokio::process::{Child, Command};

use super::config;
use super::ready::Probe;
use crate::args::SupervisedExecArgs;
use crate::layout::Layout;
use holdfast_proto::descriptors;

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    /// "frontend", "backend-1", …
    pub(super) name: String,
    pub(super) binary: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) log: Log,
    /// Handed over as descriptor 3, as systemd does (`LISTEN_FDS`).
    pub(super) listener: Option<Arc<TcpListener>>,
    /// Tells when it is ready.
    pub(super) probe: Probe,
    /// How long it may take to stop by itself.
    pub(super) grace: Grace,
}

/// Where a process writes, and from where on it is the present one that wrote.
#[derive(Debug, Clone)]
pub(super) struct Log {
    path: PathBuf,
    /// All clones of a [`Spec`] start one process at a time between them.
    from: Arc<AtomicU64>,
}

/// How long a process may take to stop by itself.
#[derive(Debug, Clone)]
pub(super) enum Grace {
    Fixed(Duration),
    /// As the backend's configuration says, and what it needs beyond that. The process has what was said when it started,
    /// but who has made it longer since wants it to be waited for, so the longer one holds.
    Configured {
        layout: Layout,
        at_start: Duration,
    },
}

impl Spec {
    /// Starts it in a process group of its own, so that a Ctrl-C at the terminal reaches `up` alone, which stops what it
    /// started in the right order. Must be called on the main thread: the kernel ties the child's life to the thread.
    pub(super) fn spawn(&self) -> Result<Child> {
        let log = self.log.open_for_start()?;
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
        let log = open_log(&self.log.path);
        let _ = log.and_then(|mut log| Ok(writeln!(log, "--- {now} holdfast up: {what}")?));
    }

    /// The same without waiting for the disk.
    pub(super) fn note_later(&self, what: String) {
        let spec = self.clone();
        tokio::task::spawn_blocking(move || spec.note(&what));
    }

    /// The log's last lines, of those written since the last start.
    pub(super) fn log_tail(&self) -> Vec<String> {
        self.log.tail()
    }
}

impl Log {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            from: Arc::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was written so far is an earlier process's.
    fn open_for_start(&self) -> Result<File> {
        let log = open_log(&self.path)?;
        let length = log.metadata().map_or(0, |metadata| metadata.len());
        self.from.store(length, Ordering::Relaxed);
        Ok(log)
    }

    fn tail(&self) -> Vec<String> {
        let tail = || -> io::Result<String> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            // Somebody may have cut it short.
            let from = self.from.load(Ordering::Relaxed).min(length);
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = tail().unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}

impl Grace {
    /// As the configuration is now.
    pub(super) fn configured(layout: &Layout) -> Self {
        Self::Configured {
            layout: layout.clone(),
            at_start: config::drain_grace(layout),
        }
    }

    /// To be asked when the process is told to stop.
    pub(super) fn now(&self) -> Duration {
        match self {
            Self::Fixed(grace) => *grace,
            Self::Configured { layout, at_start } => {
                config::drain_grace(layout).max(*at_start) + GRACE_MARGIN
            }
        }
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
    descriptors::make_room();
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
/// What a backend may need beyond its own grace to say goodbye: its API's last callers have 10 s. It ends by itself when its
/// grace is over; what is not out by then hangs.
const GRACE_MARGIN: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_that_of_the_present_process() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("backend-1.log"));
        let write = |mut file: File, text: &str| file.write_all(text.as_bytes()).unwrap();
        write(log.open_for_start().unwrap(), "panicked in an earlier life\n");
        assert_eq!(log.tail(), ["panicked in an earlier life"]);
        let clone = log.clone();
        let file = clone.open_for_start().unwrap();
        assert!(log.tail().is_empty(), "{:?}", log.tail());
        write(file, "cannot listen\n");
        assert_eq!(log.tail(), ["cannot listen"]);
        fs::write(log.path(), "").unwrap();
        assert!(log.tail().is_empty());
    }

    #[test]
    fn a_grace_made_longer_after_the_start_is_kept_to_and_one_made_shorter_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let set = |text: &str| fs::write(layout.backend_config(), text).unwrap();
        set("drain_grace = \"2s\"");
        let grace = Grace::configured(&layout);
        assert_eq!(grace.now(), Duration::from_secs(2) + GRACE_MARGIN);
        set("drain_grace = \"60s\"");
        assert_eq!(grace.now(), Duration::from_secs(60) + GRACE_MARGIN);
        set("drain_grace = \"1s\"");
        assert_eq!(grace.now(), Duration::from_secs(2) + GRACE_MARGIN);
    }
}
