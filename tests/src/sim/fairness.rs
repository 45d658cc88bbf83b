//! Whoever stood still itself gives nobody else up for silence (design section 4): what the others sent meanwhile is in the
//! sockets, to be read first.

use std::time::Duration;

use holdfast_backend::link::{LinkIndex, LinkState};

use super::Promise;
use super::pipe::{Direction, Pipe, PipeId};
use super::queue::Time;
use super::world::{Actor, World};

/// What a batch may be late on a link that works: a heartbeat, the delay of the link, a turn.
const RECENT: Duration = Duration::from_millis(400);
/// Who stood still for so long knows that it did: half a timeout beyond the heartbeat that was due.
const LONG: Duration = Duration::from_millis(800);

impl World {
    /// The links that an end has, before it judges them.
    pub(super) fn links_of_hub(&self, frontend: usize) -> Vec<PipeId> {
        let Some(hub) = self.hub(frontend) else {
            return Vec::new();
        };
        let epochs: Vec<_> = hub.usage().peers.iter().map(|peer| peer.epoch).collect();
        let has = |pipe: &Pipe| {
            let boot = self.backends[pipe.backend].boot;
            pipe.frontend == frontend && epochs.iter().any(|e| (e.boot, e.attach) == (boot, pipe.attach))
        };
        self.pipes_where(has)
    }

    pub(super) fn links_of_backend(&self, backend: usize) -> Vec<PipeId> {
        let Some(life) = self.backends[backend].life.as_ref() else {
            return Vec::new();
        };
        let has = |pipe: &Pipe| {
            let state = life.core.link_state(LinkIndex::new(pipe.link));
            pipe.backend == backend && life.attach[pipe.link] == pipe.attach && state == LinkState::Attached
        };
        self.pipes_where(has)
    }

    fn pipes_where(&self, has: impl Fn(&Pipe) -> bool) -> Vec<PipeId> {
        let ids = 0..self.pipes.len();
        ids.filter(|id| self.pipes[*id].open && has(&self.pipes[*id]))
            .map(PipeId)
            .collect()
    }

    /// None of the links that an end gave up by itself may have brought something just now; and an end that stood still for
    /// long gives the others time to speak.
    pub(super) fn check_judged(
        &mut self,
        (judge, direction): (Actor, Direction),
        (had, has): (&[PipeId], &[PipeId]),
    ) {
        let now = self.now;
        let (held, ago) = self
            .pace(judge)
            .map_or((Time::ZERO, now), |pace| pace.last_hold(now));
        let must_wait = held >= LONG && ago < RECENT;
        for id in had.iter().filter(|id| !has.contains(id)) {
            let pipe = &self.pipes[id.0];
            let heard = match direction {
                Direction::Up => pipe.up.heard,
                Direction::Down => pipe.down.heard,
            };
            let life = self.backends[pipe.backend].life.as_ref();
            // Dead workers are another reason, and so is that it wants to leave.
            let excused = life.is_none_or(|life| life.stop || life.stuck_until > Duration::ZERO);
            let slow = pipe.slow_until > Duration::ZERO;
            if !excused && !slow && self.now < heard + RECENT {
                let ago = self.now - heard;
                self.fail(
                    Promise::Fair,
                    format!("{id:?} is given up, {direction:?}, although a batch came {ago:?} ago"),
                );
            } else if !excused && must_wait {
                let what = format!(
                    "{id:?} is given up, {direction:?}, {ago:?} after its judge itself stood still for {held:?}"
                );
                self.fail(Promise::Fair, what);
            }
        }
    }
}
