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

/// A process under supervision. Dropping it tells the process to stop.
pub(super) struct Kept {
    wish: watch::Sender<Wish>,
    /// None once its end was told.
    task: Option<JoinHandle<Option<Stopped>>>,
    deaths: watch::Receiver<Deaths>,
}

/// How often a process has ended that nobody told to, and how it was the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Deaths {
    pub(super) count: u32,
    pub(super) last: String,
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
        let (died, deaths) = watch::channel(Deaths::default());
        let keeper = Keeper {
            spec,
            context: context.clone(),
            wish: receiver,
            died,
        };
        Self {
            wish,
            task: Some(tokio::spawn(keeper.run(running))),
            deaths,
        }
    }

    /// Tells of each of its ends that nobody wished.
    pub(super) fn deaths(&self) -> watch::Receiver<Deaths> {
        self.deaths.clone()
    }

    /// Asks for its end, or for a quicker one.
    pub(super) fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|present| {
            let further = wish > *present;
            *present = wish.max(*present);
            further
        });
    }

    /// Waits for the end of the supervision: the one that was wished, or, without a wish, that it failed. `None` if the
    /// process was not running then, and when asked again. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Option<Stopped> {
        let task = self.task.as_mut()?;
        let ended = task.await;
        self.task = None;
        // A panic of the task has dropped its child, which kills it.
        ended.unwrap_or_else(|error| {
            say!("holdfast: a supervisor's task failed: {error}");
            None
        })
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

impl Drop for Kept {
    /// Whoever forgets about it must not leave a process that nobody can stop any more.
    fn drop(&mut self) {
        self.wish(Wish::Stop);
    }
}

struct Keeper {
    spec: Spec,
    context: Context,
    wish: watch::Receiver<Wish>,
    died: watch::Sender<Deaths>,
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
            self.spec.note_later(what.clone());
            self.died.send_modify(|deaths| {
                deaths.count = deaths.count.saturating_add(1);
                deaths.last.clone_from(&what);
            });
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
        match child::stop(child, self.spec.grace.now(), hurry).await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::child::{Grace, Log};
    use crate::up::ready::Probe;

    fn sleeper(dir: &std::path::Path) -> (Spec, Child) {
        let spec = Spec {
            name: "sleeper".into(),
            binary: "/bin/sleep".into(),
            arguments: vec!["600".into()],
            log: Log::new(dir.join("sleeper.log")),
            listener: None,
            probe: Probe::Socket(dir.join("none.sock")),
            grace: Grace::Fixed(Duration::from_secs(5)),
        };
        let child = tokio::process::Command::new(&spec.binary)
            .args(&spec.arguments)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        (spec, child)
    }

    fn context() -> (Context, mpsc::Receiver<Event>) {
        let (events, told) = mpsc::channel(16);
        let http = Http::new().unwrap();
        (Context { http, events }, told)
    }

    #[tokio::test]
    async fn who_is_forgotten_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (spec, child) = sleeper(dir.path());
        let pid = child.id().unwrap();
        let (context, _told) = context();
        let kept = Kept::adopt(spec, child, &context);
        drop(kept);
        let gone = async {
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
        assert!(gone.is_ok(), "process {pid} was left running");
    }

    #[tokio::test]
    async fn an_end_is_told_once_and_asking_again_is_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let (spec, child) = sleeper(dir.path());
        let (context, _told) = context();
        let mut kept = Kept::adopt(spec, child, &context);
        kept.wish(Wish::Stop);
        assert!(kept.ended().await.is_some());
        assert!(kept.ended().await.is_none());
        assert_eq!(*kept.deaths().borrow(), Deaths::default(), "it was told to");
    }

    #[tokio::test]
    async fn a_supervisor_that_panics_is_noticed() {
        let mut kept = Kept {
            wish: watch::channel(Wish::Run).0,
            task: Some(tokio::spawn(async { panic!("on purpose") })),
            deaths: watch::channel(Deaths::default()).1,
        };
        assert!(kept.ended().await.is_none());
        assert!(kept.ended().await.is_none());
    }
}
