//! `holdfast share`: sets a backend's share by hand, through its control socket.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::args::ShareArgs;
use crate::unix_http::{UnixCall, socket_of};
use crate::up_json::UpJson;

pub(crate) fn run(dir: &Path, args: &ShareArgs) -> Result<ExitCode> {
    let directory = match &args.control_dir {
        Some(directory) => directory.clone(),
        None => UpJson::read(dir)?.control_dir,
    };
    let socket = socket_of(&directory, &args.name);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let call = UnixCall {
        method: Method::PUT,
        json: Some(Bytes::from(
            json!({ "percent": args.percent.percent() }).to_string(),
        )),
        ..UnixCall::get(&socket, "/share")
    };
    let body = runtime.block_on(async { call.send(TIMEOUT).await?.success() });
    let body = body.with_context(|| format!("the share of {} was not set", args.name))?;
    let status: Status = serde_json::from_slice(&body).context("the backend's answer is not readable")?;
    println!(
        "{} {} (pid {}) takes {} % of the devices",
        status.name, status.version, status.pid, status.share_percent
    );
    Ok(ExitCode::SUCCESS)
}

#[derive(Deserialize)]
struct Status {
    name: String,
    version: String,
    pid: u32,
    share_percent: f64,
}

const TIMEOUT: Duration = Duration::from_secs(5);
