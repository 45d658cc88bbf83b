//! Reads `routes.toml` again when it changed, and publishes each new table.
//!
//! A bad file is logged once and counted, and the table in force stays.

use std::path::Path;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{error, info};

use super::RouteTable;
use crate::config::ConfigError;
use crate::config::watch::{Look, POLL_INTERVAL, SETTLE_INTERVAL, WatchedFile};

pub use crate::config::watch::Poll;

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

/// Watches one file.
pub struct RouteWatcher {
    file: WatchedFile,
    metrics: RouteMetrics,
    tables: watch::Sender<Arc<RouteTable>>,
}

impl RouteWatcher {
    /// Reads the file for the first time; now an error is an error.
    pub fn start(
        path: &Path,
        metrics: RouteMetrics,
    ) -> Result<(Self, watch::Receiver<Arc<RouteTable>>), ConfigError> {
        let (file, text) = WatchedFile::open(path)?;
        let table = parse(path, &text)?;
        metrics.routes.set(table.routes().len() as i64);
        let (tables, receiver) = watch::channel(Arc::new(table));
        let watcher = Self {
            file,
            metrics,
            tables,
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

    /// Looks once.
    pub fn poll_once(&mut self) -> Poll {
        match self.file.look(|_| Ok(())) {
            Look::Unchanged => Poll::Unchanged,
            Look::Settling => Poll::Settling,
            Look::Changed(read) => self.apply(read.and_then(|text| parse(self.file.path(), &text))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
