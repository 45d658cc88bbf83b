//! The files that say which device keys count: read at the start, and again when they change. Devices that are connected do not
//! notice.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::{error, info, warn};

use super::{DenyList, MasterKeys};
use crate::config::watch::{Look, POLL_INTERVAL, Poll, SETTLE_INTERVAL, WatchedFile};
use crate::config::{ConfigError, secrets};

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FileLabels {
    file: &'static str,
}

/// What is in force, and how often it changed. Clones share their numbers.
#[derive(Debug, Clone, Default)]
pub struct KeyMetrics {
    reloads: Family<FileLabels, Counter>,
    refused: Family<FileLabels, Counter>,
    entries: Family<FileLabels, Gauge>,
}

impl KeyMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "device_key_reloads",
            "Changed files of master keys and denied devices that were applied",
            metrics.reloads.clone(),
        );
        registry.register(
            "device_key_reloads_refused",
            "Changed files of master keys and denied devices that were not usable",
            metrics.refused.clone(),
        );
        registry.register(
            "device_key_entries",
            "Master keys, and devices of which all keys or some are denied, in force",
            metrics.entries.clone(),
        );
        metrics
    }
}

/// Watches the file of master keys and that of denied devices, where they are configured.
pub struct KeyFiles {
    master: KeyFile<MasterKeys>,
    deny: KeyFile<DenyList>,
    metrics: KeyMetrics,
}

impl KeyFiles {
    /// Reads the files for the first time; now an error is an error.
    pub fn start(
        master: Option<&Path>,
        deny: Option<&Path>,
        metrics: KeyMetrics,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            master: KeyFile::open(master, &metrics)?,
            deny: KeyFile::open(deny, &metrics)?,
            metrics,
        })
    }

    /// What is in force at any time.
    pub fn keys(&self) -> Arc<ArcSwap<MasterKeys>> {
        self.master.in_force.clone()
    }

    /// What is in force at any time.
    pub fn denied(&self) -> Arc<ArcSwap<DenyList>> {
        self.deny.in_force.clone()
    }

    /// Watches for as long as it is polled.
    pub async fn run(mut self) {
        let mut pause = POLL_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            let polls = [self.poll_master(), self.poll_deny()];
            pause = if polls.contains(&Poll::Settling) {
                SETTLE_INTERVAL
            } else {
                POLL_INTERVAL
            };
        }
    }

    /// Looks once at the master keys.
    pub fn poll_master(&mut self) -> Poll {
        self.master.poll(&self.metrics)
    }

    /// Looks once at the denied devices.
    pub fn poll_deny(&mut self) -> Poll {
        self.deny.poll(&self.metrics)
    }
}

/// What a file may hold. Without a file there is the default.
trait Contents: Default {
    const LABEL: FileLabels;
    const WHAT: &'static str;
    const IS_SECRET: bool;

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError>;
    fn count(&self) -> usize;
}

impl Contents for MasterKeys {
    const LABEL: FileLabels = FileLabels { file: "master" };
    const WHAT: &'static str = "master keys";
    const IS_SECRET: bool = true;

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse(path, text)
    }

    fn count(&self) -> usize {
        self.len()
    }
}

impl Contents for DenyList {
    const LABEL: FileLabels = FileLabels { file: "deny" };
    const WHAT: &'static str = "denied devices";
    const IS_SECRET: bool = false;

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse(text).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })
    }

    fn count(&self) -> usize {
        self.len()
    }
}

/// One file, and what of it is in force.
struct KeyFile<T> {
    file: Option<WatchedFile>,
    in_force: Arc<ArcSwap<T>>,
}

impl<T: Contents> KeyFile<T> {
    fn open(path: Option<&Path>, metrics: &KeyMetrics) -> Result<Self, ConfigError> {
        let (mut file, mut contents) = (None, T::default());
        if let Some(path) = path {
            check::<T>(path)?;
            let (watched, text) = WatchedFile::open(path)?;
            contents = T::parse(path, &text)?;
            file = Some(watched);
        }
        metrics
            .entries
            .get_or_create(&T::LABEL)
            .set(contents.count() as i64);
        Ok(Self {
            file,
            in_force: Arc::new(ArcSwap::from_pointee(contents)),
        })
    }

    fn poll(&mut self, metrics: &KeyMetrics) -> Poll {
        let Some(file) = &mut self.file else {
            return Poll::Unchanged;
        };
        let read = match file.look(|path| judge::<T>(path).map(drop)) {
            Look::Unchanged => return Poll::Unchanged,
            Look::Settling => return Poll::Settling,
            Look::Changed(read) => read,
        };
        let checked = read.and_then(|text| check::<T>(file.path()).map(|()| text));
        match checked.and_then(|text| T::parse(file.path(), &text)) {
            Ok(contents) => {
                let count = contents.count();
                info!(count, "{} reloaded", T::WHAT);
                metrics.reloads.get_or_create(&T::LABEL).inc();
                metrics.entries.get_or_create(&T::LABEL).set(count as i64);
                self.in_force.store(Arc::new(contents));
                Poll::Applied
            }
            Err(error) => {
                error!(%error, "the changed {} cannot be used; those before stay in force", T::WHAT);
                metrics.refused.get_or_create(&T::LABEL).inc();
                Poll::Refused
            }
        }
    }
}

fn check<T: Contents>(path: &Path) -> Result<(), ConfigError> {
    if let Some(warning) = judge::<T>(path)? {
        warn!(path = %path.display(), "{warning}");
    }
    Ok(())
}

/// Whether the file may be used; with what is to be warned of.
fn judge<T: Contents>(path: &Path) -> Result<Option<String>, ConfigError> {
    match T::IS_SECRET {
        true => secrets::judge_secret(path),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{new_registry, render};
    use holdfast_proto::secure::MasterKey;

    struct Setup {
        dir: tempfile::TempDir,
        registry: Registry,
        files: KeyFiles,
    }

    impl Setup {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut registry = new_registry();
            let metrics = KeyMetrics::register(&mut registry);
            let (master, deny) = (dir.path().join("master.toml"), dir.path().join("deny"));
            std::fs::write(&master, master_file(&["k1"])).unwrap();
            std::fs::write(&deny, "lamp\n").unwrap();
            let files = KeyFiles::start(Some(&master), Some(&deny), metrics).unwrap();
            Self { dir, registry, files }
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn counts(&self, line: &str) -> bool {
            render(&self.registry).contains(&format!("holdfast_backend_{line}\n"))
        }
    }

    fn master_file(ids: &[&str]) -> String {
        let line = |(i, id): (usize, &&str)| {
            let key = MasterKey::from_bytes(&[i as u8 + 1; 32]).unwrap().to_text();
            format!("{id} = \"{key}\"\n")
        };
        format!("[keys]\n{}", ids.iter().enumerate().map(line).collect::<String>())
    }

    #[test]
    fn changed_keys_are_applied_when_they_have_settled() {
        let mut s = Setup::new();
        let keys = s.files.keys();
        assert_eq!((s.files.poll_master(), keys.load().len()), (Poll::Unchanged, 1));
        s.write("master.toml", &master_file(&["k1", "k2"]));
        assert_eq!((s.files.poll_master(), keys.load().len()), (Poll::Settling, 1));
        assert_eq!((s.files.poll_master(), keys.load().len()), (Poll::Applied, 2));
        assert_eq!(s.files.poll_deny(), Poll::Unchanged);
        assert!(
            s.counts("device_key_reloads_total{file=\"master\"} 1")
                && s.counts("device_key_entries{file=\"master\"} 2")
        );
    }

    #[test]
    fn bad_files_leave_what_is_in_force() {
        let mut s = Setup::new();
        let (keys, denied) = (s.files.keys(), s.files.denied());
        for bad in ["", "[keys]\nk1 = \"short\"\n"] {
            s.write("master.toml", bad);
            assert_eq!(
                [s.files.poll_master(), s.files.poll_master()],
                [Poll::Settling, Poll::Refused]
            );
            assert_eq!(s.files.poll_master(), Poll::Unchanged, "said once");
        }
        s.write("deny", "lamp\nno device\n");
        assert_eq!(
            [s.files.poll_deny(), s.files.poll_deny()],
            [Poll::Settling, Poll::Refused]
        );
        std::fs::remove_file(s.dir.path().join("deny")).unwrap();
        assert_eq!(
            [s.files.poll_deny(), s.files.poll_deny()],
            [Poll::Settling, Poll::Refused]
        );
        assert_eq!((keys.load().len(), denied.load().len()), (1, 1));
        assert!(s.counts("device_key_reloads_refused_total{file=\"master\"} 2"));
        assert!(s.counts("device_key_reloads_refused_total{file=\"deny\"} 2"));
        s.write("deny", "");
        assert_eq!(
            [s.files.poll_deny(), s.files.poll_deny()],
            [Poll::Settling, Poll::Applied]
        );
        assert!(denied.load().is_empty() && s.counts("device_key_entries{file=\"deny\"} 0"));
    }

    #[test]
    fn keys_that_others_can_write_are_refused_until_they_cannot() {
        use std::fs::Permissions;
        use std::os::unix::fs::PermissionsExt as _;
        let mut s = Setup::new();
        let path = s.dir.path().join("master.toml");
        let allow = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        // With the same text, and with another one.
        for (ids, applied) in [(&["k1"][..], 1), (&["k1", "k2"], 2)] {
            allow(0o666);
            s.write("master.toml", &master_file(ids));
            let looks: Vec<_> = (0..3).map(|_| s.files.poll_master()).collect();
            assert_eq!(looks, [Poll::Settling, Poll::Refused, Poll::Unchanged]);
            allow(0o600);
            assert_eq!(
                [s.files.poll_master(), s.files.poll_master()],
                [Poll::Settling, Poll::Applied]
            );
            assert_eq!(s.files.keys().load().len(), applied);
        }
    }

    #[test]
    fn bad_files_at_the_start_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let start = |master, deny| {
            let error = KeyFiles::start(master, deny, KeyMetrics::default()).err();
            error.map(|e| e.to_string())
        };
        assert!(start(Some(&path), None).unwrap().contains("/f: "));
        std::fs::write(&path, "a\nb c\n").unwrap();
        assert!(start(Some(&path), None).unwrap().contains("[keys]"));
        assert!(start(None, Some(&path)).unwrap().contains("line 2"));
        assert_eq!(start(None, None), None);
    }

    #[tokio::test]
    async fn it_watches() {
        let s = Setup::new();
        let denied = s.files.denied();
        s.write("deny", "a\nb\n");
        let watching = tokio::spawn(s.files.run());
        while denied.load().len() != 2 {
            tokio::task::yield_now().await;
        }
        watching.abort();
    }
}
