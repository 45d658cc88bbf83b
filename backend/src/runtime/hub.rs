//! The link thread's loop: moves what comes to the core and what the core gives to sockets, workers and API.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use holdfast_proto::Share;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info};

use super::gateway::{ApiCommand, ShareCommand, Snapshot, Waiters};
use super::worker::{JobResult, WorkerStuck, Workers};
use crate::core::{Action, Backend, Now};
use crate::link::{LinkIndex, SocketEvent, SocketNews, Sockets};
use crate::route::RouteTable;

/// Inputs of one kind taken in one turn: what came is answered before more is taken.
const INPUTS_PER_TURN: usize = 256;
/// Batches sent before other tasks run: the crate's writers run on this thread.
const BATCHES_PER_YIELD: usize = 32;
/// The longest sleep: the workers' progress is looked at, and the snapshot renewed, at least so often.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// Where inputs come from.
pub struct HubInputs {
    pub news: mpsc::Receiver<SocketNews>,
    pub results: mpsc::Receiver<JobResult>,
    pub commands: mpsc::Receiver<ApiCommand>,
    pub shares: mpsc::Receiver<ShareCommand>,
    pub routes: watch::Receiver<Arc<RouteTable>>,
    /// Becomes true when the process is to leave.
    pub stop: watch::Receiver<bool>,
}

/// Where the hub says how it stands.
pub struct HubOutputs {
    /// Of `/ready`, `/v1/stats` and the control socket.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Whether connections are accepted follows from it.
    pub share: watch::Sender<Share>,
}

/// The core with everything around it.
pub struct Hub<S> {
    core: Backend,
    sockets: S,
    workers: Workers,
    waiters: Waiters,
    /// Which socket of each link counts: news of earlier ones are ignored.
    attach: Vec<u32>,
    outputs: HubOutputs,
    published: Option<Instant>,
    exit: bool,
}

/// What a wait ended with.
enum Woken {
    News(SocketNews),
    Result(JobResult),
    Command(ApiCommand),
    Share(ShareCommand),
    /// Something to look at, or only time.
    Other,
}

impl<S: Sockets> Hub<S> {
    pub fn new(core: Backend, sockets: S, workers: Workers, links: usize, outputs: HubOutputs) -> Self {
        Self {
            core,
            sockets,
            workers,
            waiters: Waiters::default(),
            attach: vec![0; links],
            outputs,
            published: None,
            exit: false,
        }
    }

    /// Runs until the core has drained after a stop. Fails when a worker is stuck: the process must end then.
    pub async fn run(mut self, mut inputs: HubInputs) -> Result<(), WorkerStuck> {
        while !self.exit {
            let moved = self.turn(&mut inputs).await?;
            self.publish();
            if self.exit {
                break;
            }
            if moved {
                tokio::task::yield_now().await;
                continue;
            }
            let woken = self.wait(&mut inputs).await;
            // Whatever woke us: let the sockets' tasks read first, so that silence is judged on all that came.
            tokio::task::yield_now().await;
            match woken {
                Woken::News(news) => self.on_news(news),
                Woken::Result(result) => self.on_result(result),
                Woken::Command(command) => self.on_command(command),
                Woken::Share(command) => self.on_share(command),
                Woken::Other => {}
            }
        }
        Ok(())
    }

    /// Inputs, timers, outputs. Returns whether anything moved.
    async fn turn(&mut self, inputs: &mut HubInputs) -> Result<bool, WorkerStuck> {
        let mut moved = self.take_inputs(inputs);
        let progress = self.workers.progress(Instant::now())?;
        self.core.handle_timeout(now(), progress);
        moved |= self.act()?;
        let mut sent = 0;
        while let Some((link, batch)) = self.core.poll_transmit(Instant::now()) {
            moved = true;
            sent += 1;
            if let Err(error) = self.sockets.send(link, batch) {
                debug!(link = link.get(), %error, "a batch could not be sent");
                self.disconnect(link);
            }
            if sent % BATCHES_PER_YIELD == 0 {
                tokio::task::yield_now().await;
            }
        }
        moved |= self.act()?;
        Ok(moved)
    }

    fn take_inputs(&mut self, inputs: &mut HubInputs) -> bool {
        let mut moved = false;
        for _ in 0..INPUTS_PER_TURN {
            let Ok(news) = inputs.news.try_recv() else { break };
            moved = true;
            self.on_news(news);
        }
        for _ in 0..INPUTS_PER_TURN {
            let Ok(result) = inputs.results.try_recv() else {
                break;
            };
            moved = true;
            self.on_result(result);
        }
        for _ in 0..INPUTS_PER_TURN {
            let Ok(command) = inputs.commands.try_recv() else {
                break;
            };
            moved = true;
            self.on_command(command);
        }
        while let Ok(command) = inputs.shares.try_recv() {
            moved = true;
            self.on_share(command);
        }
        if inputs.routes.has_changed().unwrap_or(false) {
            let table = inputs.routes.borrow_and_update().clone();
            self.core.handle_routes(table, now());
        }
        if !self.core.is_draining() && *inputs.stop.borrow_and_update() {
            self.core.handle_shutdown(Instant::now());
        }
        moved
    }

    fn on_news(&mut self, SocketNews { link, attach, event }: SocketNews) {
        if self.attach[link.get()] != attach {
            return;
        }
        match event {
            SocketEvent::Connected => self.core.handle_connected(link, now()),
            SocketEvent::Batch(batch) => self.core.handle_batch(link, now(), batch),
            SocketEvent::Disconnected => self.disconnect(link),
        }
    }

    /// The core answers with a reconnect, or is done with the link.
    fn disconnect(&mut self, link: LinkIndex) {
        self.attach[link.get()] = 0;
        self.sockets.close(link);
        self.core.handle_disconnected(link, now());
    }

    fn on_result(&mut self, result: JobResult) {
        match result {
            JobResult::Authenticated { bind, result } => self.core.handle_authenticated(bind, result),
            JobResult::CallDone { call, called } => {
                self.workers.on_call_done(call);
                self.core.handle_call_done(call, called.outcome, now());
                // From here on the core's own bound holds the reply.
                drop(called.room);
            }
        }
    }

    fn on_command(&mut self, ApiCommand { request, reply }: ApiCommand) {
        let ticket = self.waiters.add(reply);
        self.core.handle_api(ticket, request, Instant::now());
    }

    /// Who asked is told when everything that shows the share shows the new one.
    fn on_share(&mut self, ShareCommand { share, reply }: ShareCommand) {
        let taken = self.core.handle_share(share);
        if taken.is_ok() {
            info!(%share, "share of the sessions");
            self.outputs.share.send_replace(share);
            self.publish_now();
        }
        // A caller that has gone away is not told.
        let _ = reply.send(taken);
    }

    fn act(&mut self) -> Result<bool, WorkerStuck> {
        let mut moved = false;
        while let Some(action) = self.core.poll_action() {
            moved = true;
            match action {
                Action::Authenticate {
                    bind,
                    claimant,
                    credential,
                } => self.workers.authenticate(bind, claimant, credential)?,
                Action::Call { call, request } => self.workers.call(call, request)?,
                Action::CancelCall(call) => self.workers.cancel(call)?,
                Action::ApiDone { ticket, result } => self.waiters.finish(ticket, result),
                Action::Reconnect {
                    link,
                    attach,
                    identity,
                    at,
                } => {
                    self.attach[link.get()] = attach;
                    self.sockets.open(link, attach, identity, at);
                }
                Action::Exit => self.exit = true,
            }
        }
        Ok(moved)
    }

    async fn wait(&mut self, inputs: &mut HubInputs) -> Woken {
        let latest = Instant::now() + LONGEST_SLEEP;
        let due = self.core.poll_timeout().map_or(latest, |at| at.min(latest));
        tokio::select! {
            news = inputs.news.recv() => news.map_or(Woken::Other, Woken::News),
            result = inputs.results.recv() => result.map_or(Woken::Other, Woken::Result),
            command = inputs.commands.recv(), if !inputs.commands.is_closed() => {
                command.map_or(Woken::Other, Woken::Command)
            }
            command = inputs.shares.recv(), if !inputs.shares.is_closed() => {
                command.map_or(Woken::Other, Woken::Share)
            }
            Ok(()) = inputs.routes.changed() => {
                inputs.routes.mark_changed();
                Woken::Other
            }
            Ok(()) = inputs.stop.changed() => {
                inputs.stop.mark_changed();
                Woken::Other
            }
            () = tokio::time::sleep_until(due.into()) => Woken::Other,
        }
    }

    /// Renews what `/ready` and `/v1/stats` say: at once when readiness changed.
    fn publish(&mut self) {
        let draining = self.core.is_draining();
        let current = self.outputs.snapshot.load();
        let due = self.published.is_none_or(|at| at.elapsed() >= LONGEST_SLEEP);
        let quiet = draining && self.core.in_flight() == 0 && !current.is_quiet();
        let changed = (current.ready, current.attached, current.draining)
            != (self.core.is_ready(), self.core.is_attached(), draining);
        if due || quiet || changed {
            self.publish_now();
        }
    }

    fn publish_now(&mut self) {
        let core = &self.core;
        self.outputs.snapshot.store(Arc::new(Snapshot {
            ready: core.is_ready(),
            attached: core.is_attached(),
            draining: core.is_draining(),
            share: core.share(),
            in_flight: core.in_flight() as u64,
            frontends: core.frontends(),
        }));
        self.published = Some(Instant::now());
    }
}

/// Both clocks. A wall clock before 1970 counts as 1970.
fn now() -> Now {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_else(|error| {
            error!(%error, "the wall clock is before 1970");
            Duration::ZERO
        });
    Now {
        instant: Instant::now(),
        unix_ms: since_1970.as_millis() as u64,
    }
}
