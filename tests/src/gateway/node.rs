//! One process of the gateway: started, signalled, watched.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::binaries::locate;
use crate::http::Http;
use crate::metrics;

/// A process is ready, a metric has moved, a process has ended within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition that only polling can tell is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Lines of a log that a failing test shows.
const LOG_TAIL_LINES: usize = 60;
/// How long a failing test waits for a process's metrics.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// The first descriptor that is handed down (sd_listen_fds).
const FIRST_LISTEN_FD: i32 = 3;
/// Log filter of the processes under test, when `HOLDFAST_TEST_LOG` does not set another.
const LOG_FILTER: &str = "info";

/// A frontend or a backend.
pub struct Node {
    pub name: String,
    /// Base of its admin listener or API.
    pub url: String,
    pub(super) binary: &'static str,
    pub(super) config: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Handed down as descriptor 3, as systemd does (`LISTEN_FDS`).
    pub(super) listener: Option<Arc<TcpListener>>,
    pub(super) log: PathBuf,
    pub(super) group: i32,
    pub(super) http: Http,
    pub(super) child: Option<Child>,
    /// 0 while there is no process.
    pub(super) pid: Arc<AtomicI32>,
}

impl Node {
    /// Starts the process, which must not be running, without waiting for anything.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file opens");
        let filter = std::env::var("HOLDFAST_TEST_LOG").unwrap_or_else(|_| LOG_FILTER.to_owned());
        let mut command = std::process::Command::new(locate(self.binary));
        command
            .arg("--config")
            .arg(&self.config)
            .args(&self.arguments)
            .env("HOLDFAST_LOG", filter);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file clones"))
            .stderr(log);
        command.process_group(self.group);
        if let Some(listener) = &self.listener {
            let parent_fd = listener.try_clone().expect("a socket clones").into();
            let child_fd = FIRST_LISTEN_FD;
            command.env("LISTEN_FDS", "1");
            command
                .fd_mappings(vec![FdMapping { parent_fd, child_fd }])
                .expect("one mapping collides with none");
        }
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.binary));
        self.pid
            .store(child.id().map_or(0, |id| id as i32), Ordering::SeqCst);
        self.child = Some(child);
    }

    /// Starts the process and waits until it is ready.
    pub async fn restart(&mut self) {
        self.start();
        self.wait_ready().await;
    }

    /// `kill -9`, and waits until the process is no more.
    pub async fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_exit().await;
    }

    /// SIGSTOP: the process hangs, its sockets stay.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT: it goes on as if nothing had been.
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM, and waits for the clean end that it asks for.
    pub async fn term(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit().await
    }

    /// Waits until the process has ended by itself or by a signal sent elsewhere.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self
            .child
            .take()
            .unwrap_or_else(|| panic!("{} does not run", self.name));
        let status = timeout(PATIENCE, child.wait()).await;
        self.pid.store(0, Ordering::SeqCst);
        let status = status.unwrap_or_else(|_| panic!("{} did not end", self.name));
        status.expect("a child of ours can be waited for")
    }

    pub fn signal(&self, signal: Signal) {
        signal_pid(&self.pid, signal);
    }

    /// Something that kills the process whenever it is called, from any thread.
    pub fn killer(&self) -> impl Fn() + Send + Sync + 'static {
        let pid = self.pid.clone();
        move || signal_pid(&pid, Signal::SIGKILL)
    }

    pub async fn wait_ready(&mut self) {
        self.wait_for_status("/ready", 200).await;
    }

    /// Waits until the process answers at all.
    pub async fn wait_live(&mut self) {
        self.wait_for_status("/live", 200).await;
    }

    /// Waits until `GET path` answers with `status`; panics when the process ends meanwhile.
    pub async fn wait_for_status(&mut self, path: &str, status: u16) {
        let url = format!("{}{path}", self.url);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.http.get(&url).await;
            if answer.as_ref().is_ok_and(|a| a.status.as_u16() == status) {
                return;
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            assert!(ended.is_none(), "{} ended: {ended:?}", self.name);
            assert!(
                Instant::now() < deadline,
                "{}: {path} did not become {status}: {answer:?}",
                self.name
            );
            sleep(POLL).await;
        }
    }

    /// The sum of the metric's series that have `labels`; 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metrics::sum(&self.metrics().await, name, labels)
    }

    /// The whole exposition.
    pub async fn metrics(&self) -> String {
        let answer = self.http.get(&format!("{}/metrics", self.url)).await;
        answer
            .unwrap_or_else(|e| panic!("{}: no metrics: {e}", self.name))
            .text()
    }

    /// Waits until the metric, summed over its series, satisfies `ready`.
    pub async fn wait_for_metric(&self, name: &str, ready: impl Fn(f64) -> bool) -> f64 {
        self.wait_for_series(name, &[], ready).await
    }

    /// Waits until the sum of the metric's series that have `labels` satisfies `ready`.
    pub async fn wait_for_series(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        ready: impl Fn(f64) -> bool,
    ) -> f64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(name, labels).await;
            if ready(value) {
                return value;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {name} stayed at {value}",
                self.name
            );
            sleep(POLL).await;
        }
    }

    /// Resident memory in bytes (VmRSS).
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid.load(Ordering::SeqCst));
        let status = std::fs::read_to_string(path).expect("the process runs");
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .expect("VmRSS is there");
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("VmRSS is a number");
        kib * 1024
    }

    /// CPU time in seconds, in steps of 10 ms (utime and stime of `/proc/PID/stat`, which Linux tells in hundredths).
    pub fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.pid.load(Ordering::SeqCst));
        let stat = std::fs::read_to_string(path).expect("the process runs");
        // Behind the name, which is in brackets, the state is field 3.
        let (_, fields) = stat.rsplit_once(')').expect("the name ends");
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks
            .map(|n| n.parse::<f64>().expect("a number of ticks"))
            .sum::<f64>()
            / 100.0
    }

    /// Everything that it logged, over all its lives.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What a failing test shows: the end of the log, and every metric that is not 0.
    pub(super) fn print_state(&self) {
        let log = self.log_text();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!(
            "--- {}: last {LOG_TAIL_LINES} of {} log lines",
            self.name,
            lines.len()
        );
        for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
            eprintln!("{line}");
        }
        let exposition = self.metrics_blocking().unwrap_or_default();
        let moved =
            |line: &&str| !(line.starts_with('#') || line.ends_with(" 0") || line.contains("_bucket"));
        for line in exposition
            .lines()
            .filter(moved)
            .filter(|line| line.starts_with("holdfast_"))
        {
            eprintln!("{line}");
        }
    }

    /// For use while a test is panicking, where nothing can be awaited.
    fn metrics_blocking(&self) -> std::io::Result<String> {
        let address = self.url.trim_start_matches("http://").parse::<SocketAddr>();
        let address = address.map_err(std::io::Error::other)?;
        let mut stream = TcpStream::connect_timeout(&address, LAST_LOOK)?;
        stream.set_read_timeout(Some(LAST_LOOK))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        // A process that hangs gives what it gives.
        let _ = stream.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Signals the process if there is one. Its id cannot be another's: only we reap it, after setting it to 0.
fn signal_pid(pid: &AtomicI32, signal: Signal) {
    let pid = pid.load(Ordering::SeqCst);
    if pid != 0 {
        kill(Pid::from_raw(pid), signal).ok();
    }
}
