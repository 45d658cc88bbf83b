//! `[device_keys]`: how devices are admitted that prove who they are with a key of their own.

use std::path::PathBuf;

use holdfast_proto::config::Interval;
use http::{HeaderValue, Uri};
use serde::Deserialize;

use super::address::{http_address, is_loopback};
use super::{Checker, ConfigError};
use crate::auth::is_key_id;

/// Without this section no device is admitted on `ws` and `udp`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKeysConfig {
    /// TOML file of master keys, mode 0600; watched. It may be left out when there is an `endpoint`.
    #[serde(default)]
    pub master: Option<PathBuf>,
    /// Who is asked for devices' keys whose key id is not in the file: `https://`, or `http://` to this machine, for the answer
    /// is a key. Default none.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// How long the endpoint may take. Default `"2s"`; 10 ms to 60 s. Frontends wait 10 s by default.
    #[serde(default = "default_endpoint_timeout")]
    pub endpoint_timeout: Interval,
    /// Questions to the endpoint under way; a device that comes on top is told to come back. Default 64; 1 to
    /// [`MAX_ENDPOINT_CONCURRENCY`], so that an endpoint that hangs leaves room for other devices' admission.
    #[serde(default = "default_endpoint_concurrency")]
    pub endpoint_concurrency: usize,
    /// The key ids that the endpoint has; devices with others are refused without a question. Default none: it may have any. 1 to
    /// 64, each 1 to 32 bytes of `[A-Za-z0-9._-]`.
    #[serde(default)]
    pub endpoint_key_ids: Option<Vec<String>>,
    /// Questions for devices from one address (IPv6: one /64) that may come to nothing in a minute, and at once. Such an address also
    /// has at most an eighth of `endpoint_concurrency`. Default 60; 1 to 60,000; 0: addresses are not told apart, for where all
    /// devices come through one.
    #[serde(default = "default_endpoint_failures_per_minute")]
    pub endpoint_failures_per_minute: usize,
    /// How far a device's clock may be off. Default `"2m"`; 1 s to 1 day.
    #[serde(default = "default_max_clock_skew")]
    pub max_clock_skew: Interval,
    /// Whether devices without a clock are refused. Default false.
    #[serde(default)]
    pub require_timestamp: bool,
    /// File of devices and key versions that are not admitted; watched. Default none.
    #[serde(default)]
    pub deny: Option<PathBuf>,
    /// How often one device may connect from one address (IPv6: one /64), in the long run. Default 10; 1 to 60,000.
    #[serde(default = "default_attempts_per_minute")]
    pub attempts_per_minute: usize,
    /// How often it may do so at once after a pause. Default 20; 1 to 10,000.
    #[serde(default = "default_attempts_burst")]
    pub attempts_burst: usize,
}

/// Half of the credentials that are checked at a time.
pub const MAX_ENDPOINT_CONCURRENCY: usize = crate::dispatch::MAX_AUTHENTICATIONS / 2;

/// Key ids that an endpoint may be said to have: each stands for a change of keys, of which few are good at a time.
const MAX_ENDPOINT_KEY_IDS: usize = 64;
/// The part of the endpoint's places that one source may have, as a divisor.
const SOURCE_SHARE: usize = 8;

impl DeviceKeysConfig {
    pub(super) fn check(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        let some = self.master.is_some() || self.endpoint.is_some();
        checker.that(
            some,
            "device_keys",
            "{}",
            "a section with master, endpoint or both",
        )?;
        self.check_endpoint(checker)?;
        checker.interval("device_keys.endpoint_timeout", self.endpoint_timeout, 10, 60_000)?;
        checker.number(
            "device_keys.endpoint_concurrency",
            self.endpoint_concurrency,
            1,
            MAX_ENDPOINT_CONCURRENCY,
        )?;
        let failures = self.endpoint_failures_per_minute;
        checker.number("device_keys.endpoint_failures_per_minute", failures, 0, 60_000)?;
        let ids = self.endpoint_key_ids.as_ref();
        checker.that(
            ids.is_none_or(|ids| {
                (1..=MAX_ENDPOINT_KEY_IDS).contains(&ids.len()) && ids.iter().all(|id| is_key_id(id))
            }),
            "device_keys.endpoint_key_ids",
            &format!("{:?}", ids.unwrap_or(&Vec::new())),
            &format!("1 to {MAX_ENDPOINT_KEY_IDS} key ids, each 1 to 32 of A-Z a-z 0-9 . _ -"),
        )?;
        let skew = self.max_clock_skew;
        checker.interval("device_keys.max_clock_skew", skew, 1_000, 24 * 3_600_000)?;
        let rate = self.attempts_per_minute;
        checker.number("device_keys.attempts_per_minute", rate, 1, 60_000)?;
        checker.number("device_keys.attempts_burst", self.attempts_burst, 1, 10_000)
    }

    /// The endpoint's address, and the `Host` header for it.
    pub(crate) fn endpoint(&self) -> Option<(Uri, HeaderValue)> {
        // It was checked when the configuration was read.
        http_address("endpoint", self.endpoint.as_deref()?).ok()
    }

    /// Questions under way for one source.
    pub(crate) fn endpoint_concurrency_per_source(&self) -> usize {
        match self.endpoint_failures_per_minute {
            0 => self.endpoint_concurrency,
            _ => (self.endpoint_concurrency / SOURCE_SHARE).max(1),
        }
    }

    fn check_endpoint(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        let Some(text) = &self.endpoint else { return Ok(()) };
        let key = "device_keys.endpoint";
        let (uri, _) = http_address(key, text).map_err(|message| ConfigError::Parse {
            path: checker.path.to_owned(),
            message,
        })?;
        checker.that(
            uri.scheme_str() == Some("https") || is_loopback(&uri),
            key,
            &format!("{text:?}"),
            "https://, or http:// to a loopback address: its answers are keys",
        )
    }
}

fn default_endpoint_timeout() -> Interval {
    Interval::from_secs(2)
}

fn default_endpoint_concurrency() -> usize {
    64
}

fn default_endpoint_failures_per_minute() -> usize {
    60
}

fn default_max_clock_skew() -> Interval {
    Interval::from_secs(120)
}

fn default_attempts_per_minute() -> usize {
    10
}

fn default_attempts_burst() -> usize {
    20
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parse(section: &str) -> Result<DeviceKeysConfig, String> {
        let text = format!(
            "frontends = [\"ipc:///f\"]\napi_keys = \"k\"\ntoken_keys = \"t\"\nroutes = \"r\"\n[signing]\nkey = \"s\"\n\
             [device_keys]\n{section}"
        );
        let config = Config::parse(Path::new("backend.toml"), &text).map_err(|e| e.to_string())?;
        Ok(config.device_keys.unwrap())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let keys = parse("master = \"m\"").unwrap();
        assert_eq!(keys.endpoint_timeout, Interval::from_secs(2));
        assert_eq!(keys.max_clock_skew, Interval::from_secs(120));
        assert_eq!((keys.attempts_per_minute, keys.attempts_burst), (10, 20));
        assert_eq!((keys.endpoint_concurrency, keys.require_timestamp), (64, false));
        assert!(keys.endpoint.is_none() && keys.deny.is_none() && keys.endpoint_key_ids.is_none());
        assert_eq!(
            (
                keys.endpoint_failures_per_minute,
                keys.endpoint_concurrency_per_source()
            ),
            (60, 8)
        );
        assert_eq!(MAX_ENDPOINT_CONCURRENCY, 512);
    }

    #[test]
    fn a_source_has_an_eighth_of_the_places_unless_all_devices_have_one() {
        let share = |section: &str| {
            let keys = parse(&format!("master = \"m\"\n{section}")).unwrap();
            keys.endpoint_concurrency_per_source()
        };
        assert_eq!(share("endpoint_concurrency = 512"), 64);
        assert_eq!(share("endpoint_concurrency = 3"), 1);
        assert_eq!(share("endpoint_failures_per_minute = 0"), 64);
    }

    #[test]
    fn the_section_may_be_missing() {
        let text = "frontends = [\"ipc:///f\"]\napi_keys = \"k\"\ntoken_keys = \"t\"\nroutes = \"r\"\n[signing]\nkey = \"s\"\n";
        assert!(Config::parse(Path::new("b"), text).unwrap().device_keys.is_none());
    }

    #[test]
    fn endpoints_that_would_show_keys_to_the_network_are_refused() {
        for good in [
            "https://keys.example.com/v1?x=1",
            "http://127.0.0.1:1/",
            "http://localhost/k",
        ] {
            parse(&format!("endpoint = \"{good}\"")).unwrap();
        }
        for bad in [
            "http://keys.example.com/",
            "http://10.0.0.1/",
            "ftp://h/",
            "https://u:p@h/",
            "/k",
        ] {
            let error = parse(&format!("endpoint = \"{bad}\"")).unwrap_err();
            assert!(
                error.contains("device_keys.endpoint") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[test]
    fn every_bound_holds_on_both_sides() {
        for (good, bad, allowed) in [
            (
                "max_clock_skew = \"1s\"",
                "max_clock_skew = \"999ms\"",
                "1s to 1day",
            ),
            (
                "max_clock_skew = \"1day\"",
                "max_clock_skew = \"86401s\"",
                "1s to 1day",
            ),
            ("attempts_per_minute = 1", "attempts_per_minute = 0", "1 to 60000"),
            (
                "attempts_per_minute = 60000",
                "attempts_per_minute = 60001",
                "1 to 60000",
            ),
            ("attempts_burst = 1", "attempts_burst = 0", "1 to 10000"),
            ("attempts_burst = 10000", "attempts_burst = 10001", "1 to 10000"),
            (
                "endpoint_timeout = \"10ms\"",
                "endpoint_timeout = \"9ms\"",
                "10ms to 1m",
            ),
            (
                "endpoint_timeout = \"60s\"",
                "endpoint_timeout = \"61s\"",
                "10ms to 1m",
            ),
            ("endpoint_concurrency = 1", "endpoint_concurrency = 0", "1 to 512"),
            (
                "endpoint_concurrency = 512",
                "endpoint_concurrency = 513",
                "1 to 512",
            ),
            (
                "endpoint_failures_per_minute = 60000",
                "endpoint_failures_per_minute = 60001",
                "0 to 60000",
            ),
            (
                "endpoint_key_ids = [\"A.z_0-9\"]",
                "endpoint_key_ids = []",
                "1 to 64 key ids",
            ),
            (
                "endpoint_key_ids = [\"k1\", \"k2\"]",
                "endpoint_key_ids = [\"k1\", \"k 2\"]",
                "1 to 64 key ids",
            ),
        ] {
            parse(&format!("master = \"m\"\n{good}")).unwrap();
            let error = parse(&format!("master = \"m\"\n{bad}")).unwrap_err();
            let key = bad.split(' ').next().unwrap();
            assert!(error.contains(&format!("device_keys.{key} = ")), "{error}");
            assert!(error.contains(&format!("allowed is {allowed}")), "{error}");
        }
        assert!(parse("").unwrap_err().contains("master, endpoint or both"));
        assert!(
            parse("master = \"m\"\nmaster_key = \"x\"")
                .unwrap_err()
                .contains("unknown field")
        );
    }
}
