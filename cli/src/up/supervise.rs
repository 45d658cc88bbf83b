//! Keeps one process running until told to stop.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::process::Child;
use tokio::sync::{mpsc, watch};

use super::child::{self, Spec};
use super::ready;
use super::restart::Restarts;
use crate::http_client::Http;

/// What `up` wants of its processes. Only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    Run,
    Stop,
    /// Without the grace.
    Kill,
}

/// What became of a process.
#[derive(Debug)]
pub(super) enum Event {
    Ready {
        name: &'static str,
        pid: u32,
        restarts: u32,
    },
    /// It ended, or was never ready, before its first readiness: it is not started again.
    Failed { what: String, log_tail: Vec<String> },
}

pub(super) struct Keeper {
    pub(super) spec: Spec,
    pub(super) http: Http,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) wish: watch::Receiver<Wish>,
}

/// How one life of the process ended.
enum Ended {
    ByWish,
    Exited(String),
}

impl Keeper {
    /// Returns when it was stopped, or failed before its first readiness.
    pub(super) async fn run(mut self) {
        let mut restarts = Restarts::default();
        let mut was_ready = false;
        loop {
            let started = Instant::now();
            let ended = match self.spec.spawn() {
                Ok(child) => self.live(child, &mut was_ready, restarts.total()).await,
                Err(error) => Ended::Exited(format!("{error:#}")),
            };
            let what = match ended {
                Ended::ByWish => return,
                Ended::Exited(what) => what,
            };
            self.spec.note(&what);
            if !was_ready {
                let log_tail = self.spec.log_tail();
                return self.tell(Event::Failed { what, log_tail }).await;
            }
            let delay = restarts.handle_exit(started.elapsed());
            let name = self.spec.name;
            eprintln!("holdfast: {what}; starting the {name} again {}", when(delay));
            tokio::select! {
                () = wished(&mut self.wish, Wish::Stop) => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn live(&mut self, mut child: Child, was_ready: &mut bool, restarts: u32) -> Ended {
        let pid = child.id().unwrap_or_default();
        let name = self.spec.name;
        let mut wish = self.wish.clone();
        let readiness = tokio::select! {
            status = child.wait() => return exited(name, pid, status),
            () = wished(&mut wish, Wish::Stop) => return self.end(&mut child).await,
            readiness = ready::wait(&self.http, &self.spec.ready_url) => readiness,
        };
        match readiness {
            Ok(()) => *was_ready = true,
            Err(error) if !*was_ready => {
                self.end(&mut child).await;
                return Ended::Exited(format!("the {name} did not get ready: {error:#}"));
            }
            Err(error) => eprintln!("holdfast: the {name} (pid {pid}) runs, but is not ready: {error:#}"),
        }
        self.tell(Event::Ready { name, pid, restarts }).await;
        tokio::select! {
            status = child.wait() => exited(name, pid, status),
            () = wished(&mut wish, Wish::Stop) => self.end(&mut child).await,
        }
    }

    async fn end(&mut self, child: &mut Child) -> Ended {
        let hurry = wished(&mut self.wish, Wish::Kill);
        match child::stop(child, self.spec.grace, hurry).await {
            Ok(status) if status.success() => {}
            Ok(status) => {
                let what = format!("the {} ended with {status} when it was stopped", self.spec.name);
                self.spec.note(&what);
                eprintln!("holdfast: {what}");
            }
            Err(error) => eprintln!("holdfast: cannot stop the {}: {error}", self.spec.name),
        }
        Ended::ByWish
    }

    async fn tell(&self, event: Event) {
        // The receiver lives as long as `up`; without it there is nobody to tell.
        let _ = self.events.send(event).await;
    }
}

fn exited(name: &str, pid: u32, status: std::io::Result<ExitStatus>) -> Ended {
    Ended::Exited(match status {
        Ok(status) => format!("the {name} (pid {pid}) ended with {status}"),
        Err(error) => format!("the {name} (pid {pid}) was lost: {error}"),
    })
}

fn when(delay: Duration) -> String {
    if delay.is_zero() {
        "now".into()
    } else {
        format!("in {delay:?}")
    }
}

/// Waits until at least `wanted` is wished; for ever if nobody can wish any more.
async fn wished(wish: &mut watch::Receiver<Wish>, wanted: Wish) {
    if wish.wait_for(|wish| *wish >= wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}
