//! What strangers at the tunnel's port cost: figures to read (`--nocapture`), of which none is asserted.

use std::net::SocketAddr;
use std::time::Instant;

use holdfast_proto::tunnel;
use holdfast_tests::device::Device;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::strangers::{ACCEPTED, stranger};
use super::{ECHO, Place, link_key};

/// Connections of each kind.
const CONNECTIONS: u32 = 3_000;
const REQUESTS: usize = 500;
/// A source may come 30 times at once: these many are none too often.
const PER_SOURCE: u32 = 20;

#[derive(Clone, Copy)]
enum Kind {
    Garbage,
    WrongKey,
    /// All from one source.
    Throttled,
}

async fn come(listen: SocketAddr, kind: Kind, number: u32) {
    let source = match kind {
        Kind::Garbage => 0x0001_0101 + number / PER_SOURCE,
        Kind::WrongKey => 0x0081_0101 + number / PER_SOURCE,
        Kind::Throttled => 0x00c1_0101,
    };
    let mut stream = stranger(listen, source).await;
    match kind {
        Kind::Garbage | Kind::Throttled => {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        Kind::WrongKey => {
            let name = "stranger".parse().expect("a name");
            let refused = tunnel::connect(&mut stream, &link_key(9), name, 0).await;
            assert!(refused.is_err());
        }
    }
}

/// Microseconds of the frontend's CPU for each connection.
async fn cost(gateway: &Gateway, listen: SocketAddr, kind: Kind) -> f64 {
    let before = gateway.frontends[0].cpu_seconds();
    for number in 0..CONNECTIONS {
        come(listen, kind, number).await;
    }
    (gateway.frontends[0].cpu_seconds() - before) / f64::from(CONNECTIONS) * 1e6
}

/// Microseconds from a request to its reply through the tunnel: the median, and that of one in a hundred.
async fn latency(device: &mut Device) -> (u128, u128) {
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        device.request(ECHO, "x", &json!({})).await;
        assert_eq!(device.next_reply().await.reply_to, "x");
        times.push(start.elapsed().as_micros());
    }
    times.sort_unstable();
    (times[REQUESTS / 2], times[REQUESTS * 99 / 100])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_cost() {
    let (service, place) = (Service::start().await, Place::new());
    let gateway = place.gateway(&service, place.listen).start().await;
    let mut device = gateway.device("d").await;
    latency(&mut device).await;
    let quiet = latency(&mut device).await;
    let listen = place.listen;
    let flood = tokio::spawn(async move {
        for number in 10 * CONNECTIONS.. {
            come(listen, Kind::WrongKey, number).await;
        }
    });
    let flooded = latency(&mut device).await;
    flood.abort();
    eprintln!(
        "request to reply through a tunnel, p50 and p99: {quiet:?} us; while strangers try keys: {flooded:?} us"
    );
    for (kind, name) in [
        (Kind::Garbage, "garbage"),
        (Kind::WrongKey, "a wrong key"),
        (Kind::Throttled, "a source that came too often"),
    ] {
        let cost = cost(&gateway, listen, kind).await;
        eprintln!("frontend CPU per connection with {name}: {cost:.0} us");
    }
    assert_eq!(gateway.frontends[0].metric(ACCEPTED, &[]).await, 1.0);
}
