//! A frontend's link thread: the hub, driven as `holdfast_frontend::link::edge` drives it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_frontend::exchange::{ToHub, ToShard};
use holdfast_frontend::link::{Hub, LinkMetrics};
use holdfast_frontend::session::{Shard, ShardMetrics};
use holdfast_proto::ShardId;

use super::conn::{Phase, Stage};
use super::nodes::{FrontendLife, Pace, ShardNode};
use super::pipe::{Direction, PipeId};
use super::rng::Rng;
use super::world::{Actor, Event, World};

/// What shards get at least for their sessions' last words, as in the edge.
const GOODBYE_TIME: Duration = Duration::from_millis(200);
const MAX_PER_TURN: usize = 256;

/// What a turn leads to.
#[derive(Debug, Default)]
struct Effects {
    batches: Vec<(Bytes, Bytes)>,
    to_shards: Vec<(usize, Vec<ToShard>)>,
    ended: bool,
}

impl World {
    pub(super) fn start_frontend(&mut self, index: usize) {
        let (now, began) = (self.instant(), self.now);
        let guards = self.draw_guards();
        let (boot, scenario) = (self.rng.uuid(), &self.scenario);
        let node = &mut self.frontends[index];
        node.incarnation += 1;
        let epoch = u64::from(node.incarnation);
        let metrics = LinkMetrics::default();
        let hub = Hub::new(scenario.hub(index, epoch, boot), metrics.clone(), now);
        let shards = (0..scenario.shards).map(|shard| {
            let metrics = ShardMetrics::default();
            let config = scenario.shard(index, epoch, (shard, boot as u64 ^ u64::from(shard)));
            ShardNode::new(Shard::new(guards.config(config), metrics.clone(), now), metrics)
        });
        let shards = shards.collect();
        node.life = Some(FrontendLife {
            hub,
            metrics,
            pace: Pace::default(),
            received: Default::default(),
            gone: Default::default(),
            from_shards: Default::default(),
            busy: false,
            stop: false,
            stopping: None,
            sockets: Default::default(),
            shards,
            guards,
            began,
        });
        self.trace.note(self.now, ("frontend starts", index, epoch));
        self.wake_soon(Actor::Hub(index));
    }

    /// The process is gone, and with it every socket of it.
    pub(super) fn end_frontend(&mut self, index: usize) {
        let incarnation = self.frontends[index].incarnation;
        let Some(life) = self.frontends[index].life.take() else {
            return;
        };
        self.trace.note(self.now, ("frontend ends", index, incarnation));
        self.summary.defences.add_frontend(&life);
        for pipe in 0..self.pipes.len() {
            if self.pipes[pipe].frontend == index && self.pipes[pipe].incarnation == incarnation {
                self.break_pipe(PipeId(pipe), (true, false));
            }
        }
        for conn in 0..self.conns.len() {
            let of_this = self.conns[conn].frontend == index && self.conns[conn].incarnation == incarnation;
            if of_this && self.conns[conn].stage != Stage::Over {
                self.conns[conn].stage = Stage::Over;
                self.conns[conn].out.cut();
                if self.conns[conn].phase != Phase::Ended {
                    let at = self.now + self.rng.micros(20..=20_000);
                    self.queue.push(at, Event::Lost(super::conn::ConnId(conn)));
                }
            }
        }
    }

    pub(super) fn hub_turn(&mut self, index: usize) {
        let now = self.instant();
        let since = self.now;
        let Some(life) = self.frontends[index].life.as_mut() else {
            return;
        };
        if life.stop && life.stopping.is_none() {
            life.stopping = Some(since);
            life.hub.handle_stop();
        }
        let mut moved = life.take_inputs(now, &mut self.rng);
        if now >= life.hub.poll_timeout() {
            self.judge_backends(index);
        }
        let Some(life) = self.frontends[index].life.as_mut() else {
            return;
        };
        let mut effects = Effects::default();
        while let Some(batch) = life.hub.poll_batch(now) {
            effects.batches.push(batch);
            moved = true;
        }
        effects.to_shards = life.take_for_shards();
        let idle = life.hub.is_stopped() || life.hub.is_alone();
        effects.ended = idle && life.stopping.is_some_and(|at| since >= at + GOODBYE_TIME);
        while let Some(batch) = life.hub.poll_header(now) {
            effects.batches.push(batch);
        }
        life.busy = moved;
        let due = if moved {
            None
        } else {
            Some(life.hub.poll_timeout())
        };
        let goodbye = life.stopping.map(|at| at + GOODBYE_TIME).filter(|at| *at > since);
        self.carry_out(index, effects);
        match due {
            None => self.wake_soon(Actor::Hub(index)),
            Some(at) => {
                let at = self.time_of(at);
                self.wake_at(Actor::Hub(index), goodbye.map_or(at, |goodbye| goodbye.min(at)));
            }
        }
    }

    fn judge_backends(&mut self, index: usize) {
        let had = self.links_of_hub(index);
        let now = self.instant();
        if let Some(life) = self.frontends[index].life.as_mut() {
            life.hub.handle_timeout(now);
        }
        let has = self.links_of_hub(index);
        self.check_judged((Actor::Hub(index), Direction::Up), (&had, &has));
    }

    fn carry_out(&mut self, index: usize, effects: Effects) {
        for (identity, batch) in effects.batches {
            self.send_down(index, &identity, batch);
        }
        let incarnation = self.frontends[index].incarnation;
        for (shard, messages) in effects.to_shards {
            let delay = self.rng.micros(1..=30);
            let Some(life) = self.frontends[index].life.as_mut() else {
                return;
            };
            let at = life.shards[shard].in_order((self.now + delay, true));
            self.queue.push(
                at,
                Event::ToShard {
                    frontend: index,
                    incarnation,
                    shard,
                    messages,
                },
            );
        }
        if effects.ended {
            self.end_frontend(index);
            let at = self.now + self.rng.millis(5..=1500);
            self.queue
                .push(at, Event::Fault(super::faults::Fault::StartFrontend(index)));
        }
    }
}

impl FrontendLife {
    /// What woke the loop is taken first and does not count as having moved something; then all that is there.
    fn take_inputs(&mut self, now: Instant, rng: &mut Rng) -> bool {
        if !self.busy {
            match rng.below(3) {
                0 => drop(self.take_batch(now) || self.take_gone(now) || self.take_messages(now)),
                1 => drop(self.take_gone(now) || self.take_messages(now) || self.take_batch(now)),
                _ => drop(self.take_messages(now) || self.take_batch(now) || self.take_gone(now)),
            }
        }
        let mut moved = false;
        for _ in 0..MAX_PER_TURN {
            if !self.take_batch(now) {
                break;
            }
            moved = true;
        }
        while self.take_gone(now) {
            moved = true;
        }
        for _ in 0..MAX_PER_TURN {
            if !self.take_messages(now) {
                break;
            }
            moved = true;
        }
        moved
    }

    fn take_batch(&mut self, now: Instant) -> bool {
        let Some((identity, batch)) = self.received.pop_front() else {
            return false;
        };
        self.hub.handle_batch(now, &identity, batch);
        true
    }

    fn take_gone(&mut self, now: Instant) -> bool {
        let Some(identity) = self.gone.pop_front() else {
            return false;
        };
        self.hub.handle_disconnected(now, &identity);
        true
    }

    fn take_messages(&mut self, now: Instant) -> bool {
        let Some((shard, messages)): Option<(ShardId, Vec<ToHub>)> = self.from_shards.pop_front() else {
            return false;
        };
        for message in messages {
            self.hub.handle_shard(now, shard, message);
        }
        true
    }

    fn take_for_shards(&mut self) -> Vec<(usize, Vec<ToShard>)> {
        let mut batches: Vec<(usize, Vec<ToShard>)> =
            (0..self.shards.len()).map(|n| (n, Vec::new())).collect();
        while let Some((shard, message)) = self.hub.poll_shard() {
            batches[usize::from(shard.0)].1.push(message);
        }
        batches.retain(|(_, messages)| !messages.is_empty());
        batches
    }
}
