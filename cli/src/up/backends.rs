//! How each backend of this gateway is started, and what it is called.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use holdfast_proto::Share;

use super::binary::Program;
use super::child::{self, Grace, Log, Spec};
use super::ready::Probe;
use crate::layout::Layout;
use crate::unix_http::socket_of;

/// Gives backends their names, `backend-1` and so on, and what they are started with.
pub(super) struct Backends {
    layout: Layout,
    /// The API's listening socket, which each of them inherits.
    api: Arc<TcpListener>,
    made: u32,
}

/// One backend as it is to be started.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pub(super) spec: Spec,
    pub(super) program: Program,
    pub(super) socket: PathBuf,
}

impl Backends {
    pub(super) fn new(layout: Layout, api: Arc<TcpListener>) -> Self {
        Self { layout, api, made: 0 }
    }

    /// The next backend, of this program; `running` is the one that is there already.
    pub(super) async fn make(&mut self, program: &Path, running: Option<&Backend>) -> Result<Backend> {
        let name = format!("{PREFIX}{}", self.made + 1);
        let program = self.pin(program, &name).await?;
        self.made += 1;
        let log = self.layout.log(&name);
        child::rotate_log(&log)?;
        prune_logs(
            &self.layout.logs(),
            running.map(|backend| backend.spec.log.path()),
        );
        let socket = socket_of(&self.layout.control_dir(), &name);
        let spec = Spec {
            arguments: self.arguments(&name),
            binary: program.started.clone(),
            log: Log::new(log),
            listener: Some(self.api.clone()),
            probe: Probe::Socket(socket.clone()),
            grace: Grace::configured(&self.layout),
            name,
        };
        Ok(Backend {
            spec,
            program,
            socket,
        })
    }

    /// A copy may be large and the disk slow: the processes that run must not wait for it.
    async fn pin(&self, program: &Path, name: &str) -> Result<Program> {
        let (layout, program, name) = (self.layout.clone(), program.to_owned(), name.to_owned());
        let pinned = tokio::task::spawn_blocking(move || Program::pin(&layout, &program, &name));
        pinned.await.context("making a second name for the program")?
    }

    fn arguments(&self, name: &str) -> Vec<OsString> {
        let config = self.layout.backend_config();
        ["--config".into(), config.into(), "--name".into(), name.into()].into()
    }
}

impl Backend {
    /// How it is started to stand by until it is given a share; when it is started again, it takes part in full.
    pub(super) fn standby(&self) -> Spec {
        let mut spec = self.spec.clone();
        spec.arguments
            .extend(["--share".into(), Share::NONE.to_string().into()]);
        spec
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }
}

/// Keeps the newest logs of backends, since each upgrade makes one, and that of the running one: a backend that serves for
/// weeks without a word has the oldest.
fn prune_logs(directory: &Path, running: Option<&Path>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let mut logs: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter(|entry| Some(entry.path().as_path()) != running)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort_unstable();
    let surplus = logs.len().saturating_sub(MAX_LOGS);
    for (_, path) in logs.into_iter().take(surplus) {
        // One that cannot be removed now can be next time.
        let _ = fs::remove_file(path);
    }
}

const PREFIX: &str = "backend-";
/// Logs of backends that are kept, rotated ones included: those of the upgrades that one may still want to understand.
const MAX_LOGS: usize = 32;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_newest_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..MAX_LOGS as u64 + 3 {
            let file = fs::File::create(dir.path().join(format!("backend-{n}.log"))).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(n);
            file.set_modified(at).unwrap();
        }
        fs::write(dir.path().join("frontend.log"), "").unwrap();
        let serving = dir.path().join("backend-0.log");
        prune_logs(dir.path(), Some(&serving));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_LOGS + 2);
        assert!(serving.exists(), "the oldest, and in use");
        assert!(!dir.path().join("backend-2.log").exists());
        assert!(dir.path().join("backend-3.log").exists());
    }

    #[tokio::test]
    async fn each_backend_has_its_name_socket_and_log() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        fs::write(layout.backend_config(), "drain_grace = \"2s\"").unwrap();
        let api = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let mut backends = Backends::new(layout, api);
        let program = std::env::current_exe().unwrap();
        assert!(backends.make(Path::new("/nowhere"), None).await.is_err());
        let first = backends.make(&program, None).await.unwrap();
        let second = backends.make(&program, Some(&first)).await.unwrap();
        assert_eq!((first.name(), second.name()), ("backend-1", "backend-2"));
        assert!(second.socket.ends_with("control/backend-2.sock"));
        assert!(second.spec.log.path().ends_with("logs/backend-2.log"));
        assert!(second.spec.grace.now() > Duration::from_secs(2));
        let standby = second.standby().arguments;
        assert!(standby.ends_with(&["--name".into(), "backend-2".into(), "--share".into(), "0%".into()]));
        assert!(!second.spec.arguments.contains(&"--share".into()));
    }
}
