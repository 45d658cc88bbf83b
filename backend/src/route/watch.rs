//! Reads `routes.toml` again when it changed, and publishes each new table.
//!
//! The file is read once a second and compared by its hash: it is small, and a time stamp can miss a change. A change is
//! applied when two reads in a row agree, so that a file that is just being written is not taken half. A bad file is logged
//! once and counted, and the table in force stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::{error, info};

use super::RouteTable;
use crate::config::{ConfigError, secrets};

/// Time between two looks at the file.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a changed file is read again, to see whether it is complete.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// Counts reloads. Clones share their numbers.
#[derive(Debug, Clone, Default)]
pub struct RouteMetrics {
    reloads: Counter,
    refused: Counter,
    routes: Gauge,
}

impl RouteMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "route_reloads",
            "Changed route files that were applied",
            metrics.reloads.clone(),
        );
        registry.register(
            "route_reloads_refused",
            "Changed route files that were not usable",
            metrics.refused.clone(),
        );
        registry.register("routes", "Routes in force", metrics.routes.clone());
        metrics
    }
}

/// What one look at the file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    Unchanged,
    /// It changed; the next look tells whether it is complete.
    Settling,
    /// A new table was published.
    Applied,
    /// It cannot be used; the table in force stays.
    Refused,
}

/// Watches one file.
pub struct RouteWatcher {
    path: PathBuf,
    metrics: RouteMetrics,
    tables: watch::Sender<Arc<RouteTable>>,
    /// The last content that was judged.
    judged: Content,
    /// A content seen once.
    settling: Option<Content>,
}

/// The hash of a file's text; `None` when it cannot be read.
type Content = Option<[u8; 32]>;

impl RouteWatcher {
    /// Reads the file for the first time; now an error is an error.
    pub fn start(
        path: &Path,
        metrics: RouteMetrics,
    ) -> Result<(Self, watch::Receiver<Arc<RouteTable>>), ConfigError> {
        let text = secrets::read_text(path)?;
        let table = parse(path, &text)?;
        metrics.routes.set(table.routes().len() as i64);
        let (tables, receiver) = watch::channel(Arc::new(table));
        let watcher = Self {
            path: path.to_owned(),
            metrics,
            tables,
            judged: Some(hash(&text)),
            settling: None,
        };
        Ok((watcher, receiver))
    }

    /// Watches until the last receiver is gone.
    pub async fn run(mut self) {
        let mut pause = POLL_INTERVAL;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.tables.closed() => return,
            }
            pause = if self.poll_once() == Poll::Settling {
                SETTLE_INTERVAL
            } else {
                POLL_INTERVAL
            };
        }
    }

    /// Looks once. Reads the file in place: it is local and at most a mebibyte.
    pub fn poll_once(&mut self) -> Poll {
        let read = secrets::read_text(&self.path);
        let content = read.as_ref().ok().map(|text| hash(text));
        if content == self.judged {
            self.settling = None;
            return Poll::Unchanged;
        }
        if self.settling != Some(content) {
            self.settling = Some(content);
            return Poll::Settling;
        }
        self.settling = None;
        self.judged = content;
        self.apply(read.and_then(|text| parse(&self.path, &text)))
    }

    fn apply(&self, table: Result<RouteTable, ConfigError>) -> Poll {
        match table {
            Ok(table) => {
                info!(routes = table.routes().len(), "routes reloaded");
                self.metrics.reloads.inc();
                self.metrics.routes.set(table.routes().len() as i64);
                self.tables.send_replace(Arc::new(table));
                Poll::Applied
            }
            Err(error) => {
                error!(%error, "the changed routes cannot be used; the ones before stay in force");
                self.metrics.refused.inc();
                Poll::Refused
            }
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<RouteTable, ConfigError> {
    RouteTable::parse(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[route]]\nnamespace = \"A\"\nname = \"*\"\nurl = \"http://h/\"\n";
    const OTHER: &str = "[[route]]\nnamespace = \"B\"\nname = \"*\"\nurl = \"http://h/\"\n";

    struct Setup {
        _dir: tempfile::TempDir,
        path: PathBuf,
        metrics: RouteMetrics,
        watcher: RouteWatcher,
        tables: watch::Receiver<Arc<RouteTable>>,
    }

    fn setup() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routes.toml");
        std::fs::write(&path, ONE).unwrap();
        let metrics = RouteMetrics::default();
        let (watcher, tables) = RouteWatcher::start(&path, metrics.clone()).unwrap();
        Setup {
            _dir: dir,
            path,
            metrics,
            watcher,
            tables,
        }
    }

    #[test]
    fn a_change_is_applied_when_it_has_settled() {
        let mut s = setup();
        assert_eq!(s.watcher.poll_once(), Poll::Unchanged);
        std::fs::write(&s.path, "").unwrap();
        assert_eq!(s.watcher.poll_once(), Poll::Settling);
        std::fs::write(&s.path, OTHER).unwrap();
        assert_eq!(s.watcher.poll_once(), Poll::Settling);
        assert!(!s.tables.has_changed().unwrap());
        assert_eq!(s.watcher.poll_once(), Poll::Applied);
        assert!(s.tables.borrow_and_update().lookup("B", "x").is_some());
        assert_eq!(s.watcher.poll_once(), Poll::Unchanged);
        assert_eq!(s.metrics.reloads.get(), 1);
    }

    #[test]
    fn a_bad_or_missing_file_leaves_the_table_and_is_counted_once() {
        let mut s = setup();
        std::fs::write(&s.path, "nonsense").unwrap();
        assert_eq!(
            [s.watcher.poll_once(), s.watcher.poll_once()],
            [Poll::Settling, Poll::Refused]
        );
        assert_eq!(s.watcher.poll_once(), Poll::Unchanged);
        std::fs::remove_file(&s.path).unwrap();
        assert_eq!(
            [s.watcher.poll_once(), s.watcher.poll_once()],
            [Poll::Settling, Poll::Refused]
        );
        assert_eq!(s.watcher.poll_once(), Poll::Unchanged);
        assert_eq!((s.metrics.refused.get(), s.metrics.reloads.get()), (2, 0));
        assert!(s.tables.borrow().lookup("A", "x").is_some());
        std::fs::write(&s.path, OTHER).unwrap();
        assert_eq!(
            [s.watcher.poll_once(), s.watcher.poll_once()],
            [Poll::Settling, Poll::Applied]
        );
    }

    #[test]
    fn a_bad_file_at_the_start_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routes.toml");
        assert!(RouteWatcher::start(&path, RouteMetrics::default()).is_err());
        std::fs::write(&path, "[[route]]\nnamespace = 1").unwrap();
        let error = RouteWatcher::start(&path, RouteMetrics::default())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("routes.toml: line 2"), "{error}");
    }

    #[tokio::test]
    async fn it_watches_until_nobody_listens() {
        let mut s = setup();
        let task = tokio::spawn(s.watcher.run());
        std::fs::write(&s.path, OTHER).unwrap();
        s.tables.changed().await.unwrap();
        assert!(s.tables.borrow().lookup("B", "x").is_some());
        drop(s.tables);
        task.await.unwrap();
    }
}
