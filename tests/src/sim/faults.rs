//! What goes wrong, and when.

use std::time::Duration;

use holdfast_proto::Share;

use super::Crash;
use super::conn::ConnId;
use super::nodes::BackendLife;
use super::pipe::PipeId;
use super::queue::Time;
use super::scenario::Profile;
use super::service::Mood;
use super::world::{Actor, Event, World};

/// One fault, or what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// SIGKILL.
    KillBackend(usize),
    /// SIGSTOP, and SIGCONT after the time given.
    HoldBackend(usize, Time),
    /// SIGTERM.
    StopBackend(usize),
    /// Starts one for this place unless one is there that stays.
    StartBackend(usize),
    /// Starts one beside the one that is there, which is then told to go.
    Replace(usize),
    /// Starts one beside the one that is there, as a standby or a canary, and then promotes it or rolls back.
    Upgrade(usize),
    /// Tells one how much of the sessions to take.
    Share(usize, Share),
    /// Its workers stand still, its link thread does not.
    StickWorkers(usize, Time),
    KillFrontend(usize),
    /// SIGTERM.
    StopFrontend(usize),
    StartFrontend(usize),
    HoldFrontend(usize, Time),
    HoldHub(usize, Time),
    HoldShard(usize, usize, Time),
    /// The machine stands still: every process at once.
    HoldAll(Time),
    BreakPipe(usize),
    SlowPipe(usize, Time),
    Services(Mood),
}

impl Fault {
    fn label(self) -> &'static str {
        match self {
            Self::KillBackend(_) => "kill backend",
            Self::HoldBackend(..) => "hold backend",
            Self::StopBackend(_) => "stop backend",
            Self::StartBackend(_) => "start backend",
            Self::Replace(_) => "replace backend",
            Self::Upgrade(_) => "upgrade backend",
            Self::Share(..) => "share",
            Self::StickWorkers(..) => "stick workers",
            Self::KillFrontend(_) => "kill frontend",
            Self::StopFrontend(_) => "stop frontend",
            Self::StartFrontend(_) => "start frontend",
            Self::HoldFrontend(..) => "hold frontend",
            Self::HoldHub(..) => "hold hub",
            Self::HoldShard(..) => "hold shard",
            Self::HoldAll(_) => "hold all",
            Self::BreakPipe(_) => "break pipe",
            Self::SlowPipe(..) => "slow pipe",
            Self::Services(_) => "services",
        }
    }
}

impl World {
    pub(super) fn cause_chaos(&mut self) {
        if self.healed.is_some() {
            return;
        }
        let pause = self.rng.around(self.scenario.fault_every);
        self.queue.push(self.now + pause, Event::Chaos);
        if let Some(fault) = self.draw_fault() {
            self.summary.faults += 1;
            self.saw("fault", fault.label());
            self.on_fault(fault);
        }
    }

    fn draw_fault(&mut self) -> Option<Fault> {
        // Graceful leave, crash, hang, stuck, frontend, thread, link, services.
        let weights: [u32; 8] = match self.scenario.profile {
            Profile::Calm => [0, 0, 0, 0, 0, 0, 0, 10],
            Profile::Graceful => [30, 0, 0, 0, 0, 0, 0, 5],
            Profile::Crash => [15, 30, 15, 4, 0, 12, 12, 6],
            Profile::Storm => [15, 20, 10, 3, 15, 10, 10, 6],
        };
        let until = self.now + self.pause();
        let frontend = self.rng.below(self.frontends.len());
        let kind = self.rng.weighted(&weights);
        if matches!(kind, 0..=3) {
            let backend = self.pick_backend(kind == 0)?;
            return Some(match kind {
                0 => match self.rng.below(10) {
                    0..3 => Fault::Replace(backend),
                    3..6 => Fault::Upgrade(backend),
                    6 => Fault::Share(backend, self.draw_share()),
                    _ => Fault::StopBackend(backend),
                },
                1 => Fault::KillBackend(backend),
                2 => Fault::HoldBackend(backend, until),
                _ => Fault::StickWorkers(backend, until + Duration::from_secs(2)),
            });
        }
        Some(match kind {
            4 if self.rng.chance(300) => Fault::StopFrontend(frontend),
            4 => Fault::KillFrontend(frontend),
            5 => match self.rng.below(4) {
                0 => Fault::HoldFrontend(frontend, until),
                1 => Fault::HoldAll(until),
                2 => Fault::HoldHub(frontend, until),
                _ => Fault::HoldShard(frontend, self.rng.below(usize::from(self.scenario.shards)), until),
            },
            6 => {
                let open: Vec<usize> = (0..self.pipes.len()).filter(|n| self.pipes[*n].open).collect();
                if open.is_empty() {
                    return None;
                }
                let pipe = self.rng.pick(&open);
                if self.rng.chance(500) {
                    Fault::BreakPipe(pipe)
                } else {
                    Fault::SlowPipe(pipe, until)
                }
            }
            _ => Fault::Services(self.rng.pick(&[Mood::Well, Mood::Usual, Mood::Usual, Mood::Down])),
        })
    }

    /// A fault may strike right behind a frame that begins or ends something.
    pub(super) fn strike(&mut self, pipe: PipeId, behind: &'static str) {
        let odds = match behind {
            "request" | "reply" | "ping" => self.scenario.strikes / 5,
            _ => self.scenario.strikes,
        };
        if self.healed.is_some() || !self.rng.chance(odds) {
            return;
        }
        let (frontend, backend) = (self.pipes[pipe.0].frontend, self.pipes[pipe.0].backend);
        let until = self.now + self.pause();
        let fault = match self.rng.below(if self.scenario.profile == Profile::Storm {
            6
        } else {
            5
        }) {
            0 => Fault::KillBackend(backend),
            1 => Fault::BreakPipe(pipe.0),
            2 => Fault::HoldBackend(backend, until),
            3 => Fault::HoldHub(frontend, until),
            4 => Fault::StopBackend(backend),
            _ => Fault::KillFrontend(frontend),
        };
        self.summary.faults += 1;
        self.saw("strike behind", behind);
        let at = self.now + self.rng.micros(0..=500);
        self.queue.push(at, Event::Fault(fault));
    }

    /// A device was just asked for a sign of life: the frontend may stand still before it hears the answer.
    pub(super) fn strike_ping(&mut self, (frontend, shard): (usize, usize), conn: ConnId) {
        // Those who will not answer are few, and the ones that a hasty shard would do wrong.
        let odds = if self.conns[conn.0].vanished { 20 } else { 10 };
        if self.healed.is_some() || !self.rng.chance(self.scenario.strikes * odds) {
            return;
        }
        self.summary.faults += 1;
        self.saw("strike behind", "a device's ping");
        let answer_time = self.scenario.shard.close_after - self.scenario.shard.ping_after;
        let pause = match self.rng.below(2) {
            // So that it goes on right when the time to answer is over.
            0 => answer_time + self.rng.millis(0..=1500),
            _ => answer_time + self.rng.millis(1500..=6000),
        };
        let until = self.now + pause;
        let fault = match self.rng.below(2) {
            0 => Fault::HoldFrontend(frontend, until),
            _ => Fault::HoldShard(frontend, shard, until),
        };
        self.queue.push(self.now, Event::Fault(fault));
    }

    /// How long something stands still: mostly within what is tolerated, sometimes far beyond.
    fn pause(&mut self) -> Duration {
        match self.rng.weighted(&[50, 30, 15, 5]) {
            0 => self.rng.millis(1..=600),
            1 => self.rng.millis(600..=1500),
            2 => self.rng.millis(1500..=4000),
            _ => self.rng.millis(4000..=9000),
        }
    }

    fn pick_backend(&mut self, staying: bool) -> Option<usize> {
        let lives = |index: &usize| {
            self.backends[*index]
                .life
                .as_ref()
                .is_some_and(|life| !staying || !life.stop)
        };
        let alive: Vec<usize> = (0..self.backends.len()).filter(lives).collect();
        (!alive.is_empty()).then(|| self.rng.pick(&alive))
    }

    pub(super) fn on_fault(&mut self, fault: Fault) {
        self.trace.note(self.now, fault);
        match fault {
            Fault::KillBackend(index) if self.backends[index].life.is_none() => {}
            Fault::KillBackend(index) => {
                let slot = self.backends[index].slot;
                self.end_backend(index);
                self.on_exit(slot);
            }
            Fault::HoldBackend(index, until) => self.hold(Actor::Backend(index), until),
            Fault::StopBackend(index) => self.stop_backend(index),
            Fault::StartBackend(slot) => {
                if !self.has_staying(slot) {
                    self.start_backend(slot);
                }
            }
            Fault::Replace(index) => {
                let slot = self.backends[index].slot;
                self.start_backend(slot);
                let at = self.now + self.rng.millis(0..=150);
                self.queue.push(at, Event::Fault(Fault::StopBackend(index)));
            }
            Fault::Upgrade(index) => self.begin_upgrade(index),
            Fault::Share(index, share) => self.set_share(index, share),
            Fault::StickWorkers(index, until) => {
                if let Some(life) = self.life_of_backend(index) {
                    life.stuck_until = until;
                }
            }
            Fault::KillFrontend(index) if self.frontends[index].life.is_none() => {}
            Fault::KillFrontend(index) => {
                self.end_frontend(index);
                let at = self.now + self.rng.millis(5..=1500);
                self.queue.push(at, Event::Fault(Fault::StartFrontend(index)));
            }
            Fault::StopFrontend(index) => {
                if let Some(life) = self.frontends[index].life.as_mut() {
                    life.stop = true;
                    self.wake_soon(Actor::Hub(index));
                }
            }
            Fault::StartFrontend(index) => {
                if self.frontends[index].life.is_none() {
                    self.start_frontend(index);
                }
            }
            Fault::HoldFrontend(index, until) => self.hold_frontend(index, until),
            Fault::HoldAll(until) => {
                (0..self.frontends.len()).for_each(|index| self.hold_frontend(index, until));
                (0..self.backends.len()).for_each(|index| self.hold(Actor::Backend(index), until));
            }
            Fault::HoldHub(index, until) => self.hold(Actor::Hub(index), until),
            Fault::HoldShard(index, shard, until) => self.hold(Actor::Shard(index, shard), until),
            Fault::BreakPipe(pipe) => self.break_pipe(PipeId(pipe), (false, false)),
            Fault::SlowPipe(pipe, until) => self.pipes[pipe].slow_until = until,
            Fault::Services(mood) => self.mood = mood,
        }
    }

    fn hold_frontend(&mut self, index: usize, until: Time) {
        self.hold(Actor::Hub(index), until);
        for shard in 0..usize::from(self.scenario.shards) {
            self.hold(Actor::Shard(index, shard), until);
        }
    }

    /// The one death of a world in which nothing else goes wrong.
    pub(super) fn crash(&mut self) {
        let fault = match self.options.crash {
            Some(Crash::Backend { step }) if step == self.step => {
                self.pick_backend(false).map(Fault::KillBackend)
            }
            Some(Crash::Frontend { step }) if step == self.step => {
                Some(Fault::KillFrontend(self.rng.below(self.frontends.len())))
            }
            _ => None,
        };
        if let Some(fault) = fault {
            self.summary.faults += 1;
            self.on_fault(fault);
        }
    }

    fn stop_backend(&mut self, index: usize) {
        if let Some(life) = self.life_of_backend(index) {
            life.stop = true;
            self.wake_soon(Actor::Backend(index));
        }
    }

    /// A supervisor starts another one after a while, if none has taken its place yet.
    pub(super) fn on_exit(&mut self, slot: usize) {
        let soon = self.healed.is_some() || self.rng.chance(700);
        let pause = if soon {
            self.rng.millis(1..=300)
        } else {
            self.rng.millis(300..=3000)
        };
        self.queue
            .push(self.now + pause, Event::Fault(Fault::StartBackend(slot)));
    }

    fn has_staying(&self, slot: usize) -> bool {
        let stays = |life: &BackendLife| {
            let share = life.share.unwrap_or_else(|| life.core.share());
            !life.stop && share.is_full()
        };
        let mut of_slot = self.backends.iter().filter(|node| node.slot == slot);
        of_slot.any(|node| node.life.as_ref().is_some_and(stays))
    }
}
