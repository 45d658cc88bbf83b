//! Each route's places: calls at once, calls waiting, and its circuit breaker.

use std::collections::VecDeque;
use std::time::Instant;

use holdfast_proto::ErrorCode;
use http::Uri;
use rustc_hash::FxHashMap;

use super::requests::CallId;
use crate::route::breaker::{Admission, Breaker, BreakerSettings};
use crate::route::{Route, RouteKey, RouteTable};

/// What a new call gets.
#[derive(Debug)]
pub(super) enum Place {
    Call(Admission),
    Wait,
    Refused(ErrorCode),
}

/// How a running call ended, as the breaker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Answered,
    Unreachable,
    Abandoned,
}

/// The places of all routes, by key: they outlive a reload of the table.
#[derive(Debug)]
pub(super) struct RouteStates {
    settings: BreakerSettings,
    states: FxHashMap<RouteKey, RouteState>,
}

#[derive(Debug)]
struct RouteState {
    url: Uri,
    concurrency: usize,
    queue_limit: usize,
    running: usize,
    waiting: VecDeque<CallId>,
    breaker: Breaker,
}

impl RouteStates {
    pub(super) fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            states: FxHashMap::default(),
        }
    }

    /// Finds a place for a new call.
    pub(super) fn enter(&mut self, route: &Route, call: CallId, now: Instant) -> Place {
        let state = match self.states.get_mut(&route.key) {
            Some(state) => state,
            None => {
                let new = RouteState::new(self.settings, route);
                self.states.entry(route.key.clone()).or_insert(new)
            }
        };
        state.enter(call, now)
    }

    /// A running call ended: its place is free.
    pub(super) fn leave(&mut self, route: &RouteKey, admission: Admission, ending: Ending, now: Instant) {
        let Some(state) = self.states.get_mut(route) else {
            return;
        };
        state.running = state.running.saturating_sub(1);
        match ending {
            Ending::Answered => state.breaker.on_success(admission),
            Ending::Unreachable => {
                if state.breaker.on_failure(admission, now) {
                    tracing::warn!(%route, "the service does not answer: it is left alone for a while");
                }
            }
            Ending::Abandoned => state.breaker.on_abandoned(admission, now),
        }
    }

    /// A waiting call was given up.
    pub(super) fn remove_waiting(&mut self, route: &RouteKey, call: CallId) {
        if let Some(state) = self.states.get_mut(route) {
            state.waiting.retain(|c| *c != call);
        }
    }

    /// The next waiting call that has a place now, or that the breaker refuses.
    pub(super) fn next(&mut self, route: &RouteKey, now: Instant) -> Option<(CallId, Option<Admission>)> {
        let state = self.states.get_mut(route)?;
        if state.running >= state.concurrency {
            return None;
        }
        let call = state.waiting.pop_front()?;
        let admission = state.breaker.admit(now);
        state.running += usize::from(admission.is_some());
        Some((call, admission))
    }

    /// Takes over new limits and forgets routes that are gone and idle. Returns the routes whose calls may go on.
    pub(super) fn handle_table(&mut self, table: &RouteTable) -> Vec<RouteKey> {
        for route in table.routes() {
            if let Some(state) = self.states.get_mut(&route.key) {
                state.handle_route(route);
            }
        }
        let known = |key: &RouteKey| table.routes().iter().any(|r| r.key == *key);
        self.states
            .retain(|key, state| state.running > 0 || !state.waiting.is_empty() || known(key));
        self.keys()
    }

    pub(super) fn keys(&self) -> Vec<RouteKey> {
        let mut keys: Vec<RouteKey> = self.states.keys().cloned().collect();
        keys.sort();
        keys
    }
}

impl RouteState {
    fn new(settings: BreakerSettings, route: &Route) -> Self {
        Self {
            url: route.url.clone(),
            concurrency: route.concurrency,
            queue_limit: route.queue,
            running: 0,
            waiting: VecDeque::new(),
            breaker: Breaker::new(settings),
        }
    }

    /// Takes over new limits. Another address gets a breaker of its own: a repaired route is not refused for its past.
    fn handle_route(&mut self, route: &Route) {
        (self.concurrency, self.queue_limit) = (route.concurrency, route.queue);
        if self.url != route.url {
            self.url = route.url.clone();
            self.breaker.reset();
        }
    }

    fn enter(&mut self, call: CallId, now: Instant) -> Place {
        if self.running < self.concurrency && self.waiting.is_empty() {
            let Some(admission) = self.breaker.admit(now) else {
                return Place::Refused(ErrorCode::UpstreamUnavailable);
            };
            self.running += 1;
            return Place::Call(admission);
        }
        if self.breaker.is_open() {
            return Place::Refused(ErrorCode::UpstreamUnavailable);
        }
        if self.waiting.len() >= self.queue_limit {
            return Place::Refused(ErrorCode::Overloaded);
        }
        self.waiting.push_back(call);
        Place::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(url: &str) -> RouteTable {
        RouteTable::parse(&format!(
            "[[route]]\nnamespace = \"N\"\nname = \"n\"\nurl = \"{url}\"\n"
        ))
        .unwrap()
    }

    #[test]
    fn a_route_with_a_new_address_is_not_refused_for_the_old_one() {
        let now = Instant::now();
        let settings = BreakerSettings::default();
        let mut states = RouteStates::new(settings);
        let old = table("http://old/");
        let route = &old.routes()[0];
        for _ in 0..settings.failures {
            let Place::Call(admission) = states.enter(route, CallId(1), now) else {
                panic!("it opens after the last failure only");
            };
            states.leave(&route.key, admission, Ending::Unreachable, now);
        }
        let refused = |place: Place| matches!(place, Place::Refused(ErrorCode::UpstreamUnavailable));
        states.handle_table(&old);
        assert!(refused(states.enter(route, CallId(2), now)));
        let new = table("http://new/");
        states.handle_table(&new);
        assert!(!refused(states.enter(&new.routes()[0], CallId(3), now)));
    }
}
