//! What an upgrade tells while it runs, and keeps for its report.

use holdfast_proto::Share;

use super::Trial;
use crate::up::child::Stopped;
use crate::up::supervise::Deaths;
use crate::upgrade::event::{Event, Phase, Sight, Watch};
use crate::upgrade::figures::BackendStatus;
use crate::upgrade::machine::{Action, State};
use crate::upgrade::reason::{Reason, times};

impl Trial {
    pub(super) fn note_statuses(&mut self, old: Option<&BackendStatus>, new: Option<&BackendStatus>) {
        for (side, status) in [(&mut self.report.old, old), (&mut self.report.new, new)] {
            if let Some(status) = status {
                side.pid = Some(status.pid);
                side.version = Some(status.version.clone());
            }
        }
    }

    pub(super) fn tell_watch(&self) {
        self.runner.teller.tell_if_room(Event::Watch(Watch {
            at_ms: self.runner.teller.at_ms(),
            elapsed_ms: self.machine.watched().as_millis() as u64,
            watch_ms: self.runner.plan.watch.as_millis() as u64,
            share_percent: self.runner.plan.canary.percent(),
            old: Sight::of(&self.machine.old().figures()),
            new: Sight::of(&self.machine.new_one().figures()),
        }));
    }

    pub(super) fn tell_action(&self, action: Action) {
        let (teller, new) = (&self.runner.teller, self.runner.new.name());
        match action {
            Action::SetShare(Share::FULL) => teller.phase(Phase::Promoting, format!("{new} takes all")),
            Action::SetShare(share) => {
                let watch = self.runner.plan.watch;
                teller.phase(
                    Phase::Canary,
                    format!("{new} gets {share}, watched for {watch:?}"),
                );
            }
            Action::HandOver => {
                let old = self.runner.old.name();
                teller.phase(Phase::Draining, format!("{old} finishes what it has"));
            }
            Action::StopNew(_) => {
                if let State::RollingBack(reason) = self.machine.state() {
                    teller.phase(Phase::RollingBack, format!("{new}: {reason}"));
                }
            }
            Action::Sample | Action::End => {}
        }
    }

    pub(super) fn note_stop(&mut self, which: &str, stopped: &std::io::Result<Stopped>) {
        let note = match stopped {
            Ok(stopped) if stopped.killed => format!("the {which} one did not end by itself and was killed"),
            Ok(stopped) if !stopped.status.success() => {
                format!("the {which} one ended with {}", stopped.status)
            }
            Ok(_) => return,
            Err(error) => format!("the {which} one's end is not known: {error}"),
        };
        self.report.notes.push(note);
    }

    pub(super) fn note_deaths(&mut self, deaths: &Deaths) {
        if deaths.count > 0 {
            let times = times(deaths.count);
            self.report.notes.push(format!(
                "the new one ended {times} while the old one left, and was started again ({})",
                deaths.last
            ));
        }
    }

    pub(super) fn note_rollback(&mut self, reason: &Reason) {
        if matches!(
            reason,
            Reason::Exited(_) | Reason::Crashed(_) | Reason::NotReady(_) | Reason::Refused(_)
        ) {
            let log = self.runner.new.spec.log_tail();
            let lines = log.into_iter().map(|line| format!("its log: {line}"));
            self.report.notes.extend(lines);
        }
        self.runner.new.spec.note(&format!("rolled back: {reason}"));
    }

    pub(super) fn note_figures(&mut self) {
        self.report.old.note_tally(self.machine.old());
        self.report.new.note_tally(self.machine.new_one());
        self.report.watched_ms = self.machine.watched().as_millis() as u64;
        if let Some(verdict) = self.machine.verdict() {
            self.report.note_verdict(verdict, self.machine.losses());
        }
    }
}
