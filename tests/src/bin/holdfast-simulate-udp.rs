//! Runs the simulation of the transport over UDP for as long as one likes, or one seed again; or measures how fast it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Parser;
use holdfast_tests::transport::figures::{self, Setting};
use holdfast_tests::transport::{Failure, Options, Summary, run};

/// Runs seeds of the simulation of the transport until one fails or all have passed.
#[derive(Debug, Parser)]
#[command(name = "holdfast-simulate-udp")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them; by the clock if absent.
    #[arg(long)]
    from: Option<u64>,
    /// Prints everything that happens.
    #[arg(long)]
    trace: bool,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Seeds that run side by side; as many as there are processors if absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Measures goodput and delivery times against loss instead.
    #[arg(long)]
    figures: bool,
    /// Writes the figures' drawing there.
    #[arg(long, requires = "figures")]
    svg: Option<PathBuf>,
    /// Writes the figures' numbers there.
    #[arg(long, requires = "figures")]
    json: Option<PathBuf>,
}

/// Seeds between two lines of progress.
const SEEDS_PER_LINE: u64 = 200;

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.figures {
        measure(&arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let from = arguments.from.unwrap_or_else(by_the_clock);
    let threads = arguments.threads.unwrap_or_else(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if arguments.trace { 1 } else { processors }
    });
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::new()));
    let options = Options {
        trace: arguments.trace,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(number) = take(&next, arguments.seeds) {
                    let result = run(from.wrapping_add(number), options);
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
    if arguments.seeds > 1 && (tally.failed == 0 || arguments.keep_going) {
        println!("{:#?}", tally.seen);
        tally.print_line(from);
    }
    Ok(ExitCode::from(u8::from(tally.failed > 0)))
}

/// The next of so many seeds.
fn take(next: &AtomicU64, seeds: u64) -> Option<u64> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    (number < seeds).then_some(number)
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let setting = Setting::default();
    let began = Instant::now();
    let points = figures::measure(&setting, |point| {
        let (loss, transport) = (point.loss_percent, point.transport.label());
        eprintln!("{:?} at {loss}%, {transport}: measured", point.workload);
    });
    print!("{}", figures::table(&setting, &points));
    println!("\nmeasured in {:.0} s", began.elapsed().as_secs_f64());
    if let Some(path) = &arguments.svg {
        let svg = figures::draw(&setting, &points).map_err(|error| anyhow::anyhow!("drawing: {error}"))?;
        std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &arguments.json {
        let json = serde_json::json!({ "setting": setting, "points": points });
        let text = serde_json::to_string_pretty(&json)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// What all runs came to.
struct Tally {
    began: Instant,
    done: u64,
    failed: u64,
    messages: u64,
    datagrams: u64,
    seen: BTreeMap<String, u64>,
}

impl Tally {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            done: 0,
            failed: 0,
            messages: 0,
            datagrams: 0,
            seen: BTreeMap::new(),
        }
    }

    fn add(&mut self, result: Result<Summary, Box<Failure>>, (from, seeds): (u64, u64)) {
        self.done += 1;
        match result {
            Ok(summary) => {
                self.messages += summary.messages;
                self.datagrams += summary.datagrams;
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
        let (done, failed) = (self.done, self.failed);
        let (messages, datagrams) = (self.messages, self.datagrams);
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        println!(
            "{done} seeds from {from}, {failed} failed, {messages} messages in {datagrams} datagrams, {rate:.1} seeds/s"
        );
    }
}

fn by_the_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
