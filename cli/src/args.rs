//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use holdfast_proto::ids::DeviceId;

use crate::bench::BenchArgs;

/// Holds device connections and never lets one go because the software behind it changed.
#[derive(Parser)]
#[command(name = "holdfast", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where keys, certificates, configuration, logs and up.json live
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_DIR",
        default_value = ".holdfast",
        value_name = "DIR"
    )]
    pub(crate) dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  holdfast up                                   start a gateway here; Ctrl-C stops it
  holdfast device                               in another terminal: be a device
  > Demo.Echo {\"n\":1}                           … and send a request
  holdfast push demo-device '{\"text\":\"hi\"}'     push to that device
  holdfast status                               what runs, what is connected
  kill -9 $(jq .backend_pid .holdfast/up.json)  crash the backend: no device notices";

#[derive(Subcommand)]
pub(crate) enum Command {
    Up(UpArgs),
    Token(TokenArgs),
    Device(DeviceArgs),
    Push(PushArgs),
    Status(StatusArgs),
    Bench(BenchArgs),
    #[command(hide = true)]
    SupervisedExec(SupervisedExecArgs),
}

/// Start frontend, backend and a small demo service, and supervise them
///
/// Keys, certificates and configuration are made under DIR where they are missing, and kept where they are not. A crashed
/// backend or frontend is started again; the API's listening socket stays open meanwhile. DIR/up.json says where
/// everything is. Ctrl-C stops all: the backend first, then the frontend.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  holdfast up\n  holdfast --dir /tmp/hf up --port-base 7500")]
pub(crate) struct UpArgs {
    /// First of four ports: wss, HTTP API, frontend admin, demo service
    #[arg(long, default_value_t = 7400, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65532))]
    pub(crate) port_base: u16,
    /// The frontend's binary [default: holdfast-frontend beside this program]
    #[arg(long, env = "HOLDFAST_FRONTEND_BIN", value_name = "FILE")]
    pub(crate) frontend_bin: Option<PathBuf>,
    /// The backend's binary [default: holdfast-backend beside this program]
    #[arg(long, env = "HOLDFAST_BACKEND_BIN", value_name = "FILE")]
    pub(crate) backend_bin: Option<PathBuf>,
}

/// Print a token with which DEVICE can connect
///
/// A JWT (EdDSA) signed with DIR/token_key.pem, which `holdfast up` made. Only the token is printed.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  curl -i -H \"Authorization: Bearer $(holdfast token tv-1 --ttl 1h)\" …")]
pub(crate) struct TokenArgs {
    /// Device id: 1 to 128 letters, digits and . _ : -
    #[arg(value_parser = device_id)]
    pub(crate) device: String,
    /// How long it is valid, such as 30m, 24h, 7d
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub(crate) ttl: Duration,
}

/// Be a device: type events, see replies and pushes
///
/// A line is `Namespace.Name JSON`, or a whole event: {"header":{"namespace":…,"name":…,"id":…},"payload":…}. With
/// --count it sends by itself and prints one summary line; it exits with 1 if any request got no reply.
#[derive(clap::Args)]
#[command(after_help = DEVICE_EXAMPLES)]
pub(crate) struct DeviceArgs {
    /// Device id
    #[arg(long, default_value = "demo-device", value_parser = device_id)]
    pub(crate) device: String,
    /// Where to connect to [default: from DIR/up.json]
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// PEM file with the CA to trust [default: from DIR/up.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Token to show [default: made with DIR/token_key.pem]
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Send this many requests, print a summary, and leave
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) count: Option<u32>,
    /// Requests per second
    #[arg(long, default_value_t = 10.0, value_name = "R", value_parser = rate, requires = "count")]
    pub(crate) rate: f64,
    /// What to send with --count
    #[arg(
        long,
        default_value = "Demo.Echo {\"n\":1}",
        value_name = "EVENT",
        requires = "count"
    )]
    pub(crate) event: String,
    /// Give each request a retry key, so that it is sent again after a reconnect
    #[arg(long, requires = "count")]
    pub(crate) retry: bool,
}

const DEVICE_EXAMPLES: &str = "\
Examples:
  holdfast device
  echo 'Demo.Time {}' | holdfast device --device tv-1
  holdfast device --count 1000 --rate 200 --event 'Demo.Slow {\"delay_ms\":20}'";

/// Push a message to a device
///
/// Prints what became of it for each session; exits with 0 only if it was written.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  holdfast push tv-1 '{\"text\":\"hello\"}' --name Notice")]
pub(crate) struct PushArgs {
    /// Device id
    #[arg(value_parser = device_id)]
    pub(crate) device: String,
    /// The payload: any JSON
    #[arg(value_name = "JSON")]
    pub(crate) payload: String,
    /// The event's namespace
    #[arg(long, default_value = "Demo")]
    pub(crate) namespace: String,
    /// The event's name
    #[arg(long, default_value = "Notice")]
    pub(crate) name: String,
}

/// Show what runs and what is connected
///
/// Exits with 0 only if frontend and backend are ready.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  holdfast status\n  holdfast status --json | jq .frontend.sessions")]
pub(crate) struct StatusArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Ties this process's life to its parent's, then becomes PROGRAM
#[derive(clap::Args)]
pub(crate) struct SupervisedExecArgs {
    #[arg(long)]
    pub(crate) parent: i32,
    pub(crate) program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<std::ffi::OsString>,
}

fn device_id(text: &str) -> Result<String, String> {
    text.parse::<DeviceId>()
        .map(|id| id.to_string())
        .map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if ttl.is_zero() || ttl > MAX_TTL {
        Err("allowed: more than 0, at most 10 years".into())
    } else {
        Ok(ttl)
    }
}

pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("allowed: more than 0, at most 1000000".into()),
    }
}

const MAX_TTL: Duration = Duration::from_secs(3650 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        for bad in [
            &["holdfast", "token", "a b"][..],
            &["holdfast", "token", "tv", "--ttl", "0s"],
            &["holdfast", "up", "--port-base", "65533"],
            &["holdfast", "device", "--count", "0"],
            &["holdfast", "device", "--rate", "5"],
            &["holdfast", "device", "--count", "5", "--rate", "NaN"],
        ] {
            assert!(Args::try_parse_from(bad).is_err(), "{bad:?}");
        }
        assert!(
            Args::try_parse_from([
                "holdfast", "device", "--dir", "x", "--count", "5", "--rate", "0.5"
            ])
            .is_ok()
        );
    }
}
