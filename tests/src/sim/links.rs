//! What travels between the processes, and what breaks on the way.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::link::{Command, Epoch, session_id};

use super::ledger::{Ledger, Parcel};
use super::nodes::{News, NewsEvent};
use super::pipe::{Direction, Pipe, PipeId, Way};
use super::queue::Time;
use super::world::{Actor, Event, World};

/// How often a socket that waits for a frontend that does not run tries again.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);

impl World {
    pub(super) fn send_down(&mut self, frontend: usize, identity: &Bytes, batch: Bytes) {
        let parcel = Parcel::new(batch);
        self.judge_work(&parcel);
        let life = self.frontends[frontend].life.as_ref();
        if let Some(pipe) = life.and_then(|life| life.sockets.get(identity).copied()) {
            self.send(pipe, Direction::Down, parcel);
        }
    }

    /// Whether the socket took it, which says nothing about its arrival.
    pub(super) fn send_up(&mut self, backend: usize, link: usize, batch: Bytes) -> bool {
        let socket = self.backends[backend]
            .life
            .as_ref()
            .and_then(|life| life.sockets[link]);
        let Some(pipe) = socket else { return false };
        if !self.pipes[pipe.0].open {
            return self.rng.chance(500);
        }
        self.send(pipe, Direction::Up, Parcel::new(batch));
        true
    }

    fn send(&mut self, pipe: PipeId, direction: Direction, parcel: Parcel) {
        if !self.pipes[pipe.0].open {
            return;
        }
        self.judge_sent(pipe, direction, &parcel);
        for (pipe, parcel) in self.bend_batch(pipe, direction, parcel) {
            let mut delay = self.rng.micros(self.scenario.link_delay.clone());
            if self.pipes[pipe.0].slow_until > self.now {
                delay += self.rng.millis(0..=400);
            }
            let at = self.pipes[pipe.0].way(direction).send(parcel, self.now + delay);
            self.queue.push(at, Event::Batch(pipe, direction));
        }
    }

    pub(super) fn on_batch(&mut self, id: PipeId, direction: Direction) {
        let pipe = &mut self.pipes[id.0];
        let Some(parcel) = pipe.way(direction).batches.pop_front() else {
            return;
        };
        if direction == Direction::Down || self.is_own(id, &parcel) {
            self.pipes[id.0].way(direction).heard = self.now;
        }
        self.note_arrived(id, direction, &parcel);
        self.observe(id, direction, &parcel);
        let batch = parcel.batch;
        let pipe = &self.pipes[id.0];
        let (frontend, backend, link, attach) = (pipe.frontend, pipe.backend, pipe.link, pipe.attach);
        match direction {
            Direction::Up => {
                let (identity, incarnation) = (pipe.identity.clone(), pipe.incarnation);
                if let Some(life) = self.life_of(frontend, incarnation) {
                    life.received.push_back((identity, batch));
                    self.wake_soon(Actor::Hub(frontend));
                }
            }
            Direction::Down => self.on_news(backend, (link, attach), NewsEvent::Batch(batch)),
        }
    }

    /// Whether a batch is of the very backend whose socket it comes from: another one's is no sign of its life.
    fn is_own(&self, id: PipeId, parcel: &Parcel) -> bool {
        let pipe = &self.pipes[id.0];
        let from = parcel.header.from.map(Epoch::from);
        from.is_some_and(|from| (from.boot, from.attach) == (self.backends[pipe.backend].boot, pipe.attach))
    }

    /// Reads along: LOGOUTs that backends confirm, and the trace.
    fn observe(&mut self, pipe: PipeId, direction: Direction, parcel: &Parcel) {
        let mut hasher = DefaultHasher::new();
        parcel.batch.hash(&mut hasher);
        let mut names: Vec<(&'static str, u64)> = Vec::new();
        for command in parcel.commands() {
            if let Command::LoggedOut(answer) = command
                && let Ok(id) = session_id(answer.id)
            {
                self.logged_out.insert(id.as_u128());
            }
            if let Command::LoggedIn(answer) = command
                && let Ok(id) = session_id(answer.id)
                && let Some(conn) = self.sessions.get(&id.as_u128())
            {
                self.conns[conn.0].welcomed = true;
            }
            names.push(name_of(command));
        }
        self.trace.mix(self.now, (pipe, direction, hasher.finish()));
        if let Some((name, _)) = names.last() {
            self.strike(pipe, name);
        }
        // A header alone is not worth a line.
        if !names.is_empty() {
            self.trace
                .note(self.now, (pipe, direction, parcel.header.first_frame, names));
        }
    }

    pub(super) fn on_open(
        &mut self,
        backend: usize,
        (link, attach): (usize, u32),
        identity: Bytes,
        until: Time,
    ) {
        let now = self.now;
        let Some(life) = self.backends[backend]
            .life
            .as_ref()
            .filter(|life| life.attach[link] == attach)
        else {
            return;
        };
        debug_assert!(life.sockets[link].is_none());
        let node = &mut self.frontends[link];
        let incarnation = node.incarnation;
        let Some(frontend) = node.life.as_mut() else {
            let at = now + self.rng.micros(50..=2000);
            let event = NewsEvent::Disconnected;
            return self.queue.push(
                at,
                Event::News {
                    backend,
                    link,
                    attach,
                    event,
                },
            );
        };
        if frontend.pace.is_held(now) {
            let event = if now < until {
                Event::Open {
                    backend,
                    link,
                    attach,
                    identity,
                    until,
                }
            } else {
                Event::News {
                    backend,
                    link,
                    attach,
                    event: NewsEvent::Disconnected,
                }
            };
            return self.queue.push(now + CONNECT_AGAIN, event);
        }
        let id = PipeId(self.pipes.len());
        frontend.sockets.insert(identity.clone(), id);
        self.pipes.push(Pipe {
            frontend: link,
            incarnation,
            backend,
            link,
            attach,
            identity,
            up: Way::default(),
            down: Way::default(),
            ledger: Ledger::default(),
            open: true,
            slow_until: Time::ZERO,
        });
        self.trace.note(now, ("connected", backend, link, attach, id));
        let at = now + self.rng.micros(20..=1500);
        self.queue.push(
            at,
            Event::News {
                backend,
                link,
                attach,
                event: NewsEvent::Connected(id),
            },
        );
    }

    pub(super) fn on_news(&mut self, backend: usize, (link, attach): (usize, u32), event: NewsEvent) {
        if let Some(life) = self.backends[backend].life.as_mut() {
            life.news.push_back(News { link, attach, event });
            self.wake_soon(Actor::Backend(backend));
        }
    }

    /// The ends that are gone: frontend's, backend's; neither means that the socket between them broke.
    pub(super) fn break_pipe(&mut self, id: PipeId, (frontend_gone, backend_gone): (bool, bool)) {
        let pipe = &mut self.pipes[id.0];
        if !pipe.open {
            return;
        }
        pipe.open = false;
        let (kept_up, kept_down) = (
            self.rng.below(pipe.up.batches.len() + 1),
            self.rng.below(pipe.down.batches.len() + 1),
        );
        pipe.up.batches.truncate(if frontend_gone { 0 } else { kept_up });
        pipe.down
            .batches
            .truncate(if backend_gone { 0 } else { kept_down });
        let (up_at, down_at) = (pipe.up.last, pipe.down.last);
        let (backend, link, attach) = (pipe.backend, pipe.link, pipe.attach);
        self.trace
            .note(self.now, ("broken", id, frontend_gone, backend_gone));
        if !frontend_gone && !self.rng.chance(self.scenario.deaf) {
            let at = self.notice_at(up_at);
            self.queue.push(at, Event::Gone(id));
        }
        if !backend_gone && !self.rng.chance(self.scenario.deaf) {
            let at = self.notice_at(down_at);
            let event = NewsEvent::Disconnected;
            self.queue.push(
                at,
                Event::News {
                    backend,
                    link,
                    attach,
                    event,
                },
            );
        }
    }

    /// Mostly after what was still on its way, but the monitor is another stream.
    fn notice_at(&mut self, last: Time) -> Time {
        let after = if self.rng.chance(800) { last } else { Time::ZERO };
        self.now.max(after) + self.rng.micros(20..=2000)
    }

    pub(super) fn on_gone(&mut self, id: PipeId) {
        let pipe = &self.pipes[id.0];
        let (frontend, incarnation, identity) = (pipe.frontend, pipe.incarnation, pipe.identity.clone());
        if let Some(life) = self.life_of(frontend, incarnation) {
            life.sockets.remove(&identity);
            life.gone.push_back(identity);
            self.trace.note(self.now, ("frontend hears of the end", id));
            self.wake_soon(Actor::Hub(frontend));
        }
    }
}

/// A frame in a word.
fn name_of(command: &Command) -> (&'static str, u64) {
    use Command as C;
    let slot = |id: &Option<holdfast_proto::link::frames::SessionId>| id.map_or(0, |id| id.low >> 2);
    let session = |s: &Option<holdfast_proto::link::frames::Session>| s.as_ref().map_or(0, |s| slot(&s.id));
    match command {
        C::Hello(_) => ("hello", 0),
        C::Refused(_) => ("refused", 0),
        C::Ready(_) => ("ready", 0),
        C::Draining(_) => ("draining", 0),
        C::Done(f) => ("done", f.last_frame),
        C::DrainMark(f) => ("drain_mark", f.last_frame),
        C::Fenced(_) => ("fenced", 0),
        C::Bind(f) => ("bind", slot(&f.id)),
        C::Login(f) => ("login", session(&f.session)),
        C::Logout(f) => ("logout", session(&f.session)),
        C::Update(f) => ("update", f.number),
        C::Ping(f) => ("ping", f.online),
        C::TextMessage(f) | C::BinaryMessage(f) => ("request", f.sequence),
        C::Control(f) => ("control", f.number),
        C::PushResult(f) => ("push_result", f.number),
        C::QueryResult(f) => ("query_result", f.number),
        C::SyncPage(f) => ("sync_page", f.next_cursor),
        C::Bound(f) => ("bound", slot(&f.id)),
        C::LoggedIn(f) => ("logged_in", slot(&f.id)),
        C::LoggedOut(f) => ("logged_out", slot(&f.id)),
        C::Updated(f) => ("updated", f.number),
        C::ControlReply(f) => ("control_reply", f.number),
        C::Reply(f) => ("reply", f.sequence),
        C::Push(f) => ("push", f.number),
        C::Close(f) => ("close", u64::from(f.code)),
        C::Join(_) => ("join", 0),
        C::Leave(_) => ("leave", 0),
        C::Query(f) => ("query", f.number),
        C::Sync(f) => ("sync", f.cursor),
    }
}
