//! Runs the simulation for as long as one likes, or one seed again.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use holdfast_tests::sim::{Failure, Options, Summary, run};

/// Runs seeds of the simulation until one fails or all have passed.
#[derive(Debug, Parser)]
#[command(name = "holdfast-simulate")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them; by the clock if absent.
    #[arg(long)]
    from: Option<u64>,
    /// Ends each run after so many steps.
    #[arg(long)]
    steps: Option<u64>,
    /// Prints everything that happens.
    #[arg(long)]
    trace: bool,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Seeds that run side by side; as many as there are processors if absent.
    #[arg(long)]
    threads: Option<usize>,
}

/// Seeds between two lines of progress.
const SEEDS_PER_LINE: u64 = 200;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let from = arguments.from.unwrap_or_else(by_the_clock);
    let threads = arguments.threads.unwrap_or_else(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if arguments.trace { 1 } else { processors }
    });
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(number) = take(&next, arguments.seeds) {
                    let result = run(from.wrapping_add(number), arguments.options());
                    let mut tally = tally.lock().expect("nobody panics with the lock held");
                    tally.add(result, (from, arguments.seeds));
                    if tally.failed > 0 && !arguments.keep_going {
                        next.store(arguments.seeds, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let tally = tally.into_inner().expect("nobody panics with the lock held");
    if tally.failed > 0 && !arguments.keep_going {
        return ExitCode::FAILURE;
    }
    if arguments.seeds > 1 {
        println!("{:#?}", tally.seen);
        tally.print_line(from);
    }
    if tally.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// The next of so many seeds.
fn take(next: &AtomicU64, seeds: u64) -> Option<u64> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    (number < seeds).then_some(number)
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            steps: self.steps,
            trace: self.trace,
            ..Options::default()
        }
    }
}

/// What all runs came to.
struct Tally {
    began: Instant,
    done: u64,
    failed: u64,
    requests: u64,
    seen: BTreeMap<String, u64>,
}

impl Tally {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            done: 0,
            failed: 0,
            requests: 0,
            seen: BTreeMap::new(),
        }
    }

    fn add(&mut self, result: Result<Summary, Box<Failure>>, (from, seeds): (u64, u64)) {
        self.done += 1;
        match result {
            Ok(summary) => {
                self.requests += summary.requests;
                for (what, count) in &summary.seen {
                    *self.seen.entry(what.clone()).or_default() += count;
                }
                if seeds == 1 {
                    println!("{summary:#?}");
                }
            }
            Err(failure) => {
                self.failed += 1;
                println!("{failure}");
            }
        }
        if self.done.is_multiple_of(SEEDS_PER_LINE) {
            self.print_line(from);
        }
    }

    fn print_line(&self, from: u64) {
        let (done, failed, requests) = (self.done, self.failed, self.requests);
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        println!("{done} seeds from {from}, {failed} failed, {requests} requests, {rate:.0} seeds/s");
    }
}

fn by_the_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
