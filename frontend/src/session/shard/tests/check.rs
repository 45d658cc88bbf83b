//! Recounts what a shard keeps as totals.

use std::collections::HashSet;

use crate::session::Shard;
use crate::session::session::{Active, Session, Written};
use crate::session::state::State;

impl Shard {
    /// Panics when a total is not what its parts come to.
    pub(crate) fn assert_consistent(&self) {
        let sessions = || self.slots.iter().filter_map(|p| p.session.as_ref());
        let count = |f: fn(&State) -> bool| sessions().filter(|s| f(&s.state)).count() as u32;
        assert_eq!(self.live, count(|_| true), "live");
        assert_eq!(
            self.waiting,
            count(|s| matches!(s, State::Binding(_) | State::LoggingIn(_))),
            "waiting"
        );
        assert_eq!(self.online, count(|s| matches!(s, State::Online)), "online");
        let actives = || sessions().filter_map(|s| s.active.as_deref());
        let window = |a: &Active| a.window.bytes() + a.controls.iter().map(|c| c.text.len()).sum::<usize>();
        assert_eq!(
            self.window_bytes,
            actives().map(window).sum::<usize>(),
            "window_bytes"
        );
        assert_eq!(
            self.out_bytes,
            actives().map(|a| a.out_bytes).sum::<usize>(),
            "out_bytes"
        );
        self.assert_slots();
        self.assert_starved();
        self.assert_broadcasts();
        sessions().for_each(|s| self.assert_session(s));
        assert!(
            self.spare
                .iter()
                .all(|a| a.is_idle() && a.pushes == 0 && a.out_bytes == 0)
        );
    }

    fn assert_slots(&self) {
        let free: HashSet<u32> = self.free.iter().copied().collect();
        assert_eq!(free.len(), self.free.len(), "a slot is free twice");
        for (slot, place) in self.slots.iter().enumerate() {
            let slot = slot as u32;
            assert_eq!(
                place.session.is_none(),
                free.contains(&slot),
                "slot {slot} leaked"
            );
            if let Some(session) = &place.session {
                assert_eq!(session.key().generation, place.generation);
                assert_eq!(session.key().slot, slot);
            }
            assert_eq!(
                self.wheel.is_set(slot),
                self.deadline(slot).is_some(),
                "the timer of slot {slot}"
            );
        }
    }

    fn assert_starved(&self) {
        let most_ever = self.slots.len();
        assert!(self.starved.len() <= 2 * most_ever + 1, "starved grows");
        for session in self.slots.iter().filter_map(|p| p.session.as_ref()) {
            let places = self.starved.iter().filter(|k| **k == session.key()).count();
            let left_behind = matches!(session.state, State::Closing(_)) && places == 1;
            assert!(
                left_behind || places == usize::from(session.starved),
                "{:?} is there {places} times",
                session.key()
            );
        }
    }

    fn assert_broadcasts(&self) {
        for broadcast in &self.broadcasts {
            let is_of = |what: &Written| matches!(*what, Written::Broadcast { peer, number } if broadcast.is(peer, number));
            let outboxes = self
                .slots
                .iter()
                .filter_map(|p| p.session.as_ref()?.active.as_ref());
            let outgoing = outboxes.flat_map(|a| &a.outbox).filter(|o| is_of(&o.what));
            assert_eq!(outgoing.count() as u64, broadcast.unwritten(), "unwritten");
        }
    }

    fn assert_session(&self, session: &Session) {
        let Some(active) = &session.active else {
            assert!(!session.stalled || !matches!(session.state, State::Online));
            return;
        };
        active.window.assert_consistent(session.next);
        assert_eq!(
            active.out_bytes,
            active.outbox.iter().map(|o| o.bytes).sum::<usize>(),
            "a session's out_bytes"
        );
        let is_push = |w: &Written| matches!(w, Written::Push { .. } | Written::Broadcast { .. });
        assert_eq!(
            active.pushes,
            active.outbox.iter().filter(|o| is_push(&o.what)).count(),
            "a session's pushes"
        );
        if session.stalled {
            assert!(
                !active.window.is_empty() || !active.controls.is_empty(),
                "nothing will ever wake a stalled session"
            );
        }
        let online = matches!(session.state, State::Online);
        if online && active.window.has_unsent() {
            assert!(
                self.serving_peer(session).is_none(),
                "a request waits although a backend could take it"
            );
        }
    }
}
