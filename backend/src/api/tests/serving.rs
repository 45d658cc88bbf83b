//! Connections: draining, stopping, and peers that misbehave.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn while_draining_every_response_closes_its_connection() {
    let api = Api::start();
    assert!(
        !api.call("GET", "/live", "")
            .await
            .headers
            .contains_key("connection")
    );
    api.draining.send_replace(true);
    for _ in 0..3 {
        let answer = api.call("GET", "/live", "").await;
        assert_eq!(
            (answer.status, &answer.headers["connection"]),
            (200, &"close".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_progress_and_nothing_else() {
    let gateway = FakeGateway {
        gate: Some(Default::default()),
        ..FakeGateway::default()
    };
    let mut api = Api::start_with(gateway);
    let mut idle = TcpStream::connect(api.address).await.unwrap();
    let body = r#"{"to":{"all":true},"namespace":"N","name":"n","payload":1}"#;
    let request = api
        .request("POST", "/v1/messages", PUSH)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let pushing = tokio::spawn(api.client.request(request));
    let gateway = api.gateway.clone();
    let (began, leave) = gateway.gate.as_ref().unwrap();
    began.notified().await;
    api.stop.take().unwrap().send(()).unwrap();
    assert_eq!(
        tokio::time::timeout(PATIENCE, idle.read(&mut [0; 16]))
            .await
            .unwrap()
            .unwrap(),
        0
    );
    assert!(!api.serving.is_finished());
    leave.notify_one();
    assert_eq!(pushing.await.unwrap().unwrap().status(), 200);
    tokio::time::timeout(PATIENCE, api.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(api.address).await.is_err());
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let api = Api::start();
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    let head = format!("GET /live HTTP/1.1\r\nhost: h\r\n{}\r\n", "x: y\r\n".repeat(300));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let api = Api::start();
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\n").await.unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(3 * PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(
        started.elapsed() >= PATIENCE,
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn bodies_are_not_read_before_the_key_was_checked() {
    let api = Api::start();
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    let head = "POST /v1/messages HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
}

#[tokio::test]
async fn a_socket_is_bound_when_none_is_inherited() {
    let listener = listen_or_inherit("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_ne!(listener.local_addr().unwrap().port(), 0);
    let again = listen_or_inherit(listener.local_addr().unwrap());
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}
