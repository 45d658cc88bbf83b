//! What one frontend or one service may take of a backend.

use std::net::SocketAddr;

use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::Service;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const ECHO: (&str, &str) = ("Demo", "Echo");
const MIB: usize = 1024 * 1024;

/// A service that announces a body and never sends it; each call is told of.
async fn promising_service(bytes: usize) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an ephemeral port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.ends_with(b"{}") && stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {}
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.ok();
                tell.send(()).ok();
                while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    (address, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_promises_much_and_sends_nothing_costs_bounded_memory() {
    let service = Service::start().await;
    let (address, mut calls) = promising_service(4 * MIB).await;
    let mut slow = Route::new("Slow", format!("http://{address}/"))
        .order("none")
        .timeout("4s");
    slow.max_reply_bytes = Some(4 * MIB as u64);
    let mut demo = Route::new("Demo", service.url("/demo"));
    demo.max_reply_bytes = Some(2 * MIB as u64);
    let gateway = Gateway::builder(&service)
        .backend_set("max_reply_memory_bytes", 8 * MIB as i64)
        .routes(vec![slow, demo])
        .start()
        .await;
    let (mut patient, mut other) = (gateway.device("patient").await, gateway.device("other").await);
    for n in 0..3 {
        patient
            .request(("Slow", "Promise"), &n.to_string(), &json!({}))
            .await;
    }
    for _ in 0..3 {
        calls.recv().await;
    }
    let backend = &gateway.backends[0];
    backend
        .wait_for_metric("holdfast_backend_reply_memory_waits_total", |n| n >= 2.0)
        .await;
    assert_eq!(
        backend.metric("holdfast_backend_reply_memory_bytes", &[]).await,
        4.0 * MIB as f64,
        "half of all is the most that one route gets"
    );
    other.request(ECHO, "big", &json!({"big": MIB})).await;
    assert_eq!(other.next_reply().await.payload.len(), MIB);
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(patient.next_error().await.code);
    }
    codes.sort();
    assert_eq!(codes, ["overloaded", "overloaded", "upstream_timeout"]);
    let refused = "holdfast_backend_reply_memory_refused_total";
    assert_eq!(backend.metric(refused, &[]).await, 2.0);
    backend
        .wait_for_metric("holdfast_backend_reply_memory_bytes", |n| n == 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_with_slow_requests_leaves_others_their_places() {
    const PLACES: usize = 16;
    let service = Service::start().await;
    let route = Route::new("Demo", service.url("/demo")).order("none");
    let gateway = Gateway::builder(&service)
        .frontends(2)
        .backend_set("max_in_flight", PLACES as i64)
        .routes(vec![route])
        .start()
        .await;
    let (mut greedy, mut modest) = (
        gateway.device_at(0, "greedy").await,
        gateway.device_at(1, "modest").await,
    );
    for n in 0..2 * PLACES {
        greedy.request(ECHO, &n.to_string(), &json!({"hold": true})).await;
    }
    // All but what is kept for the other one.
    service.wait_for_calls(PLACES - 2).await;
    gateway.backends[0]
        .wait_for_metric("holdfast_backend_waiting", |n| n >= 1.0)
        .await;
    for n in 0..5 {
        modest.request(ECHO, &n.to_string(), &json!({})).await;
        assert_eq!(modest.next_reply().await.reply_to, n.to_string());
    }
    assert_eq!(service.calls().len(), PLACES - 2 + 5);
    service.release();
    for _ in 0..2 * PLACES {
        greedy.next_reply().await;
    }
}
