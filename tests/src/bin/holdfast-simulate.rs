//! Runs the simulation for as long as one likes, or one seed again.

use std::process::ExitCode;

use clap::Parser;
use holdfast_tests::seeds::Seeds;
use holdfast_tests::sim::{Options, run};

/// Runs seeds of the simulation until one fails or all have passed.
#[derive(Debug, Parser)]
#[command(name = "holdfast-simulate")]
struct Arguments {
    #[command(flatten)]
    seeds: Seeds,
    /// Ends each run after so many steps.
    #[arg(long)]
    steps: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { seeds, steps } = Arguments::parse();
    let options = Options {
        steps,
        trace: seeds.trace,
        ..Options::default()
    };
    seeds.run(|seed| run(seed, options))
}
