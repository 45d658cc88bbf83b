//! The world: processes, pipes, connections and devices on one clock, and the loop that moves them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_backend::auth::Claimant;
use holdfast_backend::core::Now;
use holdfast_backend::dispatch::{BindId, CallId};
use holdfast_backend::route::RouteTable;
use holdfast_backend::service::CallOutcome;
use holdfast_frontend::exchange::{ToHub, ToShard};
use holdfast_proto::ShardId;

use super::conn::{Conn, ConnId, FromDevice};
use super::device::Device;
use super::faults::Fault;
use super::mutant::Bender;
use super::nodes::{BackendNode, FrontendNode, NewsEvent};
use super::pipe::{Direction, Pipe, PipeId};
use super::pushes::Asks;
use super::queue::{Queue, Time};
use super::rng::Rng;
use super::scenario::Scenario;
use super::service::{self, Mood};
use super::strangers::Stranger;
use super::trace::Trace;
use super::{Failure, Options, PROGRAM, Promise, Summary};

/// Who takes a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Actor {
    Hub(usize),
    Shard(usize, usize),
    Backend(usize),
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    Turn(Actor),
    ToHub {
        frontend: usize,
        incarnation: u32,
        shard: ShardId,
        messages: Vec<ToHub>,
    },
    ToShard {
        frontend: usize,
        incarnation: u32,
        shard: usize,
        messages: Vec<ToShard>,
    },
    /// The front batch of a pipe arrives.
    Batch(PipeId, Direction),
    /// A frontend notices that a socket is gone.
    Gone(PipeId),
    /// A backend's socket tries to connect; not after the time given.
    Open {
        backend: usize,
        link: usize,
        attach: u32,
        identity: Bytes,
        until: Time,
    },
    News {
        backend: usize,
        link: usize,
        attach: u32,
        event: NewsEvent,
    },
    Authenticated {
        backend: usize,
        bind: BindId,
        claimant: Claimant,
        credential: Bytes,
    },
    CallDone {
        backend: usize,
        call: CallId,
        outcome: CallOutcome,
    },
    Act(usize),
    /// A stranger connects.
    Intrude(usize),
    Resume(ConnId),
    Arrive(ConnId),
    FromDevice(ConnId, FromDevice),
    Read(ConnId),
    /// The device notices that its connection is gone.
    Lost(ConnId),
    LingerOver(ConnId),
    UserTimeout(ConnId),
    Ask,
    Chaos,
    Fault(Fault),
    Heal,
    Settle,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) options: Options,
    pub(super) rng: Rng,
    pub(super) base: Instant,
    pub(super) now: Time,
    pub(super) step: u64,
    pub(super) queue: Queue<Event>,
    pub(super) trace: Trace,
    pub(super) routes: Arc<RouteTable>,
    pub(super) mood: Mood,
    pub(super) frontends: Vec<FrontendNode>,
    pub(super) backends: Vec<BackendNode>,
    pub(super) pipes: Vec<Pipe>,
    pub(super) conns: Vec<Conn>,
    pub(super) devices: Vec<Device>,
    pub(super) strangers: Vec<Stranger>,
    pub(super) sessions: BTreeMap<u128, ConnId>,
    /// Sessions of which a backend has said LOGGED_OUT.
    pub(super) logged_out: BTreeSet<u128>,
    /// Devices that have counted for what a canary gets.
    pub(super) drawn: BTreeSet<usize>,
    pub(super) asks: Asks,
    pub(super) bender: Bender,
    /// When the faults ended.
    pub(super) healed: Option<Time>,
    pub(super) settled: bool,
    pub(super) failure: Option<(Promise, String)>,
    pub(super) summary: Summary,
}

/// Milliseconds since 1970 when a run begins.
const WALL_MS: u64 = 1_900_000_000_000;
/// Bounds are looked at every so many steps: a look costs more than a step.
const STEPS_PER_CHECK: u64 = 24;
const MAX_STEPS: u64 = 3_000_000;
/// How long a world goes on in which one process dies.
const CRASH_WORLD: Duration = Duration::from_millis(900);
/// How often it is looked whether everything is done.
pub(super) const SETTLE_INTERVAL: Duration = Duration::from_millis(60);

impl World {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::draw(&mut rng);
        if options.crash.is_some() {
            scenario.chaos = CRASH_WORLD;
        }
        Self {
            frontends: (0..scenario.frontends).map(|_| FrontendNode::default()).collect(),
            backends: Vec::new(),
            pipes: Vec::new(),
            conns: Vec::new(),
            devices: Vec::new(),
            strangers: Vec::new(),
            sessions: BTreeMap::new(),
            logged_out: BTreeSet::new(),
            drawn: BTreeSet::new(),
            asks: Asks::default(),
            bender: Bender::new(options.mutant),
            healed: None,
            settled: false,
            failure: None,
            summary: Summary {
                seed,
                ..Summary::default()
            },
            base: Instant::now(),
            now: Time::ZERO,
            step: 0,
            queue: Queue::new(),
            trace: Trace::new(options.trace),
            routes: service::routes(),
            mood: Mood::Usual,
            rng,
            scenario,
            options,
        }
    }

    /// Runs until everything is settled or a promise is broken.
    pub(super) fn run(&mut self) {
        self.begin();
        let limit = self.options.steps.unwrap_or(MAX_STEPS).min(MAX_STEPS);
        while self.failure.is_none() && !self.settled && self.step < limit {
            let Some((at, event)) = self.queue.pop() else {
                break;
            };
            self.now = at;
            self.step += 1;
            self.trace.begin_step(self.step);
            self.handle(event);
            self.crash();
            if self.step.is_multiple_of(STEPS_PER_CHECK) {
                self.check_bounds();
            }
        }
        if self.step >= MAX_STEPS {
            self.fail(Promise::Progress, "the run does not end".into());
        }
    }

    /// What the run came to.
    pub(super) fn finish(mut self) -> Result<Summary, Box<Failure>> {
        self.summary.steps = self.step;
        self.summary.virtual_time = self.now;
        self.summary.digest = self.trace.digest();
        self.summary.defences = self.count_defences();
        let Some((promise, what)) = self.failure else {
            return Ok(self.summary);
        };
        let (seed, step, at) = (self.summary.seed, self.step, self.now);
        Err(Box::new(Failure {
            program: PROGRAM,
            seed,
            step,
            at,
            promise,
            what,
            latest: self.trace.latest(),
            summary: self.summary,
        }))
    }

    fn begin(&mut self) {
        let about = format!("{:?}", self.scenario);
        self.trace.note(Time::ZERO, about);
        self.add_devices();
        self.add_strangers();
        for frontend in 0..self.scenario.frontends {
            self.start_frontend(frontend);
        }
        for slot in 0..self.scenario.backends {
            self.start_backend(slot);
        }
        if self.options.crash.is_none() {
            self.queue.push(self.scenario.fault_every, Event::Chaos);
        }
        self.queue.push(Duration::from_millis(700), Event::Ask);
        self.queue.push(self.scenario.chaos, Event::Heal);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Turn(actor) => self.turn(actor),
            Event::ToHub {
                frontend,
                incarnation,
                shard,
                messages,
            } => {
                if let Some(life) = self.life_of(frontend, incarnation) {
                    life.from_shards.push_back((shard, messages));
                    self.wake_soon(Actor::Hub(frontend));
                }
            }
            Event::ToShard {
                frontend,
                incarnation,
                shard,
                messages,
            } => {
                if let Some(life) = self.life_of(frontend, incarnation) {
                    life.shards[shard].from_hub.push_back(messages);
                    self.wake_soon(Actor::Shard(frontend, shard));
                }
            }
            Event::Batch(pipe, direction) => self.on_batch(pipe, direction),
            Event::Gone(pipe) => self.on_gone(pipe),
            Event::Open {
                backend,
                link,
                attach,
                identity,
                until,
            } => {
                self.on_open(backend, (link, attach), identity, until);
            }
            Event::News {
                backend,
                link,
                attach,
                event,
            } => self.on_news(backend, (link, attach), event),
            Event::Authenticated {
                backend,
                bind,
                claimant,
                credential,
            } => self.on_authenticated((backend, bind), claimant, &credential),
            Event::CallDone {
                backend,
                call,
                outcome,
            } => self.on_call_done(backend, call, outcome),
            Event::Act(device) => self.act(device),
            Event::Intrude(stranger) => self.intrude(stranger),
            Event::Resume(conn) => self.resume_reading(conn),
            Event::Arrive(conn) => self.on_arrive(conn),
            Event::FromDevice(conn, what) => self.on_from_device(conn, what),
            Event::Read(conn) => self.on_read(conn),
            Event::Lost(conn) => self.on_lost(conn),
            Event::LingerOver(conn) => self.on_linger_over(conn),
            Event::UserTimeout(conn) => self.on_user_timeout(conn),
            Event::Ask => self.ask(),
            Event::Chaos => self.cause_chaos(),
            Event::Fault(fault) => self.on_fault(fault),
            Event::Heal => self.heal(),
            Event::Settle => self.settle(),
        }
    }

    fn turn(&mut self, actor: Actor) {
        let now = self.now;
        let Some(pace) = self.pace(actor) else { return };
        if !pace.begin(now) {
            return;
        }
        match actor {
            Actor::Hub(frontend) => self.hub_turn(frontend),
            Actor::Shard(frontend, shard) => self.shard_turn(frontend, shard),
            Actor::Backend(backend) => self.backend_turn(backend),
        }
    }

    pub(super) fn pace(&mut self, actor: Actor) -> Option<&mut super::nodes::Pace> {
        match actor {
            Actor::Hub(frontend) => Some(&mut self.frontends[frontend].life.as_mut()?.pace),
            Actor::Shard(frontend, shard) => Some(
                &mut self.frontends[frontend]
                    .life
                    .as_mut()?
                    .shards
                    .get_mut(shard)?
                    .pace,
            ),
            Actor::Backend(backend) => Some(&mut self.backends[backend].life.as_mut()?.pace),
        }
    }

    pub(super) fn wake_at(&mut self, actor: Actor, at: Time) {
        let at = at.max(self.now);
        if let Some(at) = self.pace(actor).and_then(|pace| pace.wake(at)) {
            self.queue.push(at, Event::Turn(actor));
        }
    }

    /// Something came: the loop runs as soon as a processor is free.
    pub(super) fn wake_soon(&mut self, actor: Actor) {
        let delay = if self.rng.chance(20) {
            self.rng.micros(50..=3000)
        } else {
            self.rng.micros(1..=40)
        };
        self.wake_at(actor, self.now + delay);
    }

    /// The loop executes nothing for a while.
    pub(super) fn hold(&mut self, actor: Actor, until: Time) {
        let now = self.now;
        if let Some(at) = self.pace(actor).and_then(|pace| pace.hold(now, until)) {
            self.queue.push(at, Event::Turn(actor));
        }
    }

    pub(super) fn life_of(
        &mut self,
        frontend: usize,
        incarnation: u32,
    ) -> Option<&mut super::nodes::FrontendLife> {
        let node = &mut self.frontends[frontend];
        node.life.as_mut().filter(|_| node.incarnation == incarnation)
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + self.now
    }

    pub(super) fn both_clocks(&self) -> Now {
        Now {
            instant: self.instant(),
            unix_ms: WALL_MS + self.now.as_millis() as u64,
        }
    }

    /// An instant of the cores on the run's clock.
    pub(super) fn time_of(&self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.base)
    }

    /// Counts something that a run has seen.
    pub(super) fn saw(&mut self, kind: &str, what: &str) {
        *self.summary.seen.entry(format!("{kind} {what}")).or_default() += 1;
    }

    /// Only the first broken promise counts: what follows is its consequence.
    pub(super) fn fail(&mut self, promise: Promise, what: String) {
        if self.failure.is_none() {
            self.failure = Some((promise, what));
        }
    }
}
