//! Many calls of one bare HTTP client.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail};
use tokio::time::{MissedTickBehavior, interval};

use super::call::Caller;
use super::load::Load;
use super::pace::{Pacer, TICK};
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Outcome, Pace, Poster, Run};

pub(super) async fn serve(role: &Poster, mut commands: Commands) -> Result<()> {
    let caller = Rc::new(Caller::new(role)?);
    answer(&Answer::Ready(None, None))?;
    let mut made = 0;
    while let Some(command) = commands.next().await? {
        let Command::Run(run) = command else {
            bail!("a poster only runs");
        };
        answer(&Answer::Done(self::run(&caller, &run, made).await?))?;
        made += run.requests;
    }
    Ok(())
}

/// Calls are numbered from `first`.
async fn run(caller: &Rc<Caller>, run: &Run, first: u64) -> Result<Outcome> {
    let load = Rc::new(Load::default());
    load.begin(run);
    let (mut next, started) = (first, Instant::now());
    let mut spawn = |again| {
        tokio::task::spawn_local(calls(caller.clone(), load.clone(), (next, again)));
        next += 1;
    };
    match run.pace {
        Pace::Saturated => {
            for _ in 0..run.depth {
                spawn(true);
            }
        }
        Pace::PerSecond(rate) => {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (mut pacer, mut left) = (Pacer::new(rate, Instant::now()), run.requests);
            while left > 0 {
                ticks.tick().await;
                load.check()?;
                // Each call holds a clone.
                let room = (u64::from(run.depth) + 1).saturating_sub(Rc::strong_count(&load) as u64);
                let count = pacer.due(Instant::now()).min(left).min(room);
                (0..count).for_each(|_| spawn(false));
                left -= count;
            }
        }
    }
    load.finish(started).await
}

/// One call, or `again` and again while there is something left to do.
async fn calls(caller: Rc<Caller>, load: Rc<Load>, (mut seq, again): (u64, bool)) {
    while load.take() {
        let sent = Instant::now();
        if let Err(error) = caller.call(seq, load.payload()).await {
            return load.fail(format!("call {seq}: {error:#}"));
        }
        load.on_answer(sent);
        if !again {
            return;
        }
        seq += 1;
    }
}
