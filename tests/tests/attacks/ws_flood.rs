//! Attempts over `ws` in numbers that nobody honest makes: garbage, forged credentials, and recorded ones of a device without a clock,
//! which are as good as new. Who is connected goes on, and most are turned away.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_proto::secure::{Initiator, SecureChannel};
use holdfast_tests::ChannelKind;
use holdfast_tests::device::Device;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::DeviceKeys;
use holdfast_tests::service::Service;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::stranger::address;

const REFUSED: &str = "holdfast_frontend_refused_total";
const BOUND: usize = 4;
const ROUNDS: usize = 300;
/// One attempt each. A generator that spins would starve what it measures.
const PACE: Duration = Duration::from_millis(1);
/// Attempts under way at a time.
const MOST_AT_ONCE: usize = 256;
const SOURCES: usize = 60;
/// Attempts of one source before it is throttled.
const BURST: i64 = 50;
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of the attempts.
#[derive(Debug, Default)]
struct Tally {
    attempts: usize,
    challenged: usize,
    refused: usize,
    turned_away: usize,
    hung_up_on: usize,
}

/// Goes on until told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Tally>,
}

impl Flood {
    fn start(server: SocketAddr, requests: Vec<Arc<[u8]>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(flood(server, requests, stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("it does not panic")
    }
}

async fn flood(server: SocketAddr, requests: Vec<Arc<[u8]>>, stop: Arc<AtomicBool>) -> Tally {
    let (mut tally, mut open, mut held) = (Tally::default(), JoinSet::new(), Vec::new());
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while let Some(done) = open.try_join_next() {
            let (status, stream) = done.expect("it does not panic");
            match status {
                // It is left waiting for its proof.
                101 => {
                    tally.challenged += 1;
                    held.push(stream);
                }
                400..=405 => tally.refused += 1,
                429 | 503 => tally.turned_away += 1,
                _ => tally.hung_up_on += 1,
            }
        }
        if open.len() < MOST_AT_ONCE {
            let n = tally.attempts;
            let source = IpAddr::from(address(52, n % SOURCES));
            open.spawn(attempt(source, server, requests[n % requests.len()].clone()));
            tally.attempts += 1;
        }
    }
    tally
}

/// The status of the answer, 0 for none.
async fn attempt(source: IpAddr, server: SocketAddr, request: Arc<[u8]>) -> (u16, Option<TcpStream>) {
    let exchange = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let mut stream = socket.connect(server).await?;
        stream.write_all(&request).await?;
        let mut line = [0; "HTTP/1.1 101".len()];
        stream.read_exact(&mut line).await?;
        std::io::Result::Ok((line, stream))
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Ok((line, stream))) => {
            let status = line[9..]
                .iter()
                .fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
            (status, Some(stream))
        }
        Ok(Err(_)) | Err(_) => (0, None),
    }
}

fn upgrade(credential: &str) -> Arc<[u8]> {
    let head = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Holdfast {credential}\r\n\r\n"
    );
    head.into_bytes().into()
}

/// In turns: garbage, a credential of somebody without the key, and one that the first bound device could have shown: it has no clock.
fn requests(keys: &DeviceKeys) -> Vec<Arc<[u8]>> {
    let strangers = DeviceKeys::generate();
    let garbage: [&[u8]; 4] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{}",
    ];
    let credential = |keys: &DeviceKeys, made_with: &DeviceKeys, id: &str| {
        let identity = keys.identity(id);
        let key = made_with.device_key(&identity);
        let made = Initiator::new(SecureChannel::Ws, &identity, &key, None);
        upgrade(&made.unwrap().1)
    };
    let of = |n: usize| {
        [
            garbage[n % garbage.len()].into(),
            credential(keys, &strangers, &format!("d{n}")),
            credential(keys, keys, "bound-0"),
        ]
    };
    (0..64).flat_map(of).collect()
}

/// Round trips of all bound devices, each one after the other: the median, the slowest but one in a hundred, and the longest.
async fn round_trips(bound: &mut [Device]) -> [Duration; 3] {
    let one = async |device: &mut Device| {
        let mut took = Vec::new();
        for n in 0..ROUNDS {
            let begun = Instant::now();
            device
                .request(("Demo", "Echo"), &n.to_string(), &json!({"n": n}))
                .await;
            let reply = device.next_reply().await;
            assert_eq!(
                (reply.reply_to.as_str(), reply.json()),
                (&*n.to_string(), json!({"n": n}))
            );
            took.push(begun.elapsed());
        }
        took
    };
    let all = futures_util::future::join_all(bound.iter_mut().map(one)).await;
    let mut took = all.concat();
    took.sort_unstable();
    [took.len() / 2, took.len() * 99 / 100, took.len() - 1].map(|at| took[at])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_upgrades_leaves_sessions_alone() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Ws)
        .frontend_set("ws.source_attempts_burst", BURST)
        .frontend_set("ws.source_attempts_per_minute", 60)
        // Who has been let in on a recording waits for its proof until the end.
        .frontend_set("times.challenge", "1m")
        // So that not all of those are turned away for their number alone.
        .backend_set("device_keys.attempts_burst", 1_000)
        .start()
        .await;
    let mut bound = Vec::new();
    for n in 0..BOUND {
        bound.push(gateway.device(&format!("bound-{n}")).await);
    }
    let frontend = &gateway.frontends[0];
    round_trips(&mut bound).await;
    let before = round_trips(&mut bound).await;
    let memory = frontend.resident_bytes();
    let flood = Flood::start(gateway.ws(), requests(&gateway.keys));
    frontend.wait_for_metric(REFUSED, |n| n > 500.0).await;
    let during = round_trips(&mut bound).await;
    // The bounds show in what they refused: of a source, of a device from one source, and for what was shown.
    for reason in [
        "source_throttled",
        "unfinished_handshakes",
        "denied",
        "bad_upgrade",
    ] {
        let labels = [("reason", reason)];
        frontend.wait_for_series(REFUSED, &labels, |n| n > 0.0).await;
    }
    let growth = frontend.resident_bytes().saturating_sub(memory);
    let tally = flood.stop().await;
    let after = round_trips(&mut bound).await;
    println!("{tally:?}");
    println!("median, p99, longest: before {before:?}, during {during:?}, after {after:?}");
    assert!(
        tally.challenged > 0,
        "no recorded credential was taken: {tally:?}"
    );
    assert!(growth < 32 << 20, "the frontend grew by {growth} bytes");
    let logins = gateway.backends[0].metric("holdfast_backend_logins_total", &[]);
    assert_eq!(logins.await, BOUND as f64, "nobody else logged in");
    // All of this was for nothing: the device whose credentials they have comes again from elsewhere.
    let again = gateway.dial_as("bound-0").source(address(53, 0).into());
    again.connect().await.unwrap().hello().await;
    assert_eq!(bound[0].until_closed().await.1, 4000, "replaced by itself");
}
