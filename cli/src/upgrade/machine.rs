//! One upgrade as a state machine: what happened goes in, what to do next comes out. No process, socket or clock here; time
//! is what has passed since the upgrade began.

use std::time::Duration;

use holdfast_proto::Share;

use super::figures::{BackendStatus, Tally};
use super::losses::{Loss, Losses};
use super::plan::Plan;
use super::reason::{Outcome, Reason};
use super::verdict::{Fault, Look, Verdict, judge};

/// Where an upgrade stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// The new one was started and is not ready. Ends by `Ready`, `NewEnded`, `Cancel`, or at `until`.
    Starting {
        until: Duration,
    },
    /// It was told its canary's share. Ends by `ShareSet`, `ShareFailed`, `NewEnded` or `Cancel`.
    Sharing,
    /// It has its share, and both are watched. Ends by `Sampled`, `NewEnded` or `Cancel`.
    Canary {
        since: Duration,
    },
    /// It was told to take all: the point of no return, `Cancel` comes too late. Ends by `ShareSet`, `ShareFailed` or
    /// `NewEnded`.
    Promoting,
    /// Both serve, and the old one was told to leave. Ends by `OldLeft`.
    Draining,
    /// The new one was told to leave. Ends by `NewEnded`.
    RollingBack(Reason),
    Ended(Outcome),
}

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// The new one is attached to all its frontends.
    Ready,
    /// The new one's process ended; how.
    NewEnded(String),
    ShareSet,
    /// It does not take its share; why.
    ShareFailed(String),
    Sampled(Box<Sample>),
    /// The old one is gone.
    OldLeft,
    Cancel(Reason),
    /// Time went by.
    Tick,
}

/// What both said of themselves at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    pub(crate) old: Option<BackendStatus>,
    pub(crate) new: Option<BackendStatus>,
    pub(crate) new_ready: bool,
    /// What the frontend remembers of losing them.
    pub(crate) losses: Option<Vec<Loss>>,
}

/// What to do. At most one is under way at a time: a new one replaces the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    SetShare(Share),
    /// After a moment, ask both.
    Sample,
    /// Keep the new one running from now on, and let the old one leave.
    HandOver,
    StopNew(Patience),
    /// Nothing more.
    End,
}

/// How long the new one may take to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It may have work under way, which it should finish.
    Grace,
    /// It has none, or does not answer any more.
    Moment,
}

#[derive(Debug)]
pub(crate) struct Upgrade {
    plan: Plan,
    state: State,
    old: Tally,
    new: Tally,
    losses: Losses,
    verdict: Option<Verdict>,
    watched: Duration,
    /// Since when the new one has not been answering, or not been attached.
    unwell_since: Option<Duration>,
    /// Since when the frontend has lost the new one more often than the old one.
    lost_since: Option<Duration>,
}

impl Upgrade {
    /// Begins with the new one just started, which [`Input::Ready`] or [`Input::NewEnded`] must follow.
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            state: State::Starting {
                until: plan.ready_timeout,
            },
            old: Tally::default(),
            new: Tally::default(),
            losses: Losses::default(),
            verdict: None,
            watched: Duration::ZERO,
            unwell_since: None,
            lost_since: None,
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn old(&self) -> &Tally {
        &self.old
    }

    pub(crate) fn new_one(&self) -> &Tally {
        &self.new
    }

    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The last look's; `None` before the first.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// How long both have been watched.
    pub(crate) fn watched(&self) -> Duration {
        self.watched
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Starting { until } => Some(until),
            _ => None,
        }
    }

    /// Whether it can still be called off.
    pub(crate) fn may_cancel(&self) -> bool {
        matches!(
            self.state,
            State::Starting { .. } | State::Sharing | State::Canary { .. }
        )
    }

    /// Inputs that the state does not wait for (late answers, a second cancel) change nothing.
    pub(crate) fn handle(&mut self, now: Duration, input: Input) -> Option<Action> {
        match (&self.state, input) {
            (State::Starting { .. }, Input::Ready) => Some(self.on_ready()),
            (State::Starting { until }, Input::Tick) if now >= *until => {
                let reason = Reason::NotReady(self.plan.ready_timeout);
                Some(self.roll_back(reason, Patience::Moment))
            }
            (State::Starting { .. }, Input::Cancel(reason)) => Some(self.roll_back(reason, Patience::Moment)),
            (State::Starting { .. }, Input::NewEnded(how)) => Some(self.end_rolled_back(Reason::Exited(how))),
            (State::Sharing, Input::ShareSet) => {
                self.state = State::Canary { since: now };
                Some(Action::Sample)
            }
            (State::Canary { since }, Input::Sampled(sample)) => {
                let since = *since;
                Some(self.on_sample(now, since, &sample))
            }
            (State::Sharing | State::Canary { .. }, Input::Cancel(reason)) => {
                Some(self.roll_back(reason, Patience::Grace))
            }
            (State::Promoting, Input::ShareSet) => {
                self.state = State::Draining;
                Some(Action::HandOver)
            }
            (State::Sharing | State::Promoting, Input::ShareFailed(why)) => {
                Some(self.roll_back(Reason::Refused(why), Patience::Grace))
            }
            (State::Sharing | State::Canary { .. } | State::Promoting, Input::NewEnded(how)) => {
                Some(self.end_rolled_back(Reason::Crashed(how)))
            }
            (State::Draining, Input::OldLeft) => {
                self.state = State::Ended(Outcome::Promoted);
                Some(Action::End)
            }
            (State::RollingBack(reason), Input::NewEnded(_)) => {
                let reason = reason.clone();
                Some(self.end_rolled_back(reason))
            }
            _ => None,
        }
    }

    fn on_ready(&mut self) -> Action {
        if self.plan.canary.is_none() {
            return self.promote();
        }
        self.state = State::Sharing;
        Action::SetShare(self.plan.canary)
    }

    fn promote(&mut self) -> Action {
        self.state = State::Promoting;
        Action::SetShare(Share::FULL)
    }

    fn on_sample(&mut self, now: Duration, since: Duration, sample: &Sample) -> Action {
        if let Some(status) = &sample.old {
            self.old.handle_status(status);
        }
        if let Some(status) = &sample.new {
            self.new.handle_status(status);
        }
        self.note_losses(now, sample);
        self.watched = now.saturating_sub(since);
        let over = self.watched >= self.plan.watch;
        let look = if over { Look::Last } else { Look::Early };
        let verdict = judge(&self.old.figures(), &self.new.figures(), look);
        let fault = verdict.fault.clone();
        self.verdict = Some(verdict);
        match fault {
            Some(fault @ Fault::Errors { .. }) => {
                return self.roll_back(Reason::Errors(fault.to_string()), Patience::Grace);
            }
            Some(fault @ Fault::Slow { .. }) => {
                return self.roll_back(Reason::Slow(fault.to_string()), Patience::Grace);
            }
            None => {}
        }
        if sample.new.is_some() && sample.new_ready {
            self.unwell_since = None;
            return match self.lost_since {
                Some(since) if now.saturating_sub(since) >= MAX_APART => self.roll_back_lost(),
                None if over => self.promote(),
                _ => Action::Sample,
            };
        }
        let since = *self.unwell_since.get_or_insert(now);
        let patience = if sample.new.is_some() {
            Patience::Grace
        } else {
            Patience::Moment
        };
        if now.saturating_sub(since) >= MAX_UNWELL {
            self.roll_back(Reason::Unwell(MAX_UNWELL), patience)
        } else {
            Action::Sample
        }
    }

    fn note_losses(&mut self, now: Duration, sample: &Sample) {
        if let Some(losses) = &sample.losses {
            self.losses.handle_look(losses);
        }
        if self.losses.new_one() > self.losses.old() {
            self.lost_since.get_or_insert(now);
        } else {
            self.lost_since = None;
        }
    }

    fn roll_back_lost(&mut self) -> Action {
        let reason = Reason::Lost {
            old: self.losses.old(),
            new: self.losses.new_one(),
        };
        self.roll_back(reason, Patience::Grace)
    }

    fn roll_back(&mut self, reason: Reason, patience: Patience) -> Action {
        self.state = State::RollingBack(reason);
        Action::StopNew(patience)
    }

    fn end_rolled_back(&mut self, reason: Reason) -> Action {
        self.state = State::Ended(Outcome::RolledBack(reason));
        Action::End
    }
}

/// Longer than the frontend needs to give a hanging backend's work to others and than a short pause of the machine.
pub(crate) const MAX_UNWELL: Duration = Duration::from_secs(5);
/// When the machine stands still the frontend may lose both, and of the one it may learn this much before the other.
const MAX_APART: Duration = Duration::from_secs(2);

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
