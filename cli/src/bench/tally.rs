//! Counts of what devices saw, and latencies by what went on. Pure.

#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_client::{Error, Violation};
use serde::Serialize;

use super::order::Arrival;
use super::payload::Body;
use super::phase::{Phase, Stage};
use super::timeline::{Latencies, Quantiles, Timeline};

/// A request that was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// When it was due, since the run's start. Latency counts from there, so that a generator or a connection that fell
    /// behind hides nothing.
    pub(crate) due: Duration,
    /// The phase in which it was due.
    pub(crate) phase: Phase,
    /// See [`Tally::is_settled`].
    pub(crate) mark: u32,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Reply(Body),
    /// An error in place of the reply; its code.
    ErrorReply(String),
    /// No answer; why.
    Lost(&'static str),
}

/// Numbers that the report shows as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Requests {
    pub(crate) sent: u64,
    /// With the right body.
    pub(crate) answered: u64,
    pub(crate) error_replies: Counts,
    pub(crate) lost: Counts,
    pub(crate) doubled: u64,
    pub(crate) misordered: u64,
    pub(crate) wrong_body: u64,
    /// Another device's reply.
    pub(crate) crossed: u64,
    /// Replies to requests that were never sent.
    pub(crate) unasked: u64,
    /// Replies that name another request of the connection than their `seq`.
    pub(crate) misnamed: u64,
    pub(crate) unreadable: u64,
    /// Pushes, of which nobody sends any.
    pub(crate) pushed: u64,
    /// Answered, but later than is tolerable.
    pub(crate) overlong: u64,
    /// Of those that were answered, from when it was due.
    pub(crate) longest_wait_ms: u64,
}

/// Counts by name. Names beyond [`Counts::MAX_NAMES`] share one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl Counts {
    const MAX_NAMES: usize = 64;

    pub(crate) fn add(&mut self, name: &str) {
        let is_known = self.0.contains_key(name);
        let name = if is_known || self.0.len() < Self::MAX_NAMES {
            name
        } else {
            "others"
        };
        *self.0.entry(name.to_owned()).or_default() += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) requests: Requests,
    /// Connections that ended, by close code or cause.
    pub(crate) dropped: Counts,
    /// How late requests were handed to their connections by the generator itself.
    pub(crate) late: Latencies,
    /// Requests that waited because as many as a device may have in flight were.
    pub(crate) held_back: u64,
    pub(crate) timeline: Timeline,
    max_wait: Duration,
    stages: BTreeMap<Stage, Latencies>,
    /// Of the last events: their phase's number, and the latencies during it.
    recent: BTreeMap<u32, Latencies>,
    open: BTreeMap<u32, u64>,
}

impl Tally {
    /// Who waits longer than `max_wait` notices.
    pub(crate) fn new(interval: Duration, max_wait: Duration) -> Self {
        Self {
            requests: Requests::default(),
            dropped: Counts::default(),
            late: Latencies::new(),
            held_back: 0,
            timeline: Timeline::new(interval),
            max_wait,
            stages: BTreeMap::new(),
            recent: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    pub(crate) fn handle_sent(&mut self, sent: &Sent, late: Option<Duration>) {
        self.requests.sent += 1;
        self.timeline.handle_sent(sent.due);
        *self.open.entry(sent.mark).or_default() += 1;
        match late {
            Some(late) => self.late.record(late),
            None => self.held_back += 1,
        }
    }

    /// `now` is when the answer came, since the run's start, and `phase` the phase then.
    pub(crate) fn handle_outcome(&mut self, sent: &Sent, outcome: &Outcome, (now, phase): (Duration, Phase)) {
        self.close(sent.mark);
        match outcome {
            Outcome::Reply(Body::Right) => self.requests.answered += 1,
            Outcome::Reply(Body::Wrong) => self.requests.wrong_body += 1,
            Outcome::Reply(Body::Crossed) => self.requests.crossed += 1,
            Outcome::ErrorReply(code) => self.requests.error_replies.add(code),
            Outcome::Lost(why) => return self.requests.lost.add(why),
        }
        let waited = now.saturating_sub(sent.due);
        self.requests.overlong += u64::from(waited > self.max_wait);
        self.requests.longest_wait_ms = self.requests.longest_wait_ms.max(waited.as_millis() as u64);
        self.time(sent, waited, phase);
    }

    /// A request was due and never sent, since its device could not take more until the end.
    pub(crate) fn handle_unsent(&mut self) {
        self.requests.sent += 1;
        self.requests.lost.add("not sent until the end");
    }

    pub(crate) fn handle_push(&mut self) {
        self.requests.pushed += 1;
    }

    /// All that somebody would have noticed, but for what the service and the events tell.
    pub(crate) fn noticed(&self) -> u64 {
        let requests = &self.requests;
        let wrong = requests.doubled + requests.misordered + requests.wrong_body + requests.crossed;
        let odd = requests.unasked + requests.misnamed + requests.unreadable + requests.pushed;
        let late = requests.overlong + requests.lost.total() + requests.error_replies.total();
        wrong + odd + late + self.dropped.total()
    }

    /// A reply was read, whatever its body.
    pub(crate) fn handle_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::InOrder | Arrival::Late => {}
            Arrival::Overtook => self.requests.misordered += 1,
            Arrival::Again => self.requests.doubled += 1,
        }
    }

    /// A connection ended that nobody here closed. What [`Self::handle_arrival`] sees is not counted again.
    pub(crate) fn handle_drop(&mut self, error: &Error) {
        self.dropped.add(&cause(error));
        match error {
            Error::Protocol(Violation::Crossed { .. }) => self.requests.misnamed += 1,
            Error::Protocol(Violation::Unsent { .. }) => self.requests.unasked += 1,
            Error::Protocol(Violation::Unreadable(_)) => self.requests.unreadable += 1,
            _ => {}
        }
    }

    /// Whether all requests that were sent under marks before `mark` have ended.
    pub(crate) fn is_settled(&self, mark: u32) -> bool {
        self.open.range(..mark).next().is_none()
    }

    pub(crate) fn unanswered(&self) -> u64 {
        self.open.values().sum()
    }

    pub(crate) fn stages(&self) -> impl Iterator<Item = (Stage, &Latencies)> {
        self.stages.iter().map(|(stage, latencies)| (*stage, latencies))
    }

    /// The latencies during the event of this phase, with their number; forgets those of earlier events.
    pub(crate) fn take_event(&mut self, phase: Phase) -> (u64, Quantiles) {
        self.recent = self.recent.split_off(&phase.number);
        let latencies = self.recent.remove(&phase.number).unwrap_or_else(Latencies::new);
        (latencies.count(), Quantiles::of(&latencies))
    }

    fn time(&mut self, sent: &Sent, latency: Duration, answered_in: Phase) {
        self.timeline.handle_answered(sent.due, latency);
        let phase = sent.phase.attribute(answered_in);
        let stage = self.stages.entry(phase.stage).or_insert_with(Latencies::new);
        stage.record(latency);
        if matches!(phase.stage, Stage::During(_)) {
            let event = self.recent.entry(phase.number).or_insert_with(Latencies::new);
            event.record(latency);
        }
    }

    fn close(&mut self, mark: u32) {
        if let Some(open) = self.open.get_mut(&mark) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&mark);
            }
        }
    }
}

/// The close code where there was one (1006 without a close frame, RFC 6455 section 7.1.5), else what the device saw.
fn cause(error: &Error) -> String {
    match error {
        Error::ClosedByServer { code, reason } if reason.is_empty() => code.to_string(),
        Error::ClosedByServer { code, reason } => format!("{code} {reason}"),
        Error::Connect(_) => "1006 broken".to_owned(),
        Error::Protocol(_) => "1002 by the device".to_owned(),
        other => other.label().to_owned(),
    }
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
