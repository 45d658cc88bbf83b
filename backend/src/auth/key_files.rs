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
use tracing::{error, info};

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
    master: Gauge,
    denied: Gauge,
}

const MASTER: FileLabels = FileLabels { file: "master" };
const DENY: FileLabels = FileLabels { file: "deny" };

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
        registry.register("master_keys", "Master keys in force", metrics.master.clone());
        registry.register(
            "denied_devices",
            "Devices of which all keys or some are not admitted",
            metrics.denied.clone(),
        );
        metrics
    }
}

/// Watches the file of master keys and that of denied devices, where they are configured.
pub struct KeyFiles {
    master: Option<WatchedFile>,
    deny: Option<WatchedFile>,
    keys: Arc<ArcSwap<MasterKeys>>,
    denied: Arc<ArcSwap<DenyList>>,
    metrics: KeyMetrics,
}

impl KeyFiles {
    /// Reads the files for the first time; now an error is an error.
    pub fn start(
        master: Option<&Path>,
        deny: Option<&Path>,
        metrics: KeyMetrics,
    ) -> Result<Self, ConfigError> {
        let (mut keys, mut denied) = (MasterKeys::default(), DenyList::default());
        let master = match master {
            Some(path) => {
                secrets::warn_if_world_readable(path);
                let (file, text) = WatchedFile::open(path)?;
                keys = MasterKeys::parse(path, &text)?;
                Some(file)
            }
            None => None,
        };
        let deny = match deny {
            Some(path) => {
                let (file, text) = WatchedFile::open(path)?;
                denied = parse_deny(path, &text)?;
                Some(file)
            }
            None => None,
        };
        metrics.master.set(keys.len() as i64);
        metrics.denied.set(denied.len() as i64);
        Ok(Self {
            master,
            deny,
            keys: Arc::new(ArcSwap::from_pointee(keys)),
            denied: Arc::new(ArcSwap::from_pointee(denied)),
            metrics,
        })
    }

    /// What is in force at any time.
    pub fn keys(&self) -> Arc<ArcSwap<MasterKeys>> {
        self.keys.clone()
    }

    /// What is in force at any time.
    pub fn denied(&self) -> Arc<ArcSwap<DenyList>> {
        self.denied.clone()
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
        let Some(file) = &mut self.master else {
            return Poll::Unchanged;
        };
        let read = match file.look() {
            Look::Unchanged => return Poll::Unchanged,
            Look::Settling => return Poll::Settling,
            Look::Changed(read) => read,
        };
        secrets::warn_if_world_readable(file.path());
        match read.and_then(|text| MasterKeys::parse(file.path(), &text)) {
            Ok(keys) => {
                info!(keys = keys.len(), "master keys reloaded");
                self.metrics.reloads.get_or_create(&MASTER).inc();
                self.metrics.master.set(keys.len() as i64);
                self.keys.store(Arc::new(keys));
                Poll::Applied
            }
            Err(error) => {
                error!(%error, "the changed master keys cannot be used; the ones before stay in force");
                self.metrics.refused.get_or_create(&MASTER).inc();
                Poll::Refused
            }
        }
    }

    /// Looks once at the denied devices.
    pub fn poll_deny(&mut self) -> Poll {
        let Some(file) = &mut self.deny else {
            return Poll::Unchanged;
        };
        let read = match file.look() {
            Look::Unchanged => return Poll::Unchanged,
            Look::Settling => return Poll::Settling,
            Look::Changed(read) => read,
        };
        match read.and_then(|text| parse_deny(file.path(), &text)) {
            Ok(denied) => {
                info!(devices = denied.len(), "denied devices reloaded");
                self.metrics.reloads.get_or_create(&DENY).inc();
                self.metrics.denied.set(denied.len() as i64);
                self.denied.store(Arc::new(denied));
                Poll::Applied
            }
            Err(error) => {
                error!(%error, "the changed list of denied devices cannot be used; the one before stays in force");
                self.metrics.refused.get_or_create(&DENY).inc();
                Poll::Refused
            }
        }
    }
}

fn parse_deny(path: &Path, text: &str) -> Result<DenyList, ConfigError> {
    DenyList::parse(text).map_err(|message| ConfigError::Parse {
        path: path.to_owned(),
        message,
    })
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
        assert!(s.counts("device_key_reloads_total{file=\"master\"} 1") && s.counts("master_keys 2"));
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
        assert!(denied.load().is_empty() && s.counts("denied_devices 0"));
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
