//! Runs the simulation for as long as one likes, or one seed again.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use holdfast_tests::sim::{Options, run};

/// Runs seeds of the simulation until one fails or all have passed.
#[derive(Debug, Parser)]
#[command(name = "holdfast-simulate")]
struct Arguments {
    /// How many seeds, one after the other.
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
}

/// Seeds between two lines of progress.
const SEEDS_PER_LINE: u64 = 200;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let from = arguments.from.unwrap_or_else(by_the_clock);
    let options = Options {
        steps: arguments.steps,
        trace: arguments.trace,
        ..Options::default()
    };
    let (began, mut failed, mut requests) = (Instant::now(), 0u64, 0);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for done in 0..arguments.seeds {
        match run(from.wrapping_add(done), options) {
            Ok(summary) => {
                requests += summary.requests;
                for (what, count) in &summary.seen {
                    *seen.entry(what.clone()).or_default() += count;
                }
                if arguments.seeds == 1 {
                    println!("{summary:#?}");
                }
            }
            Err(failure) => {
                failed += 1;
                println!("{failure}");
                if !arguments.keep_going {
                    return ExitCode::FAILURE;
                }
            }
        }
        if (done + 1).is_multiple_of(SEEDS_PER_LINE) {
            let rate = (done + 1) as f64 / began.elapsed().as_secs_f64();
            println!(
                "{} seeds from {from}, {failed} failed, {requests} requests, {rate:.0} seeds/s",
                done + 1
            );
        }
    }
    if arguments.seeds > 1 {
        println!("{seen:#?}");
    }
    if failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn by_the_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
