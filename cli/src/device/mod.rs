//! `holdfast device`: a device at the keyboard, or one that sends by itself.

mod event;
mod interactive;
mod scripted;
mod target;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::args::DeviceArgs;

pub(crate) fn run(dir: &Path, args: &DeviceArgs) -> Result<ExitCode> {
    let builder = target::find(dir, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match args.count {
            Some(count) => scripted::run(builder, args, count).await,
            None => interactive::run(builder, &args.device).await,
        }
    })
}
