//! How a device is made.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::secure::{DeviceKey, Identity};
use holdfast_proto::udp::{self, MAX_DATAGRAM_BYTES, MIN_DATAGRAM_LIMIT};
use tokio::sync::mpsc;
use url::Url;

use crate::{Device, Error, Push, State, Tls};

/// What a token provider may fail with; shown to the owner.
pub type TokenError = Box<dyn std::error::Error + Send + Sync>;

type TokenProvider = Arc<dyn Fn() -> Result<String, TokenError> + Send + Sync>;
type PushHandler = Arc<dyn Fn(Push) + Send + Sync>;
type StateHandler = Arc<dyn Fn(&State) + Send + Sync>;
type ReplyHandler = Arc<dyn Fn(u64) + Send + Sync>;

/// How a device shows who it is, which decides the channel.
#[derive(Clone)]
pub(crate) enum Credentials {
    /// On `wss`.
    Token {
        provider: TokenProvider,
        /// It may give another token next time.
        renews: bool,
    },
    /// On `ws` and `udp`.
    Key(Arc<DeviceIdentity>),
}

pub(crate) struct DeviceIdentity {
    pub(crate) identity: Identity,
    pub(crate) key: DeviceKey,
}

/// Settings of a [`Device`]; only the URL, the token or key, and on `wss` the TLS trust have no default.
#[derive(Clone)]
pub struct Builder {
    pub(crate) url: String,
    pub(crate) credentials: Credentials,
    pub(crate) clockless: bool,
    pub(crate) datagrams: Datagrams,
    pub(crate) tls: Option<Tls>,
    pub(crate) instance: String,
    pub(crate) local_address: Option<IpAddr>,
    pub(crate) on_push: Option<PushHandler>,
    pub(crate) push_queue: Option<mpsc::Sender<Push>>,
    pub(crate) on_state: Option<StateHandler>,
    pub(crate) on_reply: Option<ReplyHandler>,
    pub(crate) max_in_flight: usize,
    pub(crate) max_message: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) expect_order: bool,
    pub(crate) reconnect: bool,
    pub(crate) seed: Option<u64>,
}

impl Builder {
    pub(crate) fn new(url: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            url: url.into(),
            credentials,
            clockless: false,
            datagrams: Datagrams::default(),
            tls: None,
            instance: String::new(),
            local_address: None,
            on_push: None,
            push_queue: None,
            on_state: None,
            on_reply: None,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            max_message: DEFAULT_MAX_MESSAGE,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            expect_order: false,
            reconnect: true,
            seed: None,
        }
    }

    /// Whom to trust. Required on `wss`; without effect on `ws` and `udp`, where the key says who the server is.
    pub fn tls(self, tls: Tls) -> Self {
        Self {
            tls: Some(tls),
            ..self
        }
    }

    /// The device's clock cannot be relied on: its credential on `ws` and `udp` carries no time. An operator may refuse such devices.
    pub fn clockless(self) -> Self {
        Self {
            clockless: true,
            ..self
        }
    }

    /// Which of several programs on one device this is; default empty.
    pub fn instance(self, instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
            ..self
        }
    }

    /// The source address to connect from; default: the system's choice.
    pub fn local_address(self, address: IpAddr) -> Self {
        Self {
            local_address: Some(address),
            ..self
        }
    }

    /// Calls `handler` with each push, on the connection's own task: it must return quickly and not block.
    pub fn on_push(self, handler: impl Fn(Push) + Send + Sync + 'static) -> Self {
        Self {
            on_push: Some(Arc::new(handler)),
            ..self
        }
    }

    /// Puts each push into a queue of `capacity`. Pushes that find it full are dropped and counted.
    pub fn push_queue(self, capacity: usize) -> (Self, mpsc::Receiver<Push>) {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        (
            Self {
                push_queue: Some(sender),
                ..self
            },
            receiver,
        )
    }

    /// Calls `handler` at each change of state, on the connection's own task.
    pub fn on_state(self, handler: impl Fn(&State) + Send + Sync + 'static) -> Self {
        Self {
            on_state: Some(Arc::new(handler)),
            ..self
        }
    }

    /// Calls `handler` with the `seq` of each reply and error reply as it comes, before it is matched to its request, on the
    /// connection's own task: for those who judge the server's order themselves.
    pub fn on_reply(self, handler: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self {
            on_reply: Some(Arc::new(handler)),
            ..self
        }
    }

    /// Requests that may wait for their reply at once; default 256. The server's window is smaller by default and holds
    /// the rest back on the connection.
    pub fn max_in_flight(self, requests: usize) -> Self {
        Self {
            max_in_flight: requests.clamp(1, 1 << 16),
            ..self
        }
    }

    /// `udp` only: a device that has sent nothing for so long, or up to a tenth less, asks for a sign of life, which also keeps the way
    /// open in firewalls and address translators; default 25 s, at least 1 s. Less is for those that forget sooner: when a way is forgotten,
    /// pushes do not arrive until the device sends again. More than the server's heartbeat (30 s by default) has no effect.
    pub fn keep_alive(self, interval: Duration) -> Self {
        let keep_alive = interval.max(MIN_KEEP_ALIVE);
        Self {
            datagrams: Datagrams {
                keep_alive,
                ..self.datagrams
            },
            ..self
        }
    }

    /// `udp` only: the longest datagram to send and to take, in bytes of UDP payload, from 512 to 1472; default 1200, which gets
    /// through nearly everywhere. More is for networks whose every hop is known.
    pub fn max_datagram(self, bytes: u16) -> Self {
        let max_datagram = bytes.clamp(MIN_DATAGRAM_LIMIT, MAX_DATAGRAM_BYTES);
        Self {
            datagrams: Datagrams {
                max_datagram,
                ..self.datagrams
            },
            ..self
        }
    }

    /// The longest message taken from the server, in bytes; default 1 MiB and 64 KiB for the header.
    pub fn max_message(self, bytes: usize) -> Self {
        Self {
            max_message: bytes,
            ..self
        }
    }

    /// For TCP, TLS, the upgrade and the challenge together (on `udp`: the handshake), and again for `@welcome`; default 15 s.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        Self {
            connect_timeout: timeout,
            ..self
        }
    }

    /// How long a reply is waited for; default 60 s.
    pub fn request_timeout(self, timeout: Duration) -> Self {
        Self {
            request_timeout: timeout,
            ..self
        }
    }

    /// Takes a reply to an earlier request than the last answered one for a protocol error; default false, because routes
    /// may have another order than the connection's.
    pub fn expect_order(self, expect: bool) -> Self {
        Self {
            expect_order: expect,
            ..self
        }
    }

    /// Whether to come back after a lost connection; default true.
    pub fn reconnect(self, reconnect: bool) -> Self {
        Self { reconnect, ..self }
    }

    /// Makes the backoff's jitter repeatable; default random.
    pub fn seed(self, seed: u64) -> Self {
        Self {
            seed: Some(seed),
            ..self
        }
    }

    /// Connects once: the error of a first attempt that fails is returned. Once it was online the device comes back by itself; it
    /// may be on its way back already.
    pub async fn connect(self) -> Result<Device, Error> {
        let device = Device::start(self, true)?;
        let mut state = device.watch_state();
        let was_online = |state: &State| {
            // A connection that ended as soon as it was made is seen by its count only.
            device.counters().connects() > 0 || matches!(state, State::Online(_) | State::Closed(_))
        };
        match state.wait_for(was_online).await.as_deref() {
            Ok(State::Closed(error)) => return Err(error.clone()),
            Ok(_) => {}
            Err(_) => return Err(Error::Closed),
        }
        Ok(device)
    }

    /// Returns at once and keeps trying. Must be called within a tokio runtime.
    pub fn start(self) -> Result<Device, Error> {
        Device::start(self, false)
    }

    pub(crate) fn target(&self) -> Result<Target, Error> {
        let bad = |what: String| Error::Config(format!("url {:?}: {what}", self.url));
        let url = Url::parse(&self.url).map_err(|e| bad(e.to_string()))?;
        let (scheme, default_port) = self.scheme(&url).map_err(|error| match error {
            BadScheme::For(what) => bad(what.into()),
            BadScheme::NoTrust => Error::Config("no TLS trust was given".into()),
        })?;
        let host = url.host_str().ok_or_else(|| bad("no host".into()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad("no host".into()));
        }
        let port = url.port().or(default_port).ok_or_else(|| bad("no port".into()))?;
        if matches!(scheme, Scheme::Udp) && has_more_than_an_address(&url) {
            return Err(bad("there is no path over udp".into()));
        }
        Ok(Target {
            url: url.to_string(),
            host,
            port,
            scheme,
        })
    }

    /// Also the port that a URL without one means.
    fn scheme(&self, url: &Url) -> Result<(Scheme, Option<u16>), BadScheme> {
        match (&self.credentials, url.scheme()) {
            (Credentials::Token { .. }, "wss") => {
                let tls = self.tls.clone().ok_or(BadScheme::NoTrust)?;
                Ok((Scheme::Wss(tls), Some(443)))
            }
            (Credentials::Key(_), "ws") => Ok((Scheme::Ws, Some(80))),
            (Credentials::Key(_), "udp") => Ok((Scheme::Udp, None)),
            (Credentials::Token { .. }, _) => Err(BadScheme::For("a bearer token is sent over wss:// only")),
            (Credentials::Key(_), "wss") => Err(BadScheme::For(
                "a device key is for ws:// and udp://; over wss:// a bearer token is shown",
            )),
            (Credentials::Key(_), _) => Err(BadScheme::For("a device key is for ws:// and udp:// only")),
        }
    }
}

enum BadScheme {
    For(&'static str),
    NoTrust,
}

fn has_more_than_an_address(url: &Url) -> bool {
    !matches!(url.path(), "" | "/")
        || url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
}

/// What concerns `udp` alone.
#[derive(Clone, Copy)]
pub(crate) struct Datagrams {
    keep_alive: Duration,
    max_datagram: u16,
}

impl Default for Datagrams {
    fn default() -> Self {
        Self {
            keep_alive: DEFAULT_KEEP_ALIVE,
            max_datagram: udp::Config::default().max_datagram,
        }
    }
}

impl Datagrams {
    pub(crate) fn config(self, max_message: usize) -> udp::Config {
        udp::Config {
            max_message_bytes: max_message,
            max_datagram: self.max_datagram,
            keep_alive: Some(self.keep_alive),
            ..udp::Config::default()
        }
    }
}

/// Where to connect to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) scheme: Scheme,
}

#[derive(Clone)]
pub(crate) enum Scheme {
    Ws,
    Wss(Tls),
    Udp,
}

/// Under the 30 s after which the hastiest address translators forget (RFC 4787, REQ-5, asks for two minutes).
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(25);
/// A shorter one would be a load without a use.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);
const DEFAULT_MAX_IN_FLIGHT: usize = 256;
const DEFAULT_MAX_MESSAGE: usize = (1 << 20) + (64 << 10);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(url: &str) -> Builder {
        let identity = Identity {
            key_id: "k1".into(),
            product: String::new(),
            class: String::new(),
            device: "d".parse().unwrap(),
            key_version: 1,
        };
        Device::builder_with_key(url, identity, DeviceKey::from_bytes(&[7; 32]).unwrap())
    }

    #[test]
    fn a_url_names_host_and_port() {
        for (url, host, port, is_udp) in [
            ("udp://gateway:7404", "gateway", 7404, true),
            ("udp://10.0.0.1:1/", "10.0.0.1", 1, true),
            ("udp://[fe80::1]:7404", "fe80::1", 7404, true),
            ("ws://gateway", "gateway", 80, false),
            ("ws://[::1]:7404/path", "::1", 7404, false),
        ] {
            let target = keyed(url)
                .target()
                .unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
            assert_eq!(matches!(target.scheme, Scheme::Udp), is_udp, "{url}");
        }
    }

    #[test]
    fn what_concerns_datagrams_is_kept_within_its_bounds() {
        let config = |builder: Builder| builder.datagrams.config(10_000);
        let usual = config(keyed("udp://h:1"));
        assert_eq!((usual.max_datagram, usual.max_message_bytes), (1200, 10_000));
        assert_eq!(usual.keep_alive, Some(Duration::from_secs(25)));
        for (asked, given) in [(0, 512), (512, 512), (1300, 1300), (1473, 1472)] {
            assert_eq!(config(keyed("udp://h:1").max_datagram(asked)).max_datagram, given);
        }
        let hasty = keyed("udp://h:1").keep_alive(Duration::ZERO);
        assert_eq!(config(hasty).keep_alive, Some(MIN_KEEP_ALIVE));
    }
}
