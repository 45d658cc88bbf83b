//! `frontend.toml`: every field, its default and unit. A bad value is one line and a non-zero exit.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::codes::LATEST_LOGIN;
use holdfast_proto::config::Interval;
use serde::Deserialize;

use crate::channel::upgrade::MAX_HEAD_BYTES;
use crate::session::ShardConfig;

mod listeners;

pub use listeners::{CookieRule, TunnelConfig, UdpConfig, WsConfig, WssConfig};

/// The file as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This frontend's number, unique among those that share backends. 0 to 65535.
    pub frontend_id: u16,
    /// Where the epoch is kept; made if absent, locked while the frontend runs.
    pub data_dir: PathBuf,
    /// `ipc://` and the path of the socket file that backends connect to. Its directory is made private (0700).
    pub link: String,
    /// Where `/live`, `/ready`, `/metrics` and `/status` are served, without a key: loopback only, unless
    /// `admin_allow_remote` is true.
    pub admin: SocketAddr,
    /// False by default.
    #[serde(default)]
    pub admin_allow_remote: bool,
    /// Threads that own sessions: 1 to 255. As many as cores by default.
    #[serde(default = "default_shards")]
    pub shards: u16,
    /// Devices over TLS, which bring a bearer token. At least one of `[wss]`, `[ws]` and `[udp]` is there.
    pub wss: Option<WssConfig>,
    /// Devices over plain TCP, which bring a device key and encrypt by themselves.
    pub ws: Option<WsConfig>,
    /// Devices over datagrams, which bring a device key and encrypt by themselves.
    pub udp: Option<UdpConfig>,
    /// Where backends on other machines come in. None by default: only local ones attach.
    pub tunnel: Option<TunnelConfig>,
    #[serde(default)]
    pub limits: LimitsConfig,
    #[serde(default)]
    pub times: TimesConfig,
    #[serde(default, rename = "backends")]
    pub backends: BackendsConfig,
}

/// Bounds. Those with `total` are shared by all shards in equal parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Sessions in any state, over all shards. 1,000,000 by default.
    pub max_sessions: u32,
    /// Devices that may wait for a backend before they are online. 20,000 by default.
    pub max_waiting: u32,
    /// TCP connections of one source (an IPv4 address, or a /64 of IPv6) that have not asked to be let in yet, or were turned away and are
    /// not closed yet. More are closed at once. Behind a proxy, or an address that thousands share, it needs to be higher. 256 by
    /// default; 0: no limit.
    pub opening_per_source: u32,
    /// Longest message from a device, in bytes: 1 KiB to 1.5 MiB. 1 MiB by default.
    pub max_message_bytes: usize,
    /// Unanswered requests of one session: 1 to 4096. 32 by default.
    pub window_requests: usize,
    /// Bytes of one session's unanswered requests; a single larger one passes alone. 256 KiB by default.
    pub window_bytes: usize,
    /// The same over all sessions, within which each may always hold one request. 256 MiB by default.
    pub window_total_bytes: usize,
    /// Bytes of one session that its socket has not taken, or on `udp` its device has not acknowledged. 4 MiB by default.
    pub output_bytes: usize,
    /// The same over all sessions. 256 MiB by default.
    pub output_total_bytes: usize,
    /// Pushes of one session that its socket has not taken, or its device has not acknowledged. 64 by default.
    pub output_pushes: usize,
    /// Bytes of messages that are still arriving, over all sessions; a quarter of it is for connections that have not been let in, of
    /// which one source can have at most 26 KiB for each that `opening_per_source` allows. 128 MiB by default.
    pub input_total_bytes: usize,
}

/// Times.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimesConfig {
    /// TLS and the upgrade request. 10s by default.
    pub accept: Interval,
    /// A backend's answer to BIND, LOGIN, LOGOUT or a control message. After that another backend is asked, once, or for
    /// LOGOUT again and again at growing intervals. 10s by default.
    pub backend: Interval,
    /// How long a connecting device waits when no backend is attached. 5s by default.
    pub wait: Interval,
    /// How long the first message may stay away on `wss`. 1s by default.
    pub hello: Interval,
    /// How long a device on `ws` or `udp` may take to prove that it holds its key. 10s by default.
    pub challenge: Interval,
    /// Silence after which a device is pinged. 30s by default.
    pub ping_after: Interval,
    /// Silence after which it is closed; longer than `ping_after`. 75s by default.
    pub close_after: Interval,
    /// How old a request may be when a backend begins with it. 30s by default.
    pub request_deadline: Interval,
    /// Retry hints are drawn between this and twice this. 2s by default.
    pub retry_hint: Interval,
    /// How long bytes may stay unacknowledged before a vanished peer is given up (TCP_USER_TIMEOUT). 90s by default.
    pub tcp_user_timeout: Interval,
    /// How long SIGTERM waits for the sessions' logouts. 10s by default.
    pub stop_grace: Interval,
}

/// How backends are judged.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendsConfig {
    /// Longest silence of ours on the link. 250ms by default.
    pub heartbeat: Interval,
    /// Silence after which a backend is gone; at least twice the heartbeat. 1s by default.
    pub timeout: Interval,
    /// How long a backend's workers may stand still although its link thread lives. 5s by default.
    pub progress_timeout: Interval,
    /// Backends attached at a time: 1 to 64. 16 by default.
    pub max: usize,
    /// How often backends hear how many sessions are online. 5s by default.
    pub ping_interval: Interval,
}

const MIB: usize = 1024 * 1024;

/// A key, its value, and what is allowed.
type Fault = (&'static str, String, String);

fn within(key: &'static str, value: usize, low: usize, high: usize) -> Result<(), Fault> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err((key, value.to_string(), format!("{low} to {high}")))
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_sessions: 1_000_000,
            max_waiting: 20_000,
            opening_per_source: 256,
            max_message_bytes: MIB,
            window_requests: 32,
            window_bytes: 256 * 1024,
            window_total_bytes: 256 * MIB,
            output_bytes: 4 * MIB,
            output_total_bytes: 256 * MIB,
            output_pushes: 64,
            input_total_bytes: 128 * MIB,
        }
    }
}

impl Default for TimesConfig {
    fn default() -> Self {
        Self {
            accept: Interval::from_secs(10),
            backend: Interval::from_secs(10),
            wait: Interval::from_secs(5),
            hello: Interval::from_secs(1),
            challenge: Interval::from_secs(10),
            ping_after: Interval::from_secs(30),
            close_after: Interval::from_secs(75),
            request_deadline: Interval::from_secs(30),
            retry_hint: Interval::from_secs(2),
            tcp_user_timeout: Interval::from_secs(90),
            stop_grace: Interval::from_secs(10),
        }
    }
}

impl TimesConfig {
    fn check(&self) -> Result<(), Fault> {
        if self.close_after <= self.ping_after {
            let allowed = format!("longer than times.ping_after ({})", self.ping_after);
            return Err(("times.close_after", self.close_after.to_string(), allowed));
        }
        let admission = self.longest_admission();
        if admission > LATEST_LOGIN {
            return Err((
                "times",
                format!("up to {} s until a device is online", admission.as_secs()),
                format!(
                    "accept + 4 * (wait + backend) + the longer of hello and challenge at most {} s",
                    LATEST_LOGIN.as_secs()
                ),
            ));
        }
        Ok(())
    }

    /// From the connection to the login, if BIND and LOGIN each wait for a backend, lose it when its answer is due, and find a second
    /// one in the same way.
    fn longest_admission(&self) -> Duration {
        let backends = self.wait.get().saturating_add(self.backend.get());
        let first_message = self.hello.get().max(self.challenge.get());
        let waits = backends.saturating_mul(4).saturating_add(first_message);
        self.accept.get().saturating_add(waits)
    }
}

impl Default for BackendsConfig {
    fn default() -> Self {
        Self {
            heartbeat: Interval::from_millis(250),
            timeout: Interval::from_secs(1),
            progress_timeout: Interval::from_secs(5),
            max: 16,
            ping_interval: Interval::from_secs(5),
        }
    }
}

fn default_shards() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| u16::try_from(n.get()).unwrap_or(255).min(255))
}

/// What is wrong with a configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}", path = path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {key} is {value}; allowed is {allowed}", path = path.display())]
    Value {
        path: PathBuf,
        key: &'static str,
        value: String,
        allowed: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .map(|s| text[..s.start.min(text.len())].lines().count().max(1));
            let place = line.map(|l| format!("line {l}: ")).unwrap_or_default();
            ConfigError::Parse {
                path: path.into(),
                message: format!("{place}{}", error.message().replace('\n', " ")),
            }
        })?;
        config
            .check()
            .map_err(|(key, value, allowed)| ConfigError::Value {
                path: path.into(),
                key,
                value,
                allowed,
            })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Fault> {
        let (limits, times, backends) = (&self.limits, &self.times, &self.backends);
        if self.link_path().is_none() {
            return Err((
                "link",
                format!("{:?}", self.link),
                "ipc:// and a path of at most 90 bytes".into(),
            ));
        }
        if !self.admin_allow_remote && !self.admin.ip().is_loopback() {
            return Err((
                "admin",
                self.admin.to_string(),
                "a loopback address, or admin_allow_remote = true".into(),
            ));
        }
        self.check_listeners()?;
        within("shards", self.shards.into(), 1, 255)?;
        within("limits.max_sessions", limits.max_sessions as usize, 1, 255 << 24)?;
        within("limits.max_waiting", limits.max_waiting as usize, 1, 255 << 24)?;
        within(
            "limits.opening_per_source",
            limits.opening_per_source as usize,
            0,
            1_000_000,
        )?;
        within(
            "limits.max_message_bytes",
            limits.max_message_bytes,
            1024,
            MIB + MIB / 2,
        )?;
        within("limits.window_requests", limits.window_requests, 1, 4096)?;
        within("limits.window_bytes", limits.window_bytes, 1024, 64 * MIB)?;
        within(
            "limits.window_total_bytes",
            limits.window_total_bytes,
            limits.window_bytes,
            usize::MAX,
        )?;
        within("limits.output_bytes", limits.output_bytes, 64 * 1024, 256 * MIB)?;
        within(
            "limits.output_total_bytes",
            limits.output_total_bytes,
            limits.output_bytes,
            usize::MAX,
        )?;
        within("limits.output_pushes", limits.output_pushes, 1, 65_536)?;
        within(
            "limits.input_total_bytes",
            limits.input_total_bytes,
            // Each shard gets its part, which has to hold a message and what TLS read beyond it, and in the quarter of those who
            // have not been let in a request's head.
            (2 * limits.max_message_bytes).max(4 * MAX_HEAD_BYTES) * usize::from(self.shards),
            usize::MAX,
        )?;
        within("backends.max", backends.max, 1, 64)?;
        times.check()?;
        if backends.timeout.get() < 2 * backends.heartbeat.get() {
            let allowed = format!("at least twice backends.heartbeat ({})", backends.heartbeat);
            return Err(("backends.timeout", backends.timeout.to_string(), allowed));
        }
        Ok(())
    }

    fn check_listeners(&self) -> Result<(), Fault> {
        if self.wss.is_none() && self.ws.is_none() && self.udp.is_none() {
            let allowed = "a section [wss], [ws] or [udp], or several";
            return Err(("listeners", "none".into(), allowed.into()));
        }
        self.ws.as_ref().map_or(Ok(()), WsConfig::check)?;
        self.udp.as_ref().map_or(Ok(()), UdpConfig::check)
    }

    /// The socket file of the link; a Unix socket's path has at most 108 bytes, of which we need some for a suffix.
    pub fn link_path(&self) -> Option<&Path> {
        let path = self.link.strip_prefix("ipc://")?;
        (!path.is_empty() && path.len() <= 90 && !path.contains('*')).then(|| Path::new(path))
    }

    /// What one shard is told; totals are divided.
    pub fn shard(&self) -> ShardConfig {
        let (limits, times) = (&self.limits, &self.times);
        let shards = usize::from(self.shards);
        let share = |total: u32| total.div_ceil(u32::from(self.shards)).min((1 << 24) - 1);
        ShardConfig {
            max_sessions: share(limits.max_sessions),
            max_waiting: share(limits.max_waiting),
            window: crate::session::WindowLimits {
                requests: limits.window_requests,
                bytes: limits.window_bytes,
                held_bytes: limits.output_bytes,
            },
            window_total_bytes: limits.window_total_bytes / shards,
            output_bytes: limits.output_bytes,
            output_total_bytes: limits.output_total_bytes / shards,
            output_pushes: limits.output_pushes,
            accept_timeout: times.accept.get(),
            backend_timeout: times.backend.get(),
            wait_limit: times.wait.get(),
            hello_timeout: times.hello.get(),
            challenge_timeout: times.challenge.get(),
            ping_after: times.ping_after.get(),
            close_after: times.close_after.get(),
            request_deadline: times.request_deadline.get(),
            retry_hint: times.retry_hint.get(),
            ..ShardConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const GOOD: &str = r#"
frontend_id = 1
data_dir = "/tmp/x"
link = "ipc:///tmp/x/link.sock"
admin = "127.0.0.1:0"
[wss]
listen = "127.0.0.1:0"
certificate = "c"
key = "k"
"#;

    const UDP: &str = "[udp]\nlisten = \"127.0.0.1:0\"\n";

    #[test]
    fn udp_may_be_the_only_channel() {
        let alone = format!("{}{UDP}cookie = \"always\"", &GOOD[..GOOD.find("[wss]").unwrap()]);
        let udp = load(&alone).unwrap().udp.unwrap();
        assert_eq!((udp.max_datagram, udp.cookie_above), (1200, 64));
        assert_eq!(udp.cookie, CookieRule::Always);
        assert_eq!(udp.give_up.get(), Duration::from_secs(60));
    }

    fn load(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("frontend.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_valid() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.shard().window.requests, 32);
    }

    #[test]
    fn every_bad_value_is_one_line_that_names_it() {
        let cases = [
            (GOOD.replace("ipc://", "tcp://"), "link is"),
            (
                GOOD.replace("127.0.0.1:0\"\n[wss]", "0.0.0.0:1\"\n[wss]"),
                "admin is 0.0.0.0:1",
            ),
            (GOOD.replace("frontend_id = 1", "frontend_id = 70000"), "line 2"),
            (format!("shards = 0\n{GOOD}"), "shards is 0; allowed is 1 to 255"),
            (
                format!("{GOOD}[limits]\nmax_message_bytes = 1"),
                "limits.max_message_bytes is 1",
            ),
            (
                format!("{GOOD}[limits]\nopening_per_source = 1000001"),
                "limits.opening_per_source is 1000001; allowed is 0 to 1000000",
            ),
            (format!("{GOOD}[limits]\nmax_messages = 1"), "unknown field"),
            (
                format!("shards = 2\n{GOOD}[limits]\nmax_message_bytes = 1024\ninput_total_bytes = 65535"),
                "limits.input_total_bytes is 65535; allowed is 65536",
            ),
            (
                format!("{GOOD}[times]\nclose_after = \"1s\""),
                "times.close_after is 1s; allowed is longer than",
            ),
            (format!("{GOOD}[times]\nwait = \"soon\""), "not a duration"),
            (
                format!("{GOOD}[times]\nchallenge = \"231s\""),
                "times is up to 301 s until a device is online; allowed is accept + 4 * (wait + backend)",
            ),
            (
                GOOD[..GOOD.find("[wss]").unwrap()].to_owned(),
                "listeners is none",
            ),
            (
                format!("{GOOD}[ws]\nlisten = \"127.0.0.1:0\"\nsource_attempts_burst = 0"),
                "ws.source_attempts_burst is 0",
            ),
            (
                format!("{GOOD}[ws]\nlisten = \"127.0.0.1:0\"\nsource_attempts_per_minute = 60001"),
                "ws.source_attempts_per_minute is 60001; allowed is 0 to 60000",
            ),
            (
                format!("{GOOD}[tunnel]\nlisten = \"127.0.0.1:0\""),
                "missing field `key`",
            ),
            (
                format!("{GOOD}[backends]\ntimeout = \"300ms\""),
                "backends.timeout",
            ),
        ];
        refuse(&cases);
    }

    #[test]
    fn so_is_every_bad_value_of_udp() {
        refuse(&[
            (
                format!("{GOOD}{UDP}max_datagram = 1473"),
                "udp.max_datagram is 1473; allowed is 512 to 1472",
            ),
            (
                format!("{GOOD}{UDP}cookie = \"never\""),
                "unknown variant `never`",
            ),
            (format!("{GOOD}{UDP}cookie_above = 100001"), "udp.cookie_above is"),
            (
                format!("{GOOD}{UDP}give_up = \"1s\""),
                "udp.give_up is 1s; allowed is 5s to 10m",
            ),
            (
                format!("{GOOD}{UDP}receive_buffer_bytes = 1"),
                "udp.receive_buffer_bytes is 1",
            ),
            (
                format!("{GOOD}{UDP}send_buffer_bytes = 1"),
                "udp.send_buffer_bytes is 1",
            ),
            (
                format!("{GOOD}{UDP}source_attempts_burst = 0"),
                "udp.source_attempts_burst is 0",
            ),
            (
                format!("{GOOD}{UDP}source_attempts_per_minute = 60001"),
                "udp.source_attempts_per_minute is 60001",
            ),
        ]);
    }

    fn refuse(cases: &[(String, &str)]) {
        for (text, expected) in cases {
            let error = load(text).unwrap_err();
            assert!(
                error.contains(expected) && !error.contains('\n'),
                "{error:?} lacks {expected:?}"
            );
        }
    }
}
