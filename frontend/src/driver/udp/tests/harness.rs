//! A shard with a socket, and hands for what its hub and its devices do.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::link::frames::{self, bound, logged_in};
use holdfast_proto::link::{Class, Command, Incoming};
use holdfast_proto::secure::{TrafficKey, TrafficKeys};
use holdfast_proto::throttle::Throttle;
use holdfast_proto::udp::datagram::{Hello, encode_hello};
use holdfast_proto::udp::{
    self, Connection, Cookies, Datagram, Event, INITIAL_SERVER_CREDIT, Opening, Parameters, PeerCredit,
    ResetKey, Side, parse,
};
use holdfast_proto::{SessionId, ShardId, Share};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::channel::Budgets;
use crate::driver::Intake;
use crate::driver::udp::{Admission, SocketBuffers, UdpMetrics, UdpSetup, bind_group};
use crate::driver::{Shard, ShardSetup};
use crate::exchange::{PeerId, ToHub, ToShard};
use crate::session::{ShardConfig, ShardMetrics};

/// Longest wait for what should happen at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing comes when nothing should.
pub(super) const SILENCE: Duration = Duration::from_millis(100);
pub(super) const PEER: PeerId = PeerId(1);
pub(super) const RESET_KEY: [u8; 32] = [9; 32];
pub(super) const TO_SERVER: [u8; 32] = [1; 32];
pub(super) const TO_DEVICE: [u8; 32] = [2; 32];

/// What a test may change of a shard.
pub(super) struct Plan {
    pub(super) session: ShardConfig,
    pub(super) config: udp::Config,
    pub(super) always: bool,
    pub(super) above: usize,
    /// Unproven attempts of one source at once.
    pub(super) burst: u32,
    /// The same of all sources, and per second.
    pub(super) unproven_per_second: u32,
    /// Resets for one source at once.
    pub(super) reset_burst: u32,
    pub(super) max_input_bytes: usize,
    /// It takes what comes to any address of this machine.
    pub(super) any: bool,
}

/// One shard (of two, as it thinks), and its hub.
pub(super) struct World {
    pub(super) address: SocketAddr,
    pub(super) metrics: UdpMetrics,
    pub(super) sessions: ShardMetrics,
    to_shard: mpsc::UnboundedSender<Vec<ToShard>>,
    from_shard: mpsc::UnboundedReceiver<(ShardId, Vec<ToHub>)>,
    told: std::collections::VecDeque<ToHub>,
}

/// Runs a test on one thread, as a shard is.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

impl World {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With one backend attached.
    pub(super) async fn with(change: impl FnOnce(&mut Plan)) -> Self {
        let mut plan = Plan {
            session: ShardConfig::default(),
            config: udp::Config {
                max_message_bytes: 200_000,
                ..udp::Config::default()
            },
            always: false,
            above: 64,
            burst: 64,
            unproven_per_second: 200,
            reset_burst: 64,
            max_input_bytes: 8 << 20,
            any: false,
        };
        change(&mut plan);
        let (receive, send) = (1 << 20, 1 << 20);
        let buffers = SocketBuffers { receive, send };
        let ip = if plan.any { [0; 4] } else { [127, 0, 0, 1] };
        let socket = bind_group((ip, 0).into(), 1, buffers).unwrap().remove(0);
        let address = ([127, 0, 0, 1], socket.local_addr().unwrap().port()).into();
        let (metrics, sessions) = (UdpMetrics::default(), ShardMetrics::default());
        let (to_hub, from_shard) = mpsc::unbounded_channel();
        let (to_shard, from_hub) = mpsc::unbounded_channel();
        let udp = UdpSetup {
            socket,
            config: plan.config,
            reset_key: ResetKey::from_bytes(RESET_KEY),
            admission: Admission {
                cookies: Cookies::new([3; 32]),
                born: Instant::now(),
                always: plan.always,
                above: plan.above,
                unproven: Arc::new(Throttle::new(1, 64, 60_000, plan.burst)),
                unproven_per_second: plan.unproven_per_second,
                resets: Arc::new(Throttle::new(1, 64, 60_000, plan.reset_burst)),
            },
            shards: 2,
            max_input_bytes: plan.max_input_bytes,
            metrics: metrics.clone(),
        };
        let shard = Shard::start(ShardSetup {
            config: plan.session,
            metrics: sessions.clone(),
            max_message_bytes: 1 << 20,
            outbox_bytes: 1 << 20,
            budgets: Budgets::alone(64 << 20, 1 << 20),
            intake: Arc::new(Intake::new(1, 64, 64)),
            listeners: Vec::new(),
            udp: Some(udp),
            to_hub,
            from_hub,
        });
        spawn_local(shard.unwrap().run());
        let world = Self {
            address,
            metrics,
            sessions,
            to_shard,
            from_shard,
            told: Default::default(),
        };
        world.hub(ToShard::PeerActive {
            peer: PEER,
            seed: 1,
            share: Share::FULL,
        });
        world
    }

    pub(super) fn hub(&self, message: ToShard) {
        self.to_shard.send(vec![message]).unwrap();
    }

    pub(super) fn frame(&self, command: Command) {
        let charge = Class::of(&command).map(|class| (class, 1));
        self.hub(ToShard::Frame {
            peer: PEER,
            incoming: Incoming { command, charge },
        });
    }

    /// The next thing that the hub is told, but credits.
    pub(super) async fn told(&mut self) -> ToHub {
        loop {
            if let Some(told) = self.told.pop_front() {
                return told;
            }
            let (_, messages) = timeout(PATIENCE, self.from_shard.recv())
                .await
                .expect("the hub hears something")
                .unwrap();
            let credit = |message: &ToHub| matches!(message, ToHub::Release { .. });
            self.told.extend(messages.into_iter().filter(|m| !credit(m)));
        }
    }

    /// Whether the hub hears nothing but credits.
    pub(super) async fn hears_nothing(&mut self) -> bool {
        timeout(SILENCE, self.told()).await.is_err()
    }

    /// The next frame for the backend.
    pub(super) async fn work(&mut self) -> Command {
        match self.told().await {
            ToHub::Work { command, .. } => command,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn bind(&mut self) -> frames::Bind {
        match self.work().await {
            Command::Bind(bind) => bind,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn login(&mut self) -> frames::Login {
        match self.work().await {
            Command::Login(login) => login,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the shard counts so.
    pub(super) async fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(Instant::now() < end, "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(super) fn session(id: Option<frames::SessionId>) -> SessionId {
    holdfast_proto::link::session_id(id).unwrap()
}

pub(super) fn admitted(id: SessionId) -> Command {
    let challenge = frames::Challenge {
        message: Bytes::from_static(&[4; 48]),
        to_server: Bytes::from_static(&TO_SERVER),
        to_device: Bytes::from_static(&TO_DEVICE),
    };
    let admitted = frames::Admitted {
        device: Bytes::from_static(b"lamp"),
        principal: Bytes::from_static(b"principal"),
        challenge: Some(challenge),
    };
    Command::Bound(frames::Bound {
        id: Some(id.into()),
        result: Some(bound::Result::Admitted(admitted)),
    })
}

pub(super) fn denied(id: SessionId, status: u32, code: &str) -> Command {
    let denied = frames::Denied {
        status,
        code: code.into(),
        retry_after_ms: 1_500,
        ..Default::default()
    };
    Command::Bound(frames::Bound {
        id: Some(id.into()),
        result: Some(bound::Result::Denied(denied)),
    })
}

pub(super) fn welcomed(id: SessionId) -> Command {
    let welcomed = frames::Welcomed {
        welcome: Bytes::from_static(b"@welcome {}"),
        login_ms: 5,
        blob: None,
    };
    Command::LoggedIn(frames::LoggedIn {
        id: Some(id.into()),
        result: Some(logged_in::Result::Welcomed(welcomed)),
    })
}

/// A device's socket, and what it says in the clear.
pub(super) struct Stranger {
    pub(super) socket: UdpSocket,
    server: SocketAddr,
}

pub(super) const CREDENTIAL: &[u8] = b"an identity and message 1";

pub(super) fn parameters(attempt: u64) -> Parameters {
    Parameters {
        attempt,
        max_datagram: 1200,
        receive_bytes: 65_536,
        receive_messages: 32,
    }
}

impl Stranger {
    pub(super) async fn new(world: &World) -> Self {
        Self {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            server: world.address,
        }
    }

    /// At another address of this machine.
    pub(super) async fn at(world: &World, ip: [u8; 4]) -> Self {
        Self {
            socket: UdpSocket::bind((std::net::IpAddr::from(ip), 0)).await.unwrap(),
            server: world.address,
        }
    }

    pub(super) async fn send(&self, datagram: &[u8]) {
        let sent = self.socket.send_to(datagram, self.server).await;
        assert_eq!(sent.unwrap(), datagram.len());
    }

    pub(super) async fn hello(&self, attempt: u64, cookie: &[u8]) {
        let mut out = Vec::new();
        let hello = Hello {
            parameters: parameters(attempt),
            cookie,
            credential: CREDENTIAL,
        };
        encode_hello(&hello, &mut out);
        self.send(&out).await;
    }

    /// The next datagram, which is never longer than what any asked with.
    pub(super) async fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let received = timeout(PATIENCE, self.socket.recv_from(&mut buffer)).await;
        let (n, from) = received.expect("an answer comes").unwrap();
        assert_eq!(from, self.server);
        assert!(n <= 256);
        buffer[..n].to_vec()
    }

    pub(super) async fn hears_nothing(&self) -> bool {
        timeout(SILENCE, self.socket.recv_from(&mut [0; 2048]))
            .await
            .is_err()
    }

    /// The cookie of the RETRY that comes.
    pub(super) async fn cookie(&self) -> Vec<u8> {
        let answer = self.receive().await;
        match parse(&answer).unwrap() {
            Datagram::Retry { cookie, .. } => cookie.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Status, code and hint of the REFUSED that comes.
    pub(super) async fn refused(&self) -> (u16, String, u32) {
        let answer = self.receive().await;
        match parse(&answer).unwrap() {
            Datagram::Refused(refused) => (refused.status, refused.code.to_owned(), refused.retry_after_ms),
            other => panic!("{other:?}"),
        }
    }
}

/// A device that was let in, with keys of the test's.
pub(super) struct Device {
    pub(super) stranger: Stranger,
    pub(super) connection: Connection,
    config: udp::Config,
    pub(super) session: SessionId,
}

impl Device {
    /// Up to the challenge; nothing was proved yet.
    pub(super) async fn challenged(world: &mut World, attempt: u64) -> Self {
        let stranger = Stranger::new(world).await;
        stranger.hello(attempt, b"").await;
        let session = session(world.bind().await.id);
        world.frame(admitted(session));
        let answer = stranger.receive().await;
        let Datagram::Challenge { cid, .. } = parse(&answer).unwrap() else {
            panic!("no challenge")
        };
        let key = |bytes| TrafficKey::from_bytes(bytes).unwrap();
        let opening = Opening {
            cid,
            keys: TrafficKeys {
                to_server: key(&TO_SERVER),
                to_device: key(&TO_DEVICE),
            },
            peer: world.address,
            peer_max_datagram: 1472,
            peer_credit: INITIAL_SERVER_CREDIT,
            own_credit: PeerCredit {
                messages: 32,
                bytes: 65_536,
            },
            reset_token: None,
        };
        Self {
            connection: Connection::new(Side::Device, opening, Instant::now()),
            config: udp::Config::default(),
            stranger,
            session,
        }
    }

    /// Up to `@welcome`.
    pub(super) async fn online(world: &mut World, attempt: u64) -> Self {
        let mut device = Self::challenged(world, attempt).await;
        device.send("@hello {}").await;
        let login = device.drive(world.login()).await;
        assert_eq!(login.hello, "@hello {}");
        world.frame(welcomed(device.session));
        assert_eq!(device.text().await, "@welcome {}");
        device
    }

    pub(super) async fn send(&mut self, text: &str) {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let queued = self.connection.send(&self.config, MessageKind::Text, payload);
        queued.unwrap();
        self.transmit().await;
    }

    pub(super) async fn transmit(&mut self) {
        let mut out = Vec::new();
        while let Some(to) = self
            .connection
            .poll_transmit(&self.config, Instant::now(), &mut out)
        {
            self.stranger.socket.send_to(&out, to).await.unwrap();
            out.clear();
        }
    }

    /// Takes what comes next, and does what is due.
    pub(super) async fn step(&mut self) {
        self.transmit().await;
        let mut buffer = [0; 2048];
        let until = self.connection.poll_timeout();
        let until = until.unwrap_or_else(|| Instant::now() + Duration::from_millis(20));
        let received =
            tokio::time::timeout_at(until.into(), self.stranger.socket.recv_from(&mut buffer)).await;
        let now = Instant::now();
        match received {
            Ok(received) => {
                let (n, from) = received.unwrap();
                let datagram = &mut buffer[..n];
                if let Ok(Datagram::Reset { token, .. }) = parse(datagram) {
                    let token = *token;
                    self.connection.handle_reset(&token);
                } else {
                    self.connection
                        .handle_datagram(&self.config, now, from, datagram, 1);
                }
            }
            Err(_) => self.connection.handle_timeout(&self.config, now),
        }
        self.transmit().await;
    }

    pub(super) fn poll(&mut self) -> Option<Event> {
        self.connection.poll_event(&self.config)
    }

    /// The next event but deliveries.
    pub(super) async fn event(&mut self) -> Event {
        let next = async {
            loop {
                match self.poll() {
                    Some(Event::Delivered(_)) => {}
                    Some(event) => return event,
                    None => self.step().await,
                }
            }
        };
        timeout(PATIENCE, next).await.expect("the device hears something")
    }

    pub(super) async fn text(&mut self) -> String {
        match self.event().await {
            Event::Message(MessageKind::Text, text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Lives while something else is waited for.
    pub(super) async fn drive<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                result = &mut other => return result,
                () = self.step() => {}
            }
        }
    }

    /// From now on it writes from another address.
    pub(super) async fn move_away(&mut self) -> SocketAddr {
        self.stranger.socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        self.stranger.socket.local_addr().unwrap()
    }
}
