//! `holdfast status`: what runs and what is connected, as the processes themselves say.

mod table;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use http::StatusCode;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::StatusArgs;
use crate::http_client::{Call, Http};
use crate::unix_http::{UnixCall, socket_of};
use crate::up_json::UpJson;

pub(crate) fn run(dir: &Path, args: &StatusArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let http = Http::new()?;
    let status = match &args.admin {
        Some(admin) => runtime.block_on(Status::of_frontend(&http, admin.trim_end_matches('/'))),
        None => runtime.block_on(Status::of_up(&http, &UpJson::read(dir)?)),
    };
    if args.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(std::io::stdout(), "{}", status.table(now))?;
    }
    Ok(if status.is_ready() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Each `None` is what a process did not say, or what there is not.
#[derive(Debug, Default, Serialize)]
struct Status {
    up: Option<Process>,
    frontend: Frontend,
    /// The one that `holdfast up` keeps.
    backend: Option<Backend>,
    /// All that are attached to the frontend.
    backends: Vec<Attached>,
    /// The newest first.
    hand_overs: Vec<HandOver>,
    /// The last upgrade that `holdfast up` was asked for.
    upgrade: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    running: bool,
    restarts: u32,
}

#[derive(Debug, Default, Serialize)]
struct Frontend {
    process: Option<Process>,
    /// Where devices connect.
    wss: Option<String>,
    ws: Option<String>,
    udp: Option<String>,
    live: bool,
    ready: bool,
    id: Option<u64>,
    version: Option<String>,
    sessions: Option<u64>,
    waiting: Option<u64>,
    in_flight: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Backend {
    process: Process,
    name: String,
    api: String,
    live: bool,
    ready: bool,
    stats: Option<Value>,
}

/// A backend as the frontend sees it. Field by field as in `GET /status` there.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Attached {
    name: String,
    #[serde(alias = "version")]
    build: Option<String>,
    epoch: Option<Value>,
    state: String,
    share_percent: Option<f64>,
    in_flight: Option<u64>,
    requests: Option<u64>,
    replies: Option<u64>,
    since_unix_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct HandOver {
    at_unix_ms: u64,
    kind: String,
    backend: String,
    epoch: Option<Value>,
    requests: u64,
    duration_ms: Option<u64>,
}

/// `GET /status` of a frontend.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    frontend_id: Option<u64>,
    build: Option<String>,
    sessions: Option<u64>,
    waiting: Option<u64>,
    in_flight: Option<u64>,
    backends: Vec<Attached>,
    hand_overs: Vec<HandOver>,
}

impl Status {
    async fn of_frontend(http: &Http, admin: &str) -> Self {
        let (live, ready) = (format!("{admin}/live"), format!("{admin}/ready"));
        let (live, ready, said) = tokio::join!(is_ok(http, &live), is_ok(http, &ready), said(http, admin));
        Self {
            frontend: Frontend {
                process: None,
                wss: None,
                ws: None,
                udp: None,
                live,
                ready,
                id: said.frontend_id,
                version: said.build,
                sessions: said.sessions,
                waiting: said.waiting,
                in_flight: said.in_flight,
            },
            backends: said.backends,
            hand_overs: said.hand_overs,
            ..Self::default()
        }
    }

    async fn of_up(http: &Http, up: &UpJson) -> Self {
        let (status, backend, upgrade) = tokio::join!(
            Self::of_frontend(http, &up.frontend_admin),
            Backend::ask(http, up),
            last_upgrade(up)
        );
        let mut status = Self {
            up: Some(Process::new(up.up_pid, 0)),
            backend: Some(backend),
            upgrade,
            ..status
        };
        status.frontend.process = Some(Process::new(up.frontend_pid, up.frontend_restarts));
        // An earlier version's gateway does not say where it listens for some of them.
        let listens = |url: &String| (!url.is_empty()).then(|| url.clone());
        status.frontend.wss = listens(&up.wss);
        status.frontend.ws = listens(&up.ws);
        status.frontend.udp = listens(&up.udp);
        status
    }

    /// A frontend is ready when a backend is attached; the supervised one must be it, and one must take work.
    fn is_ready(&self) -> bool {
        let serves = |backend: &Attached| backend.state == "active";
        self.frontend.ready
            && self.backend.as_ref().is_none_or(|backend| backend.ready)
            && self.backends.iter().any(serves)
    }
}

impl Backend {
    async fn ask(http: &Http, up: &UpJson) -> Self {
        let socket = socket_of(&up.control_dir, &up.backend_name);
        let ok = async |path| {
            let answer = UnixCall::get(&socket, path).send(TIMEOUT).await;
            answer.is_ok_and(|answer| answer.status == StatusCode::OK)
        };
        let url = format!("{}/v1/stats", up.api);
        let (live, ready, stats) =
            tokio::join!(ok("/live"), ok("/ready"), text(http, &url, Some(&up.api_key)));
        Self {
            process: Process::new(up.backend_pid, up.backend_restarts),
            name: up.backend_name.clone(),
            api: up.api.clone(),
            live,
            ready,
            stats: stats.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }
}

impl Process {
    fn new(pid: u32, restarts: u32) -> Self {
        let running = i32::try_from(pid).is_ok_and(|pid| pid > 0 && kill(Pid::from_raw(pid), None).is_ok());
        Self {
            pid,
            running,
            restarts,
        }
    }
}

async fn said(http: &Http, admin: &str) -> Said {
    let text = text(http, &format!("{admin}/status"), None).await;
    text.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

async fn last_upgrade(up: &UpJson) -> Option<Value> {
    let socket = socket_of(&up.control_dir, "up");
    let answer = UnixCall::get(&socket, "/v1/upgrades").send(TIMEOUT).await.ok()?;
    let all: Value = serde_json::from_slice(&answer.success().ok()?).ok()?;
    all.get("upgrades")?.get(0).cloned()
}

async fn is_ok(http: &Http, url: &str) -> bool {
    let call = Call {
        timeout: TIMEOUT,
        ..Call::get(url)
    };
    http.call(call)
        .await
        .is_ok_and(|answer| answer.status == StatusCode::OK)
}

async fn text(http: &Http, url: &str, key: Option<&str>) -> Option<String> {
    let call = Call {
        timeout: TIMEOUT,
        key,
        ..Call::get(url)
    };
    let body = http.call(call).await.ok()?.success().ok()?;
    String::from_utf8(body.to_vec()).ok()
}

const TIMEOUT: Duration = Duration::from_secs(2);
