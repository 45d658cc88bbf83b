//! Worker threads: each has its own runtime and its own connections to the services.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use holdfast_proto::SessionId;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet};

use crate::auth::{Authenticator, Claimant, Denied, Grant, Inquiry, KeyUnavailable, Verdict};
use crate::dispatch::{BindId, CallId, MAX_AUTHENTICATIONS, Now};
use crate::service::{Called, KeyEndpoint, KeyQuestion, ServiceClient, ServiceRequest, ServiceSettings};

/// How often each worker shows that it works.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// A worker that stands still for longer is stuck for good. Shorter than the time after which a frontend fences us for it
/// (5 s by default): attaching anew with the same worker would only break the same requests again.
const STALL_LIMIT: Duration = Duration::from_secs(4);
/// When our own loop was late by this much, the machine was: nobody is judged for that time.
const LATE: Duration = Duration::from_millis(500);
/// Jobs taken before a worker looks at its sockets again.
const JOBS_PER_TURN: usize = 32;

/// What a worker is given.
#[derive(Debug)]
pub enum Job {
    Authenticate {
        bind: BindId,
        claimant: Claimant,
        credential: Bytes,
    },
    Call {
        call: CallId,
        request: Box<ServiceRequest>,
    },
    Cancel(CallId),
}

/// What it gives back.
#[derive(Debug)]
pub enum JobResult {
    Authenticated {
        bind: BindId,
        result: Result<Grant, Denied>,
    },
    CallDone {
        call: CallId,
        called: Called,
    },
}

/// What all workers have in common.
#[derive(Clone)]
pub struct WorkerSettings {
    pub services: ServiceSettings,
    pub authenticator: Arc<dyn Authenticator>,
    /// Who is asked when the authenticator says so.
    pub key_endpoint: Option<Arc<KeyEndpoint>>,
}

/// The link thread's view of all workers. Dropping it ends them.
pub struct Workers {
    workers: Vec<Worker>,
    /// Which worker has a call, to cancel it.
    calls: HashMap<CallId, usize>,
    turn: usize,
    watchdog: Watchdog,
}

struct Worker {
    jobs: mpsc::Sender<Job>,
    progress: Arc<AtomicU64>,
    _thread: JoinHandle<()>,
}

/// A worker stands still or takes no jobs: it is gone, or has more than the core allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker is stuck")]
pub struct WorkerStuck;

impl Workers {
    /// Starts `count` threads. `max_in_flight` is the core's bound on requests, and with it the bound of each queue.
    pub fn start(
        count: usize,
        max_in_flight: usize,
        settings: &WorkerSettings,
    ) -> io::Result<(Self, mpsc::Receiver<JobResult>)> {
        // Each call may be followed by its cancellation.
        let capacity = 2 * max_in_flight + MAX_AUTHENTICATIONS;
        let (results, receiver) = mpsc::channel(capacity);
        let workers = (0..count).map(|n| Worker::start(n, capacity, settings.clone(), results.clone()));
        let workers = workers.collect::<io::Result<Vec<_>>>()?;
        Ok((
            Self {
                workers,
                calls: HashMap::new(),
                turn: 0,
                watchdog: Watchdog::new(Instant::now()),
            },
            receiver,
        ))
    }

    /// The calls of one session go to one worker: its requests to a service share warm connections.
    pub fn call(&mut self, call: CallId, request: Box<ServiceRequest>) -> Result<(), WorkerStuck> {
        let worker = self.worker_of(request.session);
        self.calls.insert(call, worker);
        self.send(worker, Job::Call { call, request })
    }

    pub fn cancel(&mut self, call: CallId) -> Result<(), WorkerStuck> {
        match self.calls.remove(&call) {
            Some(worker) => self.send(worker, Job::Cancel(call)),
            None => Ok(()),
        }
    }

    pub fn authenticate(
        &mut self,
        bind: BindId,
        claimant: Claimant,
        credential: Bytes,
    ) -> Result<(), WorkerStuck> {
        self.turn = (self.turn + 1) % self.workers.len();
        let job = Job::Authenticate {
            bind,
            claimant,
            credential,
        };
        self.send(self.turn, job)
    }

    /// Must be told of each call that ended by itself.
    pub fn on_call_done(&mut self, call: CallId) {
        self.calls.remove(&call);
    }

    /// Grows while every worker works. Must be called in each turn of the link thread; fails once it stood still for long.
    pub fn progress(&mut self, now: Instant) -> Result<u64, WorkerStuck> {
        let progress = self
            .workers
            .iter()
            .map(|w| w.progress.load(Ordering::Relaxed))
            .min()
            .unwrap_or_default();
        self.watchdog.handle_progress(now, progress)?;
        Ok(progress)
    }

    fn worker_of(&self, session: SessionId) -> usize {
        let (high, low) = session.halves();
        let mixed = (high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mixed) * self.workers.len() as u128) >> 64) as usize
    }

    fn send(&self, worker: usize, job: Job) -> Result<(), WorkerStuck> {
        self.workers[worker].jobs.try_send(job).map_err(|_| WorkerStuck)
    }
}

/// Judges the workers' progress.
#[derive(Debug)]
struct Watchdog {
    progress: u64,
    moved: Instant,
    looked: Instant,
}

impl Watchdog {
    fn new(now: Instant) -> Self {
        Self {
            progress: 0,
            moved: now,
            looked: now,
        }
    }

    fn handle_progress(&mut self, now: Instant, progress: u64) -> Result<(), WorkerStuck> {
        if progress != self.progress || now > self.looked + LATE {
            self.moved = now;
        }
        (self.progress, self.looked) = (progress, now);
        if now >= self.moved + STALL_LIMIT {
            Err(WorkerStuck)
        } else {
            Ok(())
        }
    }
}

impl Worker {
    fn start(
        number: usize,
        capacity: usize,
        settings: WorkerSettings,
        results: mpsc::Sender<JobResult>,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(capacity);
        let progress = Arc::new(AtomicU64::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let counter = progress.clone();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let local = LocalSet::new();
                runtime.block_on(local.run_until(work(settings, queue, results, counter)));
            })?;
        Ok(Self {
            jobs,
            progress,
            _thread: thread,
        })
    }
}

async fn work(
    settings: WorkerSettings,
    mut queue: mpsc::Receiver<Job>,
    results: mpsc::Sender<JobResult>,
    progress: Arc<AtomicU64>,
) {
    let client = ServiceClient::new(settings.services);
    let desk = Desk {
        authenticator: settings.authenticator,
        key_endpoint: settings.key_endpoint,
        client: client.clone(),
        results: results.clone(),
    };
    let running: Rc<RefCell<HashMap<CallId, AbortHandle>>> = Rc::default();
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let mut taken = 0;
    loop {
        let job = tokio::select! {
            biased;
            _ = tick.tick() => {
                progress.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            job = queue.recv() => job,
        };
        match job {
            None => return,
            Some(Job::Authenticate {
                bind,
                claimant,
                credential,
            }) => {
                desk.authenticate(bind, claimant, &credential).await;
            }
            Some(Job::Call { call, request }) => {
                let task = run_call(client.clone(), (call, request), results.clone(), running.clone());
                let handle = tokio::task::spawn_local(task).abort_handle();
                running.borrow_mut().insert(call, handle);
            }
            Some(Job::Cancel(call)) => {
                if let Some(handle) = running.borrow_mut().remove(&call) {
                    handle.abort();
                }
            }
        }
        taken += 1;
        if taken % JOBS_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Where a worker judges credentials.
#[derive(Clone)]
struct Desk {
    authenticator: Arc<dyn Authenticator>,
    key_endpoint: Option<Arc<KeyEndpoint>>,
    client: ServiceClient,
    results: mpsc::Sender<JobResult>,
}

impl Desk {
    async fn authenticate(&self, bind: BindId, claimant: Claimant, credential: &[u8]) {
        match self.authenticator.authenticate(claimant, credential, now()) {
            Verdict::Judged(result) => self.answer(bind, result).await,
            // Tasks of this kind are bounded by the endpoint's places: who finds none is answered at once.
            Verdict::Ask(inquiry) => {
                tokio::task::spawn_local(self.clone().ask(bind, inquiry));
            }
        }
    }

    async fn ask(self, bind: BindId, inquiry: Box<Inquiry>) {
        let answer = match &self.key_endpoint {
            Some(endpoint) => {
                let question = KeyQuestion {
                    identity: inquiry.identity(),
                    channel: inquiry.channel().label(),
                    source: inquiry.source(),
                };
                Box::pin(endpoint.look_up(&self.client, question)).await
            }
            None => Ok(None),
        };
        let answer = answer.map_err(|_| KeyUnavailable);
        let result = self.authenticator.authenticate_with(*inquiry, answer, now());
        self.answer(bind, result).await;
    }

    async fn answer(&self, bind: BindId, result: Result<Grant, Denied>) {
        // The link thread is gone only when the process ends.
        let _ = self.results.send(JobResult::Authenticated { bind, result }).await;
    }
}

fn now() -> Now {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        instant: Instant::now(),
        unix_ms: since_1970.as_millis() as u64,
    }
}

/// Starts only after it was entered into `running`: spawning does not poll.
async fn run_call(
    client: ServiceClient,
    (call, request): (CallId, Box<ServiceRequest>),
    results: mpsc::Sender<JobResult>,
    running: Rc<RefCell<HashMap<CallId, AbortHandle>>>,
) {
    let called = Box::pin(client.call(*request)).await;
    running.borrow_mut().remove(&call);
    // The link thread is gone only when the process ends.
    let _ = results.send(JobResult::CallDone { call, called }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 100 ms while `progress` says how far the workers are at that time.
    fn stuck_after(watchdog: &mut Watchdog, start: Instant, progress: impl Fn(u64) -> u64) -> Option<u64> {
        (1..=100).find(|n| {
            let now = start + Duration::from_millis(n * 100);
            watchdog.handle_progress(now, progress(*n)).is_err()
        })
    }

    #[test]
    fn workers_that_work_are_left_alone() {
        let start = Instant::now();
        assert_eq!(stuck_after(&mut Watchdog::new(start), start, |n| n / 20), None);
    }

    #[test]
    fn a_worker_that_stands_still_is_stuck() {
        let start = Instant::now();
        assert_eq!(
            stuck_after(&mut Watchdog::new(start), start, |n| n.min(10)),
            Some(50)
        );
    }

    #[test]
    fn a_paused_machine_is_not_a_stuck_worker() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(watchdog.handle_progress(later, 0), Ok(()));
        assert_eq!(stuck_after(&mut watchdog, later, |_| 0), Some(40));
    }
}
