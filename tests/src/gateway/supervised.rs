//! A gateway that `holdfast up` runs, with keys and routes of the test's, and the commands that operators use on it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_proto::ChannelKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::config::{Layout, Route};
use super::group::Group;
use super::{MIXED, locate};
use crate::Over;
use crate::dial::{Dial, Endpoint, Transport};
use crate::http::Http;
use crate::keys::{Certificates, DeviceKeys, TokenKey};
use crate::lossy::{self, Relay, Weather};
use crate::service::Service;
use crate::traffic::Entrance;

/// A process is up, a file says something, an event comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// Attempts to find four free ports in a row.
const ATTEMPTS: usize = 10;
const LOG_TAIL_LINES: usize = 40;

/// A running `holdfast up`. Ends when dropped, with all that it started.
pub struct Supervised {
    pub process: Child,
    pub tokens: TokenKey,
    pub keys: DeviceKeys,
    /// Devices so far.
    dialled: AtomicUsize,
    /// The way to `udp`, on which some are lost by this seed.
    lossy: OnceLock<Relay>,
    seed: u64,
    http: Http,
    certificates: Certificates,
    layout: Layout,
    group: Group,
    _dir: TempDir,
}

/// A `holdfast upgrade backend --json` whose events are read as they come.
pub struct Following {
    pub process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What was read so far.
    pub events: Vec<Value>,
}

impl Supervised {
    /// `Demo.*` is routed to the service's `/demo`; `settings` are added to the backend's configuration.
    pub async fn start(service: &Service, settings: &str) -> Self {
        for _ in 0..ATTEMPTS {
            if let Some(up) = Self::attempt(service, settings).await {
                return up;
            }
        }
        panic!("`holdfast up` did not start");
    }

    /// `None` when the ports were taken.
    async fn attempt(service: &Service, settings: &str) -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("hf-")
            .tempdir()
            .expect("a directory");
        let layout = Layout {
            dir: dir.path().to_owned(),
        };
        let (certificates, tokens) = (Certificates::generate(), TokenKey::generate());
        let keys = DeviceKeys::generate();
        layout.write_shared(&certificates, &tokens, &keys, service.signing_key());
        layout.write_routes(&[route(service)]);
        fs::write(dir.path().join("backend.toml"), settings).expect("a file in our own directory");
        let group = Group::new();
        // Below the ports that the system gives to outgoing connections, of which load makes many.
        let base = 10_000 + rand::random::<u16>() % 4_400 * 5;
        let mut command = holdfast(dir.path());
        command.args(["up", "--port-base", &base.to_string()]);
        command.stdout(Stdio::null()).process_group(group.id());
        let process = command.spawn().expect("holdfast starts");
        let mut up = Self {
            process,
            tokens,
            keys,
            dialled: AtomicUsize::new(0),
            lossy: OnceLock::new(),
            seed: lossy::seed(),
            http: Http::default(),
            certificates,
            layout,
            group,
            _dir: dir,
        };
        let file = up.path("up.json");
        let begun = tokio::time::Instant::now();
        while !file.exists() {
            if up.process.try_wait().expect("our own child").is_some() {
                return None;
            }
            assert!(begun.elapsed() < PATIENCE, "`holdfast up` writes no up.json");
            sleep(POLL).await;
        }
        Some(up)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.layout.dir.join(name)
    }

    /// What up.json says now.
    pub fn json(&self) -> Value {
        let text = fs::read(self.path("up.json")).expect("up.json is there");
        serde_json::from_slice(&text).expect("up.json is JSON")
    }

    pub fn pid(&self, key: &str) -> i32 {
        self.json()[key]
            .as_i64()
            .expect("a pid")
            .try_into()
            .expect("a pid")
    }

    /// Waits until up.json satisfies `ready`.
    pub async fn wait_for_json(&self, what: &str, ready: impl Fn(&Value) -> bool) {
        self.wait_for(what, || ready(&self.json())).await;
    }

    /// Waits until `ready`; panics when that takes too long.
    pub async fn wait_for(&self, what: &str, ready: impl Fn() -> bool) {
        let wait = async {
            while !ready() {
                sleep(POLL).await;
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok(), "waited in vain for {what}");
    }

    /// A way in for `id`: over each channel in turn, beginning with `ws`. Some datagrams are lost.
    pub fn dial_as(&self, id: &str) -> Dial {
        let over = MIXED[self.dialled.fetch_add(1, Ordering::Relaxed) % MIXED.len()];
        let (address, identity) = (self.device_address(over.kind()), self.keys.identity(id));
        let endpoint = |address, transport| Endpoint { address, transport };
        let endpoint = match over {
            Over::Wss => {
                let tls = Transport::Tls(self.certificates.client_config());
                return Dial::new(&endpoint(address, tls)).token(&self.tokens.token(id));
            }
            // There are no Python devices among `MIXED`.
            Over::Ws | Over::PythonWs => endpoint(address, Transport::Tcp),
            Over::Udp => endpoint(address, Transport::Datagrams),
            Over::LossyUdp => {
                let relay = || Relay::before(address, Weather::LOSSY, self.seed);
                endpoint(self.lossy.get_or_init(relay).address, Transport::Datagrams)
            }
        };
        let key = self.keys.device_key(&identity);
        Dial::new(&endpoint).key(identity, key)
    }

    /// Where the frontend takes devices of this kind.
    fn device_address(&self, kind: ChannelKind) -> SocketAddr {
        let json = self.json();
        let url = json[kind.label()].as_str().expect("a URL");
        let port = url.rsplit_once(':').expect("a port").1;
        format!("127.0.0.1:{port}").parse().expect("an address")
    }

    pub fn entrance(&self) -> Entrance<'_> {
        Entrance {
            dial: Box::new(|id| self.dial_as(id)),
            messages_url: self.api_url("/v1/messages"),
        }
    }

    pub fn api_url(&self, path: &str) -> String {
        format!("{}{path}", self.json()["api"].as_str().expect("api"))
    }

    /// What the frontend says of itself, its backends and hand-overs.
    pub async fn frontend_status(&self) -> Value {
        let url = format!(
            "{}/status",
            self.json()["frontend_admin"].as_str().expect("admin")
        );
        self.http.get(&url).await.expect("the frontend answers").json()
    }

    /// The names of the backends that are attached.
    pub async fn attached(&self) -> Vec<String> {
        let status = self.frontend_status().await;
        let backends = status["backends"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<_> = backends
            .iter()
            .filter_map(|backend| Some(backend["name"].as_str()?.to_owned()))
            .collect();
        names.sort_unstable();
        names
    }

    /// Asks a control socket: `up`, or a backend's name.
    pub async fn control(&self, name: &str, path: &str) -> Value {
        let socket = self.path("control").join(format!("{name}.sock"));
        crate::http::get_unix(&socket, path).await.unwrap_or(Value::Null)
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> Output {
        let output = holdfast(&self.layout.dir).args(args).output();
        timeout(PATIENCE, output)
            .await
            .unwrap_or_else(|_| panic!("holdfast {args:?} does not end"))
            .expect("holdfast runs")
    }

    /// Starts `holdfast upgrade backend --json`.
    pub fn upgrade(&self, args: &[&str]) -> Following {
        let mut command = holdfast(&self.layout.dir);
        command.args(["upgrade", "backend", "--json"]).args(args);
        command.process_group(self.group.id());
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("holdfast starts");
        let stdout = process.stdout.take().expect("a pipe");
        Following {
            process,
            lines: BufReader::new(stdout).lines(),
            events: Vec::new(),
        }
    }

    /// Writes an executable script, in which `$REAL` is the backend's binary.
    pub fn script(&self, name: &str, body: &str) -> String {
        let path = self.path(name);
        let real = locate("holdfast-backend");
        let text = format!("#!/bin/sh\nREAL={}\n{body}\n", real.display());
        fs::write(&path, text).expect("a file in our own directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// A backend that is the real one but for its routes.
    pub fn with_routes(&self, name: &str, routes: &[Route]) -> String {
        let other = Layout {
            dir: self.path(&format!("{name}.d")),
        };
        fs::create_dir_all(&other.dir).expect("a directory in our own directory");
        other.write_routes(routes);
        let (routes, config) = (other.dir.join("routes.toml"), other.dir.join("backend.toml"));
        let (routes, config) = (routes.display(), config.display());
        // The arguments begin with `--config FILE`.
        let body = format!(
            "sed 's|^routes = .*|routes = \"{routes}\"|' \"$2\" > {config}\nshift 2\nexec $REAL --config {config} \"$@\""
        );
        self.script(name, &body)
    }

    /// The processes that up.json names.
    pub fn pids(&self) -> BTreeMap<&'static str, i32> {
        ["frontend_pid", "backend_pid"]
            .map(|key| (key, self.pid(key)))
            .into()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.process.id().expect("`holdfast up` runs");
        send(pid as i32, signal);
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}={}", lossy::SEED, self.seed);
            let logs = fs::read_dir(self.path("logs")).into_iter().flatten().flatten();
            for path in logs.map(|entry| entry.path()) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                eprintln!("--- {}", path.display());
                for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}

impl Following {
    /// The next event; `None` at the end of the output.
    pub async fn next(&mut self) -> Option<Value> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("no event after {:?}", self.events.last()));
        let line = line.expect("a pipe is read")?;
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        self.events.push(event.clone());
        Some(event)
    }

    /// Reads until a phase begins; panics when it does not.
    pub async fn until_phase(&mut self, phase: &str) -> Value {
        loop {
            match self.next().await {
                Some(event) if event["phase"] == phase => return event,
                Some(_) => {}
                None => panic!("{phase} never began: {:?}", self.events),
            }
        }
    }

    /// Reads on until an event satisfies `wanted`.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            match self.next().await {
                Some(event) if wanted(&event) => return event,
                Some(_) => {}
                None => panic!("{what} never came: {:?}", self.events),
            }
        }
    }

    /// Reads to the end; gives the last event, which has the outcome, and the exit status.
    pub async fn end(&mut self) -> (Value, ExitStatus) {
        while self.next().await.is_some() {}
        let status = timeout(PATIENCE, self.process.wait()).await;
        let status = status.expect("it ends").expect("our own child");
        let last = self.events.last().cloned().unwrap_or_default();
        (last, status)
    }

    /// One line of what it says to people, before [`Self::stderr`].
    pub async fn stderr_line(&mut self) -> String {
        let stderr = self.process.stderr.as_mut().expect("not read to its end yet");
        let mut line = Vec::new();
        let read = async {
            while line.last() != Some(&b'\n') {
                line.push(stderr.read_u8().await.expect("a pipe is read"));
            }
        };
        assert!(timeout(PATIENCE, read).await.is_ok(), "it says nothing");
        String::from_utf8(line).expect("UTF-8")
    }

    /// What it said to people.
    pub async fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            stderr.read_to_string(&mut text).await.expect("a pipe is read");
        }
        text
    }

    pub fn signal(&self, signal: Signal) {
        send(self.process.id().expect("it runs") as i32, signal);
    }
}

/// The route that `Supervised::start` sets.
pub fn route(service: &Service) -> Route {
    let mut route = Route::new("Demo", service.url("/demo")).timeout("20s");
    (route.concurrency, route.queue) = (Some(4_096), Some(16_384));
    route
}

pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is gone but for its parent's looking.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn holdfast(dir: &Path) -> Command {
    // The other two must be there before this one looks for them beside itself.
    locate("holdfast-frontend");
    locate("holdfast-backend");
    let mut command = Command::new(locate("holdfast"));
    command
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}
