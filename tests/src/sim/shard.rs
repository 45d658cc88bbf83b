//! A frontend's shard thread: sessions and their connections, driven as `holdfast_frontend::driver` drives them.

use std::time::Duration;

use bytes::Bytes;
use holdfast_frontend::exchange::{ToHub, ToShard};
use holdfast_frontend::link::Hub;
use holdfast_frontend::session::{Goodbye, Output, Refusal, SessionKey, Stalled};
use holdfast_proto::link::{Command, Incoming, session_id};
use holdfast_proto::{ChannelKind, CloseCode, MessageKind, ShardId};

use super::Promise;
use super::conn::{ConnId, FromDevice, Phase, Stage, ToDevice};
use super::nodes::ShardNode;
use super::queue::Time;
use super::world::{Actor, Event, World};

/// How long a connection that was told to go may take to read the rest.
const LINGER: Duration = Duration::from_secs(2);
/// Messages that one read may hold.
const MESSAGES_PER_READ: usize = 8;

/// A shard of a frontend.
pub(super) type Place = (usize, usize);

/// A task of the shard's thread that is ready to run.
#[derive(Debug, Clone, Copy)]
enum Work {
    Hub,
    Accept(ConnId),
    Serve(ConnId),
    Timer,
    /// A piece of what takes longer than a turn may.
    Piece,
}

impl World {
    pub(super) fn shard(&mut self, (frontend, shard): Place) -> Option<&mut ShardNode> {
        self.frontends[frontend].life.as_mut()?.shards.get_mut(shard)
    }

    pub(super) fn shard_turn(&mut self, frontend: usize, index: usize) {
        let place = (frontend, index);
        let now = self.instant();
        let Some(shard) = self.shard(place) else { return };
        let mut works: Vec<Work> = shard.from_hub.iter().map(|_| Work::Hub).collect();
        works.extend(shard.accepts.drain(..).map(Work::Accept));
        works.extend(std::mem::take(&mut shard.ready).into_iter().map(Work::Serve));
        works.extend(shard.core.has_turn().then_some(Work::Piece));
        let is_due = shard.core.poll_timeout().is_some_and(|at| at <= now);
        // Which task runs first is the runtime's affair: anything may be. Only the timers' yields to all that is there, so
        // that nobody who spoke while the thread stood still is taken for silent.
        self.rng.shuffle(&mut works);
        works.extend(is_due.then_some(Work::Timer));
        for work in works {
            self.do_work(place, work);
            self.pump(place);
        }
        self.flush_to_hub(place);
        let Some(shard) = self.shard(place) else { return };
        let again = shard.core.has_turn() || !shard.ready.is_empty();
        let due = shard.core.poll_timeout();
        if again {
            self.wake_soon(Actor::Shard(frontend, index));
        } else if let Some(at) = due {
            self.wake_at(Actor::Shard(frontend, index), self.time_of(at));
        }
    }

    fn do_work(&mut self, place: Place, work: Work) {
        let now = self.instant();
        let Some(shard) = self.shard(place) else { return };
        match work {
            Work::Hub => {
                for message in shard.from_hub.pop_front().unwrap_or_default() {
                    self.take_from_hub(place, message);
                }
            }
            Work::Accept(conn) => self.accept(place, conn),
            Work::Serve(conn) => self.serve(place, conn),
            Work::Timer => shard.core.handle_timeout(now),
            Work::Piece => shard.core.handle_turn(now),
        }
    }

    fn take_from_hub(&mut self, place: Place, message: ToShard) {
        let (now, at) = (self.instant(), self.now);
        let Some(shard) = self.shard(place) else { return };
        match &message {
            ToShard::PeerGone { peer, graceful, .. } => {
                shard.gone.insert(*peer);
                shard.losses.extend((!graceful).then_some(at));
            }
            ToShard::Frame { peer, incoming } if shard.gone.contains(peer) => {
                let what = format!("{:?} of {peer:?} comes after its end", incoming.command);
                return self.fail(Promise::Fenced, what);
            }
            _ => {}
        }
        let logged_in = match &message {
            ToShard::Frame {
                incoming:
                    Incoming {
                        command: Command::LoggedIn(answer),
                        ..
                    },
                ..
            } => session_id(answer.id).ok(),
            _ => None,
        };
        self.note_peer(place, &message);
        let Some(shard) = self.shard(place) else { return };
        shard.core.handle_hub(now, message);
        let Some(conn) = logged_in.and_then(|id| self.sessions.get(&id.as_u128()).copied()) else {
            return;
        };
        let key = self.conns[conn.0].key;
        let state = self
            .shard(place)
            .and_then(|shard| shard.core.session_usage(key?))
            .map(|usage| usage.state);
        if state == Some("online") && !self.conns[conn.0].online {
            self.trace.note(at, ("online", conn));
            self.conns[conn.0].online = true;
        }
    }

    fn flush_to_hub(&mut self, place: Place) {
        let delay = self.rng.micros(1..=30);
        let at = self.now + delay;
        self.collect(place);
        let Some(shard) = self.shard(place).filter(|shard| !shard.to_hub.is_empty()) else {
            return;
        };
        let mut messages = std::mem::take(&mut shard.to_hub);
        let at = shard.in_order((at, false));
        messages.retain(|message| self.note_for_hub(message));
        let (frontend, shard) = (place.0, ShardId(place.1 as u8));
        let incarnation = self.frontends[frontend].incarnation;
        self.queue.push(
            at,
            Event::ToHub {
                frontend,
                incarnation,
                shard,
                messages,
            },
        );
    }

    fn accept(&mut self, place: Place, conn: ConnId) {
        let (now, address) = (self.instant(), self.conns[conn.0].address);
        let Some(shard) = self.shard(place) else { return };
        let Some(key) = shard.core.accept(now, ChannelKind::Wss, address) else {
            self.conns[conn.0].stage = Stage::Over;
            return self.queue.push(self.now, Event::Lost(conn));
        };
        shard.set_conn(key, Some(conn));
        shard.ready.insert(conn);
        shard.most_sessions = shard.most_sessions.max(shard.core.live() as usize);
        let session = shard.core.session_id(key);
        let c = &mut self.conns[conn.0];
        (c.key, c.session, c.stage) = (Some(key), session, Stage::Open);
        self.sessions.extend(session.map(|id| (id.as_u128(), conn)));
        self.trace.note(self.now, ("accepted", conn, place, key));
    }

    /// What the connection's task does when it runs: writes what waits, then reads, if it may.
    fn serve(&mut self, place: Place, conn: ConnId) {
        self.write_on(place, conn);
        self.pump(place);
        let c = &mut self.conns[conn.0];
        let Some(key) = c.key.filter(|_| matches!(c.stage, Stage::Open | Stage::Binding)) else {
            return;
        };
        let broke = c.inbox.iter().any(|item| matches!(item, FromDevice::Reset));
        let closed = c.inbox.iter().any(|item| matches!(item, FromDevice::Close));
        // A write to a socket whose other end is closed breaks it; reading comes only after all is written.
        if c.out.is_blocked() && (broke || closed) || c.stage == Stage::Open && broke {
            return self.lose_conn(place, (conn, key), false);
        }
        if c.out.is_blocked() || c.stage == Stage::Binding || c.stalled.is_some() {
            return;
        }
        for _ in 0..1 + self.rng.below(MESSAGES_PER_READ) {
            let Some(item) = self.conns[conn.0].inbox.pop_front() else {
                return;
            };
            if !self.take_item(place, (conn, key), item) {
                break;
            }
        }
        if !self.conns[conn.0].inbox.is_empty()
            && let Some(shard) = self.shard(place)
        {
            shard.ready.insert(conn);
        }
    }

    /// Whether the next item may be taken in the same turn.
    fn take_item(&mut self, place: Place, (conn, key): (ConnId, SessionKey), item: FromDevice) -> bool {
        let now = self.instant();
        let Some(shard) = self.shard(place) else {
            return false;
        };
        match item {
            FromDevice::Upgrade(credential) => {
                shard.core.handle_upgrade(now, key, credential);
                self.conns[conn.0].stage = Stage::Binding;
                false
            }
            FromDevice::Message(kind, payload) => match shard.core.handle_message(now, key, kind, payload) {
                Ok(()) => true,
                Err(Stalled(payload)) => {
                    self.conns[conn.0].stalled = Some((kind, payload));
                    self.saw("stall", "");
                    false
                }
            },
            FromDevice::Alive => {
                shard.core.handle_alive(now, key);
                true
            }
            FromDevice::Close | FromDevice::Reset => {
                self.lose_conn(place, (conn, key), matches!(item, FromDevice::Close));
                false
            }
        }
    }

    fn lose_conn(&mut self, place: Place, (conn, key): (ConnId, SessionKey), by_device: bool) {
        let now = self.instant();
        let Some(shard) = self.shard(place) else { return };
        shard.set_conn(key, None);
        shard.core.handle_closed(now, key, by_device);
        shard.lost.push((key, conn));
        let c = &mut self.conns[conn.0];
        c.stage = Stage::Over;
        c.end_reason = Some(if by_device {
            "closed_by_device"
        } else {
            "connection_lost"
        });
        c.out.cut();
        self.trace.note(self.now, ("session ends", conn, key, by_device));
    }

    /// Moves bytes to the kernel and tells the session what went out with them.
    fn write_on(&mut self, place: Place, conn: ConnId) {
        let now = self.instant();
        let c = &mut self.conns[conn.0];
        let written = c.out.advance();
        let (key, open) = (c.key, matches!(c.stage, Stage::Open | Stage::Binding));
        if let (Some(key), true) = (key, open && written > 0)
            && let Some(shard) = self.shard(place)
        {
            shard.core.handle_written(now, key, written);
        }
        self.schedule_read(conn);
    }

    /// Carries out everything that the sessions want.
    fn pump(&mut self, place: Place) {
        let mut next = self.poll_output(place);
        while let Some(output) = next.take() {
            match output {
                Output::Send { key, kind, payload } => next = self.on_send(place, key, (kind, payload)),
                Output::Admit { key, .. } => self.on_admit(place, key),
                Output::Refuse { key, refusal } => self.on_refuse(place, key, refusal),
                Output::Ping { key } => self.on_ping(place, key),
                Output::Close { key, code, goodbye } => self.on_close(place, key, (code, goodbye)),
                Output::Resume { key } => self.on_resume(place, key),
            }
            if next.is_none() {
                next = self.poll_output(place);
            }
        }
        if let Some(shard) = self.shard(place) {
            shard.closed.extend(shard.lost.drain(..).map(|(key, _)| key));
        }
    }

    fn poll_output(&mut self, place: Place) -> Option<Output> {
        let shard = self.shard(place)?;
        shard.core.poll_output()
    }

    /// The connection of a session that wants something of it.
    fn conn_of(&mut self, place: Place, key: SessionKey, what: &str) -> Option<ConnId> {
        let shard = self.shard(place)?;
        if shard.lost.iter().any(|(lost, _)| *lost == key) {
            return None;
        }
        if shard.closed.contains(&key) {
            self.fail(
                Promise::Protocol,
                format!("{what} for {key:?} of {place:?}, which has ended"),
            );
            return None;
        }
        let conn = shard
            .conn_of(key)
            .filter(|conn| self.conns[conn.0].key == Some(key));
        if conn.is_none() {
            self.fail(
                Promise::Protocol,
                format!("{what} for {key:?} of {place:?}, which has no connection"),
            );
        }
        conn
    }

    /// Sends this message and those for the same session right behind it; gives the first other output.
    fn on_send(&mut self, place: Place, key: SessionKey, first: (MessageKind, Bytes)) -> Option<Output> {
        let conn = self.conn_of(place, key, "a message")?;
        let (mut message, mut queued) = (first, 0);
        loop {
            for (kind, payload) in self.bend_message(conn, message) {
                self.conns[conn.0]
                    .out
                    .put(ToDevice::Message(kind, payload.clone()));
                self.note_sent(conn, &payload);
            }
            queued += 1;
            match self.poll_output(place) {
                Some(Output::Send {
                    key: same,
                    kind,
                    payload,
                }) if same == key => message = (kind, payload),
                other => {
                    self.conns[conn.0].out.end_group(queued);
                    self.write_on(place, conn);
                    return other;
                }
            }
        }
    }

    fn on_admit(&mut self, place: Place, key: SessionKey) {
        let Some(conn) = self.conn_of(place, key, "an admission") else {
            return;
        };
        self.check_admission(place, conn);
        self.conns[conn.0].stage = Stage::Open;
        self.say(place, conn, ToDevice::Admitted);
        self.trace.note(self.now, ("admitted", conn));
    }

    fn on_refuse(&mut self, place: Place, key: SessionKey, refusal: Refusal) {
        let Some(conn) = self.conn_of(place, key, "a refusal") else {
            return;
        };
        self.trace
            .note(self.now, ("refused", conn, refusal.status, refusal.code.clone()));
        self.check_admission(place, conn);
        self.check_refusal(conn, &refusal);
        self.saw("refusal", &refusal.code);
        self.conns[conn.0].end_reason = Some("refused");
        self.say(place, conn, ToDevice::Refused(refusal));
        self.linger(place, conn, key);
    }

    fn on_ping(&mut self, place: Place, key: SessionKey) {
        let Some(conn) = self.conn_of(place, key, "a ping") else {
            return;
        };
        self.conns[conn.0].pinged = Some(self.now);
        self.strike_ping(place, conn);
        self.say(place, conn, ToDevice::Ping);
    }

    fn on_close(&mut self, place: Place, key: SessionKey, (code, goodbye): (CloseCode, Option<Goodbye>)) {
        if let Some(conn) = self.shard(place).and_then(|s| s.lost_conn(key)) {
            self.conns[conn.0].end_reason = Some(code.label());
            return;
        }
        let Some(conn) = self.conn_of(place, key, "a close") else {
            return;
        };
        self.trace.note(self.now, ("closed", conn, key, code.label()));
        self.check_close(place, conn, (code, goodbye.as_ref()));
        self.saw("close", code.label());
        self.conns[conn.0].end_reason = Some(code.label());
        if let Some(goodbye) = goodbye {
            let text = Bytes::from(goodbye.render());
            self.conns[conn.0]
                .out
                .put(ToDevice::Message(MessageKind::Text, text));
        }
        self.say(place, conn, ToDevice::Closed(code));
        self.linger(place, conn, key);
    }

    fn on_resume(&mut self, place: Place, key: SessionKey) {
        let Some(conn) = self.conn_of(place, key, "a resumption") else {
            return;
        };
        let now = self.instant();
        let Some((kind, payload)) = self.conns[conn.0].stalled.take() else {
            return;
        };
        let Some(shard) = self.shard(place) else { return };
        match shard.core.handle_message(now, key, kind, payload) {
            Ok(()) => drop(shard.ready.insert(conn)),
            Err(Stalled(payload)) => self.conns[conn.0].stalled = Some((kind, payload)),
        }
    }

    /// Writes what is not a session's message.
    fn say(&mut self, place: Place, conn: ConnId, what: ToDevice) {
        self.conns[conn.0].out.put(what);
        self.write_on(place, conn);
        if let Some(shard) = self.shard(place) {
            shard.ready.insert(conn);
        }
    }

    fn linger(&mut self, place: Place, conn: ConnId, key: SessionKey) {
        self.conns[conn.0].stage = Stage::Lingering;
        self.conns[conn.0].stalled = None;
        if let Some(shard) = self.shard(place) {
            shard.set_conn(key, None);
            shard.closed.push(key);
        }
        self.queue.push(self.now + LINGER, Event::LingerOver(conn));
    }

    pub(super) fn on_linger_over(&mut self, conn: ConnId) {
        let c = &mut self.conns[conn.0];
        if c.stage != Stage::Lingering {
            return;
        }
        c.stage = Stage::Over;
        c.out.cut();
        if c.phase != Phase::Ended {
            self.queue.push(self.now, Event::Lost(conn));
        }
    }

    /// The connection's task has something to do.
    pub(super) fn ready(&mut self, conn: ConnId) {
        let c = &self.conns[conn.0];
        let (place, incarnation) = ((c.frontend, c.shard), c.incarnation);
        if matches!(c.stage, Stage::Over | Stage::Queued) {
            return;
        }
        if let Some(life) = self.life_of(place.0, incarnation) {
            life.shards[place.1].ready.insert(conn);
            self.wake_soon(Actor::Shard(place.0, place.1));
        }
    }

    pub(super) fn hub(&self, frontend: usize) -> Option<&Hub> {
        self.frontends[frontend].life.as_ref().map(|life| &life.hub)
    }

    /// Reads along. Whether the message reaches the hub is a mutant's choice.
    fn note_for_hub(&mut self, message: &ToHub) -> bool {
        match message {
            ToHub::Work { command, .. } => self.note_work(command),
            ToHub::Release { .. }
            | ToHub::Drained { .. }
            | ToHub::ShareTaken { .. }
            | ToHub::Offline { .. }
            | ToHub::Moved { .. }
            | ToHub::PushDone { .. }
            | ToHub::BroadcastDone { .. }
            | ToHub::Stopped => {}
        }
        self.lets_pass(message)
    }

    pub(super) fn held_of(&mut self, place: Place) -> Time {
        let now = self.now;
        self.shard(place).map_or(Time::ZERO, |shard| shard.pace.held(now))
    }
}
