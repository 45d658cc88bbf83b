//! `holdfast status`: what runs and what is connected, as the processes themselves say.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;

use crate::args::StatusArgs;
use crate::http_client::{Call, Http};
use crate::up_json::UpJson;

pub(crate) fn run(dir: &Path, args: &StatusArgs) -> Result<ExitCode> {
    let up = UpJson::read(dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let status = runtime.block_on(Status::ask(&up))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", status.table(&up));
    }
    Ok(if status.all_ready() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Each `None` is what a process did not say.
#[derive(Debug, Serialize)]
struct Status {
    up: Process,
    frontend: Frontend,
    backend: Backend,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    running: bool,
    restarts: u32,
}

#[derive(Debug, Serialize)]
struct Frontend {
    process: Process,
    live: bool,
    ready: bool,
    sessions: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Backend {
    process: Process,
    live: bool,
    ready: bool,
    stats: Option<Value>,
}

impl Status {
    async fn ask(up: &UpJson) -> Result<Self> {
        let http = Http::new()?;
        let UpJson {
            frontend_admin: admin,
            api,
            ..
        } = up;
        let urls = [
            format!("{admin}/live"),
            format!("{admin}/ready"),
            format!("{api}/live"),
            format!("{api}/ready"),
            format!("{admin}/metrics"),
            format!("{api}/v1/stats"),
        ];
        let ok = |index: usize| is_ok(&http, &urls[index]);
        let (frontend_live, frontend_ready, live, ready) = tokio::join!(ok(0), ok(1), ok(2), ok(3));
        let metrics = text(&http, &urls[4], None).await;
        let stats = text(&http, &urls[5], Some(&up.api_key)).await;
        Ok(Self {
            up: Process::new(up.up_pid, 0),
            frontend: Frontend {
                process: Process::new(up.frontend_pid, up.frontend_restarts),
                live: frontend_live,
                ready: frontend_ready,
                sessions: metrics.as_deref().and_then(sessions),
            },
            backend: Backend {
                process: Process::new(up.backend_pid, up.backend_restarts),
                live,
                ready,
                stats: stats.and_then(|text| serde_json::from_str(&text).ok()),
            },
        })
    }

    fn all_ready(&self) -> bool {
        self.frontend.ready && self.backend.ready
    }

    fn table(&self, up: &UpJson) -> String {
        let Self {
            frontend, backend, ..
        } = self;
        let sessions = frontend
            .sessions
            .map_or("? sessions".to_owned(), |n| format!("{n} sessions"));
        let mut table = format!(
            "{:<9} {:<8} {:<8} {:<6} {:<6} {}\n",
            "", "pid", "restarts", "live", "ready", ""
        );
        let mut row = |name, process: &Process, live, ready, rest: &str| {
            let pid = if process.running {
                process.pid.to_string()
            } else {
                format!("{} (gone)", process.pid)
            };
            let line = format!(
                "{name:<9} {pid:<8} {:<8} {:<6} {:<6} {rest}",
                process.restarts,
                yes(live),
                yes(ready)
            );
            table.push_str(line.trim_end());
            table.push('\n');
        };
        row(
            "frontend",
            &frontend.process,
            frontend.live,
            frontend.ready,
            &format!("{} {sessions}", up.wss),
        );
        row("backend", &backend.process, backend.live, backend.ready, &up.api);
        if let Some(stats) = &backend.stats {
            table.push_str("\nbackend's counts\n");
            let mut lines = Vec::new();
            flatten("", stats, &mut lines);
            for (name, value) in lines.iter().take(MAX_STATS) {
                table.push_str(&format!("  {name:<40} {value}\n"));
            }
        }
        table
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

/// The sum over a metric named `…_sessions`, all its labels together, in the Prometheus text format.
fn sessions(metrics: &str) -> Option<u64> {
    let values = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let name = series.split('{').next()?.trim();
            name.ends_with("_sessions")
                .then(|| value.parse::<f64>().ok())
                .flatten()
        });
    values.fold(None, |sum: Option<u64>, value| {
        Some(sum.unwrap_or(0) + value as u64)
    })
}

/// All numbers and words of a JSON value with their paths.
fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let join = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, value)| flatten(&join(key), value, lines)),
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, value)| flatten(&join(&i.to_string()), value, lines));
        }
        Value::String(text) => lines.push((path.to_owned(), text.clone())),
        other => lines.push((path.to_owned(), other.to_string())),
    }
}

fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_STATS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_summed_over_labels() {
        let metrics = "# TYPE holdfast_sessions gauge\nholdfast_sessions{shard=\"0\"} 3\nholdfast_sessions{shard=\"1\"} 4\n\
                       holdfast_sessions_total 9\nother 1\n# EOF\n";
        assert_eq!(sessions(metrics), Some(7));
        assert_eq!(sessions("other 1\n"), None);
    }

    #[test]
    fn stats_are_flattened() {
        let mut lines = Vec::new();
        flatten("", &serde_json::json!({"a": {"b": 1}, "c": ["x"]}), &mut lines);
        assert_eq!(
            lines,
            [
                ("a.b".to_owned(), "1".to_owned()),
                ("c.0".to_owned(), "x".to_owned())
            ]
        );
    }
}
