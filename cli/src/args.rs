//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use holdfast_proto::Share;
use holdfast_proto::ids::DeviceId;

use crate::bench::BenchArgs;
use crate::upgrade::plan::{parse_canary, parse_ready_timeout, parse_watch};

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
  holdfast upgrade backend --binary new         another backend: no device notices
  kill -9 $(jq .backend_pid .holdfast/up.json)  crash the backend: no device notices";

#[derive(Subcommand)]
pub(crate) enum Command {
    Up(UpArgs),
    Token(TokenArgs),
    Key(KeyArgs),
    Device(DeviceArgs),
    Push(PushArgs),
    Status(StatusArgs),
    #[command(subcommand)]
    Upgrade(UpgradeCommand),
    Share(ShareArgs),
    Bench(BenchArgs),
    #[command(hide = true)]
    SupervisedExec(SupervisedExecArgs),
}

/// Start frontend, backend and a small demo service, and supervise them
///
/// Keys, certificates and configuration are made under DIR where they are missing, and kept where they are not. A crashed
/// backend or frontend is started again; the API's listening socket stays open meanwhile. `holdfast upgrade backend` puts
/// another backend in the present one's place. DIR/up.json says where everything is. Ctrl-C stops all: the backend first,
/// then the frontend.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  holdfast up\n  holdfast --dir /tmp/hf up --port-base 7500")]
pub(crate) struct UpArgs {
    /// First of five ports: wss, HTTP API, frontend admin, demo service, ws and udp
    #[arg(long, default_value_t = 7400, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65531))]
    pub(crate) port_base: u16,
    /// The frontend's binary [default: holdfast-frontend beside this program]
    #[arg(long, env = "HOLDFAST_FRONTEND_BIN", value_name = "FILE")]
    pub(crate) frontend_bin: Option<PathBuf>,
    /// The first backend's binary [default: holdfast-backend beside this program]
    ///
    /// It keeps a name of its own (in DIR/bin), so that a crash starts the same program again, also when the file was replaced
    /// meanwhile.
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

/// Print the key with which DEVICE can connect on ws and udp
///
/// It is derived from a master key (DIR/keys/master.toml, which `holdfast up` made) and from what the device says of itself:
/// another product, class or key version gives another key. Only the key is printed.
#[derive(clap::Args)]
#[command(after_help = KEY_EXAMPLES)]
pub(crate) struct KeyArgs {
    /// Device id: 1 to 128 letters, digits and . _ : -
    #[arg(value_parser = device_id)]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) of: KeyOf,
    /// File of master keys [default: DIR/keys/master.toml]
    #[arg(long, value_name = "PATH")]
    pub(crate) master: Option<PathBuf>,
    /// One JSON object: the key, and what the device must say of itself to use it
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a device's key is derived from, beside its id and a master key
#[derive(clap::Args, Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyOf {
    /// Its product: at most 64 printable ASCII characters
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) product: String,
    /// Its class: at most 64 printable ASCII characters
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) class: String,
    /// Which master key its key is derived from [default: the only one in the file]
    #[arg(long, value_name = "ID")]
    pub(crate) key_id: Option<String>,
    /// Raise it to give the device another key
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) key_version: u32,
}

const KEY_EXAMPLES: &str = "\
Examples:
  holdfast key lamp-1
  holdfast key lamp-1 --product lamp --class home --key-version 2
  holdfast key lamp-1 --master /etc/holdfast/master.toml --key-id k2 --json";

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
    /// What to connect over [default: as --url or the other options say, else wss]
    #[arg(long, value_enum)]
    pub(crate) channel: Option<DeviceChannel>,
    /// PEM file with the CA to trust [default: from DIR/up.json]
    #[arg(long, value_name = "FILE", help_heading = "Options on wss")]
    pub(crate) ca: Option<PathBuf>,
    /// Token to show [default: made with DIR/token_key.pem]
    #[arg(long, help_heading = "Options on wss")]
    pub(crate) token: Option<String>,
    #[command(flatten)]
    pub(crate) key: DeviceKeyArgs,
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

/// What a device connects over
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChannel {
    /// TCP without TLS: the device proves that it holds its key, and so must the gateway
    Ws,
    /// Datagrams, in the same way
    Udp,
    /// TLS and a bearer token
    Wss,
}

/// A device's key on ws and udp, as it is or made from a master key
#[derive(clap::Args)]
#[command(next_help_heading = "Options on ws and udp")]
pub(crate) struct DeviceKeyArgs {
    /// The device's key, as `holdfast key` prints it; needs --key-id. Other users of this machine can see it
    #[arg(long, conflicts_with_all = ["key_file", "master_key_file"], requires = "key_id")]
    pub(crate) key: Option<String>,
    /// A file that holds it; needs --key-id
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "master_key_file",
        requires = "key_id"
    )]
    pub(crate) key_file: Option<PathBuf>,
    /// File of master keys to derive it from [default: from DIR/up.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) master_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) of: KeyOf,
}

const DEVICE_EXAMPLES: &str = "\
Examples:
  holdfast device
  holdfast device --channel ws
  holdfast device --channel udp
  holdfast device --device lamp-1 --url ws://gateway:7404 --key-file lamp-1.key --key-id k1
  holdfast device --device lamp-1 --url udp://gateway:7404 --key-file lamp-1.key --key-id k1
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

/// Show what runs: frontend, backends and their versions, sessions, the last hand-overs
///
/// Exits with 0 only if the frontend is ready and a backend serves.
#[derive(clap::Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct StatusArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Ask the frontend with this admin listener instead of the gateway that `holdfast up` runs on DIR
    #[arg(long, value_name = "URL")]
    pub(crate) admin: Option<String>,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  holdfast status
  holdfast status --json | jq .frontend.sessions
  holdfast status --admin http://127.0.0.1:7402      a gateway that systemd runs";

/// Replace a part of the gateway that runs, under load
#[derive(Subcommand)]
pub(crate) enum UpgradeCommand {
    Backend(UpgradeBackendArgs),
}

/// Put another backend in the present one's place, without anyone noticing
///
/// Asks the `holdfast up` that runs on DIR. The new backend is started beside the old one; when it is ready it gets the
/// canary's share of the devices, and both are watched. If the new one crashes, does not answer, is lost by the frontend more
/// often than the old one, answers with errors significantly more often, or is more than twice and 50 ms slower (95th
/// percentile), it is taken away again and the old one goes on. Otherwise it takes all, and the old one finishes what it has
/// and ends.
///
/// Ctrl-C before the new one takes all rolls back; after that the upgrade is completed. Progress is shown on stderr, the
/// report on stdout. Exits with 0 when promoted, with 1 when rolled back or refused.
#[derive(clap::Args)]
#[command(after_help = UPGRADE_EXAMPLES)]
pub(crate) struct UpgradeBackendArgs {
    /// The new backend's binary [default: the file that the present one was started from]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
    /// Share of the devices that the new one gets first; 0% for none
    #[arg(long, default_value = "5%", value_name = "PERCENT", value_parser = parse_canary)]
    pub(crate) canary: Share,
    /// How long both are watched before the new one takes all
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_watch)]
    pub(crate) watch: Duration,
    /// Take all as soon as it is ready, without a canary
    #[arg(long, conflicts_with_all = ["canary", "watch"])]
    pub(crate) no_canary: bool,
    /// How long the new one may take to be ready
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_ready_timeout)]
    pub(crate) ready_timeout: Duration,
    /// The events as they come on stdout, one JSON object a line; the last has the outcome and the report
    #[arg(long)]
    pub(crate) json: bool,
}

const UPGRADE_EXAMPLES: &str = "\
Examples:
  holdfast upgrade backend                                  the same file, built anew
  holdfast upgrade backend --binary ./holdfast-backend-1.3 --canary 1% --watch 10m
  holdfast upgrade backend --no-canary
  holdfast upgrade backend --json | jq -r 'select(.outcome).outcome'";

/// Set the share of the devices that a backend takes
///
/// For backends that systemd runs; `holdfast upgrade backend` does it by itself. 0% makes it stand by, 100% makes it one of
/// the full ones, which share what canaries leave.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  holdfast share new 5% --control-dir /run/holdfast/control")]
pub(crate) struct ShareArgs {
    /// The backend's name
    #[arg(value_parser = backend_name)]
    pub(crate) name: String,
    /// 0% to 100%, with at most two decimals
    pub(crate) percent: Share,
    /// The backends' `control_dir` [default: DIR/control]
    #[arg(long, value_name = "DIR")]
    pub(crate) control_dir: Option<PathBuf>,
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

fn backend_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("allowed: 1 to 64 letters, digits and . _ -".into())
    }
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
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("allowed: 0.001 to 1000000".into()),
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
            &["holdfast", "key", "a b"],
            &["holdfast", "key", "tv", "--key-version", "-1"],
            &["holdfast", "key", "tv", "--key-version", "4294967296"],
            &["holdfast", "up", "--port-base", "65532"],
            &["holdfast", "device", "--count", "0"],
            &["holdfast", "device", "--rate", "5"],
            &["holdfast", "device", "--count", "5", "--rate", "NaN"],
            &["holdfast", "upgrade"],
            &["holdfast", "upgrade", "backend", "--canary", "100%"],
            &["holdfast", "upgrade", "backend", "--watch", "0s"],
            &["holdfast", "upgrade", "backend", "--no-canary", "--watch", "5s"],
            &["holdfast", "upgrade", "backend", "--ready-timeout", "1h"],
            &["holdfast", "share", "backend-1", "101%"],
            &["holdfast", "share", "../x", "1%"],
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
