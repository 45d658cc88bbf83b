//! What goes to a backend, and to which.

use std::time::{Duration, Instant};

use holdfast_proto::MessageKind;
use holdfast_proto::link::{Command, frames};

use super::Shard;
use crate::exchange::{PeerId, ToHub, Track};
use crate::session::roster::Standing;
use crate::session::session::{Control, Session};
use crate::session::state::{Delivery, State};
use crate::session::window::Dispatch;

impl Shard {
    /// Gives a backend whatever of this session waits for one.
    pub(super) fn deliver(&mut self, now: Instant, slot: u32) {
        let Some(session) = self.slots[slot as usize].session.as_ref() else {
            return;
        };
        match session.state {
            State::Online => {
                self.deliver_controls(now, slot, None);
                self.deliver_requests(now, slot);
                return;
            }
            State::Accepted { .. } | State::Challenging { .. } => {}
            State::Binding(_) | State::LoggingIn(_) | State::Closing(_) => {
                if session.wants_backend()
                    && let Some(peer) = self.roster.choose(session.hash_key())
                {
                    self.deliver_lifecycle(now, slot, peer);
                }
            }
        }
        self.arm(slot);
    }

    pub(super) fn deliver_lifecycle(&mut self, now: Instant, slot: u32, peer: PeerId) {
        let ticket = self.roster.ticket(peer, Track::Lifecycle);
        let Some(session) = self.slots[slot as usize].session.as_mut() else {
            return;
        };
        let with = Some((peer, ticket));
        match &mut session.state {
            State::Binding(binding) => {
                binding.since = now;
                binding.delivery.with = with;
            }
            State::LoggingIn(login) => {
                login.since = now;
                login.delivery.with = with;
            }
            State::Closing(closing) => {
                closing.since = now;
                closing.delivery.with = with;
            }
            State::Accepted { .. } | State::Challenging { .. } | State::Online => return,
        }
        if let Some(command) = lifecycle_command(session, now) {
            self.to_hub.push(ToHub::Work {
                peer,
                ticket,
                command,
            });
        }
    }

    /// The backend that takes this session's next request; `None` while it must wait.
    pub(super) fn serving_peer(&self, session: &Session) -> Option<PeerId> {
        let may_move = session.active.as_ref().is_none_or(|a| a.window.may_move());
        match session.serving.map(|peer| (peer, self.roster.standing(peer))) {
            Some((peer, Standing::Active)) if !may_move => Some(peer),
            // Its other requests are still with one that takes no more: the new ones wait until those are answered.
            Some((_, Standing::Idle)) if !may_move => None,
            _ => self.roster.choose(session.hash_key()),
        }
    }

    pub(super) fn deliver_requests(&mut self, now: Instant, slot: u32) {
        loop {
            let Some(session) = self.slots[slot as usize].session.as_ref() else {
                return;
            };
            if !session.active.as_ref().is_some_and(|a| a.window.has_unsent()) {
                return;
            }
            let Some(peer) = self.serving_peer(session) else {
                return;
            };
            let Some(session) = self.slots[slot as usize].session.as_mut() else {
                return;
            };
            session.serving = Some(peer);
            let Some(active) = session.active.as_mut() else {
                return;
            };
            let roster = &mut self.roster;
            let Some(dispatch) = active
                .window
                .poll_dispatch(peer, || roster.ticket(peer, Track::Requests))
            else {
                return;
            };
            let command = request_command(session, dispatch.clone(), now, &self.config);
            self.to_hub.push(ToHub::Work {
                peer,
                ticket: dispatch.ticket,
                command,
            });
        }
    }

    /// Gives out the control messages that are with nobody, to another backend than `not` if there is one.
    pub(super) fn deliver_controls(&mut self, now: Instant, slot: u32, not: Option<PeerId>) {
        let Some(session) = self.slots[slot as usize].session.as_ref() else {
            return;
        };
        if !session
            .active
            .as_ref()
            .is_some_and(|a| a.controls.iter().any(|c| c.delivery.with.is_none()))
        {
            return;
        }
        let peer = match not {
            Some(not) => self.another_peer(session, not),
            None => self.control_peer(session),
        };
        let Some(peer) = peer else { return };
        let frame = session.frame();
        let Some(session) = self.slots[slot as usize].session.as_mut() else {
            return;
        };
        let Some(active) = session.active.as_mut() else {
            return;
        };
        let mut updating = active
            .controls
            .iter()
            .any(|c| c.update && c.delivery.with.is_some());
        for control in active.controls.iter_mut().filter(|c| c.delivery.with.is_none()) {
            // Each update builds on the state that the one before it left: side by side all but one would be in vain.
            if control.update && std::mem::replace(&mut updating, true) {
                continue;
            }
            let ticket = self.roster.ticket(peer, Track::Lifecycle);
            control.delivery.with = Some((peer, ticket));
            control.since = now;
            let command = control_command(frame.clone(), control);
            self.to_hub.push(ToHub::Work {
                peer,
                ticket,
                command,
            });
        }
        self.arm(slot);
    }

    fn control_peer(&self, session: &Session) -> Option<PeerId> {
        let serving = session
            .serving
            .filter(|peer| self.roster.standing(*peer) == Standing::Active);
        serving.or_else(|| self.roster.choose(session.hash_key()))
    }
}

fn lifecycle_command(session: &Session, now: Instant) -> Option<Command> {
    let attempt = |delivery: &Delivery| delivery.attempt;
    Some(match &session.state {
        State::Binding(binding) => Command::Bind(frames::Bind {
            id: Some(session.id.into()),
            channel: session.kind.frame() as i32,
            credential: binding.credential.clone(),
            address: session.address.to_string(),
            attempt: attempt(&binding.delivery),
        }),
        State::LoggingIn(login) => Command::Login(frames::Login {
            session: Some(session.frame()),
            channel: session.kind.frame() as i32,
            address: session.address.to_string(),
            hello: login.hello.clone(),
            attempt: attempt(&login.delivery),
            admitted_ms_ago: millis(now.saturating_duration_since(login.admitted)),
        }),
        State::Closing(closing) => Command::Logout(frames::Logout {
            session: Some(session.frame()),
            reason: closing.reason.label().into(),
            attempt: attempt(&closing.delivery),
        }),
        State::Accepted { .. } | State::Challenging { .. } | State::Online => return None,
    })
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn request_command(
    session: &Session,
    dispatch: Dispatch,
    now: Instant,
    config: &crate::session::ShardConfig,
) -> Command {
    let request = frames::Request {
        session: Some(session.frame()),
        sequence: dispatch.sequence.0,
        floor: dispatch.floor.0,
        attempt: dispatch.attempt,
        age_ms: millis(now.saturating_duration_since(dispatch.received)),
        deadline_ms: millis(config.request_deadline),
        payload: dispatch.payload,
    };
    match dispatch.kind {
        MessageKind::Text => Command::TextMessage(request),
        MessageKind::Binary => Command::BinaryMessage(request),
    }
}

fn control_command(session: frames::Session, control: &Control) -> Command {
    let (number, text, attempt) = (control.number, control.text.clone(), control.delivery.attempt);
    let session = Some(session);
    if control.update {
        Command::Update(frames::Update {
            session,
            number,
            text,
            attempt,
        })
    } else {
        Command::Control(frames::Control {
            session,
            number,
            text,
            attempt,
        })
    }
}
