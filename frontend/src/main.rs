//! `holdfast-frontend`: holds device connections. See the crate's documentation.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use holdfast_frontend::BUILD;
use holdfast_frontend::config::Config;
use holdfast_frontend::driver::Frontend;
use holdfast_proto::{ChannelKind, descriptors};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Holds device connections and forwards what they say to backends, which may be restarted at any instant.
///
/// SIGTERM and SIGINT stop it: every device is told to come back (`@goodbye`, close code 1001), then it exits 0.
/// HOLDFAST_LOG filters the log, e.g. HOLDFAST_LOG=debug.
#[derive(Parser)]
#[command(name = "holdfast-frontend", version = BUILD.as_str())]
struct Arguments {
    /// The configuration file (TOML). See deploy/frontend.toml for every field.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit.
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
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if arguments.check {
        println!("{} is valid", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    abort_on_panic();
    descriptors::raise_limit();
    descriptors::make_room();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(run(config))
}

async fn run(config: Config) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return fail(&"signals cannot be handled");
    };
    let frontend = match Frontend::start(&config) {
        Ok(frontend) => frontend,
        Err(error) => return fail(&error),
    };
    let at = |kind| frontend.address(kind).map(tracing::field::display);
    let (wss, ws) = (at(ChannelKind::Wss), at(ChannelKind::Ws));
    let udp = at(ChannelKind::Udp);
    tracing::info!(wss, ws, udp, admin = %frontend.admin, link = %config.link, "the frontend is ready");
    tell_supervisor(NotifyState::Ready);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    tell_supervisor(NotifyState::Stopping);
    tokio::select! {
        () = frontend.stop(config.times.stop_grace.get()) => ExitCode::SUCCESS,
        _ = terminate.recv() => ExitCode::from(EXIT_FORCED),
        _ = interrupt.recv() => ExitCode::from(EXIT_FORCED),
    }
}

/// What the service manager is told (sd_notify): nothing when there is none.
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("holdfast-frontend: {error}");
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

/// A thread that died would leave its sessions unserved and unclosed: better the whole process, which is started anew.
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}
