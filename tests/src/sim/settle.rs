//! The end of a run: nothing goes wrong any more, and everything that is owed must come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_backend::link::{LinkIndex, LinkState};
use holdfast_proto::Share;
use holdfast_proto::link::LaneUsage;

use super::Promise;
use super::conn::{ConnId, Phase, Stage};
use super::faults::Fault;
use super::service::Mood;
use super::world::{Event, SETTLE_INTERVAL, World};

/// Everything must have settled so long after the last fault: a vanished device is noticed, a request's deadline and an open
/// circuit have passed.
const SETTLE_LIMIT: Duration = Duration::from_secs(45);
/// Whoever wanted to stay away comes back so soon.
const COME_BACK: Duration = Duration::from_millis(200);

impl World {
    /// Faults end; what they broke is mended.
    pub(super) fn heal(&mut self) {
        self.trace.note(self.now, "heals");
        self.healed = Some(self.now);
        self.mood = Mood::Well;
        for conn in 0..self.conns.len() {
            self.resume_reading(ConnId(conn));
        }
        for device in &mut self.devices {
            device.not_before = device.not_before.min(self.now + COME_BACK);
        }
        for frontend in 0..self.frontends.len() {
            if self.frontends[frontend].life.is_none() {
                self.queue
                    .push(self.now, Event::Fault(Fault::StartFrontend(frontend)));
            }
        }
        for index in 0..self.backends.len() {
            self.set_share(index, Share::FULL);
        }
        for slot in 0..self.scenario.backends {
            self.queue.push(self.now, Event::Fault(Fault::StartBackend(slot)));
        }
        self.queue.push(self.now + SETTLE_INTERVAL, Event::Settle);
    }

    pub(super) fn settle(&mut self) {
        let Some(healed) = self.healed else { return };
        match self.find_unsettled() {
            None => {
                self.check_bounds();
                self.settled = true;
            }
            Some(what) if self.now > healed + SETTLE_LIMIT => self.fail(Promise::Progress, what),
            Some(_) => self.queue.push(self.now + SETTLE_INTERVAL, Event::Settle),
        }
    }

    /// The first thing that is not as it must be in the end.
    fn find_unsettled(&self) -> Option<String> {
        if self.is_asking() {
            return Some("devices still ask".into());
        }
        self.find_unsettled_device()
            .or_else(|| (0..self.frontends.len()).find_map(|n| self.find_unsettled_frontend(n)))
            .or_else(|| self.find_unsettled_backend())
            .or_else(|| (!self.asks.is_done()).then(|| format!("unanswered: {:?}", self.asks)))
            .or_else(|| self.find_missing_logout())
            .or_else(|| self.find_tampered())
    }

    fn find_unsettled_device(&self) -> Option<String> {
        for (index, device) in self.devices.iter().enumerate() {
            let Some(conn) = device.conn else {
                return Some(format!("device {index} is not connected"));
            };
            if !self.conns[conn.0].online {
                return Some(format!("device {index} is not online on {conn:?}"));
            }
        }
        for (index, conn) in self.conns.iter().enumerate() {
            if conn.phase != Phase::Ended && conn.outstanding() > 0 {
                let open = conn
                    .requests
                    .iter()
                    .enumerate()
                    .filter(|(_, r)| r.expects_reply() && r.answered.is_none());
                let open: Vec<usize> = open.map(|(position, _)| position + 1).collect();
                return Some(format!("connection {index} has no reply to {open:?}"));
            }
            let kept = matches!(conn.stage, Stage::Open | Stage::Binding | Stage::Queued);
            if kept && conn.phase == Phase::Ended {
                return Some(format!("connection {index} is kept although its device is gone"));
            }
        }
        None
    }

    fn find_unsettled_frontend(&self, index: usize) -> Option<String> {
        let Some(life) = self.frontends[index].life.as_ref() else {
            return Some(format!("frontend {index} does not run"));
        };
        let mut online = BTreeSet::new();
        for (number, shard) in life.shards.iter().enumerate() {
            let usage = shard.core.usage();
            let conns = shard.by_slot.iter().flatten();
            let open: Vec<_> = conns
                .filter(|conn| self.conns[conn.0].stage == Stage::Open)
                .collect();
            online.extend(open.iter().map(|conn| self.conns[conn.0].device));
            let clean = usage.window_bytes == 0 && usage.out_bytes == 0 && usage.waiting == 0;
            if !clean || usage.broadcasts > 0 || usage.sessions as usize != open.len() {
                return Some(format!(
                    "shard {index}.{number} with {} connections: {usage:?}",
                    open.len()
                ));
            }
            let sessions = open
                .iter()
                .filter_map(|conn| shard.core.session_usage(self.conns[conn.0].key?));
            for session in sessions {
                if session.state != "online"
                    || session.requests > 0
                    || session.controls > 0
                    || session.stalled
                {
                    return Some(format!("shard {index}.{number}: {session:?}"));
                }
            }
        }
        if life.hub.sessions() != online.len() {
            return Some(format!(
                "hub {index} knows {} devices of {}",
                life.hub.sessions(),
                online.len()
            ));
        }
        let status = life.hub.status();
        let running = self.backends.iter().filter(|node| node.life.is_some()).count();
        if status.len() != running || status.iter().any(|peer| peer.stage != "active") {
            return Some(format!("hub {index} with {running} backends: {status:?}"));
        }
        let knows = |shares: &BTreeMap<_, Share>| {
            shares.len() == running && shares.values().all(|share| share.is_full())
        };
        if let Some(shard) = life.shards.iter().find(|shard| !knows(&shard.shares)) {
            return Some(format!(
                "frontend {index} with {running} backends: {:?}",
                shard.shares
            ));
        }
        let busy = life
            .hub
            .usage()
            .peers
            .into_iter()
            .find(|peer| !is_quiet(&peer.lane) || peer.broadcasts > 0);
        busy.map(|peer| format!("hub {index}: {peer:?}"))
    }

    fn find_unsettled_backend(&self) -> Option<String> {
        for (index, node) in self.backends.iter().enumerate() {
            let Some(life) = &node.life else { continue };
            let mut links = (0..self.scenario.frontends).map(LinkIndex::new);
            if life.stop || links.any(|link| life.core.link_state(link) != LinkState::Attached) {
                return Some(format!(
                    "backend {index} is not attached: {:?}",
                    life.core.frontends()
                ));
            }
            let usage = life.core.usage();
            let idle = usage.in_flight + usage.waiting + usage.held_bytes + usage.operations == 0;
            if !idle || !usage.lanes.iter().all(is_quiet) {
                return Some(format!("backend {index}: {usage:?}"));
            }
        }
        None
    }

    /// The cores must have noticed what is wrong with a pipe.
    fn find_tampered(&self) -> Option<String> {
        let mut open = self.bender.tampered.iter().filter(|pipe| self.pipes[pipe.0].open);
        open.next()
            .map(|pipe| format!("{pipe:?} goes on although it lost or doubled a batch"))
    }

    /// A session that was online and is over was logged out; only a frontend that died owes nothing any more.
    fn find_missing_logout(&self) -> Option<String> {
        let owed = self.conns.iter().filter(|c| {
            let alive = self.frontends[c.frontend].incarnation == c.incarnation;
            alive && c.online && !matches!(c.stage, Stage::Open | Stage::Binding | Stage::Queued)
        });
        let ids = owed.filter_map(|c| c.session);
        let missing = ids
            .into_iter()
            .find(|id| !self.logged_out.contains(&id.as_u128()));
        missing.map(|id| format!("session {id} was never logged out"))
    }
}

/// Nothing waits, every credit has returned, everything is acknowledged.
fn is_quiet(lane: &LaneUsage) -> bool {
    lane.free == 0
        && lane.unacknowledged == 0
        && lane.queued.iter().all(|queued| *queued == 0)
        && lane
            .outstanding
            .iter()
            .all(|grant| grant.messages == 0 && grant.bytes == 0)
}
