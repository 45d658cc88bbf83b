//! `holdfast upgrade backend`: asks the running `holdfast up`, shows how it goes, and reports. Ctrl-C calls it off.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::signal::unix::{SignalKind, signal};

use super::event::{End, Event};
use super::plan::Request;
use super::progress::Progress;
use crate::args::UpgradeBackendArgs;
use crate::http_client::Answer;
use crate::layout::Layout;
use crate::unix_http::UnixCall;
use crate::up::control::UPGRADE_ID;
use crate::up_json::UpJson;

pub(crate) fn run(dir: &Path, args: &UpgradeBackendArgs) -> Result<ExitCode> {
    // Says in one line when nothing runs there.
    UpJson::read(dir)?;
    let request = request(args)?;
    let socket = Layout::new(dir)?.up_socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let end = runtime.block_on(async {
        let asked = Asked::begin(socket, &request, args.json).await?;
        asked.follow().await
    })?;
    if !args.json {
        print!("{}", conclusion(&end));
    }
    Ok(if end.outcome == "promoted" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn request(args: &UpgradeBackendArgs) -> Result<Request> {
    let binary = match &args.binary {
        Some(path) => Some(std::path::absolute(path).with_context(|| format!("{}", path.display()))?),
        None => None,
    };
    let canary = if args.no_canary {
        0.0
    } else {
        args.canary.percent()
    };
    Ok(Request {
        binary,
        canary_percent: canary,
        watch_ms: args.watch.as_millis() as u64,
        ready_timeout_ms: args.ready_timeout.as_millis() as u64,
    })
}

/// An upgrade that was asked for and goes on.
struct Asked {
    socket: PathBuf,
    id: String,
    body: Incoming,
    buffer: BytesMut,
    json: bool,
    progress: Progress,
}

impl Asked {
    async fn begin(socket: PathBuf, request: &Request, json: bool) -> Result<Self> {
        let call = UnixCall {
            method: Method::POST,
            json: Some(serde_json::to_vec(request)?.into()),
            ..UnixCall::get(&socket, "/v1/upgrades")
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, call.open())
            .await
            .map_err(|_| anyhow!("{} did not answer in {ANSWER_TIMEOUT:?}", socket.display()))??;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let status = head.status;
            let body = body.collect().await.context("the answer broke off")?.to_bytes();
            let error = Answer { status, body }.success().err();
            return Err(error.unwrap_or_else(|| anyhow!("`holdfast up` answered {status}")));
        }
        let id = head.headers.get(UPGRADE_ID).and_then(|id| id.to_str().ok());
        Ok(Self {
            id: id.context("`holdfast up` did not name the upgrade")?.to_owned(),
            body,
            buffer: BytesMut::new(),
            json,
            progress: Progress::new(),
            socket,
        })
    }

    /// Until its end.
    async fn follow(mut self) -> Result<End> {
        let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("signals")?;
        let mut called_off = false;
        loop {
            let event = tokio::select! {
                event = self.next() => event?,
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
            };
            match event {
                Some(Event::End(end)) => return Ok(*end),
                Some(_) => {}
                None if called_off => {
                    // `up` sees that we are gone, and does the same.
                    return Err(anyhow!("not waiting for the end of the upgrade"));
                }
                None => {
                    called_off = true;
                    self.call_off().await;
                }
            }
        }
    }

    async fn call_off(&mut self) {
        let path = format!("/v1/upgrades/{}", self.id);
        let call = UnixCall {
            method: Method::DELETE,
            ..UnixCall::get(&self.socket, &path)
        };
        let answer = call.send(ANSWER_TIMEOUT).await.and_then(Answer::success);
        match answer {
            Ok(_) => self
                .progress
                .line("interrupted: rolling back (once more to leave it alone)"),
            Err(error) => self.progress.line(&format!("interrupted, but {error:#}")),
        }
    }

    /// The next event, shown. May be dropped and called again.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                return self.show(&line).map(Some);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(anyhow!("`holdfast up` sent a line without an end"));
            }
            let frame = self.body.frame().await;
            let frame =
                frame.ok_or_else(|| anyhow!("`holdfast up` is gone; `holdfast status` tells what runs"))?;
            if let Ok(data) = frame.context("`holdfast up` is gone")?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    fn show(&mut self, line: &Bytes) -> Result<Event> {
        let event = serde_json::from_slice(line).context("an event is not readable")?;
        if self.json {
            show!("{}", String::from_utf8_lossy(line).trim_end());
        } else {
            self.progress.handle(&event, Instant::now());
        }
        Ok(event)
    }
}

/// What is said at the end.
fn conclusion(end: &End) -> String {
    let new = &end.report.new.name;
    let seconds = end.report.took_ms as f64 / 1e3;
    let first = match end.outcome.as_str() {
        "promoted" => format!("promoted: {new} serves (after {seconds:.1} s)"),
        "rolled_back" => format!(
            "rolled back: {}; {} goes on as before",
            end.detail.as_deref().unwrap_or("no reason was given"),
            end.report.old.name
        ),
        outcome => format!(
            "{outcome}: {}; nothing has changed",
            end.detail.as_deref().unwrap_or("no reason was given")
        ),
    };
    format!("{first}\n{}", end.report.text())
}

/// `up` answers between two turns of its loop.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A report has a few KiB.
const MAX_LINE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::super::report::Report;
    use super::*;

    #[test]
    fn the_first_line_says_what_became_of_it() {
        let mut report = Report::default();
        report.old.name = "backend-1".into();
        report.new.name = "backend-2".into();
        let mut end = End {
            at_ms: 1,
            outcome: "rolled_back".into(),
            reason: Some("errors".into()),
            detail: Some("it answered 50.00 % of its requests with errors, the old one 0.00 %".into()),
            report,
        };
        let first = |end: &End| conclusion(end).lines().next().unwrap().to_owned();
        assert_eq!(
            first(&end),
            "rolled back: it answered 50.00 % of its requests with errors, the old one 0.00 %; backend-1 goes on as before"
        );
        end.outcome = "promoted".into();
        assert_eq!(first(&end), "promoted: backend-2 serves (after 0.0 s)");
        (end.outcome, end.detail) = ("failed".into(), Some("why".into()));
        assert_eq!(first(&end), "failed: why; nothing has changed");
    }
}
