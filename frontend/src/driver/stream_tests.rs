//! What strangers over TCP may not do together, over real sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_proto::link::Command;
use holdfast_proto::{ShardId, Share};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::intake::Intake;
use super::shard::{DeviceListener, ListenerKind, Shard, ShardSetup};
use crate::channel::Budgets;
use crate::channel::listener::{AcceptMetrics, AcceptOptions, Listener};
use crate::channel::upgrade::MAX_HEAD_BYTES;
use crate::exchange::{PeerId, ToHub, ToShard};
use crate::session::{ReasonLabel, ShardConfig, ShardMetrics};

const PATIENCE: Duration = Duration::from_secs(20);
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Holdfast QUJD\r\n\r\n";

/// A shard with one backend, to which strangers come over `ws`.
struct World {
    address: SocketAddr,
    metrics: ShardMetrics,
    from_shard: mpsc::UnboundedReceiver<(ShardId, Vec<ToHub>)>,
    /// Held for the shard to go on.
    _to_shard: mpsc::UnboundedSender<Vec<ToShard>>,
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

impl World {
    fn start(intake: Intake, config: ShardConfig, budgets: Budgets) -> Self {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = Listener::bind(any, AcceptOptions::default(), AcceptMetrics::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = ShardMetrics::default();
        let (to_hub, from_shard) = mpsc::unbounded_channel();
        let (to_shard, from_hub) = mpsc::unbounded_channel();
        let kind = ListenerKind::Ws;
        let shard = Shard::start(ShardSetup {
            config,
            metrics: metrics.clone(),
            max_message_bytes: 1 << 20,
            outbox_bytes: 1 << 20,
            budgets,
            intake: Arc::new(intake),
            listeners: vec![DeviceListener { listener, kind }],
            udp: None,
            to_hub,
            from_hub,
        });
        spawn_local(shard.unwrap().run());
        let active = ToShard::PeerActive {
            peer: PeerId(1),
            seed: 1,
            share: Share::FULL,
        };
        to_shard.send(vec![active]).unwrap();
        Self {
            address,
            metrics,
            from_shard,
            _to_shard: to_shard,
        }
    }

    /// Another connection of source number `source`.
    async fn connect(&self, source: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        let from = IpAddr::from([127, 0, 0, source]);
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    fn refused(&self, reason: &'static str) -> u64 {
        self.metrics.refused.get_or_create(&ReasonLabel { reason }).get()
    }

    fn closed(&self, reason: &'static str) -> u64 {
        self.metrics.closed.get_or_create(&ReasonLabel { reason }).get()
    }

    async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A device from there asks to be let in, in two pieces, and a backend hears of it.
    async fn lets_in(&mut self, source: u8) -> TcpStream {
        let mut device = self.connect(source).await;
        let (first, second) = REQUEST.as_bytes().split_at(40);
        device.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        device.write_all(second).await.unwrap();
        loop {
            let told = timeout(PATIENCE, self.from_shard.recv()).await;
            let (_, told) = told.expect("a backend is asked").unwrap();
            let bind = |m: &ToHub| {
                matches!(
                    m,
                    ToHub::Work {
                        command: Command::Bind(_),
                        ..
                    }
                )
            };
            if told.iter().any(bind) {
                return device;
            }
        }
    }
}

/// What the connection hears until its end.
async fn end(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut heard))
        .await
        .expect("it ends");
    String::from_utf8(heard).unwrap()
}

fn roomy() -> Budgets {
    Budgets::alone(64 << 20, 1 << 20)
}

#[test]
fn a_source_that_holds_all_it_may_keeps_nobody_else_out() {
    run(async {
        const HELD: usize = 20;
        let intake = Intake::new(1, HELD as u32, 1_000);
        let mut world = World::start(intake, ShardConfig::default(), roomy());
        let mut held = Vec::new();
        for _ in 0..HELD {
            held.push(world.connect(2).await);
        }
        for _ in 0..5 {
            let mut over = world.connect(2).await;
            assert_eq!(end(&mut over).await, "");
        }
        assert_eq!(world.refused("source_full"), 5);
        let _device = world.lets_in(3).await;
        // Who goes makes room, and so does who asks.
        drop(held.pop());
        world
            .until("it is seen to be gone", |w| w.closed("never_asked") == 1)
            .await;
        let _asked = world.lets_in(2).await;
        let _other = world.lets_in(2).await;
        assert_eq!(world.refused("source_full"), 5);
    });
}

#[test]
fn who_is_turned_away_counts_until_his_socket_is_closed() {
    run(async {
        let mut world = World::start(Intake::new(1, 1, 1_000), ShardConfig::default(), roomy());
        let mut stranger = world.connect(2).await;
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .unwrap();
        assert!(end(&mut stranger).await.starts_with("HTTP/1.1 400"));
        assert_eq!(world.closed("bad_upgrade"), 1);
        assert_eq!(world.closed("protocol_error"), 0);
        let mut over = world.connect(2).await;
        assert_eq!(end(&mut over).await, "");
        assert_eq!(world.refused("source_full"), 1);
        drop(stranger);
        // Its end may be heard after others.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = world.refused("source_full");
            let mut next = world.connect(2).await;
            next.write_all(REQUEST.as_bytes()).await.unwrap();
            world
                .until("it is taken or not", |w| {
                    w.refused("source_full") > before || w.metrics.waiting.get() == 1
                })
                .await;
            if world.metrics.waiting.get() == 1 {
                break;
            }
            assert!(Instant::now() < deadline);
        }
        let _other = world.lets_in(3).await;
    });
}

#[test]
fn descriptors_are_kept_for_those_who_are_here() {
    run(async {
        const MOST: usize = 8;
        let mut world = World::start(Intake::new(1, 0, MOST), ShardConfig::default(), roomy());
        let mut device = world.lets_in(1).await;
        let mut held = Vec::new();
        for source in 0..MOST as u8 - 1 {
            held.push(world.connect(10 + source).await);
        }
        let mut over = world.connect(99).await;
        assert_eq!(end(&mut over).await, "");
        assert_eq!(world.refused("descriptors_full"), 1);
        let nothing = timeout(Duration::from_millis(50), device.read_u8()).await;
        assert!(nothing.is_err(), "who is here stays");
        drop(held.pop());
        world
            .until("it is seen to be gone", |w| w.closed("never_asked") == 1)
            .await;
        let _next = world.lets_in(99).await;
    });
}

/// With the defaults of configuration: all that one source may hold of unfinished heads leaves room for others.
#[test]
fn heads_that_one_source_does_not_finish_leave_room_for_others() {
    run(async {
        let limits = crate::config::LimitsConfig::default();
        let per_source = limits.opening_per_source as usize;
        let intake = Intake::new(1, limits.opening_per_source, 10_000);
        let budgets = Budgets::alone(limits.input_total_bytes, 1 << 20);
        let strangers = budgets.strangers.0.clone();
        let mut world = World::start(intake, ShardConfig::default(), budgets);
        let head = vec![b'x'; MAX_HEAD_BYTES - 1];
        let mut held = Vec::new();
        for _ in 0..per_source + 44 {
            let mut stream = world.connect(2).await;
            // Those that are over the bound may be closed by then.
            let _ = stream.write_all(&head).await;
            held.push(stream);
        }
        world
            .until("all is read", |_| strangers.used() >= per_source * head.len())
            .await;
        assert!(
            strangers.used() < strangers.cap() / 4,
            "{} bytes",
            strangers.used()
        );
        assert_eq!((strangers.refused(), world.refused("source_full")), (0, 44));
        let _device = world.lets_in(3).await;
    });
}

#[test]
fn a_full_shard_says_when_to_come_again() {
    run(async {
        let config = ShardConfig {
            max_sessions: 1,
            ..ShardConfig::default()
        };
        let mut world = World::start(Intake::new(1, 0, 1_000), config, roomy());
        let _device = world.lets_in(1).await;
        for source in 2..5 {
            let mut over = world.connect(source).await;
            over.write_all(REQUEST.as_bytes()).await.unwrap();
            let answer = end(&mut over).await;
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.contains("\r\nRetry-After: "), "{answer}");
        }
        assert_eq!(world.refused("sessions_full"), 3);
    });
}
