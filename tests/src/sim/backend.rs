//! A backend process: the core, driven as `holdfast_backend::runtime::hub` drives it, and its workers.

use std::time::Duration;

use bytes::Bytes;
use holdfast_backend::auth::Claimant;
use holdfast_backend::core::{Action, Backend, CoreMetrics};
use holdfast_backend::dispatch::{BindId, CallId};
use holdfast_backend::link::LinkIndex;
use holdfast_backend::service::CallOutcome;
use holdfast_proto::Share;

use super::nodes::{BackendLife, BackendNode, JobResult, News, NewsEvent, Pace};
use super::pipe::{Direction, PipeId};
use super::scenario::PROGRESS_INTERVAL;
use super::world::{Actor, Event, World};

const INPUTS_PER_TURN: usize = 256;
/// The longest sleep of the driver.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

impl World {
    pub(super) fn start_backend(&mut self, slot: usize) {
        self.start_backend_with(slot, Share::FULL);
    }

    /// Starts a process; gives its number.
    pub(super) fn start_backend_with(&mut self, slot: usize, share: Share) -> usize {
        let (boot, seed, index) = (self.rng.uuid(), self.rng.next(), self.backends.len());
        let mut settings = self.scenario.core(format!("backend-{index}"), boot, seed);
        settings.link.share = share;
        let links = settings.links;
        let core = Backend::new(
            settings,
            self.routes.clone(),
            CoreMetrics::default(),
            self.instant(),
        );
        let life = BackendLife {
            core,
            pace: Pace::default(),
            attach: vec![0; links],
            sockets: vec![None; links],
            news: Default::default(),
            results: Default::default(),
            asks: Default::default(),
            running: Default::default(),
            share: None,
            stop: false,
            stuck_until: Duration::ZERO,
            progress: 0,
            exits: false,
        };
        self.backends.push(BackendNode {
            slot,
            boot,
            life: Some(life),
        });
        self.trace.note(self.now, ("backend starts", index, slot, share));
        self.wake_soon(Actor::Backend(index));
        index
    }

    /// The process is gone; what it had sent may still arrive.
    pub(super) fn end_backend(&mut self, index: usize) {
        let Some(life) = self.backends[index].life.take() else {
            return;
        };
        self.trace.note(self.now, ("backend ends", index));
        self.asks.forget(index);
        for pipe in life.sockets.into_iter().flatten() {
            self.break_pipe(pipe, (false, true));
        }
    }

    pub(super) fn backend_turn(&mut self, index: usize) {
        let mut moved = self.take_backend_inputs(index);
        let (now, clock) = (self.both_clocks(), self.now);
        let Some(life) = self.backends[index].life.as_mut() else {
            return;
        };
        if clock >= life.stuck_until {
            life.progress = 1 + (clock.as_millis() / PROGRESS_INTERVAL.as_millis()) as u64;
        }
        let progress = life.progress;
        let had = self.links_of_backend(index);
        if let Some(life) = self.life_of_backend(index) {
            life.core.handle_timeout(now, progress);
        }
        let has = self.links_of_backend(index);
        self.check_judged((Actor::Backend(index), Direction::Down), (&had, &has));
        moved |= self.act_for_backend(index);
        while let Some((link, batch)) = self.poll_transmit(index) {
            moved = true;
            if !self.send_up(index, link.get(), batch) {
                self.disconnect(index, link.get());
            }
        }
        moved |= self.act_for_backend(index);
        let Some(life) = self.backends[index].life.as_ref() else {
            return;
        };
        if life.exits {
            let slot = self.backends[index].slot;
            self.end_backend(index);
            return self.on_exit(slot);
        }
        if moved {
            return self.wake_soon(Actor::Backend(index));
        }
        let due = life
            .core
            .poll_timeout()
            .map_or(clock + LONGEST_SLEEP, |at| self.time_of(at));
        self.wake_at(Actor::Backend(index), due.min(clock + LONGEST_SLEEP));
    }

    fn poll_transmit(&mut self, index: usize) -> Option<(LinkIndex, Bytes)> {
        let now = self.instant();
        self.backends[index].life.as_mut()?.core.poll_transmit(now)
    }

    fn take_backend_inputs(&mut self, index: usize) -> bool {
        let mut moved = false;
        for _ in 0..INPUTS_PER_TURN {
            let Some(news) = self.life_of_backend(index).and_then(|life| life.news.pop_front()) else {
                break;
            };
            moved = true;
            self.take_news(index, news);
        }
        let now = self.both_clocks();
        let Some(life) = self.life_of_backend(index) else {
            return moved;
        };
        for result in life.results.drain(..) {
            moved = true;
            match result {
                JobResult::Authenticated { bind, result } => life.core.handle_authenticated(bind, result),
                JobResult::CallDone { call, outcome } => life.core.handle_call_done(call, outcome, now),
            }
        }
        for (ticket, request) in life.asks.drain(..) {
            moved = true;
            life.core.handle_api(ticket, request, now.instant);
        }
        if let Some(share) = life.share.take() {
            moved = true;
            // Who leaves, or was a full member of a frontend that knows no shares, refuses and stays what it is.
            let _ = life.core.handle_share(share);
        }
        if life.stop && !life.core.is_draining() {
            life.core.handle_shutdown(now.instant);
        }
        moved
    }

    fn take_news(&mut self, index: usize, News { link, attach, event }: News) {
        let now = self.both_clocks();
        let Some(life) = self
            .life_of_backend(index)
            .filter(|life| life.attach[link] == attach)
        else {
            return;
        };
        match event {
            NewsEvent::Connected(pipe) => {
                life.sockets[link] = Some(pipe);
                life.core.handle_connected(LinkIndex::new(link), now);
            }
            NewsEvent::Batch(batch) => life.core.handle_batch(LinkIndex::new(link), now, batch),
            NewsEvent::Disconnected => self.disconnect(index, link),
        }
    }

    fn disconnect(&mut self, index: usize, link: usize) {
        let now = self.both_clocks();
        self.close_socket(index, link);
        if let Some(life) = self.life_of_backend(index) {
            life.attach[link] = 0;
            life.core.handle_disconnected(LinkIndex::new(link), now);
        }
    }

    fn close_socket(&mut self, index: usize, link: usize) {
        let pipe: Option<PipeId> = self
            .life_of_backend(index)
            .and_then(|life| life.sockets[link].take());
        if let Some(pipe) = pipe {
            self.break_pipe(pipe, (false, true));
        }
    }

    pub(super) fn life_of_backend(&mut self, index: usize) -> Option<&mut BackendLife> {
        self.backends[index].life.as_mut()
    }

    fn act_for_backend(&mut self, index: usize) -> bool {
        let mut moved = false;
        while let Some(action) = self
            .life_of_backend(index)
            .and_then(|life| life.core.poll_action())
        {
            moved = true;
            match action {
                Action::Authenticate {
                    bind,
                    claimant,
                    credential,
                } => {
                    let at = self.now + self.rng.micros(10..=600);
                    self.queue.push(
                        at,
                        Event::Authenticated {
                            backend: index,
                            bind,
                            claimant,
                            credential,
                        },
                    );
                }
                Action::Call { call, request } => {
                    self.life_of_backend(index).map(|life| life.running.insert(call));
                    self.begin_call(index, call, &request);
                }
                Action::CancelCall(call) => {
                    self.life_of_backend(index).map(|life| life.running.remove(&call));
                }
                Action::ApiDone { ticket, result } => self.on_api_done(ticket, result),
                Action::Reconnect {
                    link,
                    attach,
                    identity,
                    at,
                } => {
                    let (link, at) = (link.get(), self.time_of(at).max(self.now));
                    self.close_socket(index, link);
                    self.life_of_backend(index)
                        .map(|life| std::mem::replace(&mut life.attach[link], attach));
                    let (identity, until) = (Bytes::from(identity), at + self.scenario.lane.timeout);
                    self.queue.push(
                        at,
                        Event::Open {
                            backend: index,
                            link,
                            attach,
                            identity,
                            until,
                        },
                    );
                }
                Action::Exit => {
                    self.life_of_backend(index)
                        .map(|life| std::mem::replace(&mut life.exits, true));
                }
            }
        }
        moved
    }

    /// Until when the workers stand still, if they do.
    fn stuck_until(&self, index: usize) -> Option<Duration> {
        let until = self.backends[index].life.as_ref()?.stuck_until;
        (until > self.now).then_some(until)
    }

    pub(super) fn on_authenticated(
        &mut self,
        (backend, bind): (usize, BindId),
        claimant: Claimant,
        credential: &Bytes,
    ) {
        if let Some(until) = self.stuck_until(backend) {
            let credential = credential.clone();
            return self.queue.push(
                until,
                Event::Authenticated {
                    backend,
                    bind,
                    claimant,
                    credential,
                },
            );
        }
        if self.life_of_backend(backend).is_none() {
            return;
        }
        let result = self.authenticate(claimant, credential);
        if let Some(life) = self.life_of_backend(backend) {
            life.results.push_back(JobResult::Authenticated { bind, result });
            self.wake_soon(Actor::Backend(backend));
        }
    }

    pub(super) fn on_call_done(&mut self, backend: usize, call: CallId, outcome: CallOutcome) {
        if let Some(until) = self.stuck_until(backend) {
            return self.queue.push(
                until,
                Event::CallDone {
                    backend,
                    call,
                    outcome,
                },
            );
        }
        let Some(life) = self.life_of_backend(backend) else {
            return;
        };
        if life.running.remove(&call) {
            life.results.push_back(JobResult::CallDone { call, outcome });
            self.wake_soon(Actor::Backend(backend));
        }
    }
}
