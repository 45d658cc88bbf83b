//! What may be asked of an upgrade, and within which bounds. Pure.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_proto::Share;
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/upgrades`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The new backend's program, absolute [default: the file that the present one was started from].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) binary: Option<PathBuf>,
    /// The canary's share of the devices in percent; 0 for none.
    #[serde(default = "default_canary_percent")]
    pub(crate) canary_percent: f64,
    /// How long the canary is watched, in milliseconds.
    #[serde(default = "default_watch_ms")]
    pub(crate) watch_ms: u64,
    /// How long the new backend may take to be ready, in milliseconds.
    #[serde(default = "default_ready_timeout_ms")]
    pub(crate) ready_timeout_ms: u64,
}

/// How an upgrade goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Nothing, or a part.
    pub(crate) canary: Share,
    pub(crate) watch: Duration,
    pub(crate) ready_timeout: Duration,
}

/// A value that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {allowed}")]
pub(crate) struct PlanError {
    pub(crate) field: &'static str,
    pub(crate) allowed: &'static str,
}

impl TryFrom<&Request> for Plan {
    type Error = PlanError;

    fn try_from(request: &Request) -> Result<Self, PlanError> {
        let bad = |field, allowed| PlanError { field, allowed };
        let canary = Share::from_percent(request.canary_percent)
            .ok()
            .filter(|share| !share.is_full())
            .ok_or(bad("canary_percent", ALLOWED_CANARY))?;
        let watch = within(request.watch_ms, MIN_WATCH, MAX_WATCH).ok_or(bad("watch_ms", ALLOWED_WATCH))?;
        let ready_timeout = within(request.ready_timeout_ms, MIN_READY_TIMEOUT, MAX_READY_TIMEOUT)
            .ok_or(bad("ready_timeout_ms", ALLOWED_READY_TIMEOUT))?;
        Ok(Self {
            canary,
            watch,
            ready_timeout,
        })
    }
}

/// `--canary`: a part of the devices.
pub(crate) fn parse_canary(text: &str) -> Result<Share, &'static str> {
    let share = text.parse::<Share>().ok().filter(|share| !share.is_full());
    share.ok_or(ALLOWED_CANARY)
}

/// `--watch`
pub(crate) fn parse_watch(text: &str) -> Result<Duration, &'static str> {
    parse_within(text, MIN_WATCH, MAX_WATCH).ok_or(ALLOWED_WATCH)
}

/// `--ready-timeout`
pub(crate) fn parse_ready_timeout(text: &str) -> Result<Duration, &'static str> {
    parse_within(text, MIN_READY_TIMEOUT, MAX_READY_TIMEOUT).ok_or(ALLOWED_READY_TIMEOUT)
}

fn parse_within(text: &str, least: Duration, most: Duration) -> Option<Duration> {
    let duration = humantime::parse_duration(text).ok()?;
    within(u64::try_from(duration.as_millis()).ok()?, least, most)
}

fn within(ms: u64, least: Duration, most: Duration) -> Option<Duration> {
    let duration = Duration::from_millis(ms);
    (least..=most).contains(&duration).then_some(duration)
}

fn default_canary_percent() -> f64 {
    5.0
}

fn default_watch_ms() -> u64 {
    60_000
}

fn default_ready_timeout_ms() -> u64 {
    30_000
}

const ALLOWED_CANARY: &str = "allowed: 0% (no canary) to 99.99%, with at most two decimals";
const ALLOWED_WATCH: &str = "allowed: 1s to 24h";
const ALLOWED_READY_TIMEOUT: &str = "allowed: 1s to 10m";
const MIN_WATCH: Duration = Duration::from_secs(1);
const MAX_WATCH: Duration = Duration::from_secs(24 * 3600);
const MIN_READY_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_READY_TIMEOUT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let plan = Plan::try_from(&request("{}")).unwrap();
        assert_eq!(plan.canary, Share::clamped(500));
        assert_eq!((plan.watch.as_secs(), plan.ready_timeout.as_secs()), (60, 30));
        assert!(serde_json::from_str::<Request>(r#"{"canary":5}"#).is_err());
    }

    #[test]
    fn values_out_of_bounds_are_named_with_what_is_allowed() {
        for (text, field) in [
            (r#"{"canary_percent":100}"#, "canary_percent"),
            (r#"{"canary_percent":-1}"#, "canary_percent"),
            (r#"{"canary_percent":0.001}"#, "canary_percent"),
            (r#"{"watch_ms":999}"#, "watch_ms"),
            (r#"{"watch_ms":86400001}"#, "watch_ms"),
            (r#"{"ready_timeout_ms":0}"#, "ready_timeout_ms"),
            (r#"{"ready_timeout_ms":600001}"#, "ready_timeout_ms"),
        ] {
            let error = Plan::try_from(&request(text)).unwrap_err();
            assert_eq!(error.field, field);
            assert!(error.to_string().contains("allowed:"), "{error}");
        }
        let edges = r#"{"canary_percent":99.99,"watch_ms":86400000,"ready_timeout_ms":600000}"#;
        assert!(Plan::try_from(&request(edges)).is_ok());
        assert!(Plan::try_from(&request(r#"{"canary_percent":0,"watch_ms":1000}"#)).is_ok());
    }

    #[test]
    fn the_command_line_has_the_same_bounds() {
        assert_eq!(parse_canary("0.5%"), Ok(Share::clamped(50)));
        assert_eq!(parse_canary("0%"), Ok(Share::NONE));
        assert_eq!(parse_watch("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["100%", "five", "-5%", ""] {
            assert_eq!(parse_canary(bad), Err(ALLOWED_CANARY));
        }
        for bad in ["0s", "25h", "60", ""] {
            assert_eq!(parse_watch(bad), Err(ALLOWED_WATCH));
        }
        assert_eq!(parse_ready_timeout("11m"), Err(ALLOWED_READY_TIMEOUT));
    }
}
