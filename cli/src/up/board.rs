//! Keeps `up.json` true without ever waiting for the disk: that may take seconds for a write, and a backend that ends
//! meanwhile must be started again at once.

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::layout::Layout;
use crate::up_json::UpJson;

/// Writes one after the other. Of those that wait only the last one counts.
pub(super) struct Board {
    layout: Layout,
    writing: Option<JoinHandle<Result<()>>>,
    next: Option<UpJson>,
    asked: u64,
    /// The last one that was written, or could not be.
    done: watch::Sender<u64>,
}

/// Tells when something that was to be written has been.
pub(super) struct Published {
    wanted: u64,
    done: watch::Receiver<u64>,
}

impl Board {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            writing: None,
            next: None,
            asked: 0,
            done: watch::channel(0).0,
        }
    }

    pub(super) fn write(&mut self, text: UpJson) -> Published {
        self.asked += 1;
        if self.writing.is_some() {
            self.next = Some(text);
        } else {
            self.start(text);
        }
        Published {
            wanted: self.asked,
            done: self.done.subscribe(),
        }
    }

    /// How the next write went; never anything while there is none. May be dropped and called again.
    pub(super) async fn written(&mut self) -> Result<()> {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let result = writing.await;
        self.writing = None;
        if let Some(next) = self.next.take() {
            self.start(next);
        }
        result.context("writing up.json")?
    }

    /// Waits until nothing is being written any more.
    pub(super) async fn finish(&mut self) {
        self.next = None;
        if let Some(writing) = self.writing.take() {
            // What is removed next need not be true.
            let _ = writing.await;
        }
    }

    fn start(&mut self, text: UpJson) {
        let (layout, done, number) = (self.layout.clone(), self.done.clone(), self.asked);
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let result = text.write(&layout);
            done.send_replace(number);
            result
        }));
    }
}

impl Published {
    pub(super) async fn wait(mut self) {
        // Without a board there is nothing to wait for.
        let _ = self.done.wait_for(|done| *done >= self.wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_one_is_what_stays_and_each_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let mut board = Board::new(layout.clone());
        let mut last = None;
        for pid in 1..=5 {
            let text = UpJson {
                backend_pid: pid,
                ..UpJson::default()
            };
            last = Some(board.write(text));
        }
        // Nobody has looked after the board yet: the first one was written, the last one waits.
        board.written().await.unwrap();
        last.unwrap().wait().await;
        assert_eq!(UpJson::read_unchecked(dir.path()).unwrap().backend_pid, 5);
        board.written().await.unwrap();
        board.finish().await;
    }

    #[tokio::test]
    async fn a_write_that_fails_is_told_and_waited_for_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = Board::new(Layout::new(&dir.path().join("gone")).unwrap());
        let published = board.write(UpJson::default());
        published.wait().await;
        assert!(board.written().await.is_err());
    }
}
