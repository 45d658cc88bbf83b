//! How connections begin and end: P1, P6, and the LOGOUT that is owed.

use std::time::Duration;

use bytes::Bytes;
use holdfast_frontend::session::{Goodbye, Refusal};
use holdfast_proto::CloseCode;
use holdfast_proto::link::{Command, session_id};

use super::Promise;
use super::challenge::refusal_code;
use super::conn::{ConnId, Phase};
use super::shard::Place;
use super::world::World;

/// What a timer may be late: the wheel's tick, and a turn that comes when it can.
const SLACK: Duration = Duration::from_millis(80);
/// A hint that is none at all is shorter.
const SHORTEST_HINT: Duration = Duration::from_millis(1);

impl World {
    /// P6: whoever connects is admitted or refused within a bound. Each backend that is lost on the way begins the wait
    /// anew, and a frontend that stands still cannot answer.
    pub(super) fn check_admission(&mut self, place: Place, conn: ConnId) {
        let held = self.held_of(place);
        let c = &self.conns[conn.0];
        let limits = &self.scenario.shard;
        let losses = self.losses_since(conn, c.opened) as u32;
        // Two backends are asked.
        let round = limits.wait_limit + 2 * limits.backend_timeout;
        let bound = round * (losses + 1) + (held - c.held_before) + limits.accept_timeout + SLACK;
        let waited = self.now - c.opened;
        if waited > bound {
            self.fail(
                Promise::Arriving,
                format!("{conn:?} has waited for {waited:?}, which is over {bound:?}"),
            );
        }
    }

    pub(super) fn check_refusal(&mut self, conn: ConnId, refusal: &Refusal) {
        let (c, too_many) = (&self.conns[conn.0], refusal.status == 429);
        let least = if too_many {
            self.scenario.shard.retry_hint
        } else {
            SHORTEST_HINT
        };
        let hinted = refusal.retry_after.is_some_and(|after| after >= least);
        let known = matches!(
            (refusal.status, refusal.code.as_str()),
            (429, "too_many_attempts") | (503, "unavailable" | "overloaded" | "backend_failed")
        ) || (refusal.status, refusal.code.as_str()) == (401, refusal_code(c.kind));
        if !known || hinted != (refusal.status != 401) || too_many != c.proof.turned_away.is_some() {
            self.fail(Promise::Arriving, format!("{conn:?} is refused with {refusal:?}"));
        }
    }

    /// P1: what happens to backends closes no connection that is online.
    pub(super) fn check_close(
        &mut self,
        place: Place,
        conn: ConnId,
        (code, goodbye): (CloseCode, Option<&Goodbye>),
    ) {
        let held = self.held_of(place);
        let c = &self.conns[conn.0];
        let hinted = goodbye.is_some_and(|g| g.retry_after.is_some_and(|after| after > Duration::ZERO));
        let allowed = match code {
            CloseCode::Replaced => self.has_rival(conn),
            CloseCode::HeartbeatTimeout => {
                c.online && self.was_silent(conn) && !self.was_hurried(place, conn)
            }
            CloseCode::SlowConsumer => c.out.is_behind(),
            CloseCode::GoingAway => self.frontends[place.0]
                .life
                .as_ref()
                .is_some_and(|l| l.stopping.is_some()),
            CloseCode::ClosedByOperator => self.asks.was_close_asked(c.device),
            CloseCode::TryAgainLater | CloseCode::BackendFailed => !c.online && (hinted || goodbye.is_none()),
            CloseCode::LoginFailed => !c.online,
            // Its upgrade did not come in time, or the frontend stood still.
            CloseCode::Protocol => {
                c.phase == Phase::Connecting && (c.inbox.is_empty() || held > c.held_before)
            }
            CloseCode::ChallengeFailed => self.failed_challenge(conn).is_some(),
            CloseCode::RecordRejected | CloseCode::ClearText => !c.online && c.proof.fault == Some(code),
            CloseCode::Normal
            | CloseCode::Unsupported
            | CloseCode::InvalidPayload
            | CloseCode::TooBig
            | CloseCode::ControlFlood => false,
        };
        if !allowed {
            let online = c.online;
            let what = format!(
                "{conn:?} (online: {online}) is closed with {} {goodbye:?}",
                code.label()
            );
            self.fail(Promise::NoDrop, what);
        }
    }

    /// Another connection of the same device got as far as to log in. Who only says that he is the device replaces nobody.
    fn has_rival(&self, conn: ConnId) -> bool {
        let device = self.conns[conn.0].device;
        let others = self
            .conns
            .iter()
            .enumerate()
            .filter(|(index, c)| *index != conn.0 && c.device == device && c.stranger.is_none());
        others.into_iter().any(|(_, c)| c.online || c.key.is_some())
    }

    /// Nothing came from the device for as long as it may be silent, and it was asked in time.
    fn was_silent(&self, conn: ConnId) -> bool {
        let c = &self.conns[conn.0];
        let limits = &self.scenario.shard;
        let answer_time = limits.close_after - limits.ping_after;
        let asked = c.pinged.is_some_and(|at| self.now + SLACK >= at + answer_time);
        asked && self.now + SLACK >= c.heard + limits.close_after
    }

    /// The shard closes at once what became due long ago, while it stood still itself: it must give devices the time to be
    /// heard.
    fn was_hurried(&self, place: Place, conn: ConnId) -> bool {
        let (c, limits) = (&self.conns[conn.0], &self.scenario.shard);
        let answer_time = limits.close_after - limits.ping_after;
        let life = self.frontends[place.0].life.as_ref();
        let Some(((held, ago), asked)) = life
            .map(|life| life.shards[place.1].pace.last_hold(self.now))
            .zip(c.pinged)
        else {
            return false;
        };
        let late = (self.now - ago).saturating_sub(asked + answer_time);
        ago < SLACK && held > answer_time / 2 && late > answer_time / 2 + SLACK
    }

    /// A frame that a shard gives the hub. LOGOUT says why the session ended, and the same each time.
    pub(super) fn note_work(&mut self, command: &Command) {
        self.note_claim(command);
        let Command::Logout(logout) = command else { return };
        let id = session_id(logout.session.as_ref().and_then(|s| s.id));
        let conn = id.ok().and_then(|id| self.sessions.get(&id.as_u128()).copied());
        let Some(conn) = conn else {
            return self.fail(Promise::Logout, "a LOGOUT of a session that never was".into());
        };
        let c = &mut self.conns[conn.0];
        let reason = c.logout_reason.get_or_insert_with(|| logout.reason.clone());
        if *reason != logout.reason || c.end_reason != Some(logout.reason.as_str()) {
            let (said, known) = (logout.reason.clone(), c.end_reason);
            self.fail(
                Promise::Logout,
                format!("the LOGOUT of {conn:?} says {said}, but it was {known:?}"),
            );
        }
    }

    /// A session's message is on its way to its device.
    pub(super) fn note_sent(&mut self, conn: ConnId, payload: &Bytes) {
        if let Some(mark) = super::pushes::mark_of(payload) {
            let end = self.conns[conn.0].out.queued;
            if !self.asks.note_push(mark, conn, end) {
                self.fail(Promise::Truthful, format!("push {mark} goes to {conn:?} twice"));
            }
        }
    }
}
