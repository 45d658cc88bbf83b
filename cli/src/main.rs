//! `holdfast`: starts a gateway, upgrades it under load, makes device tokens and keys, plays a device, pushes, and shows the status.
//!
//! Every command but `up` finds a running gateway through `DIR/up.json`. Errors are one line on stderr, exit code 1; wrong
//! usage exits with 2.

/// Says a line on stderr. `eprintln!` would panic when nobody reads it any more or the disk is full, and a supervisor must not
/// end because of that.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

/// The same on stdout.
macro_rules! show {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

mod args;
mod bench;
mod demo;
mod device;
mod files;
mod http_client;
mod key;
mod layout;
mod push;
mod share;
mod status;
mod token;
mod unix_http;
mod up;
mod up_json;
mod upgrade;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, UpgradeCommand};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Up(options) => up::run(&args.dir, &options),
        Command::Key(options) => key::run(&args.dir, &options),
        Command::Token(options) => token::run(&args.dir, &options),
        Command::Device(options) => device::run(&args.dir, &options),
        Command::Push(options) => push::run(&args.dir, &options),
        Command::Status(options) => status::run(&args.dir, &options),
        Command::Upgrade(UpgradeCommand::Backend(options)) => upgrade::ask::run(&args.dir, &options),
        Command::Share(options) => share::run(&args.dir, &options),
        Command::Bench(options) => bench::run(&options),
        Command::SupervisedExec(options) => up::child::exec(&options),
    };
    result.unwrap_or_else(|error| {
        let line = format!("{error:#}")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        eprintln!("holdfast: {line}");
        ExitCode::FAILURE
    })
}
