//! Keeps one process running until told to stop.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::StopSignals;
use super::child::{self, Spec, Stopped};
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
        name: String,
        pid: u32,
        restarts: u32,
    },
    /// It ended, or was never ready, before its first readiness: it is not started again.
    Failed {
        what: String,
        log_tail: Vec<String>,
    },
}

/// Where supervisors tell of their processes.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) http: Http,
    pub(super) events: mpsc::Sender<Event>,
}

/// A process under supervision.
pub(super) struct Kept {
    wish: watch::Sender<Wish>,
    task: JoinHandle<Option<Stopped>>,
}

impl Kept {
    /// Starts it.
    pub(super) fn start(spec: Spec, context: &Context) -> Self {
        Self::keep(spec, context, None)
    }

    /// Goes on with one that runs and has been ready.
    pub(super) fn adopt(spec: Spec, child: Child, context: &Context) -> Self {
        Self::keep(spec, context, Some(child))
    }

    fn keep(spec: Spec, context: &Context, running: Option<Child>) -> Self {
        let (wish, receiver) = watch::channel(Wish::Run);
        let keeper = Keeper {
            spec,
            context: context.clone(),
            wish: receiver,
        };
        Self {
            wish,
            task: tokio::spawn(keeper.run(running)),
        }
    }

    /// Asks for its end, or for a quicker one.
    pub(super) fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|present| {
            let further = wish > *present;
            *present = wish.max(*present);
            further
        });
    }

    /// Waits for the end that was wished; `None` if it was not running then. May be dropped and called again until it
    /// has answered.
    pub(super) async fn ended(&mut self) -> Option<Stopped> {
        // A panic of the task has dropped its child, which kills it.
        (&mut self.task).await.unwrap_or_default()
    }

    /// Stops it; a second signal ends the waiting.
    pub(super) async fn stop(&mut self, stop: &mut StopSignals) {
        self.wish(Wish::Stop);
        tokio::select! {
            _ = self.ended() => return,
            () = stop.next() => {}
        }
        say!("holdfast: stopping without waiting");
        self.wish(Wish::Kill);
        self.ended().await;
    }
}

struct Keeper {
    spec: Spec,
    context: Context,
    wish: watch::Receiver<Wish>,
}

/// How one life of the process ended.
enum Ended {
    ByWish(Option<Stopped>),
    Exited(String),
}

impl Keeper {
    /// Returns when it was stopped, or failed before its first readiness.
    async fn run(mut self, mut running: Option<Child>) -> Option<Stopped> {
        let mut restarts = Restarts::default();
        let mut was_ready = running.is_some();
        loop {
            let started = Instant::now();
            let ended = match running.take() {
                Some(child) => self.serve(child).await,
                None => match self.spec.spawn() {
                    Ok(child) => self.live(child, &mut was_ready, restarts.total()).await,
                    Err(error) => Ended::Exited(format!("{error:#}")),
                },
            };
            let what = match ended {
                Ended::ByWish(stopped) => return stopped,
                Ended::Exited(what) => what,
            };
            self.spec.note(&what);
            if !was_ready {
                let log_tail = self.spec.log_tail();
                self.tell(Event::Failed { what, log_tail }).await;
                return None;
            }
            let delay = restarts.handle_exit(started.elapsed());
            let name = &self.spec.name;
            say!("holdfast: {what}; starting the {name} again {}", when(delay));
            tokio::select! {
                () = wished(&mut self.wish, Wish::Stop) => return None,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn live(&mut self, mut child: Child, was_ready: &mut bool, restarts: u32) -> Ended {
        let pid = child.id().unwrap_or_default();
        let name = self.spec.name.clone();
        let mut wish = self.wish.clone();
        let readiness = tokio::select! {
            status = child.wait() => return Ended::Exited(exited(&name, pid, status)),
            () = wished(&mut wish, Wish::Stop) => return self.end(&mut child).await,
            readiness = ready::wait(&self.context.http, &self.spec.probe) => readiness,
        };
        match readiness {
            Ok(()) => *was_ready = true,
            Err(error) if !*was_ready => {
                self.end(&mut child).await;
                return Ended::Exited(format!("the {name} did not get ready: {error:#}"));
            }
            Err(error) => say!("holdfast: the {name} (pid {pid}) runs, but is not ready: {error:#}"),
        }
        self.tell(Event::Ready { name, pid, restarts }).await;
        self.serve(child).await
    }

    async fn serve(&mut self, mut child: Child) -> Ended {
        let pid = child.id().unwrap_or_default();
        let mut wish = self.wish.clone();
        tokio::select! {
            status = child.wait() => Ended::Exited(exited(&self.spec.name, pid, status)),
            () = wished(&mut wish, Wish::Stop) => self.end(&mut child).await,
        }
    }

    async fn end(&mut self, child: &mut Child) -> Ended {
        let hurry = wished(&mut self.wish, Wish::Kill);
        let name = &self.spec.name;
        match child::stop(child, self.spec.grace, hurry).await {
            Ok(stopped) => {
                if !stopped.status.success() {
                    let what = format!("the {name} ended with {} when it was stopped", stopped.status);
                    self.spec.note(&what);
                    say!("holdfast: {what}");
                }
                Ended::ByWish(Some(stopped))
            }
            Err(error) => {
                say!("holdfast: cannot stop the {name}: {error}");
                Ended::ByWish(None)
            }
        }
    }

    async fn tell(&self, event: Event) {
        // The receiver lives as long as `up`; without it there is nobody to tell.
        let _ = self.context.events.send(event).await;
    }
}

/// What is told of a process that ended by itself.
pub(super) fn exited(name: &str, pid: u32, status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("the {name} (pid {pid}) ended with {status}"),
        Err(error) => format!("the {name} (pid {pid}) was lost: {error}"),
    }
}

fn when(delay: Duration) -> String {
    if delay.is_zero() {
        "now".into()
    } else {
        format!("in {delay:?}")
    }
}

/// Waits until at least `wanted` is wished; for ever if nobody can wish any more.
pub(super) async fn wished(wish: &mut watch::Receiver<Wish>, wanted: Wish) {
    if wish.wait_for(|wish| *wish >= wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}
