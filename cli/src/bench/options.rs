//! The command line of `holdfast bench`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Subcommand;
use holdfast_proto::Share;

use super::channel::Channels;
use super::phase::Kind;
use super::service::Fault;
use crate::upgrade::plan::{parse_canary, parse_watch};

/// Measure on this machine what devices notice of the gateway's backend
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Bench,
}

#[derive(Subcommand)]
pub(crate) enum Bench {
    Upgrade(Box<Options>),
}

/// Upgrade, kill and hang the backend under load, and report what devices noticed
///
/// Starts a gateway of its own (`holdfast up` in a fresh directory, on free ports) and a service of its own, connects
/// devices, and has them send requests at a steady rate. Every few seconds something happens to the backend, in a shuffled
/// order: a graceful upgrade, a canary upgrade, an upgrade to a binary that crashes and is rolled back, kill -9, SIGSTOP.
///
/// At the end a table says what was noticed: connections dropped; requests lost, doubled, misordered, answered with an
/// error or another's body; calls doubled at the service; latency before, during and after each kind of event. Latency
/// counts from the moment at which a request was due, not from when it could be sent.
///
/// Exit status: 0 if nothing was noticed; 1 if anything was, or an event failed; 130 if it was interrupted before that.
/// The service never fails, so an error reply counts as noticed, and so does a wait longer than --max-wait. Calls of requests
/// that were in flight at a crash may be repeated (their Idempotency-Key is the same), which is only counted. Without any
/// requests, or with an event that no request met, there is no pass. The run's directory is kept when something was noticed.
///
/// Ctrl-C ends the run early, and reports what was seen until then.
#[derive(clap::Args, Debug, Clone)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Devices that stay connected
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) devices: u32,
    /// What they connect over; mixed: each kind in turn
    #[arg(long, value_enum, default_value_t = Channels::Mixed)]
    pub(crate) channel: Channels,
    /// Requests per second, over all devices
    #[arg(long, default_value_t = 500.0, value_name = "R", value_parser = crate::args::rate)]
    pub(crate) rate: f64,
    /// Graceful upgrades: `holdfast upgrade backend --no-canary`
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_EVENTS))]
    pub(crate) upgrades: u32,
    /// Upgrades by way of a canary: `holdfast upgrade backend --canary SHARE --watch TIME`
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_EVENTS))]
    pub(crate) canaries: u32,
    /// The same to a binary that crashes while it is watched, which must be rolled back
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_EVENTS))]
    pub(crate) rollbacks: u32,
    /// kill -9 of the backend
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_EVENTS))]
    pub(crate) kills: u32,
    /// SIGSTOP of the backend, and SIGCONT after --hang-for
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_EVENTS))]
    pub(crate) hangs: u32,
    /// Rest between events; at least the longest service delay, or a request could meet two crashes, which is rightly
    /// answered with an error. At the default 200 upgrades and kills take about ten minutes
    #[arg(long, default_value = "2500ms", value_name = "TIME", value_parser = time)]
    pub(crate) spacing: Duration,
    /// Time before the first event, with which the events compare
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = time)]
    pub(crate) quiet: Duration,
    /// How long a hung backend stays stopped; the frontend gives it up after 1s
    #[arg(long, default_value = "1500ms", value_name = "TIME", value_parser = time)]
    pub(crate) hang_for: Duration,
    /// The longest that a request may wait for its answer before that counts as noticed. A hang is noticed by the frontend
    /// after 1s; a request may wait for two of these and be at the service after each; the rest is for a busy machine
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = time)]
    pub(crate) max_wait: Duration,
    /// Share of the sessions that a canary gets
    #[arg(long, default_value = "20%", value_name = "PERCENT", value_parser = parse_canary)]
    pub(crate) canary_share: Share,
    /// How long a canary is watched
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = parse_watch)]
    pub(crate) watch: Duration,
    /// How long the service takes to answer: drawn for each request from this range
    #[arg(long, default_value = "0ms..50ms", value_name = "TIME..TIME")]
    pub(crate) service_delay: DelayRange,
    /// Bytes of a request's payload; the reply has the same
    #[arg(long, default_value_t = 200, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(64..=262_144))]
    pub(crate) payload: u32,
    /// Threads that play devices [default: half the cores, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: Option<u32>,
    /// Decides the order of events, the delays and the payloads [default: drawn, and printed]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Draw it all over time into one HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write all figures as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Run in DIR, which must be empty or not there, and keep it [default: a temporary directory; --dir is not used]
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Break the service on purpose, to see that it is noticed
    #[arg(long, hide = true, value_name = "FAULT")]
    pub(crate) service_fault: Option<Fault>,
}

const EXAMPLES: &str = "\
Examples:
  holdfast bench upgrade --html upgrade.html
  holdfast bench upgrade --upgrades 100 --kills 100 --rate 5000        about ten minutes
  holdfast bench upgrade --kills 0 --hangs 0 --rollbacks 0      graceful events only: no call may be doubled";

impl Options {
    pub(crate) fn counts(&self) -> [(Kind, u32); 5] {
        [
            (Kind::Upgrade, self.upgrades),
            (Kind::Canary, self.canaries),
            (Kind::Rollback, self.rollbacks),
            (Kind::Kill, self.kills),
            (Kind::Hang, self.hangs),
        ]
    }

    /// What cannot be seen in one option alone.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.canary_share.is_none() && self.canaries + self.rollbacks > 0 {
            return Err("--canary-share 0%: there is nothing to watch without a share".into());
        }
        let crashes = self.kills + self.hangs + self.rollbacks > 0;
        if crashes && self.spacing < self.service_delay.most {
            return Err(format!(
                "--spacing {} is shorter than the longest --service-delay: a request could meet two crashes",
                humantime::format_duration(self.spacing)
            ));
        }
        let times = if crashes { 2 } else { 1 };
        let hang = if self.hangs > 0 {
            self.hang_for
        } else {
            Duration::ZERO
        };
        let least = times * self.service_delay.most + hang;
        if self.max_wait <= least {
            return Err(format!(
                "--max-wait {}: by --service-delay and --hang-for alone a request may wait {}",
                humantime::format_duration(self.max_wait),
                humantime::format_duration(least)
            ));
        }
        Ok(())
    }
}

/// From the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DelayRange {
    pub(crate) least: Duration,
    pub(crate) most: Duration,
}

impl FromStr for DelayRange {
    type Err = String;

    /// `5ms..50ms`, or `5ms` for always the same.
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |text: &str| humantime::parse_duration(text.trim()).map_err(|e| format!("{text:?}: {e}"));
        let (least, most) = match text.split_once("..") {
            Some((least, most)) => (one(least)?, one(most)?),
            None => (one(text)?, one(text)?),
        };
        if least > most || most > MAX_DELAY {
            return Err("allowed: the lesser first, at most 10s".into());
        }
        Ok(Self { least, most })
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if time < MIN_TIME || time > MAX_TIME {
        Err("allowed: 100ms to 10m".into())
    } else {
        Ok(time)
    }
}

const MAX_EVENTS: i64 = 100_000;
/// The route's time limit is above it.
const MAX_DELAY: Duration = Duration::from_secs(10);
const MIN_TIME: Duration = Duration::from_millis(100);
const MAX_TIME: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    fn parse(more: &[&str]) -> Result<Box<Options>, String> {
        let all = ["holdfast", "bench", "upgrade"].iter().chain(more);
        let args = Args::try_parse_from(all).map_err(|e| e.to_string())?;
        let Command::Bench(BenchArgs {
            what: Bench::Upgrade(options),
        }) = args.command
        else {
            panic!("another command");
        };
        options.check().map(|()| options)
    }

    #[test]
    fn values_are_checked() {
        assert!(parse(&[]).is_ok());
        for bad in [
            &["--devices", "0"][..],
            &["--rate", "0"],
            &["--service-delay", "5ms..1ms"],
            &["--service-delay", "0ms..11s"],
            &["--spacing", "1ms"],
            &["--spacing", "1s", "--service-delay", "2s"],
            &["--canary-share", "100%"],
            &["--canary-share", "0%"],
            &["--watch", "10ms"],
            &["--payload", "1"],
            &["--max-wait", "1s"],
            &["--hang-for", "5s"],
            &["--max-wait", "4s", "--service-delay", "2s", "--hangs", "0"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let graceful = [
            "--spacing",
            "1s",
            "--service-delay",
            "2s",
            "--kills",
            "0",
            "--hangs",
            "0",
            "--rollbacks",
            "0",
        ];
        assert!(parse(&graceful).is_ok());
    }

    #[test]
    fn a_range_of_delays_may_be_one_delay() {
        let ms = Duration::from_millis;
        let range = |text: &str| text.parse::<DelayRange>().map(|range| (range.least, range.most));
        assert_eq!(range("5ms"), Ok((ms(5), ms(5))));
        assert_eq!(range("0ms..50ms"), Ok((ms(0), ms(50))));
    }
}
