//! A session's states, with one method per transition.
//!
//! ```text
//! Accepted ─upgrade→ Binding ─bound→ Challenging ─greeted→ LoggingIn ─welcomed→ Online
//!     │                 │                │                     │                  │
//!     └─────────────────┴───── ended ────┴──→ (gone)           └──── closed ──────┴→ Closing ─logged out→ (gone)
//! ```

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::{CLOSED_BY_DEVICE, CONNECTION_LOST, CloseCode};

use super::unfinished::UnfinishedPlace;
use crate::exchange::{PeerId, Ticket, Track};

/// A frame that waits for its answer, and who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivery {
    /// `None` while no backend could be given it.
    pub with: Option<(PeerId, Ticket)>,
    /// Backends that were lost while they had it, or did not answer it in time.
    pub attempt: u32,
}

impl Delivery {
    /// The peer is lost. True when this must be given to another.
    pub fn on_lost(
        &mut self,
        peer: PeerId,
        was_sent: impl FnOnce(Track, Ticket) -> bool,
        track: Track,
    ) -> bool {
        let Some((_, ticket)) = self.with.filter(|(with, _)| *with == peer) else {
            return false;
        };
        self.attempt = self.attempt.saturating_add(was_sent(track, ticket).into());
        self.with = None;
        true
    }

    /// The peer that has it does not answer: it is taken for lost there. Gives that peer.
    pub fn on_unanswered(&mut self) -> Option<PeerId> {
        let (peer, _) = self.with.take()?;
        self.attempt = self.attempt.saturating_add(1);
        Some(peer)
    }
}

/// BIND was or will be sent.
#[derive(Debug)]
pub struct Binding {
    pub credential: Bytes,
    pub delivery: Delivery,
    /// When the current wait began: for a backend, or for its answer.
    pub since: Instant,
}

/// LOGIN was or will be sent.
#[derive(Debug)]
pub struct LoggingIn {
    /// The device's `@hello`; empty when it said none.
    pub hello: Bytes,
    pub delivery: Delivery,
    pub since: Instant,
    /// When BOUND came.
    pub admitted: Instant,
}

/// LOGOUT was or will be sent, again and again until it is acknowledged.
#[derive(Debug)]
pub struct Closing {
    pub reason: CloseReason,
    pub delivery: Delivery,
    /// When LOGOUT was last given to a backend.
    pub since: Instant,
    /// The device index held this session.
    pub was_online: bool,
}

/// Why a session ended, as LOGOUT says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// We closed it.
    Closed(CloseCode),
    /// The device closed it with a close message.
    ByDevice,
    /// The transport broke without one.
    Lost,
}

impl CloseReason {
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed(code) => code.label(),
            Self::ByDevice => CLOSED_BY_DEVICE,
            Self::Lost => CONNECTION_LOST,
        }
    }
}

/// See the module's diagram. Each variant's comment says what may come next.
#[derive(Debug)]
pub enum State {
    /// The transport is being set up (TLS, HTTP upgrade). Next: [`State::on_upgrade`], or ended.
    Accepted { since: Instant },
    /// The credential is with a backend. Next: [`State::on_bound`], or ended.
    Binding(Box<Binding>),
    /// Admitted; waits for the device's first message, which on `ws` and `udp` proves that it holds the key (`place` counts it
    /// among the device's unfinished handshakes) and on `wss` may stay away. Next: [`State::on_greeted`], or ended.
    Challenging {
        since: Instant,
        place: Option<UnfinishedPlace>,
    },
    /// Next: [`State::on_welcomed`], or [`State::on_closed`].
    LoggingIn(Box<LoggingIn>),
    /// P1 holds from here. Next: [`State::on_closed`].
    Online,
    /// The connection is gone or going; LOGOUT is not acknowledged. Next: the slot is free.
    Closing(Box<Closing>),
}

/// A transition that the state does not have: a defect of ours, or a frame that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session that is {from} has no transition {transition}")]
pub struct IllegalTransition {
    pub from: &'static str,
    pub transition: &'static str,
}

impl State {
    pub fn label(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Binding(_) => "binding",
            Self::Challenging { .. } => "challenging",
            Self::LoggingIn(_) => "logging_in",
            Self::Online => "online",
            Self::Closing(_) => "closing",
        }
    }

    pub fn on_upgrade(&mut self, now: Instant, credential: Bytes) -> Result<(), IllegalTransition> {
        let Self::Accepted { .. } = self else {
            return Err(self.illegal("on_upgrade"));
        };
        *self = Self::Binding(Box::new(Binding {
            credential,
            delivery: Delivery::default(),
            since: now,
        }));
        Ok(())
    }

    pub fn on_bound(
        &mut self,
        now: Instant,
        place: Option<UnfinishedPlace>,
    ) -> Result<(), IllegalTransition> {
        let Self::Binding(_) = self else {
            return Err(self.illegal("on_bound"));
        };
        *self = Self::Challenging { since: now, place };
        Ok(())
    }

    pub fn on_greeted(&mut self, now: Instant, hello: Bytes) -> Result<(), IllegalTransition> {
        let Self::Challenging { since: admitted, .. } = *self else {
            return Err(self.illegal("on_greeted"));
        };
        *self = Self::LoggingIn(Box::new(LoggingIn {
            hello,
            delivery: Delivery::default(),
            since: now,
            admitted,
        }));
        Ok(())
    }

    pub fn on_welcomed(&mut self) -> Result<(), IllegalTransition> {
        let Self::LoggingIn(_) = self else {
            return Err(self.illegal("on_welcomed"));
        };
        *self = Self::Online;
        Ok(())
    }

    /// Ends the session. True when LOGOUT is owed: a backend may have seen its LOGIN.
    pub fn on_closed(&mut self, now: Instant, reason: CloseReason) -> Result<bool, IllegalTransition> {
        let was_online = match self {
            Self::Closing(_) => return Err(self.illegal("on_closed")),
            Self::Accepted { .. } | Self::Binding(_) | Self::Challenging { .. } => return Ok(false),
            Self::LoggingIn(login) if login.delivery == Delivery::default() => return Ok(false),
            Self::LoggingIn(_) => false,
            Self::Online => true,
        };
        *self = Self::Closing(Box::new(Closing {
            reason,
            delivery: Delivery::default(),
            since: now,
            was_online,
        }));
        Ok(true)
    }

    /// Takes the place among the unfinished handshakes, if it has one: the proof was given, or never will be.
    pub fn take_place(&mut self) -> Option<UnfinishedPlace> {
        match self {
            Self::Challenging { place, .. } => place.take(),
            _ => None,
        }
    }

    fn illegal(&self, transition: &'static str) -> IllegalTransition {
        IllegalTransition {
            from: self.label(),
            transition,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Transition = (&'static str, fn(&mut State) -> Result<(), IllegalTransition>);

    fn states() -> Vec<State> {
        let now = Instant::now();
        let sent = Delivery {
            with: Some((PeerId(1), Ticket(1))),
            attempt: 0,
        };
        vec![
            State::Accepted { since: now },
            State::Binding(Box::new(Binding {
                credential: Bytes::new(),
                delivery: sent,
                since: now,
            })),
            State::Challenging {
                since: now,
                place: None,
            },
            State::LoggingIn(Box::new(LoggingIn {
                hello: Bytes::new(),
                delivery: sent,
                since: now,
                admitted: now,
            })),
            State::Online,
            State::Closing(Box::new(Closing {
                reason: CloseReason::Lost,
                delivery: sent,
                since: now,
                was_online: true,
            })),
        ]
    }

    /// The whole table: what each state does with each transition.
    #[test]
    fn the_transition_table_is_as_designed() {
        let transitions: [Transition; 5] = [
            ("upgrade", |s| s.on_upgrade(Instant::now(), Bytes::new())),
            ("bound", |s| s.on_bound(Instant::now(), None)),
            ("greeted", |s| s.on_greeted(Instant::now(), Bytes::new())),
            ("welcomed", State::on_welcomed),
            ("closed", |s| {
                s.on_closed(Instant::now(), CloseReason::ByDevice).map(|_| ())
            }),
        ];
        let mut table = String::new();
        for index in 0..states().len() {
            for (name, transition) in transitions {
                let mut state = states().remove(index);
                let from = state.label();
                let to = transition(&mut state).map_or("-", |()| state.label());
                table += &format!("{from} {name} {to}\n");
            }
        }
        let expected = "\
accepted upgrade binding
accepted bound -
accepted greeted -
accepted welcomed -
accepted closed accepted
binding upgrade -
binding bound challenging
binding greeted -
binding welcomed -
binding closed binding
challenging upgrade -
challenging bound -
challenging greeted logging_in
challenging welcomed -
challenging closed challenging
logging_in upgrade -
logging_in bound -
logging_in greeted -
logging_in welcomed online
logging_in closed closing
online upgrade -
online bound -
online greeted -
online welcomed -
online closed closing
closing upgrade -
closing bound -
closing greeted -
closing welcomed -
closing closed -
";
        assert_eq!(table, expected);
    }

    #[test]
    fn only_a_session_whose_login_was_tried_owes_a_logout() {
        let owes: Vec<_> = states()
            .iter_mut()
            .map(|s| s.on_closed(Instant::now(), CloseReason::Lost).unwrap_or(false))
            .collect();
        assert_eq!(owes, [false, false, false, true, true, false]);
    }
}
