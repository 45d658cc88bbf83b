//! Upgrades as the supervisor sees them: at most one at a time, and what is remembered of the last ones.

use std::collections::VecDeque;

use http::StatusCode;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::backends::{Backend, Backends};
use super::binary::Program;
use super::control::{Begun, Problem};
use super::frontend::Frontend;
use super::record::{Record, Teller};
use super::upgrade::{Adoption, Order, Runner};
use crate::layout::Layout;
use crate::upgrade::event::Phase;
use crate::upgrade::plan::{Plan, Request};

pub(super) struct Upgrades {
    layout: Layout,
    frontend: Frontend,
    running: Option<Running>,
    /// The newest last.
    records: VecDeque<watch::Receiver<Record>>,
    begun: u64,
    adoptions: (mpsc::Sender<Adoption>, mpsc::Receiver<Adoption>),
}

/// What becomes of the one that runs.
pub(super) enum Turn {
    /// Its new backend has taken over.
    Adopt(Box<Adoption>),
    /// It is over. The name of the backend that serves must be told to [`Upgrades::clear`].
    Over,
}

struct Running {
    id: u64,
    orders: watch::Sender<Order>,
    task: JoinHandle<()>,
    /// The two backends' names.
    backends: [String; 2],
}

impl Upgrades {
    pub(super) fn new(layout: Layout, frontend: Frontend) -> Self {
        Self {
            layout,
            frontend,
            running: None,
            records: VecDeque::new(),
            begun: 0,
            adoptions: mpsc::channel(1),
        }
    }

    /// Starts one, unless one is under way or what is asked for cannot be done; then nothing has changed.
    pub(super) async fn begin(
        &mut self,
        request: &Request,
        present: &Backend,
        backends: &mut Backends,
    ) -> Result<Begun, Problem> {
        self.refuse_a_second(present.name()).await?;
        let bad = |code, detail| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
        let plan = Plan::try_from(request).map_err(|error| bad("invalid_field", error.to_string()))?;
        let binary = request.binary.as_deref().unwrap_or(&present.program.named);
        let new = backends
            .make(binary, Some(present))
            .await
            .map_err(|error| bad("binary_unusable", format!("{error:#}")))?;
        self.begun += 1;
        let id = self.begun;
        let (teller, events, record) = Teller::new(id, new.name().to_owned());
        self.records.push_back(record);
        if self.records.len() > MAX_RECORDS {
            self.records.pop_front();
        }
        let (orders, receiver) = watch::channel(Order::GoOn);
        let names = [present.name().to_owned(), new.name().to_owned()];
        let runner = Runner {
            plan,
            old: present.clone(),
            new,
            http: self.frontend.http.clone(),
            frontend: self.frontend.clone(),
            orders: receiver,
            adoptions: self.adoptions.0.clone(),
            teller,
        };
        self.running = Some(Running {
            id,
            orders,
            task: tokio::spawn(runner.run()),
            backends: names,
        });
        Ok(Begun { id, events })
    }

    /// One that has told its end is as good as gone: it is waited for.
    async fn refuse_a_second(&mut self, present: &str) -> Result<(), Problem> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        if let Some(record) = self.records.back().map(|record| record.borrow().clone())
            && record.end.is_none()
        {
            let detail = format!(
                "upgrade {} to {} is under way ({})",
                running.id,
                record.backend,
                record.phase.label()
            );
            return Err(Problem::new(StatusCode::CONFLICT, "upgrade_in_progress", detail));
        }
        // It has told its end after it handed over, so no adoption can come any more.
        self.next().await;
        self.clear(present);
        Ok(())
    }

    pub(super) fn cancel(&self, id: u64) -> Result<(), Problem> {
        let conflict = |code, detail: &str| Err(Problem::new(StatusCode::CONFLICT, code, detail));
        let Some(running) = self.running.as_ref().filter(|running| running.id == id) else {
            return conflict("not_running", "this upgrade is not under way");
        };
        let phase = self.records.back().map(|record| record.borrow().phase);
        match phase {
            Some(Phase::Starting | Phase::Ready | Phase::Canary) => {
                running.orders.send_replace(Order::Cancel);
                Ok(())
            }
            Some(Phase::RollingBack) => conflict("rolling_back", "it is being rolled back already"),
            _ => conflict(
                "too_late",
                "the new backend has taken over; the upgrade is being completed",
            ),
        }
    }

    pub(super) fn order(&self, order: Order) {
        if let Some(running) = &self.running {
            running.orders.send_replace(order);
        }
    }

    /// The newest first.
    pub(super) fn list(&self) -> Vec<Record> {
        self.records
            .iter()
            .rev()
            .map(|record| record.borrow().clone())
            .collect()
    }

    pub(super) fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// What becomes of the one that runs; never anything while none runs. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Turn {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        tokio::select! {
            biased;
            // We hold a sender ourselves, so there is always something to wait for.
            Some(adoption) = self.adoptions.1.recv() => Turn::Adopt(Box::new(adoption)),
            result = &mut running.task => {
                if let Err(error) = result {
                    say!("holdfast: the upgrade failed: {error}");
                }
                Turn::Over
            }
        }
    }

    /// Forgets the one that is over, and the program of the backend that is gone with it.
    pub(super) fn clear(&mut self, present: &str) {
        let names = self.running.take().map(|running| running.backends);
        for name in names.iter().flatten().filter(|name| *name != present) {
            Program::unpin(&self.layout, name);
        }
    }
}

/// Upgrades that are remembered: a few KiB each.
const MAX_RECORDS: usize = 16;
