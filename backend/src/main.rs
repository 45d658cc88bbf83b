//! `holdfast-backend`: everything that Holdfast decides. See the crate's documentation.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use holdfast_backend::config::{Config, NAME_ALLOWED, is_name};
use holdfast_backend::metrics::BUILD;
use holdfast_backend::runtime::{self, StartError};
use holdfast_proto::{Share, descriptors};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Decides what the frontends' devices may do, and calls services for them. May be restarted at any instant.
///
/// SIGTERM and SIGINT stop it: work under way is finished (drain_grace in the configuration bounds that), then it exits 0. A
/// second signal ends it at once. HOLDFAST_LOG filters the log, e.g. HOLDFAST_LOG=debug.
#[derive(Parser)]
#[command(name = "holdfast-backend", version = BUILD.as_str())]
struct Arguments {
    /// The configuration file (TOML). See deploy/backend.toml for every field.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Name of this backend, in place of the configuration's: several may run on one configuration.
    #[arg(long, value_name = "NAME", value_parser = read_name)]
    name: Option<String>,
    /// Its part of the sessions at first. Less than 100% makes it a canary, which does not serve the HTTP API; 0% a standby,
    /// which is attached and gets nothing. The control socket (control_dir) changes it.
    #[arg(long, value_name = "PERCENT", default_value_t = Share::FULL)]
    share: Share,
    /// Check the configuration and the files that it names, and exit.
    #[arg(long)]
    check: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Exit status for what is wrong with the configuration or the start.
const EXIT_CONFIG: u8 = 2;
/// Exit status after a second signal.
const EXIT_FORCED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    init_logging(arguments.log_format);
    let mut config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if let Some(name) = arguments.name {
        config.name = name;
    }
    if arguments.check {
        return match runtime::check(&config) {
            Ok(()) => {
                println!("{} is valid", arguments.config.display());
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        };
    }
    abort_on_panic();
    descriptors::raise_limit();
    descriptors::make_room();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(config, arguments.share)),
        Err(error) => fail(&error),
    }
}

async fn run(config: Config, share: Share) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return fail(&"signals cannot be handled");
    };
    let (stop, stopped) = watch::channel(false);
    let forced = async {
        next_signal(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping");
        stop.send_replace(true);
        next_signal(&mut terminate, &mut interrupt).await;
    };
    tokio::select! {
        ended = runtime::run(&config, share, stopped) => match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error @ (StartError::Stuck(_) | StartError::LinkEnded)) => {
                tracing::error!(%error, "the backend failed");
                ExitCode::FAILURE
            }
            Err(error) => fail(&error),
        },
        () = forced => ExitCode::from(EXIT_FORCED),
    }
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn read_name(text: &str) -> Result<String, String> {
    is_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| format!("allowed is {NAME_ALLOWED}"))
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("holdfast-backend: {error}");
    ExitCode::from(EXIT_CONFIG)
}

fn init_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// A thread that died would leave a backend that looks alive and answers nothing: better the whole process, which is
/// started anew.
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}
