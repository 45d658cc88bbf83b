//! `holdfast push`: one message to one device, through the HTTP API.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::args::PushArgs;
use crate::http_client::{Call, Http};
use crate::up_json::UpJson;

pub(crate) fn run(dir: &Path, args: &PushArgs) -> Result<ExitCode> {
    let up = UpJson::read(dir)?;
    let payload: &RawValue = serde_json::from_str(&args.payload).context("the payload is not JSON")?;
    let message = serde_json::to_string(&Message {
        to: To { device: &args.device },
        namespace: &args.namespace,
        name: &args.name,
        payload,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = runtime.block_on(async {
        let url = format!("{}/v1/messages", up.api);
        let json = Some(message.into());
        let call = Call {
            method: Method::POST,
            key: Some(&up.api_key),
            json,
            ..Call::get(&url)
        };
        Http::new()?.call(call).await?.success()
    })?;
    let outcome: Outcome = serde_json::from_slice(&body).context("the API's answer is not readable")?;
    for target in &outcome.results {
        writeln!(std::io::stdout(), "{}", target.line())?;
    }
    Ok(if outcome.all_written() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The payload goes as it was typed: a number or an order of fields may mean something to the device.
#[derive(Serialize)]
struct Message<'a> {
    to: To<'a>,
    namespace: &'a str,
    name: &'a str,
    payload: &'a RawValue,
}

#[derive(Serialize)]
struct To<'a> {
    device: &'a str,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    results: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    device: String,
    session: Option<String>,
    status: String,
    reason: Option<String>,
}

impl Outcome {
    fn all_written(&self) -> bool {
        !self.results.is_empty() && self.results.iter().all(|target| target.status == "written")
    }
}

impl Target {
    fn line(&self) -> String {
        let mut line = format!("{} {}", self.device, self.status);
        for extra in [&self.session, &self.reason].into_iter().flatten() {
            line.push(' ');
            line.push_str(extra);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_written_is_success() {
        let outcome = |json| serde_json::from_str::<Outcome>(json).unwrap();
        assert!(
            outcome(r#"{"id":"m","results":[{"device":"a","session":"s","status":"written"}]}"#)
                .all_written()
        );
        assert!(!outcome(r#"{"id":"m","results":[]}"#).all_written());
        let mixed = r#"{"results":[{"device":"a","status":"written"},{"device":"a","status":"dropped","reason":"full"}]}"#;
        assert!(!outcome(mixed).all_written());
        assert_eq!(outcome(mixed).results[1].line(), "a dropped full");
    }
}
