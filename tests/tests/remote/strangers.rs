//! Whoever comes to the tunnel's port without the key, and whoever sits between its ends.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::{Log, Service};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{ECHO, OPEN, Place};

pub(super) const REFUSED: &str = "holdfast_tunnel_refused_total";
const BROKEN: &str = "holdfast_tunnel_broken_total";
pub(super) const ACCEPTED: &str = "holdfast_tunnel_accepted_total";

pub(super) async fn is_served(gateway: &Gateway, id: &str) {
    let mut device = gateway.device(id).await;
    device.request(ECHO, "x", &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_with_another_key_never_attaches() {
    let (service, place) = (Service::start().await, Place::new());
    let wrong = place.write_key("wrong.key", 2);
    let builder = place.gateway(&service, place.listen);
    let mut gateway = builder.backends(0).backend_set("link_key", wrong).start().await;
    gateway.start_backend();
    let frontend = &gateway.frontends[0];
    frontend.wait_for_metric(REFUSED, |n| n >= 2.0).await;
    assert!(frontend.metric(REFUSED, &[("cause", "handshake")]).await >= 2.0);
    assert_eq!(frontend.metric(ACCEPTED, &[]).await, 0.0);
    assert_eq!(frontend.metric("holdfast_link_attached_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_a_flood_reach_nothing_and_the_devices_are_served() {
    const FLOOD: usize = 200;
    let (service, place) = (Service::start().await, Place::new());
    let gateway = place.gateway(&service, place.listen).start().await;
    is_served(&gateway, "before").await;
    // A web client, ZeroMQ's own greeting, a length that lies, silence.
    let greetings: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL",
        b"\xff\xff",
        b"",
    ];
    let mut silent = Vec::new();
    for n in 0..FLOOD {
        let mut stream = TcpStream::connect(place.listen).await.expect("the port is open");
        let greeting = greetings[n % greetings.len()];
        let _ = stream.write_all(greeting).await;
        if greeting.is_empty() {
            silent.push(stream);
        } else {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
    is_served(&gateway, "after").await;
    let frontend = &gateway.frontends[0];
    frontend
        .wait_for_metric(REFUSED, |n| n >= (FLOOD - FLOOD / greetings.len()) as f64)
        .await;
    assert_eq!(frontend.metric(ACCEPTED, &[]).await, 1.0, "the backend's own");
    assert_eq!(frontend.metric("holdfast_link_attached_total", &[]).await, 1.0);
}

/// A connection from one of some 16 million sources, none of which is a backend's.
pub(super) async fn stranger(listen: SocketAddr, source: u32) -> TcpStream {
    let [_, a, b, c] = source.to_be_bytes();
    let socket = TcpSocket::new_v4().expect("a socket");
    let local = SocketAddr::from(([127, a.clamp(1, 254), b, c.clamp(1, 254)], 0));
    socket.bind(local).expect("an address of this host");
    socket.connect(listen).await.expect("the port is open")
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_attach_while_silent_connections_from_everywhere_take_all_places() {
    const PLACES: usize = 256;
    let (service, place) = (Service::start().await, Place::new());
    let mut gateway = place.gateway(&service, place.listen).start().await;
    let listen = place.listen;
    let flood = tokio::spawn(async move {
        let mut silent = VecDeque::new();
        for source in 0x0001_0101.. {
            silent.push_back(stranger(listen, source).await);
            if silent.len() > 2 * PLACES {
                silent.pop_front();
                // Some hundred a second renew all places in less than their time.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let made_room = [("cause", "silent")];
    let frontend = &gateway.frontends[0];
    frontend.wait_for_series(REFUSED, &made_room, |n| n >= 1.0).await;
    gateway.add_backend().await;
    gateway.backends[0].kill9().await;
    gateway.backends[0].restart().await;
    is_served(&gateway, "d").await;
    let frontend = &gateway.frontends[0];
    frontend.wait_for_metric(OPEN, |n| n == 2.0).await;
    assert_eq!(frontend.metric(ACCEPTED, &[]).await, 3.0);
    flood.abort();
    assert!(flood.await.is_err(), "it went on to the end");
}

/// Carries bytes between a backend and the frontend, and changes one when it is told to.
async fn between(frontend: SocketAddr, flip: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let flip = flip.clone();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(frontend).await else {
                    return;
                };
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                let inward = async {
                    let mut bytes = [0; 4096];
                    while let Ok(n @ 1..) = near_read.read(&mut bytes).await {
                        if flip.swap(false, Ordering::Relaxed) {
                            bytes[n - 1] ^= 1;
                        }
                        if far_write.write_all(&bytes[..n]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = inward => {}
                    _ = tokio::io::copy(&mut far_read, &mut near_write) => {}
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_bit_ends_the_tunnel_and_no_request_is_lost() {
    const REQUESTS: u64 = 5;
    let (service, place) = (Service::start().await, Place::new());
    let flip = Arc::new(AtomicBool::new(false));
    let through = between(place.listen, flip.clone()).await;
    let gateway = place.gateway(&service, through).start().await;
    let mut device = gateway.device("d").await;
    for n in 1..=REQUESTS {
        device
            .request(ECHO, &format!("q{n}"), &json!({"hold": true}))
            .await;
    }
    service.wait_for_calls(REQUESTS as usize).await;
    flip.store(true, Ordering::Relaxed);
    let frontend = &gateway.frontends[0];
    frontend.wait_for_metric(BROKEN, |n| n == 1.0).await;
    assert_eq!(frontend.metric(BROKEN, &[("cause", "record")]).await, 1.0);
    service.release();
    for n in 1..=REQUESTS {
        let reply = device.next_reply().await;
        assert_eq!((reply.seq, reply.reply_to), (n, format!("q{n}")));
    }
    assert_eq!(frontend.metric(ACCEPTED, &[]).await, 2.0);
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}
