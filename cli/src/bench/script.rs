//! The course of a run: quiet time, then one event after the other, with a rest after each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::channel::REQUEST_TIMEOUT;
use super::events::Events;
use super::generator::Shared;
use super::options::Options;
use super::phase::{Kind, Stage};
use super::report::EventReport;

/// Walks through `plan` and tells what came of each event. Dropping it ends it at once.
pub(crate) async fn run(
    plan: &[Kind],
    events: &Events<'_>,
    options: &Options,
    shared: &Arc<Shared>,
    reports: &mpsc::Sender<EventReport>,
) {
    sleep(WARMUP).await;
    shared.phase.enter(Stage::Quiet);
    sleep(options.quiet).await;
    for kind in plan {
        let report = event(*kind, events, shared).await;
        // Without a receiver the run is over.
        if reports.send(report).await.is_err() {
            return;
        }
        sleep(options.spacing).await;
    }
}

async fn event(kind: Kind, events: &Events<'_>, shared: &Arc<Shared>) -> EventReport {
    let begun = shared.clock.now();
    let phase = shared.phase.enter(Stage::During(kind));
    let happened = events.run(kind).await;
    let took = shared.clock.now().saturating_sub(begun);
    let has_settled = settle(shared).await;
    let settled = shared.clock.now().saturating_sub(begun);
    shared.phase.enter(Stage::After(kind));
    let (requests, latency) = shared.tally().take_event(phase);
    let mut outcome = happened.outcome;
    if !has_settled {
        outcome.push_str(" (requests from before its end were still unanswered long after)");
    }
    let ms = |time: Duration| time.as_millis() as u64;
    EventReport {
        kind,
        at_ms: ms(begun),
        took_ms: ms(took),
        settled_ms: ms(settled),
        as_planned: happened.as_planned && has_settled,
        outcome,
        requests,
        latency,
    }
}

/// Waits until all that was due before this call is answered.
async fn settle(shared: &Arc<Shared>) -> bool {
    let mark = shared.set_mark();
    let until = Instant::now() + SETTLE_TIMEOUT;
    while !shared.is_settled(mark) {
        if Instant::now() > until {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Before latencies count.
const WARMUP: Duration = Duration::from_secs(1);
/// By then what was in flight is lost.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 5);
const POLL: Duration = Duration::from_millis(5);
