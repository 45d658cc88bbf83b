//! What is done to the backend, by the means that an operator has: this program's commands, and signals.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use http::StatusCode;
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::gateway::{Home, signal};
use super::options::Options;
use super::phase::Kind;
use super::service::Service;
use crate::http_client::{Call, Http};
use crate::up_json::UpJson;

/// What came of one event, once the gateway had recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happened {
    /// Whether it went as such an event should.
    pub(crate) as_planned: bool,
    /// For the reader: a word, and a reason where there is one.
    pub(crate) outcome: String,
}

pub(crate) struct Events<'a> {
    home: &'a Home,
    options: &'a Options,
    /// Learns when a backend dies or hangs.
    service: Service,
    http: Http,
}

impl<'a> Events<'a> {
    pub(crate) fn new(home: &'a Home, options: &'a Options, service: Service) -> Result<Self> {
        Ok(Self {
            home,
            options,
            service,
            http: Http::new()?,
        })
    }

    /// Does it and waits until the gateway has a working backend again.
    pub(crate) async fn run(&self, kind: Kind) -> Happened {
        let done = match kind {
            Kind::Kill => self.kill().await,
            Kind::Hang => self.hang().await,
            Kind::Upgrade => self.upgrade(&["--no-canary"], promoted).await,
            Kind::Canary => self.upgrade(&["--canary", &self.canary()], promoted).await,
            Kind::Rollback => self.roll_back().await,
        };
        done.unwrap_or_else(|error| Happened {
            as_planned: false,
            outcome: format!("{error:#}"),
        })
    }

    async fn kill(&self) -> Result<Happened> {
        let pid = self.home.up_json()?.backend_pid;
        self.service.crash_begins();
        signal(pid, Signal::SIGKILL)?;
        self.service.crash_ends();
        let until = Instant::now() + RECOVERY_TIMEOUT;
        while Instant::now() < until {
            let now = self.home.up_json()?.backend_pid;
            if now != pid && now != 0 {
                return Ok(went("started again".to_owned()));
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the backend was not ready again within {RECOVERY_TIMEOUT:?}")
    }

    async fn hang(&self) -> Result<Happened> {
        let up = self.home.up_json()?;
        let known = self
            .frontend(&up)
            .await
            .context("the frontend's status")?
            .losses(&up);
        self.service.crash_begins();
        signal(up.backend_pid, Signal::SIGSTOP)?;
        let woken = Woken(up.backend_pid);
        tokio::time::sleep(self.options.hang_for).await;
        drop(woken);
        let begun = Instant::now();
        let (mut was_noticed, mut serves) = (false, false);
        while begun.elapsed() < RECOVERY_TIMEOUT {
            // What it did before it knew that it is given up is over when it serves again.
            if let Ok(frontend) = self.frontend(&up).await {
                was_noticed |= frontend.losses(&up).iter().any(|loss| !known.contains(loss));
                serves = frontend.serves() && self.is_ready(&up).await;
            }
            if serves && (was_noticed || begun.elapsed() > NOTICE_TIMEOUT) {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.service.crash_ends();
        match (serves, was_noticed) {
            (false, _) => bail!("the backend was not ready again within {RECOVERY_TIMEOUT:?}"),
            (true, true) => Ok(went("given up, and woken".to_owned())),
            (true, false) => bail!("it was woken before the frontend gave it up: --hang-for is too short"),
        }
    }

    async fn is_ready(&self, up: &UpJson) -> bool {
        let url = format!("{}/ready", up.api);
        let answer = self.http.call(quick(&url)).await;
        answer.is_ok_and(|answer| answer.status == StatusCode::OK)
    }

    async fn frontend(&self, up: &UpJson) -> Result<Frontend> {
        let url = format!("{}/status", up.frontend_admin);
        let body = self.http.call(quick(&url)).await?.success()?;
        serde_json::from_slice(&body).context("the frontend's status is not readable")
    }

    fn canary(&self) -> String {
        self.options.canary_share.to_string()
    }

    async fn roll_back(&self) -> Result<Happened> {
        let bad = self.write_bad_backend()?;
        let bad = bad.to_str().context("the directory's path is not UTF-8")?;
        // When it dies is its own affair.
        self.service.crash_begins();
        let happened = self
            .upgrade(&["--binary", bad, "--canary", &self.canary()], rolled_back)
            .await;
        self.service.crash_ends();
        happened
    }

    async fn upgrade(&self, more: &[&str], judge: impl Fn(Option<i32>, &Answer) -> bool) -> Result<Happened> {
        let watch = format!("{}ms", self.options.watch.as_millis());
        let mut args = vec!["upgrade", "backend", "--json"];
        args.extend(more);
        if more.contains(&"--canary") {
            args.extend(["--watch", &watch]);
        }
        let mut command = self.home.command(&args)?;
        command.stderr(self.home.open_log("upgrade")?);
        let limit = UPGRADE_TIMEOUT + self.options.watch;
        let output = tokio::time::timeout(limit, command.output()).await;
        let output = output.map_err(|_| anyhow!("`holdfast upgrade` did not end within {limit:?}"))?;
        let output = output.context("cannot start `holdfast upgrade`")?;
        let answer = Answer::read(&output.stdout)
            .ok_or_else(|| anyhow!("`holdfast upgrade` ended with {} and no answer", output.status))?;
        Ok(Happened {
            as_planned: judge(output.status.code(), &answer),
            outcome: answer.words(),
        })
    }

    /// The running backend's own program, in a wrapper that kills it while it is watched.
    fn write_bad_backend(&self) -> Result<PathBuf> {
        let pid = self.home.up_json()?.backend_pid;
        let good = std::fs::read_link(format!("/proc/{pid}/exe")).context("the backend's program")?;
        let good = good.to_str().context("the backend's path is not UTF-8")?;
        let path = self.home.dir().join("bad-backend");
        let life = BAD_START + self.options.watch / 2;
        std::fs::write(&path, bad_backend(good, life)).context("cannot write bad-backend")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }
}

/// A shell script that is the program at `good` for so long. What kills it looks first whether that process is still it.
fn bad_backend(good: &str, life: Duration) -> String {
    let quoted = good.replace('\'', r"'\''");
    format!(
        "#!/bin/sh\n\
         # Made by `holdfast bench upgrade`: a backend that dies soon after its start.\n\
         (\n\
         \x20 exec 3>&- </dev/null >/dev/null 2>&1\n\
         \x20 sleep {:.1}\n\
         \x20 [ \"$(readlink /proc/$$/exe)\" = '{quoted}' ] && kill -9 $$\n\
         ) &\n\
         exec '{quoted}' \"$@\"\n",
        life.as_secs_f64()
    )
}

/// Sends SIGCONT when dropped, so that nothing stays stopped when the bench is.
struct Woken(u32);

impl Drop for Woken {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = signal(self.0, Signal::SIGCONT);
    }
}

/// `GET /status` of the frontend, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Frontend {
    backends: Vec<Attached>,
    hand_overs: Vec<HandOver>,
}

#[derive(Debug, Deserialize)]
struct Attached {
    state: String,
}

#[derive(Debug, Deserialize)]
struct HandOver {
    backend: String,
    kind: String,
    epoch: String,
}

impl Frontend {
    fn serves(&self) -> bool {
        self.backends.iter().any(|backend| backend.state == "active")
    }

    /// The epochs in which it lost the backend.
    fn losses(&self, up: &UpJson) -> BTreeSet<String> {
        let is_loss = |end: &&HandOver| end.backend == up.backend_name && end.kind != "graceful";
        let losses = self.hand_overs.iter().filter(is_loss);
        losses.map(|loss| loss.epoch.clone()).collect()
    }
}

fn quick(url: &str) -> Call<'_> {
    Call {
        timeout: CALL_TIMEOUT,
        ..Call::get(url)
    }
}

/// The last JSON object that `holdfast upgrade --json` prints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    outcome: String,
    reason: Option<String>,
    detail: Option<String>,
}

impl Answer {
    fn read(stdout: &[u8]) -> Option<Self> {
        let whole = serde_json::from_slice::<Self>(stdout).ok();
        let answer = whole.or_else(|| {
            let last = stdout
                .split(|byte| *byte == b'\n')
                .rfind(|line| !line.is_empty())?;
            serde_json::from_slice(last).ok()
        })?;
        (!answer.outcome.is_empty()).then_some(answer)
    }

    fn words(&self) -> String {
        match self.detail.as_ref().or(self.reason.as_ref()) {
            Some(why) => format!("{}: {why}", self.outcome),
            None => self.outcome.clone(),
        }
    }
}

fn went(outcome: String) -> Happened {
    Happened {
        as_planned: true,
        outcome,
    }
}

fn promoted(code: Option<i32>, answer: &Answer) -> bool {
    code == Some(0) && answer.outcome == "promoted"
}

fn rolled_back(code: Option<i32>, answer: &Answer) -> bool {
    // For another reason devices may never have been with the bad one.
    code == Some(1) && answer.outcome == "rolled_back" && answer.reason.as_deref() == Some("crashed")
}

const POLL: Duration = Duration::from_millis(10);
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Beyond the frontend's own time for it.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(2);
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(180);
/// What a backend may need to start on a busy machine; it must not die before it is watched.
const BAD_START: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_alone_or_after_progress() {
        let one = b"{\"outcome\":\"promoted\",\"reason\":null}\n";
        assert_eq!(Answer::read(one).unwrap().words(), "promoted");
        let many = b"{\"phase\":\"starting\"}\n{\"outcome\":\"rolled_back\",\"reason\":\"crashed\",\"detail\":\"it crashed\"}\n\n";
        let answer = Answer::read(many).unwrap();
        assert_eq!(answer.words(), "rolled_back: it crashed");
        assert!(rolled_back(Some(1), &answer) && !promoted(Some(0), &answer));
        let early = b"{\"outcome\":\"rolled_back\",\"reason\":\"exited\"}\n";
        assert!(!rolled_back(Some(1), &Answer::read(early).unwrap()));
        let pretty = b"{\n  \"outcome\": \"promoted\"\n}\n";
        assert!(promoted(Some(0), &Answer::read(pretty).unwrap()));
        for none in [&b""[..], b"text", b"{}"] {
            assert!(Answer::read(none).is_none());
        }
    }

    #[test]
    fn a_bad_backend_dies_after_a_while_and_is_the_good_one_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad");
        let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
        let script = bad_backend(sleep.to_str().unwrap(), Duration::from_millis(200));
        std::fs::write(&path, script).unwrap();
        let output = std::process::Command::new("/bin/sh")
            .arg(&path)
            .arg("60")
            .output()
            .unwrap();
        assert!(!output.status.success());
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(output.status.signal(), Some(9));
    }

    #[test]
    fn a_bad_backend_that_ends_by_itself_takes_nobody_with_it() {
        let text = bad_backend("/it's/here", Duration::from_secs(2));
        assert!(text.contains(r"exec '/it'\''s/here'"), "{text}");
    }
}
