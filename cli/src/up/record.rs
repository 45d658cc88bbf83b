//! What is remembered of an upgrade, and how it is told while it goes on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::upgrade::event::{End, Event, Phase};
use crate::upgrade::reason::{Outcome, Reason};
use crate::upgrade::report::Report;

/// One upgrade in `GET /v1/upgrades`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) backend: String,
    pub(super) started_unix_ms: u64,
    pub(super) phase: Phase,
    /// None while it goes on.
    pub(super) end: Option<End>,
}

/// Tells of one upgrade: to who asked for it, and to its record.
pub(super) struct Teller {
    started: Instant,
    events: mpsc::Sender<Event>,
    record: watch::Sender<Record>,
}

impl Teller {
    pub(super) fn new(id: u64, backend: String) -> (Self, mpsc::Receiver<Event>, watch::Receiver<Record>) {
        let (events, told) = mpsc::channel(MAX_UNREAD);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (record, records) = watch::channel(Record {
            id,
            backend,
            started_unix_ms: now.as_millis() as u64,
            phase: Phase::Starting,
            end: None,
        });
        let teller = Self {
            started: Instant::now(),
            events,
            record,
        };
        (teller, told, records)
    }

    /// Since the upgrade began.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn at_ms(&self) -> u64 {
        self.now().as_millis() as u64
    }

    /// Resolves when who asked is gone.
    pub(super) async fn asker_gone(&self) {
        self.events.closed().await;
    }

    pub(super) fn phase(&self, phase: Phase, text: impl Into<String>) {
        self.record.send_modify(|record| record.phase = phase);
        let (at_ms, text) = (self.at_ms(), text.into());
        self.tell(Event::Phase { at_ms, phase, text });
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        let (at_ms, text) = (self.at_ms(), text.into());
        self.tell_if_room(Event::Note { at_ms, text });
    }

    /// Left out when who asked does not read: the next one says it all again.
    pub(super) fn tell_if_room(&self, event: Event) {
        if self.events.capacity() > RESERVED {
            self.tell(event);
        }
    }

    /// Tells the end, and waits a moment until it was taken.
    pub(super) async fn end(self, outcome: &Outcome, mut report: Report) {
        report.took_ms = self.at_ms();
        let end = End {
            at_ms: report.took_ms,
            outcome: outcome.label().into(),
            reason: outcome.reason().map(|reason| reason.label().into()),
            detail: outcome.reason().map(Reason::to_string),
            report,
        };
        self.phase(Phase::Done, outcome.label());
        self.record.send_modify(|record| record.end = Some(end.clone()));
        self.tell(Event::End(Box::new(end)));
        let _ = tokio::time::timeout(MAX_FAREWELL, self.events.closed()).await;
    }

    fn tell(&self, event: Event) {
        // Phases and the end always have room; nobody may be there to take them.
        let _ = self.events.try_send(event);
    }
}

/// Events that may wait to be read: a few dozen KiB.
const MAX_UNREAD: usize = 64;
/// Places that only phases and the end may take; there are fewer of those.
const RESERVED: usize = 16;
/// How long a reader may take for the end when `up` itself is stopping.
const MAX_FAREWELL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::event::Phase;

    /// Who asked may be stopped or slow: the upgrade goes on, and phases and the end are still told.
    #[tokio::test]
    async fn a_reader_that_does_not_read_misses_figures_only() {
        let (teller, mut events, record) = Teller::new(1, "backend-2".into());
        for _ in 0..1_000 {
            teller.note("again");
        }
        for phase in [Phase::Ready, Phase::Canary, Phase::Promoting, Phase::Draining] {
            teller.phase(phase, "");
        }
        let reader = async move {
            let (mut notes, mut phases, mut ends) = (0, 0, 0);
            while let Some(event) = events.recv().await {
                match event {
                    Event::Note { .. } => notes += 1,
                    Event::Phase { .. } => phases += 1,
                    Event::Watch(_) => {}
                    Event::End(_) => {
                        ends += 1;
                        break;
                    }
                }
            }
            (notes, phases, ends)
        };
        let ((), counts) = tokio::join!(teller.end(&Outcome::Promoted, Report::default()), reader);
        assert_eq!(counts, (MAX_UNREAD - RESERVED, 5, 1));
        let record = record.borrow();
        assert_eq!(
            record.end.as_ref().map(|end| end.outcome.as_str()),
            Some("promoted")
        );
    }
}
