//! Runs the simulation of the transport over UDP for as long as one likes, or one seed again; or measures how fast it is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use holdfast_tests::seeds::Seeds;
use holdfast_tests::transport::figures::{self, Setting};
use holdfast_tests::transport::{Options, run};

/// Runs seeds of the simulation of the transport until one fails or all have passed.
#[derive(Debug, Parser)]
#[command(name = "holdfast-simulate-udp")]
struct Arguments {
    #[command(flatten)]
    seeds: Seeds,
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

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.figures {
        measure(&arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options {
        trace: arguments.seeds.trace,
    };
    Ok(arguments.seeds.run(|seed| run(seed, options)))
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
