//! Sends so many requests at so many per second, and sums up.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use holdfast_client::{Builder, Device, Error, Reply, Request, State};
use tokio::task::JoinSet;

use super::event;
use crate::args::DeviceArgs;
use crate::up::StopSignals;

pub(super) async fn run(builder: Builder, args: &DeviceArgs, count: u32) -> Result<ExitCode> {
    let request = event::parse(&args.event)?;
    let mut interrupt = StopSignals::new()?;
    let device = tokio::select! {
        device = builder.connect() => device?,
        () = interrupt.next() => bail!("interrupted before the device was connected"),
    };
    let mut summary = Summary::default();
    let mut waiting = JoinSet::new();
    let mut interrupted = false;
    let started = tokio::time::Instant::now();
    for n in 0..count {
        let due = started + Duration::from_secs_f64(f64::from(n) / args.rate);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            // Nothing can be sent any more.
            error = closed(&device) => {
                say!("holdfast: the device is closed: {error}");
                break;
            }
            () = interrupt.next() => {
                say!("holdfast: interrupted; what is in flight has {MAX_FAREWELL:?}");
                interrupted = true;
                break;
            }
        }
        let mut request = request.clone();
        if args.retry {
            request.retry_key = Some(format!("{:016x}-{n}", rand::random::<u64>()));
        }
        tokio::select! {
            () = send(&device, request, &mut waiting, &mut summary) => {}
            () = interrupt.next() => {
                summary.give_up(1);
                interrupted = true;
                break;
            }
        }
        while let Some(done) = waiting.try_join_next() {
            summary.add(done?);
        }
    }
    finish(&mut waiting, &mut summary, interrupted, &mut interrupt).await?;
    // A connection that does not take its close is not waited for twice.
    let _ = tokio::time::timeout(MAX_FAREWELL, device.close()).await;
    writeln!(std::io::stdout(), "{}", summary.line())?;
    Ok(if summary.unanswered() == 0 && summary.sent == count {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Waits for what is in flight, and no longer than a moment once interrupted; the rest is without an answer.
async fn finish(
    waiting: &mut JoinSet<Done>,
    summary: &mut Summary,
    was_interrupted: bool,
    interrupt: &mut StopSignals,
) -> Result<()> {
    let patience = async {
        if !was_interrupted {
            interrupt.next().await;
        }
        tokio::time::sleep(MAX_FAREWELL).await;
    };
    tokio::pin!(patience);
    loop {
        tokio::select! {
            biased;
            done = waiting.join_next() => match done {
                Some(done) => summary.add(done?),
                None => return Ok(()),
            },
            () = &mut patience => {
                summary.give_up(waiting.len());
                waiting.abort_all();
                return Ok(());
            }
        }
    }
}

/// Waits until the device is closed for good.
async fn closed(device: &Device) -> Error {
    let mut states = device.watch_state();
    let closed = states.wait_for(|state| matches!(state, State::Closed(_))).await;
    match closed.as_deref() {
        Ok(State::Closed(error)) => error.clone(),
        _ => Error::Closed,
    }
}

type Done = (Duration, Result<Reply, Error>);

/// Sends now, or when there is room among the requests in flight.
async fn send(device: &Device, request: Request, waiting: &mut JoinSet<Done>, summary: &mut Summary) {
    summary.sent += 1;
    let started = Instant::now();
    loop {
        match device.send(request.clone()) {
            Ok(reply) => {
                waiting.spawn(async move {
                    let result = reply.await;
                    (started.elapsed(), result)
                });
                return;
            }
            Err(Error::Busy) => match waiting.join_next().await {
                Some(Ok(done)) => summary.add(done),
                // All that is queued was given up on, and waits for the connection to come back.
                Some(Err(_)) | None => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Err(error) => return summary.add((started.elapsed(), Err(error))),
        }
    }
}

#[derive(Default)]
struct Summary {
    sent: u32,
    replies: u32,
    errors: BTreeMap<String, u32>,
    unanswered: BTreeMap<String, u32>,
    /// Of replies and error replies, in microseconds: 4 bytes for each request.
    latencies: Vec<u32>,
}

impl Summary {
    fn add(&mut self, (latency, result): Done) {
        let answered = match result {
            Ok(_) => {
                self.replies += 1;
                true
            }
            Err(error) => {
                let counts = if error.is_answer() {
                    &mut self.errors
                } else {
                    &mut self.unanswered
                };
                *counts.entry(error.label().to_owned()).or_default() += 1;
                error.is_answer()
            }
        };
        if answered {
            self.latencies
                .push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    /// Nobody waits for these any more.
    fn give_up(&mut self, count: usize) {
        if count > 0 {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            *self.unanswered.entry("interrupted".into()).or_default() += count;
        }
    }

    fn unanswered(&self) -> u32 {
        self.unanswered.values().sum()
    }

    fn line(&mut self) -> String {
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let index = (self.latencies.len().saturating_sub(1) as f64 * share).round() as usize;
            self.latencies
                .get(index)
                .map_or("-".to_owned(), |us| format!("{:.2} ms", f64::from(*us) / 1000.0))
        };
        let Self { sent, replies, .. } = self;
        format!(
            "sent {sent}, replies {replies}, errors {}, no reply {}, p50 {}, p99 {}, max {}",
            counts(&self.errors),
            counts(&self.unanswered),
            at(0.5),
            at(0.99),
            at(1.0),
        )
    }
}

fn counts(counts: &BTreeMap<String, u32>) -> String {
    let total: u32 = counts.values().sum();
    let each: Vec<_> = counts.iter().map(|(code, n)| format!("{code} {n}")).collect();
    if each.is_empty() {
        total.to_string()
    } else {
        format!("{total} ({})", each.join(", "))
    }
}

/// For replies once interrupted, and for the close.
const MAX_FAREWELL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_answers_from_silence() {
        let mut summary = Summary {
            sent: 3,
            ..Summary::default()
        };
        let overloaded = Error::Service {
            code: "overloaded".into(),
            message: String::new(),
            retryable: true,
        };
        summary.add((Duration::from_micros(1500), Err(overloaded)));
        summary.add((Duration::from_millis(9), Err(Error::Timeout)));
        summary.replies += 1;
        summary.latencies.push(500);
        assert_eq!(
            summary.line(),
            "sent 3, replies 1, errors 1 (overloaded 1), no reply 1 (timeout 1), p50 1.50 ms, p99 1.50 ms, max 1.50 ms"
        );
        assert_eq!(summary.unanswered(), 1);
        assert!(Summary::default().line().ends_with("max -"));
    }
}
