//! What seeded simulations share: how many seeds are run, and what is said of one that broke a promise.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

/// A broken promise of type `P`, in a run that had come to `S` by then.
#[derive(Debug)]
pub struct Failure<P, S> {
    /// Which program shows it again.
    pub program: &'static str,
    pub seed: u64,
    pub step: u64,
    pub at: Duration,
    pub promise: P,
    pub what: String,
    pub latest: Vec<String>,
    pub summary: S,
}

impl<P, S> Failure<P, S> {
    /// The command that shows it again.
    pub fn replay(&self) -> String {
        format!(
            "cargo run -p holdfast-tests --bin {} -- --from {} --seeds 1 --trace",
            self.program, self.seed
        )
    }
}

impl<P: Debug, S> fmt::Display for Failure<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.latest {
            writeln!(f, "{line}")?;
        }
        let at = self.at.as_secs_f64();
        writeln!(
            f,
            "seed {} step {} at {at:.6}s: {:?} is broken: {}",
            self.seed, self.step, self.promise, self.what
        )?;
        write!(f, "replay: {}", self.replay())
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Runs every case on so many threads; gives what they came to, in any order, and the failures.
///
/// # Panics
/// When `run` does.
pub fn run_cases<C: Sync, S: Send, F: Send>(
    threads: usize,
    cases: &[C],
    run: impl Fn(&C) -> Result<S, F> + Sync,
) -> (Vec<S>, Vec<F>) {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run(case);
                    let mut done = done.lock().expect("nobody panics with the lock held");
                    match result {
                        Ok(summary) => done.0.push(summary),
                        Err(failure) => done.1.push(failure),
                    }
                }
            });
        }
    });
    done.into_inner().expect("nobody panics with the lock held")
}

/// # Panics
/// With the shortest of the failures, if there is one.
pub fn assert_none<P: Debug, S>(failures: &[Box<Failure<P, S>>]) {
    if let Some(failure) = failures.iter().min_by_key(|failure| failure.step) {
        panic!("{} seeds failed; the shortest:\n{failure}", failures.len());
    }
}

/// A number in the environment.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What a run came to, and many runs together.
pub trait Total: Debug + Default {
    fn add(&mut self, other: &Self);
    /// How often what happened.
    fn seen(&self) -> &BTreeMap<String, u64>;
    /// The most important counts, in a few words.
    fn counts(&self) -> String;
}

/// Which seeds, and how.
#[derive(Debug, Args)]
pub struct Seeds {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them; by the clock if absent.
    #[arg(long)]
    from: Option<u64>,
    /// Prints everything that happens.
    #[arg(long)]
    pub trace: bool,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Seeds that run side by side; as many as there are processors if absent, one with `--trace`.
    #[arg(long)]
    threads: Option<usize>,
}

/// Seeds between two lines of progress.
const SEEDS_PER_LINE: u64 = 200;

impl Seeds {
    /// Runs them until one fails or all have passed, and prints what they came to. Success if none failed.
    ///
    /// # Panics
    /// When `run` does.
    pub fn run<P: Debug + Send, S: Total + Send>(
        &self,
        run: impl Fn(u64) -> Result<S, Box<Failure<P, S>>> + Sync,
    ) -> ExitCode {
        let from = self.from.unwrap_or_else(by_the_clock);
        let threads = self.threads.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            if self.trace { 1 } else { processors }
        });
        let next = AtomicU64::new(0);
        let tally = Mutex::new(Tally::<S>::new(from));
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.seeds {
                            return;
                        }
                        let result = run(from.wrapping_add(number));
                        let mut tally = tally.lock().expect("nobody panics with the lock held");
                        tally.add(result, self.seeds == 1);
                        if tally.failed > 0 && !self.keep_going {
                            next.store(self.seeds, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let tally = tally.into_inner().expect("nobody panics with the lock held");
        if self.seeds > 1 && (tally.failed == 0 || self.keep_going) {
            println!("{:#?}", tally.total.seen());
            tally.print_line();
        }
        ExitCode::from(u8::from(tally.failed > 0))
    }
}

/// What all runs came to.
struct Tally<S> {
    from: u64,
    began: Instant,
    done: u64,
    failed: u64,
    total: S,
}

impl<S: Total> Tally<S> {
    fn new(from: u64) -> Self {
        Self {
            from,
            began: Instant::now(),
            done: 0,
            failed: 0,
            total: S::default(),
        }
    }

    fn add<P: Debug>(&mut self, result: Result<S, Box<Failure<P, S>>>, is_only: bool) {
        self.done += 1;
        match result {
            Ok(summary) => {
                self.total.add(&summary);
                if is_only {
                    println!("{summary:#?}");
                }
            }
            Err(failure) => {
                self.failed += 1;
                println!("{failure}");
            }
        }
        if self.done.is_multiple_of(SEEDS_PER_LINE) {
            self.print_line();
        }
    }

    fn print_line(&self) {
        let (done, from, failed) = (self.done, self.from, self.failed);
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        let counts = self.total.counts();
        println!("{done} seeds from {from}, {failed} failed, {counts}, {rate:.0} seeds/s");
    }
}

fn by_the_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Adds counts by name to others.
pub(crate) fn add_seen(all: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    for (what, count) in more {
        *all.entry(what.clone()).or_default() += count;
    }
}
