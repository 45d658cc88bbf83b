//! `backend.toml`: parsed and checked at start-up into values that the rest can rely on.
//!
//! The files that it names (keys, routes) are read by the modules that use them; [`secrets`] reads them with a bound and
//! warns about permissions.

mod address;
mod device_keys;
pub mod secrets;
pub(crate) mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use holdfast_proto::config::Interval;
use holdfast_proto::link::MAX_REPLY_BYTES;
use serde::Deserialize;

use crate::link::tunnel::REMOTE;
use crate::service::ROUTE_SHARE;

pub(crate) use address::http_address;
pub use device_keys::{DeviceKeysConfig, MAX_ENDPOINT_CONCURRENCY};

/// Why a configuration file cannot be used: one line naming the key, its value, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: {key} = {value}: {allowed}", path.display())]
    Value {
        path: PathBuf,
        key: String,
        value: String,
        allowed: String,
    },
}

/// Everything that `backend.toml` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names this backend in logs, metrics and `/v1/stats`: 1 to 64 bytes of `[A-Za-z0-9._-]`. Default `"backend"`.
    #[serde(default = "default_name")]
    pub name: String,
    /// Directory of the control socket, `<control_dir>/<name>.sock`; made with mode 0700. Default none: no such socket.
    #[serde(default)]
    pub control_dir: Option<PathBuf>,
    /// The frontends to attach to: `ipc://` and the path of a socket on this machine, or `tcp://host:port` of a frontend's tunnel on
    /// another one. 1 to 64, each once.
    pub frontends: Vec<String>,
    /// File of the key of the tunnels: one line, 32 bytes in base64url, the same as the frontends have. Required for `tcp://`.
    #[serde(default)]
    pub link_key: Option<PathBuf>,
    /// Where the HTTP API listens, unless a socket is inherited. Default `127.0.0.1:7401`.
    #[serde(default = "default_api")]
    pub api: SocketAddr,
    /// Whether `api` may be another address than a loopback one. Default false: the API has no TLS.
    #[serde(default)]
    pub api_allow_remote: bool,
    /// TOML file of API keys.
    pub api_keys: PathBuf,
    /// PEM file of the Ed25519 public keys that devices' tokens are signed with.
    pub token_keys: PathBuf,
    /// How devices on `ws` and `udp` are admitted. Default none: they are not.
    #[serde(default)]
    pub device_keys: Option<DeviceKeysConfig>,
    /// TOML file of routes; watched.
    pub routes: PathBuf,
    pub signing: Signing,
    /// PEM file of the certificate authorities to trust for `https` services, in place of the public ones. Default none.
    #[serde(default)]
    pub service_ca: Option<PathBuf>,
    #[serde(default)]
    pub link: Link,
    /// Threads that call services. Default the number of cores; 1 to 64.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// How long a graceful stop may take before the crash path. Default `"30s"`; 1 s to 1 h.
    #[serde(default = "default_drain_grace")]
    pub drain_grace: Interval,
    /// Requests in this process, waiting or being answered. A quarter of them is kept for the configured frontends in equal
    /// parts, so that one with slow requests cannot take them all. Default 8192; 1 to 1,000,000. Each costs its payload and
    /// about 1 KiB.
    #[serde(default = "default_max_in_flight")]
    pub max_in_flight: usize,
    /// Memory for replies of services while they are read, over all workers; those up to 8 KiB do not count. One route may use
    /// half. A reply that finds no room waits; one that still has none near the end of its route's timeout is answered
    /// `overloaded`. Default 256 MiB; 8 MiB to 64 GiB.
    #[serde(default = "default_max_reply_memory_bytes")]
    pub max_reply_memory_bytes: usize,
    /// How long a push waits for its results before they are `unconfirmed`. Default `"5s"`; 10 ms to 60 s.
    #[serde(default = "default_push_timeout")]
    pub push_timeout: Interval,
    /// How long a presence query waits for the frontends. Default `"300ms"`; 10 ms to 10 s.
    #[serde(default = "default_query_timeout")]
    pub query_timeout: Interval,
    /// Devices remembered as seen, to tell offline from unknown. Default 100,000 (about 200 B each); 0 to 10,000,000.
    #[serde(default = "default_last_seen_capacity")]
    pub last_seen_capacity: usize,
}

/// `[signing]`: how calls to services are signed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signing {
    /// File of the HMAC-SHA256 key, in hex, at least 32 bytes of key.
    pub key: PathBuf,
}

/// `[link]`: the connection to each frontend.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// Time between heartbeats. Default `"250ms"`; 10 ms to 10 s.
    pub heartbeat: Interval,
    /// Silence after which a frontend is gone: at least two heartbeats. Default `"1s"`; at most 60 s.
    pub timeout: Interval,
    /// Time before a lost link is tried again. Default `"100ms"`; 10 ms to 10 s.
    pub reconnect: Interval,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            heartbeat: Interval::from_millis(250),
            timeout: Interval::from_secs(1),
            reconnect: Interval::from_millis(100),
        }
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = secrets::read_text(path)?;
        Self::parse(path, &text)
    }

    /// Checks `text`; `path` only names it in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| toml_error(path, text, &error))?;
        config.check(&Checker { path })?;
        Ok(config)
    }

    fn check(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        checker.that(
            is_name(&self.name),
            "name",
            &format!("{:?}", self.name),
            NAME_ALLOWED,
        )?;
        self.check_frontends(checker)?;
        let local = self.api_allow_remote || self.api.ip().is_loopback();
        checker.that(
            local,
            "api",
            &self.api.to_string(),
            "a loopback address, unless api_allow_remote = true",
        )?;
        if let Some(keys) = &self.device_keys {
            keys.check(checker)?;
        }
        checker.number("workers", self.workers, 1, MAX_WORKERS)?;
        checker.number("max_in_flight", self.max_in_flight, 1, 1_000_000)?;
        checker.number(
            "max_reply_memory_bytes",
            self.max_reply_memory_bytes,
            MIN_REPLY_MEMORY_BYTES,
            MAX_REPLY_MEMORY_BYTES,
        )?;
        checker.number("last_seen_capacity", self.last_seen_capacity, 0, 10_000_000)?;
        checker.interval("drain_grace", self.drain_grace, 1_000, 3_600_000)?;
        checker.interval("push_timeout", self.push_timeout, 10, 60_000)?;
        checker.interval("query_timeout", self.query_timeout, 10, 10_000)?;
        checker.interval("link.heartbeat", self.link.heartbeat, 10, 10_000)?;
        checker.interval("link.reconnect", self.link.reconnect, 10, 10_000)?;
        let twice = self.link.heartbeat.get().as_millis() as u64 * 2;
        checker.interval("link.timeout", self.link.timeout, twice, 60_000)
    }

    fn check_frontends(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        checker.number("the number of frontends", self.frontends.len(), 1, MAX_FRONTENDS)?;
        for (i, address) in self.frontends.iter().enumerate() {
            let local = address.strip_prefix("ipc://").is_some_and(|path| {
                (1..=MAX_SOCKET_PATH).contains(&path.len()) && path != "*" && !path.contains('\0')
            });
            checker.that(
                local || is_remote(address),
                "frontends",
                &format!("{address:?}"),
                "\"ipc://\" and the path of a socket, 107 bytes at most, or \"tcp://\", a host and a port",
            )?;
            checker.that(
                local || self.link_key.is_some(),
                "link_key",
                "none",
                "the file of the link key, which a frontend on another machine needs",
            )?;
            // `a/b`, `a//b` and `a/./b` are one place: attached to twice, its devices would get every push twice.
            let first = !self.frontends[..i].iter().any(|earlier| {
                Path::new(earlier)
                    .components()
                    .eq(Path::new(address).components())
            });
            checker.that(first, "frontends", &format!("{address:?}"), "each frontend once")?;
        }
        Ok(())
    }
}

/// Whether this names a frontend's tunnel: `tcp://host:port`.
fn is_remote(address: &str) -> bool {
    let place = address
        .strip_prefix(REMOTE)
        .and_then(|place| place.rsplit_once(':'));
    place.is_some_and(|(host, port)| {
        !host.is_empty() && host.len() <= 255 && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// Whether a backend may be called so.
pub fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

/// What [`is_name`] takes, in words.
pub const NAME_ALLOWED: &str = "1 to 64 bytes of letters, digits and . _ -";
const MAX_NAME_BYTES: usize = 64;
const MAX_WORKERS: usize = 64;
/// Every route's part has room for the largest reply.
const MIN_REPLY_MEMORY_BYTES: usize = ROUTE_SHARE * MAX_REPLY_BYTES;
const MAX_REPLY_MEMORY_BYTES: usize = 64 * 1024 * 1024 * 1024;
const MAX_FRONTENDS: usize = 64;
/// What a Unix socket's address has room for (`sun_path`), without the final NUL.
const MAX_SOCKET_PATH: usize = 107;

fn default_name() -> String {
    "backend".to_owned()
}

fn default_api() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7401))
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS))
}

fn default_drain_grace() -> Interval {
    Interval::from_secs(30)
}

fn default_max_in_flight() -> usize {
    8192
}

fn default_max_reply_memory_bytes() -> usize {
    256 * 1024 * 1024
}

fn default_push_timeout() -> Interval {
    Interval::from_secs(5)
}

fn default_query_timeout() -> Interval {
    Interval::from_millis(300)
}

fn default_last_seen_capacity() -> usize {
    100_000
}

/// Checks values of one file and words the errors.
pub(crate) struct Checker<'a> {
    pub(crate) path: &'a Path,
}

impl Checker<'_> {
    pub(crate) fn that(&self, good: bool, key: &str, value: &str, allowed: &str) -> Result<(), ConfigError> {
        if good {
            return Ok(());
        }
        Err(ConfigError::Value {
            path: self.path.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            allowed: format!("allowed is {allowed}"),
        })
    }

    pub(crate) fn number(&self, key: &str, value: usize, min: usize, max: usize) -> Result<(), ConfigError> {
        let good = (min..=max).contains(&value);
        self.that(good, key, &value.to_string(), &format!("{min} to {max}"))
    }

    /// Bounds in milliseconds.
    pub(crate) fn interval(&self, key: &str, value: Interval, min: u64, max: u64) -> Result<(), ConfigError> {
        let (min, max) = (Interval::from_millis(min), Interval::from_millis(max));
        self.that(
            (min..=max).contains(&value),
            key,
            &format!("\"{value}\""),
            &format!("{min} to {max}"),
        )
    }
}

/// A TOML error in one line: where, and what.
fn toml_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError::Parse {
        path: path.to_owned(),
        message: toml_message(text, error),
    }
}

/// What is wrong with a TOML text, in one line. It may quote a value: not for files of secrets.
pub(crate) fn toml_message(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    match error.span() {
        Some(span) => format!("line {}: {message}", line_number(text, span.start)),
        None => message,
    }
}

/// The number of the line that holds byte `at` of `text`, from 1.
pub(crate) fn line_number(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "frontends = [\"ipc:///run/holdfast/frontend.sock\"]\napi_keys = \"k\"\ntoken_keys = \"t\"\nroutes = \"r\"\n";

    fn parse(top: &str, rest: &str) -> Result<Config, String> {
        let text = format!("{top}\n{SMALLEST}[signing]\nkey = \"s\"\n{rest}");
        Config::parse(Path::new("backend.toml"), &text).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = parse("", "").unwrap();
        assert_eq!(
            (config.name.as_str(), config.api.to_string().as_str()),
            ("backend", "127.0.0.1:7401")
        );
        assert!((1..=64).contains(&config.workers));
        assert_eq!((config.max_in_flight, config.last_seen_capacity), (8192, 100_000));
        assert_eq!(config.max_reply_memory_bytes, 256 << 20);
        assert_eq!(config.drain_grace, Interval::from_secs(30));
        assert_eq!(
            (config.push_timeout, config.query_timeout),
            (Interval::from_secs(5), Interval::from_millis(300))
        );
        assert_eq!(config.link.timeout, Interval::from_secs(1));
    }

    #[test]
    fn values_are_taken() {
        let config = parse(
            "workers = 2\napi = \"0.0.0.0:1\"\napi_allow_remote = true",
            "[link]\ntimeout = \"2s\"",
        )
        .unwrap();
        assert_eq!((config.workers, config.api.port()), (2, 1));
        assert_eq!(
            (config.link.heartbeat, config.link.timeout),
            (Interval::from_millis(250), Interval::from_secs(2))
        );
    }

    #[test]
    fn bad_values_are_one_line_naming_the_key_and_what_is_allowed() {
        for (top, rest, wanted) in [
            ("workers = 0", "", "workers = 0: allowed is 1 to 64"),
            (
                "api = \"0.0.0.0:80\"",
                "",
                "api = 0.0.0.0:80: allowed is a loopback address",
            ),
            (
                "max_reply_memory_bytes = 8388607",
                "",
                "max_reply_memory_bytes = 8388607: allowed is 8388608 to 68719476736",
            ),
            ("name = \"a b\"", "", "name = \"a b\": allowed is 1 to 64 bytes"),
            (
                "push_timeout = \"2m\"",
                "",
                "push_timeout = \"2m\": allowed is 10ms to 1m",
            ),
            (
                "",
                "[link]\nheartbeat = \"600ms\"",
                "link.timeout = \"1s\": allowed is 1s 200ms to 1m",
            ),
            ("wrokers = 1", "", "unknown field `wrokers`"),
            ("drain_grace = 30", "", "line 1"),
            ("drain_grace = \"soon\"", "", "\"soon\" is not a duration"),
        ] {
            let error = parse(top, rest).unwrap_err();
            assert!(
                error.contains(wanted) && error.starts_with("backend.toml: "),
                "{error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn frontends_are_checked() {
        let with = |list: &str| {
            let text = format!(
                "frontends = {list}\napi_keys = \"k\"\ntoken_keys = \"t\"\nroutes = \"r\"\n[signing]\nkey = \"s\"\n"
            );
            Config::parse(Path::new("b"), &text).map_err(|e| e.to_string())
        };
        assert!(with("[]").unwrap_err().contains("the number of frontends = 0"));
        assert!(with("[\"udp://1.2.3.4:5\"]").unwrap_err().contains("ipc://"));
        assert!(
            with("[\"tcp://1.2.3.4:5\"]")
                .unwrap_err()
                .contains("link_key = none")
        );
        for remote in [
            "tcp://",
            "tcp://:5",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:65536",
        ] {
            let list = format!("[\"{remote}\"]\nlink_key = \"k\"");
            assert!(with(&list).unwrap_err().contains("a host and a port"), "{remote}");
        }
        assert!(with("[\"tcp://host:5\", \"tcp://[::1]:5\"]\nlink_key = \"k\"").is_ok());
        assert!(with("[\"ipc://*\"]").is_err());
        let long = format!("[\"ipc:///{}\"]", "a".repeat(107));
        assert!(with(&long).unwrap_err().contains("107 bytes"));
        assert!(with("[\"ipc:///a\\u0000\"]").is_err());
        for again in ["ipc:///a/b", "ipc:///a//b", "ipc:///a/./b"] {
            let error = with(&format!("[\"ipc:///a/b\", \"{again}\"]")).unwrap_err();
            assert!(error.contains("each frontend once"), "{error}");
        }
    }
}
