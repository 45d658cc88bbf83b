//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures what the gateway costs and holds it against its budgets and against bare baselines in the same run
///
/// Starts the release binaries holdfast-frontend and holdfast-backend with generated keys on free loopback ports, a small
/// HTTP service behind them, bare baselines, and load generators, all on this machine; prints one table per scenario. Rounds of
/// gateway and baseline alternate; each figure is the median of its rounds, with the smallest and the largest.
///
/// CPU is user + system time of whole processes as the scheduler accounts for it. The sender of a loopback packet is charged
/// for the receive path, so a server's figure contains part of its peers' kernel work, for gateway and baseline alike. Other
/// load on the machine changes rates and latency most, CPU per operation little, ratios least.
#[derive(Parser)]
#[command(name = "holdfast-bench", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run only this scenario (may be given several times)
    #[arg(long, value_enum, value_name = "SCENARIO")]
    pub(crate) only: Vec<Scenario>,
    /// Small numbers: whether everything works, in about a minute; the figures mean little
    #[arg(long)]
    pub(crate) quick: bool,
    /// Write the report as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Rounds of each measurement [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) rounds: Option<u32>,
    /// Paced requests per second in `cpu` [default: 4000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,
    /// Paced pushes per second in `push` [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) push_rate: Option<u32>,
    /// Sessions in `idle` [default: 100000, with --quick 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) sessions: Option<u32>,
    /// Where holdfast-frontend and holdfast-backend are [default: beside this program]
    #[arg(long, env = "HOLDFAST_BIN_DIR", value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Be one of the processes that a run starts
    #[arg(long, hide = true)]
    pub(crate) role: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Bytes per idle session on ws, wss and udp, as slopes over 15,000
    Memory,
    /// CPU per device that gets online, on ws, wss and udp
    Connect,
    /// What the gateway adds to calling the service directly, at low load
    Latency,
    /// CPU per request and reply of 1,000 sessions, paced and saturated
    Cpu,
    /// CPU per push through the HTTP API to 1,000 sessions
    Push,
    /// CPU per delivery of a push to all of 5,000 sessions
    Fanout,
    /// Bytes on the wire of a small message
    Wire,
    /// CPU per packet of the udp transport alone
    Core,
    /// Very many idle sessions on udp: memory, heartbeats, a push to all
    Idle,
    /// What bound sessions notice of strangers who try to get in over ws and udp, and what each attempt costs
    Flood,
}

impl Scenario {
    pub(crate) const ALL: [Self; 10] = [
        Self::Memory,
        Self::Connect,
        Self::Latency,
        Self::Cpu,
        Self::Push,
        Self::Fanout,
        Self::Wire,
        Self::Core,
        Self::Idle,
        Self::Flood,
    ];
}

const EXAMPLES: &str = "\
Examples:
  cargo build --release && cargo run --release -p holdfast-bench
  cargo run --release -p holdfast-bench -- --quick
  cargo run --release -p holdfast-bench -- --only cpu --rate 8000 --rounds 5 --json cpu.json
  cargo run --release -p holdfast-bench -- --only idle --sessions 1000000 --rounds 2
  HOLDFAST_BIN_DIR=/opt/holdfast/bin holdfast-bench --only memory";

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: u32,
    /// Sessions at the end of `memory`, and the number of readings on the way.
    pub(crate) memory_sessions: u32,
    pub(crate) memory_steps: u32,
    /// Devices per round of `connect`.
    pub(crate) connects: u32,
    /// Requests of each kind per round of `latency`.
    pub(crate) latency_requests: u32,
    /// Sessions in `cpu` and `push`.
    pub(crate) sessions: u32,
    /// Requests per round of `cpu`, pushes per round of `push`.
    pub(crate) requests: u64,
    pub(crate) rate: u32,
    pub(crate) push_rate: u32,
    /// Sessions in `fanout`, and pushes to all of them per round.
    pub(crate) fanout_sessions: u32,
    pub(crate) broadcasts: u64,
    /// Packets per round of `core`.
    pub(crate) packets: u64,
    /// Sessions in `idle`, and how long their heartbeats are watched: longer than the time between two.
    pub(crate) idle_sessions: u32,
    pub(crate) idle_watch: Duration,
    /// How long each window of `flood` lasts.
    pub(crate) flood_seconds: u32,
}

impl Size {
    pub(crate) fn of(args: &Args) -> Self {
        let full = Self {
            rounds: 3,
            memory_sessions: 15_000,
            memory_steps: 5,
            connects: 3_000,
            latency_requests: 1_000,
            sessions: 1_000,
            requests: 40_000,
            rate: 4_000,
            push_rate: 2_000,
            fanout_sessions: 5_000,
            broadcasts: 20,
            packets: 300_000,
            idle_sessions: 100_000,
            idle_watch: Duration::from_secs(50),
            flood_seconds: 10,
        };
        let quick = Self {
            rounds: 1,
            memory_sessions: 900,
            memory_steps: 3,
            connects: 300,
            latency_requests: 100,
            sessions: 100,
            requests: 4_000,
            fanout_sessions: 500,
            broadcasts: 4,
            packets: 50_000,
            idle_sessions: 2_000,
            idle_watch: Duration::from_secs(25),
            flood_seconds: 2,
            ..full
        };
        let size = if args.quick { quick } else { full };
        Self {
            rounds: args.rounds.unwrap_or(size.rounds),
            rate: args.rate.unwrap_or(size.rate),
            push_rate: args.push_rate.unwrap_or(size.push_rate),
            idle_sessions: args.sessions.unwrap_or(size.idle_sessions),
            ..size
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn options_win_over_quick() {
        let args = Args::parse_from(["b", "--quick", "--rounds", "2", "--rate", "7", "--only", "cpu"]);
        let size = Size::of(&args);
        assert_eq!((size.rounds, size.rate, size.sessions), (2, 7, 100));
        assert_eq!(args.only, [Scenario::Cpu]);
    }
}
