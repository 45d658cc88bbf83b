//! What a frontend sends, one frame at a time.

use holdfast_proto::link::frames::{Bind, Login, QueryResult, Request, Sync, SyncPage};
use holdfast_proto::link::{Class, Command, Incoming, Origin};

use super::{Action, Backend, LIFECYCLE_BACKLOG, MAX_OWED_CLOSES, Now, SOURCE_CLOSE};
use crate::dispatch::{Arrival, BindStep, Malformed, Replaced, handle_control, handle_update};
use crate::link::LinkIndex;

/// CLOSE frames for replaced sessions go to a link only while fewer frames than this wait there.
const MAX_QUEUED_CLOSES: usize = MAX_OWED_CLOSES;

type Charge = Option<(Class, u32)>;

impl Backend {
    pub(super) fn handle_frame(&mut self, link: LinkIndex, incoming: Incoming, now: Now) {
        let Incoming { command, charge } = incoming;
        let handled = match command {
            Command::TextMessage(request) => return self.handle_request(link, (request, false), charge, now),
            Command::BinaryMessage(request) => {
                return self.handle_request(link, (request, true), charge, now);
            }
            Command::Bind(bind) => self.handle_bind(link, bind),
            Command::Login(login) => self.handle_login(link, login, now),
            Command::Logout(logout) => self.lifecycle.handle_logout(logout).map(|(answer, reason)| {
                self.metrics.count_logout(reason);
                self.enqueue(link, answer, None);
            }),
            Command::Update(update) => handle_update(update).map(|updated| {
                self.metrics.updates.inc();
                self.enqueue(link, Command::Updated(updated), None);
            }),
            Command::Control(control) => handle_control(control).map(|reply| {
                self.metrics.controls.inc();
                self.enqueue(link, Command::ControlReply(reply), None);
            }),
            Command::Ping(ping) => {
                let online = self.lifecycle.handle_ping(&ping);
                self.links[link.get()].online = online;
                self.metrics.set_online(link, online);
                Ok(())
            }
            Command::PushResult(result) => {
                let expected = self.tracker.handle_push_result(link, result);
                self.metrics.unanswered.inc_by(u64::from(!expected));
                Ok(())
            }
            Command::QueryResult(result) => self.handle_query_result(link, result),
            Command::SyncPage(page) => self.handle_sync_page(link, &page),
            // Commands that only a backend sends.
            _ => Err(Malformed),
        };
        self.metrics.malformed.inc_by(u64::from(handled.is_err()));
        self.give_back(link, charge);
    }

    fn handle_request(
        &mut self,
        link: LinkIndex,
        (request, binary): (Request, bool),
        charge: Charge,
        now: Now,
    ) {
        let arrival = Arrival {
            request,
            binary,
            charge,
            at: now.instant,
        };
        self.requests.handle_arrival(link, arrival, now);
    }

    fn handle_bind(&mut self, link: LinkIndex, bind: Bind) -> Result<(), Malformed> {
        let channel = bind.channel();
        match self.lifecycle.handle_bind(link, bind)? {
            BindStep::Authenticate {
                bind,
                claimant,
                credential,
            } => {
                self.actions.push_back(Action::Authenticate {
                    bind,
                    claimant,
                    credential,
                });
            }
            BindStep::Refuse { answer, code } => {
                self.metrics.count_bind(channel, code);
                self.enqueue(link, answer, None);
            }
        }
        Ok(())
    }

    fn handle_login(&mut self, link: LinkIndex, login: Login, now: Now) -> Result<(), Malformed> {
        let frontend = self.links[link.get()].attachment.frontend().ok_or(Malformed)?;
        let step = self.lifecycle.handle_login(login, frontend, now.unix_ms)?;
        self.metrics.count_login(step.replace.is_some());
        self.enqueue(link, step.answer, None);
        let Some(replaced) = step.replace else {
            return Ok(());
        };
        for other in self.link_indexes().filter(|other| *other != link) {
            self.close_replaced(other, &replaced);
        }
        Ok(())
    }

    /// A link that is down gets it when it is back.
    fn close_replaced(&mut self, link: LinkIndex, replaced: &Replaced) {
        let owed = self.links[link.get()].closes.owe(replaced.clone());
        let is_open = self.links[link.get()].attachment.is_open();
        let has_room = self.links[link.get()].attachment.queued(Class::Lifecycle) < MAX_QUEUED_CLOSES;
        match owed {
            Ok(ticket) if is_open && has_room => {
                self.send_close(link, ticket, replaced);
            }
            Ok(_) if !is_open => {}
            Ok(_) | Err(_) => {
                self.metrics.closes_dropped.inc();
            }
        }
    }

    fn send_close(&mut self, link: LinkIndex, ticket: u64, replaced: &Replaced) {
        let origin = Origin {
            source: SOURCE_CLOSE,
            ticket,
        };
        self.enqueue(link, Command::Close(replaced.frame()), Some(origin));
    }

    /// The link is back: what it did not acknowledge before is said again, for it may not have arrived.
    pub(super) fn repeat_closes(&mut self, link: LinkIndex) {
        let owed = self.links[link.get()].closes.iter();
        let owed: Vec<(u64, Replaced)> = owed
            .map(|(ticket, replaced)| (ticket, replaced.clone()))
            .collect();
        self.metrics.closes_repeated.inc_by(owed.len() as u64);
        for (ticket, replaced) in owed {
            self.send_close(link, ticket, &replaced);
        }
    }

    fn handle_query_result(&mut self, link: LinkIndex, result: QueryResult) -> Result<(), Malformed> {
        self.lifecycle.note_seen(&result.sessions);
        let expected = self.tracker.handle_query_result(link, result);
        self.metrics.unanswered.inc_by(u64::from(!expected));
        Ok(())
    }

    /// One page is under way at a time: the next is asked for when one has come.
    fn handle_sync_page(&mut self, link: LinkIndex, page: &SyncPage) -> Result<(), Malformed> {
        self.lifecycle.note_seen(&page.sessions);
        if page.next_cursor != 0 && !self.is_draining() {
            self.enqueue(
                link,
                Command::Sync(Sync {
                    cursor: page.next_cursor,
                }),
                None,
            );
        }
        Ok(())
    }

    /// Returns a frame's credit, later if the answers to such frames pile up.
    fn give_back(&mut self, link: LinkIndex, charge: Charge) {
        let Some(charge) = charge else { return };
        let state = &mut self.links[link.get()];
        let piled_up = charge.0 == Class::Lifecycle
            && (!state.held_back.is_empty() || state.attachment.queued(Class::Lifecycle) > LIFECYCLE_BACKLOG);
        if piled_up {
            state.held_back.push_back(charge);
        } else {
            state.attachment.release(charge);
        }
    }
}
