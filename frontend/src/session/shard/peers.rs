//! What comes from the hub: backends that come and go, and their frames.

use std::time::Instant;

use holdfast_proto::link::{Command, Incoming};
use holdfast_proto::{CloseCode, Share};

use super::Shard;
use crate::exchange::{PeerId, SentTickets, ToHub, ToShard, Track};
use crate::session::roster::Standing;
use crate::session::session::{Session, SessionKey};
use crate::session::state::State;

impl Shard {
    pub fn handle_hub(&mut self, now: Instant, message: ToShard) {
        match message {
            ToShard::PeerActive { peer, seed, share } => {
                self.roster.on_active(peer, seed, share);
                self.deliver_all(now);
            }
            ToShard::PeerShare { peer, share } => self.on_share(now, peer, share),
            ToShard::PeerDraining { peer } => {
                self.roster.on_draining(peer);
                self.to_hub.push(ToHub::Drained { peer });
            }
            ToShard::PeerGone { peer, sent, graceful } => self.on_peer_gone(now, peer, sent, graceful),
            ToShard::Frame { peer, incoming } => self.on_frame(now, peer, incoming),
            ToShard::Close { session, code } => {
                let parts = session.parts();
                let key = SessionKey {
                    slot: parts.slot.0,
                    generation: parts.generation.0,
                };
                if self.get(key).is_some_and(|s| s.id == session) {
                    self.close(now, key, code);
                } else {
                    self.metrics.late_frames.inc();
                }
            }
            ToShard::Stop => self.on_stop(now),
        }
    }

    fn on_frame(&mut self, now: Instant, peer: PeerId, incoming: Incoming) {
        let Incoming { command, charge } = incoming;
        match command {
            Command::Bound(bound) => self.on_bound(now, peer, bound),
            Command::LoggedIn(logged_in) => self.on_logged_in(now, peer, logged_in),
            Command::LoggedOut(logged_out) => self.on_logged_out(peer, &logged_out),
            Command::Updated(updated) => self.on_updated(now, peer, updated),
            Command::ControlReply(reply) => self.on_control_reply(now, peer, reply),
            Command::Reply(reply) => self.on_reply(now, peer, reply),
            Command::Push(push) => self.on_push(peer, push),
            Command::Close(close) => self.on_close(now, &close),
            _ => {
                self.metrics.malformed_frames.inc();
            }
        }
        if let Some(charge) = charge {
            self.to_hub.push(ToHub::Release { peer, charge });
        }
    }

    /// Sessions move by themselves, each when it has nothing out. Only those must be looked for that wait for this peer: because
    /// nobody served, or because they have something out with it and it took nothing more.
    fn on_share(&mut self, now: Instant, peer: PeerId, share: Share) {
        let before = self.roster.standing(peer);
        self.roster.on_share(peer, share);
        if before == Standing::Idle && self.roster.standing(peer) == Standing::Active {
            self.deliver_all(now);
        }
        self.to_hub.push(ToHub::ShareTaken { peer });
    }

    /// Gives every waiting session its backend. Visits every slot: backends come seldom.
    fn deliver_all(&mut self, now: Instant) {
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize]
                .session
                .as_ref()
                .is_some_and(Session::wants_backend)
            {
                self.deliver(now, slot);
            }
        }
    }

    /// The backend is gone: whatever it had is given to another, in order (P3), with the attempt counted unless it left
    /// gracefully.
    fn on_peer_gone(&mut self, now: Instant, peer: PeerId, sent: SentTickets, graceful: bool) {
        self.roster.on_gone(peer);
        let was_sent = move |track: Track, ticket| !graceful && sent.covers(track, ticket);
        for slot in 0..self.slots.len() {
            let Some(session) = self.slots[slot].session.as_mut() else {
                continue;
            };
            let lost_lifecycle = match &mut session.state {
                State::Binding(binding) => {
                    let lost = binding.delivery.on_lost(peer, was_sent, Track::Lifecycle);
                    binding.since = if lost { now } else { binding.since };
                    lost
                }
                State::LoggingIn(login) => {
                    let lost = login.delivery.on_lost(peer, was_sent, Track::Lifecycle);
                    login.since = if lost { now } else { login.since };
                    lost
                }
                State::Closing(closing) => closing.delivery.on_lost(peer, was_sent, Track::Lifecycle),
                State::Accepted { .. } | State::Challenging { .. } | State::Online => false,
            };
            if session.serving == Some(peer) {
                session.serving = None;
            }
            let mut lost_work = false;
            if let Some(active) = session.active.as_mut() {
                for control in &mut active.controls {
                    lost_work |= control.delivery.on_lost(peer, was_sent, Track::Lifecycle);
                }
                let replayed = active.window.on_lost(peer, was_sent);
                self.metrics.replayed_requests.inc_by(replayed as u64);
                lost_work |= active.window.has_unsent();
            }
            let key = session.key();
            if lost_work {
                self.fail_poisonous_controls(now, key);
            }
            if lost_lifecycle || lost_work {
                self.deliver(now, slot as u32);
            }
        }
    }

    fn on_stop(&mut self, now: Instant) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        // The last one to go says it, if there is any.
        self.say_if_stopped();
        for slot in 0..self.slots.len() {
            let Some(session) = self.slots[slot].session.as_ref() else {
                continue;
            };
            let key = session.key();
            if matches!(session.state, State::Binding(_)) {
                self.refuse_unavailable(now, key);
            } else {
                self.close(now, key, CloseCode::GoingAway);
            }
        }
    }
}
