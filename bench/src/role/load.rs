//! The state of a run that all of a process's clients share. One thread: cells suffice.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::protocol::{Outcome, Pace, Run};
use crate::stats::quantile;

/// A run in which nothing is answered for so long has failed.
const STALL: Duration = Duration::from_secs(75);

/// Counts requests; collects latencies; keeps the first failure.
#[derive(Default)]
pub(super) struct Load {
    budget: Cell<u64>,
    waiting: Cell<u64>,
    refill: Cell<bool>,
    payload: Cell<usize>,
    pushes: Cell<u64>,
    latencies_ns: RefCell<Vec<u64>>,
    failure: RefCell<Option<String>>,
    changed: Notify,
}

impl Load {
    pub(super) fn begin(&self, run: &Run) {
        self.budget.set(run.requests);
        self.waiting.set(run.requests);
        self.refill.set(run.pace == Pace::Saturated);
        self.payload.set(run.payload);
        self.latencies_ns.borrow_mut().clear();
    }

    /// Whether one more request may be made.
    pub(super) fn take(&self) -> bool {
        let left = self.budget.get();
        self.budget.set(left.saturating_sub(1));
        left > 0
    }

    /// Whether an answer is to be followed by another request, which is then taken.
    pub(super) fn take_next(&self) -> bool {
        self.refill.get() && self.take()
    }

    pub(super) fn payload(&self) -> usize {
        self.payload.get()
    }

    pub(super) fn on_answer(&self, sent: Instant) {
        self.latencies_ns
            .borrow_mut()
            .push(sent.elapsed().as_nanos() as u64);
        self.waiting.set(self.waiting.get().saturating_sub(1));
        if self.waiting.get() == 0 {
            self.changed.notify_one();
        }
    }

    pub(super) fn on_push(&self) {
        self.pushes.set(self.pushes.get() + 1);
    }

    pub(super) fn pushes(&self) -> u64 {
        self.pushes.get()
    }

    pub(super) fn fail(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
        self.changed.notify_one();
    }

    pub(super) fn check(&self) -> Result<()> {
        match &*self.failure.borrow() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }

    /// Something happened that somebody may wait for.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Until something happens.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until every request is answered.
    pub(super) async fn finish(&self, started: Instant) -> Result<Outcome> {
        while self.waiting.get() > 0 {
            let before = self.waiting.get();
            let idle = timeout(STALL, self.changed.notified()).await.is_err();
            self.check()?;
            if idle && self.waiting.get() == before {
                bail!("{before} requests are without an answer after {STALL:?}");
            }
        }
        self.check()?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(outcome(&mut self.latencies_ns.borrow_mut(), seconds))
    }
}

pub(super) fn outcome(latencies_ns: &mut [u64], seconds: f64) -> Outcome {
    Outcome {
        requests: latencies_ns.len() as u64,
        seconds,
        p50_us: quantile(latencies_ns, 0.5) as f64 / 1e3,
        p99_us: quantile(latencies_ns, 0.99) as f64 / 1e3,
    }
}
