//! P7: nothing grows beyond its bound, and every account agrees with what it counts.

use holdfast_frontend::link::MAX_ENDED;
use holdfast_frontend::session::{MAX_CONTROLS, MAX_TO_REFUSE, SessionUsage};
use holdfast_proto::link::{Class, LaneUsage, MAX_UNACKNOWLEDGED};

use super::Promise;
use super::conn::ConnId;
use super::shard::Place;
use super::world::World;

/// Largest request of a simulated device, in bytes.
const MAX_REQUEST_BYTES: usize = 1024;
/// Notices that wait in a hub, at most.
const MAX_NOTICES: usize = 64;

impl World {
    pub(super) fn check_bounds(&mut self) {
        for frontend in 0..self.frontends.len() {
            for shard in 0..usize::from(self.scenario.shards) {
                let checked = self.check_shard((frontend, shard));
                self.note_bound(checked);
            }
            let checked = self.check_hub(frontend);
            self.note_bound(checked);
        }
        for backend in 0..self.backends.len() {
            let checked = self.check_backend(backend);
            self.note_bound(checked);
        }
        self.check_binding();
        self.check_challenging();
        self.check_unfinished();
    }

    fn note_bound(&mut self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.fail(Promise::Bounded, what);
        }
    }

    fn check_shard(&self, (frontend, index): Place) -> Result<(), String> {
        let Some(life) = self.frontends[frontend].life.as_ref() else {
            return Ok(());
        };
        let shard = &life.shards[index];
        let (usage, limits) = (shard.core.usage(), &self.scenario.shard);
        let conns = shard
            .by_slot
            .iter()
            .flatten()
            .filter_map(|conn| self.conns[conn.0].key);
        let sessions: Vec<SessionUsage> = conns.filter_map(|key| shard.core.session_usage(key)).collect();
        let about = |what: &str| Err(format!("shard {frontend}.{index}: {what}: {usage:?}"));
        if usage.sessions > limits.max_sessions + MAX_TO_REFUSE {
            return about("too many sessions");
        }
        if usage.window_bytes
            != sessions
                .iter()
                .map(|s| s.request_bytes + s.control_bytes)
                .sum::<usize>()
        {
            return about("window bytes do not add up");
        }
        if usage.out_bytes != sessions.iter().map(|s| s.out_bytes).sum::<usize>() {
            return about("output bytes do not add up");
        }
        let waiting = sessions
            .iter()
            .filter(|s| matches!(s.state, "binding" | "logging_in"))
            .count();
        if usage.waiting as usize != waiting {
            return about("waiting sessions do not add up");
        }
        // Beyond the total each session may hold one request.
        if usage.window_bytes > limits.window_total_bytes + sessions.len() * MAX_REQUEST_BYTES {
            return about("too many bytes in windows");
        }
        // Those that are over are forgotten when one more comes and they are as many again as live then: the list does not
        // shrink with the sessions, but it never was longer than this.
        if usage.starved > 2 * shard.most_sessions + 1 {
            return about("too many starve");
        }
        sessions
            .iter()
            .try_for_each(|session| self.check_session(session))
    }

    fn check_session(&self, session: &SessionUsage) -> Result<(), String> {
        let limits = &self.scenario.shard;
        let fits = session.requests <= limits.window.requests
            && (session.request_bytes <= limits.window.bytes || session.requests == 1)
            && (session.out_bytes <= limits.output_bytes || session.messages == 1)
            && session.pushes <= limits.output_pushes
            && session.controls <= MAX_CONTROLS;
        if fits {
            Ok(())
        } else {
            Err(format!("a session is over its bounds: {session:?}"))
        }
    }

    /// Work that waits in the hub is bounded by the sessions' windows, frames from backends by credit.
    fn check_hub(&self, frontend: usize) -> Result<(), String> {
        let Some(life) = self.frontends[frontend].life.as_ref() else {
            return Ok(());
        };
        let usage = life.hub.usage();
        let sessions: usize = life.shards.iter().map(|s| s.core.usage().sessions as usize).sum();
        let requests = sessions * self.scenario.shard.window.requests;
        let grants = self.scenario.lane.grants.0;
        if usage.notices > MAX_NOTICES || usage.to_shards > 0 {
            return Err(format!("hub {frontend}: {usage:?}"));
        }
        for peer in &usage.peers {
            let lane = &peer.lane;
            // Sessions that are over: those whose requests will be dropped together, and those of which the hub has not heard.
            let ended = MAX_ENDED + 3 * self.scenario.devices;
            let slack = ended * self.scenario.shard.window.requests;
            let fits = lane.queued[Class::Requests as usize] <= requests + slack
                && lane
                    .outstanding
                    .iter()
                    .zip(grants)
                    .all(|(used, grant)| used.messages <= grant.messages)
                && lane.unacknowledged <= MAX_UNACKNOWLEDGED;
            if !fits {
                return Err(format!("hub {frontend}: {peer:?}"));
            }
        }
        Ok(())
    }

    fn check_backend(&self, backend: usize) -> Result<(), String> {
        let Some(life) = self.backends[backend].life.as_ref() else {
            return Ok(());
        };
        let usage = life.core.usage();
        let grants = self.scenario.lane.grants.0;
        let credit = grants[Class::Requests as usize].messages as usize * self.scenario.frontends;
        let within = |lane: &LaneUsage| {
            lane.outstanding
                .iter()
                .zip(grants)
                .all(|(used, grant)| used.messages <= grant.messages)
                && lane.queued[Class::Replies as usize] <= usage.in_flight
                && lane.unacknowledged <= MAX_UNACKNOWLEDGED
        };
        // Requests that expired while they waited are answered although nothing else is taken.
        let fits = usage.in_flight <= 2 * self.scenario.max_in_flight && usage.waiting <= credit;
        if fits && usage.lanes.iter().all(within) {
            Ok(())
        } else {
            Err(format!("backend {backend}: {usage:?}"))
        }
    }

    /// P6 for those who still wait.
    fn check_binding(&mut self) {
        let waits = |conn: &ConnId| self.conns[conn.0].stage == super::conn::Stage::Binding;
        let binding: Vec<(Place, ConnId)> = (self.frontends.iter().enumerate())
            .filter_map(|(frontend, node)| Some((frontend, node.life.as_ref()?)))
            .flat_map(|(frontend, life)| {
                life.shards
                    .iter()
                    .enumerate()
                    .map(move |(n, shard)| ((frontend, n), shard))
            })
            .filter(|(_, shard)| !shard.pace.is_held(self.now))
            .flat_map(|(place, shard)| shard.by_slot.iter().flatten().map(move |conn| (place, *conn)))
            .filter(|(_, conn)| waits(conn))
            .collect();
        for (place, conn) in binding {
            self.check_admission(place, conn);
        }
    }
}
