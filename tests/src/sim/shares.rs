//! Shares: backends that begin as standby or canary, are promoted or rolled back, and whether frontends go by that.

use holdfast_frontend::exchange::{PeerId, ToHub, ToShard};
use holdfast_proto::Share;
use holdfast_proto::link::{Command, session_id};

use super::Promise;
use super::faults::Fault;
use super::queue::Time;
use super::shard::Place;
use super::world::{Actor, Event, World};

impl World {
    /// A backend is started beside another one, which it replaces in the end, or not.
    pub(super) fn begin_upgrade(&mut self, index: usize) {
        let share = self.draw_share();
        let successor = self.start_backend_with(self.backends[index].slot, share);
        let mut at = self.now;
        for _ in 0..self.rng.below(3) {
            at += self.rng.millis(1..=600);
            let share = self.draw_share();
            self.queue.push(at, Event::Fault(Fault::Share(successor, share)));
        }
        at += self.rng.millis(1..=600);
        let (last, leaving) = match self.rng.below(10) {
            0..6 => (Share::FULL, index),
            _ => (Share::NONE, successor),
        };
        self.queue.push(at, Event::Fault(Fault::Share(successor, last)));
        if self.rng.chance(300) {
            self.miss_changes_of_share(at);
        }
        at += self.rng.millis(0..=150);
        self.queue.push(at, Event::Fault(Fault::StopBackend(leaving)));
    }

    /// A shard hears of no change before the last one has come, which is then told in place of all the others.
    fn miss_changes_of_share(&mut self, last: Time) {
        let frontend = self.rng.below(self.scenario.frontends);
        let shard = self.rng.below(usize::from(self.scenario.shards));
        let until = last + self.rng.millis(1..=100);
        self.on_fault(Fault::HoldShard(frontend, shard, until));
    }

    pub(super) fn draw_share(&mut self) -> Share {
        let hundredths = self.rng.pick(&[0, 0, 1, 500, 2000, 5000, 9000, 10_000]);
        Share::clamped(hundredths)
    }

    /// Somebody tells a backend how much it shall take. In the end all take all.
    pub(super) fn set_share(&mut self, index: usize, share: Share) {
        let share = if self.healed.is_some() { Share::FULL } else { share };
        if let Some(life) = self.life_of_backend(index) {
            life.share = Some(share);
            self.wake_soon(Actor::Backend(index));
        }
    }

    /// A shard is about to hear this of a backend: what it gave out so far is judged by what it knew.
    pub(super) fn note_peer(&mut self, place: Place, message: &ToShard) {
        let (peer, share) = match message {
            ToShard::PeerActive { peer, share, .. } | ToShard::PeerShare { peer, share } => {
                (*peer, Some(*share))
            }
            ToShard::PeerDraining { peer } | ToShard::PeerGone { peer, .. } => (*peer, None),
            ToShard::Frame { .. } | ToShard::Close { .. } | ToShard::Stop => return,
        };
        self.collect(place);
        let Some(shard) = self.shard(place) else { return };
        match share {
            // Who leaves has no share any more, whatever is said of it.
            Some(share) => {
                if matches!(message, ToShard::PeerActive { .. }) || shard.shares.contains_key(&peer) {
                    shard.shares.insert(peer, share);
                }
            }
            None => drop(shard.shares.remove(&peer)),
        }
    }

    /// Takes what a shard has for the hub.
    pub(super) fn collect(&mut self, place: Place) {
        let Some(shard) = self.shard(place) else { return };
        if !shard.core.has_for_hub() {
            return;
        }
        let messages = shard.core.take_to_hub(Vec::new());
        for message in &messages {
            if let ToHub::Work { peer, command, .. } = message {
                self.judge_share(place, *peer, command);
            }
        }
        if let Some(shard) = self.shard(place) {
            shard.to_hub.extend(messages);
        }
    }

    /// Nobody gets work who has no share; and a canary gets its part of those who come.
    fn judge_share(&mut self, place: Place, peer: PeerId, command: &Command) {
        let Some(shard) = self.shard(place) else { return };
        let shares = shard.shares.clone();
        if shares.get(&peer).is_none_or(|share| share.is_none()) {
            let what = format!("{place:?} gives {peer:?} work, which takes none: {shares:?}");
            return self.fail(Promise::Shared, what);
        }
        let Command::Login(login) = command else { return };
        let mut canaries = shares.iter().filter(|(_, share)| share.is_canary());
        let (Some((canary, share)), None) = (canaries.next(), canaries.next()) else {
            return;
        };
        let id = session_id(login.session.as_ref().and_then(|s| s.id)).ok();
        let conn = id.and_then(|id| self.sessions.get(&id.as_u128()).copied());
        if let Some(conn) = conn
            && shares.values().any(|share| share.is_full())
            && self.drawn.insert(self.conns[conn.0].device)
        {
            self.summary.canary_draws += 1;
            self.summary.canary_hundredths += u64::from(share.hundredths());
            self.summary.canary_sessions += u64::from(peer == *canary);
        }
    }
}
