//! Does what [`crate::upgrade::machine`] decides: starts the new backend, sets shares, asks both for their figures, hands
//! over, and tells how it goes.

mod account;

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_proto::Share;
use serde::Deserialize;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};

use super::backends::Backend;
use super::board::Published;
use super::child::{self, Stopped};
use super::frontend::{self, Frontend};
use super::ready::{self, Probe};
use super::record::Teller;
use super::shares;
use super::supervise::{Deaths, Kept, Wish, exited};
use crate::http_client::Http;
use crate::unix_http::UnixCall;
use crate::upgrade::event::Phase;
use crate::upgrade::figures::BackendStatus;
use crate::upgrade::machine::{Action, Input, MAX_UNWELL, Patience, Sample, State, Upgrade};
use crate::upgrade::plan::Plan;
use crate::upgrade::reason::{Outcome, Reason};
use crate::upgrade::report::{Report, Side};

/// What the supervisor orders a running upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    GoOn,
    Cancel,
    /// The supervisor stops.
    Stop(Wish),
}

/// The new backend takes the old one's place under supervision; the old one comes back, to be stopped.
pub(super) struct Adoption {
    pub(super) backend: Backend,
    pub(super) child: Child,
    pub(super) old: oneshot::Sender<Handed>,
}

/// What the supervisor gives for the new backend.
pub(super) struct Handed {
    pub(super) old: Kept,
    /// Of the new one, from now on.
    pub(super) deaths: watch::Receiver<Deaths>,
    /// When `up.json` names it.
    pub(super) published: Published,
}

/// One upgrade.
pub(super) struct Runner {
    pub(super) plan: Plan,
    pub(super) old: Backend,
    pub(super) new: Backend,
    pub(super) http: Http,
    pub(super) frontend: Frontend,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) adoptions: mpsc::Sender<Adoption>,
    pub(super) teller: Teller,
}

impl Runner {
    /// Must run on the main thread, as it starts a process.
    pub(super) async fn run(self) {
        let mut report = Report {
            old: side(&self.old),
            new: side(&self.new),
            canary_percent: self.plan.canary.percent(),
            ..Report::default()
        };
        let text = format!("{} ({})", self.new.name(), self.new.program.named.display());
        self.teller.phase(Phase::Starting, text);
        report.notes.extend(self.new.program.warning.clone());
        let child = match self.new.standby().spawn() {
            Ok(child) => child,
            Err(error) => {
                let outcome = Outcome::Failed(Reason::NotStarted(format!("{error:#}")));
                return self.teller.end(&outcome, report).await;
            }
        };
        let trial = Trial {
            machine: Upgrade::new(self.plan),
            runner: self,
            report,
        };
        trial.run(child).await;
    }

    async fn ask<T: for<'a> Deserialize<'a>>(backend: &Backend, path: &str) -> Option<T> {
        let answer = UnixCall::get(&backend.socket, path)
            .send(CALL_TIMEOUT)
            .await
            .ok()?;
        serde_json::from_slice(&answer.success().ok()?).ok()
    }
}

/// What is under way; its end is the machine's next input.
type Step = Pin<Box<dyn Future<Output = Input> + Send>>;

struct Trial {
    runner: Runner,
    machine: Upgrade,
    report: Report,
}

impl Trial {
    async fn run(mut self, mut child: Child) {
        self.report.new.pid = child.id();
        let handed_over = self.drive(&mut child).await;
        let outcome = if handed_over {
            self.hand_over(child).await
        } else {
            match self.machine.state() {
                State::Ended(outcome) => outcome.clone(),
                state => Outcome::Failed(Reason::NotStarted(format!("{state:?}"))),
            }
        };
        if let Outcome::RolledBack(reason) = &outcome {
            self.note_rollback(reason);
        }
        self.note_figures();
        self.runner.teller.end(&outcome, self.report).await;
    }

    /// Until the new one takes over (true), or is gone (false).
    async fn drive(&mut self, child: &mut Child) -> bool {
        let mut step = self.await_ready();
        loop {
            // The order matters when several are there at once: what speaks against the new one comes first, and who was told
            // that the upgrade is called off must be right.
            let input = tokio::select! {
                biased;
                status = child.wait() => Input::NewEnded(self.ended(status)),
                reason = self.called_off(), if self.machine.may_cancel() => Input::Cancel(reason),
                input = &mut step => {
                    step = Box::pin(std::future::pending());
                    input
                }
                () = self.deadline(), if self.machine.deadline().is_some() => Input::Tick,
            };
            let order = *self.runner.orders.borrow();
            let input = unless_called_off(input, order, self.machine.may_cancel());
            match self.handle(input) {
                None => {}
                Some(Action::End) => return false,
                Some(Action::HandOver) => return true,
                Some(Action::SetShare(share)) => {
                    self.learn_versions().await;
                    step = self.set_share(share);
                }
                Some(Action::Sample) => step = self.sample(),
                Some(Action::StopNew(patience)) => {
                    let how = self.stop_new(child, patience).await;
                    self.handle(Input::NewEnded(how));
                    return false;
                }
            }
        }
    }

    fn handle(&mut self, input: Input) -> Option<Action> {
        let old_restarts = self.machine.old().restarts();
        let (is_sample, is_ready) = (self.note_input(&input), matches!(input, Input::Ready));
        let action = self.machine.handle(self.runner.teller.now(), input);
        if is_sample {
            self.tell_watch();
        }
        if self.machine.old().restarts() > old_restarts {
            let name = self.runner.old.name();
            self.runner.teller.note(format!(
                "{name}, the old one, was started again; its figures go on"
            ));
        }
        if is_ready {
            let text = format!("{} is attached", self.runner.new.name());
            self.runner.teller.phase(Phase::Ready, text);
        }
        if let Some(action) = action {
            self.tell_action(action);
        }
        action
    }

    /// Without a canary nobody asks again.
    async fn learn_versions(&mut self) {
        let (old, new) = tokio::join!(
            Runner::ask::<BackendStatus>(&self.runner.old, "/status"),
            Runner::ask::<BackendStatus>(&self.runner.new, "/status"),
        );
        self.note_statuses(old.as_ref(), new.as_ref());
    }

    /// Keeps what the report needs. Gives whether it is a sample.
    fn note_input(&mut self, input: &Input) -> bool {
        let Input::Sampled(sample) = input else {
            return false;
        };
        self.note_statuses(sample.old.as_ref(), sample.new.as_ref());
        true
    }

    fn await_ready(&self) -> Step {
        let (http, backend) = (self.runner.http.clone(), self.runner.new.clone());
        Box::pin(async move {
            ready::wait_long(&http, &Probe::Socket(backend.socket)).await;
            Input::Ready
        })
    }

    fn set_share(&self, share: Share) -> Step {
        let socket = self.runner.new.socket.clone();
        let mut orders = self.runner.orders.clone();
        Box::pin(async move {
            let set = tokio::select! {
                biased;
                () = ordered(&mut orders, Order::Stop(Wish::Kill)) => Err(Reason::Stopping.to_string()),
                set = shares::set(&socket, share, MAX_UNWELL) => set,
            };
            match set {
                Ok(()) => Input::ShareSet,
                Err(why) => Input::ShareFailed(why),
            }
        })
    }

    fn sample(&self) -> Step {
        let (http, frontend) = (self.runner.http.clone(), self.runner.frontend.clone());
        let (old, new) = (self.runner.old.clone(), self.runner.new.clone());
        let pause = match self.machine.verdict() {
            None => Duration::ZERO,
            Some(_) => (self.runner.plan.watch / 20).clamp(MIN_PAUSE, MAX_PAUSE),
        };
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            let probe = Probe::Socket(new.socket.clone());
            let (old_status, new_status, new_ready, ends) = tokio::join!(
                Runner::ask::<BackendStatus>(&old, "/status"),
                Runner::ask::<BackendStatus>(&new, "/status"),
                ready::is_ready(&http, &probe),
                frontend.hand_overs(),
            );
            Input::Sampled(Box::new(Sample {
                old: old_status,
                new: new_status,
                new_ready,
                losses: ends.map(|ends| frontend::losses(&ends, old.name(), new.name())),
            }))
        })
    }

    async fn stop_new(&mut self, child: &mut Child, patience: Patience) -> String {
        let mut orders = self.runner.orders.clone();
        let grace = match patience {
            Patience::Grace => self.runner.new.spec.grace.now(),
            Patience::Moment => MOMENT,
        };
        let stopped = child::stop(child, grace, ordered(&mut orders, Order::Stop(Wish::Kill))).await;
        self.note_stop("new", &stopped);
        stopped.map_or_else(|error| error.to_string(), |stopped| stopped.status.to_string())
    }

    /// Both serve. Gives the supervisor the new one to keep, and lets the old one go.
    async fn hand_over(&mut self, child: Child) -> Outcome {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (sender, receiver) = oneshot::channel();
        let adoption = Adoption {
            backend: self.runner.new.clone(),
            child,
            old: sender,
        };
        // The supervisor outlives its upgrades; without it the new one ends with its handle.
        let _ = self.runner.adoptions.send(adoption).await;
        if let Ok(handed) = receiver.await {
            let Handed {
                old,
                mut deaths,
                published,
            } = handed;
            let ended = self.let_go(old, &mut deaths).await;
            self.look_back(began, ended.is_some()).await;
            self.note_deaths(&deaths.borrow());
            // Who is told the end reads it next.
            let is_kill = |order| order == Order::Stop(Wish::Kill);
            let _ = in_time(self.runner.orders.clone(), is_kill, published.wait()).await;
        }
        self.machine.handle(self.runner.teller.now(), Input::OldLeft);
        Outcome::Promoted
    }

    /// Waits for the old one's end. The supervisor keeps the new one meanwhile; who watches hears of its ends.
    async fn let_go(&mut self, mut old: Kept, deaths: &mut watch::Receiver<Deaths>) -> Option<Stopped> {
        old.wish(Wish::Stop);
        let mut orders = self.runner.orders.clone();
        let mut hurries = false;
        let ended = loop {
            tokio::select! {
                ended = old.ended() => break ended,
                () = ordered(&mut orders, Order::Stop(Wish::Kill)), if !hurries => {
                    hurries = true;
                    old.wish(Wish::Kill);
                }
                Ok(()) = deaths.changed() => {
                    let what = deaths.borrow_and_update().last.clone();
                    self.runner.teller.note(format!("{what}; it is started again"));
                }
            }
        };
        match ended {
            Some(stopped) => self.note_stop("old", &Ok(stopped)),
            None => self
                .report
                .notes
                .push("the old one was not running when it was to leave".into()),
        }
        ended
    }

    /// What the frontend saw of the old one's leaving, and whether the new one is well. A frontend that does not answer is
    /// not waited for longer than it would take to learn of a death.
    async fn look_back(&mut self, began: Duration, old_has_left: bool) {
        let (runner, orders) = (&self.runner, &self.runner.orders);
        let farewell = async {
            let seen = runner.frontend.farewell(runner.old.name(), began);
            in_time(orders.clone(), |order| order == Order::Stop(Wish::Kill), seen).await
        };
        let probe = Probe::Socket(runner.new.socket.clone());
        let ready = async {
            let wait = ready::wait_long(&runner.http, &probe);
            in_time(orders.clone(), |order| order != Order::GoOn, wait).await
        };
        if old_has_left {
            self.report.hand_over = farewell.await;
        }
        let is_ready = ready.await.is_some();
        if !is_ready && *self.runner.orders.borrow() == Order::GoOn {
            let note = format!("the new one was not ready {LOOK_BACK:?} after the old one had left");
            self.report.notes.push(note);
        }
    }

    fn ended(&self, status: std::io::Result<std::process::ExitStatus>) -> String {
        exited(
            self.runner.new.name(),
            self.report.new.pid.unwrap_or_default(),
            status,
        )
    }

    async fn deadline(&self) {
        let left = self.machine.deadline().unwrap_or_default();
        tokio::time::sleep(left.saturating_sub(self.runner.teller.now())).await;
    }

    /// Resolves when the upgrade is not to go on.
    async fn called_off(&self) -> Reason {
        let mut orders = self.runner.orders.clone();
        let order = orders.wait_for(|order| *order != Order::GoOn);
        tokio::select! {
            () = self.runner.teller.asker_gone() => Reason::AskerGone,
            order = order => order.map_or(Reason::Stopping, |order| order.reason()),
        }
    }
}

impl Order {
    /// Why it does not go on.
    fn reason(self) -> Reason {
        match self {
            Self::Cancel => Reason::Cancelled,
            Self::GoOn | Self::Stop(_) => Reason::Stopping,
        }
    }
}

/// Who called it off before the point of no return, even in the turn that would have led there, was told that it is.
fn unless_called_off(input: Input, order: Order, may_cancel: bool) -> Input {
    if may_cancel && order != Order::GoOn && !matches!(input, Input::NewEnded(_)) {
        return Input::Cancel(order.reason());
    }
    input
}

/// What `look` gives, unless it takes too long or such an order comes.
async fn in_time<T>(
    mut orders: watch::Receiver<Order>,
    is_end: impl Fn(Order) -> bool,
    look: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        Ok(_) = orders.wait_for(|order| is_end(*order)) => None,
        done = tokio::time::timeout(LOOK_BACK, look) => done.ok(),
    }
}

async fn ordered(orders: &mut watch::Receiver<Order>, wanted: Order) {
    if orders.wait_for(|order| *order == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn side(backend: &Backend) -> Side {
    Side {
        name: backend.name().to_owned(),
        binary: backend.program.named.clone(),
        ..Side::default()
    }
}

/// A control socket answers within milliseconds; one that does not is not well.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at the figures.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// What a process without work may take to stop.
const MOMENT: Duration = Duration::from_secs(2);
/// The frontend takes a silent backend for gone after 1 s by default.
const LOOK_BACK: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_in_the_turn_of_the_watch_s_end_wins() {
        let last_look = || Input::Sampled(Box::default());
        let wins = |input, order, may_cancel| {
            let input = unless_called_off(input, order, may_cancel);
            matches!(input, Input::Cancel(Reason::Cancelled))
        };
        assert!(wins(last_look(), Order::Cancel, true));
        assert!(wins(Input::ShareSet, Order::Cancel, true));
        assert!(!wins(Input::ShareSet, Order::Cancel, false), "it is too late");
        assert!(!wins(last_look(), Order::GoOn, true));
        let ended = Input::NewEnded("killed".into());
        assert!(!wins(ended, Order::Cancel, true), "why it ended says more");
    }

    #[tokio::test]
    async fn a_look_back_ends_by_itself_and_at_an_order() {
        let (orders, receiver) = watch::channel(Order::GoOn);
        let is_kill = |order| order == Order::Stop(Wish::Kill);
        let never = std::future::pending::<()>;
        assert!(in_time(receiver.clone(), is_kill, never()).await.is_none());
        assert_eq!(in_time(receiver.clone(), is_kill, async { 7 }).await, Some(7));
        orders.send_replace(Order::Stop(Wish::Kill));
        // Not even what is there already is taken.
        assert_eq!(in_time(receiver, is_kill, async { 7 }).await, None);
    }
}
