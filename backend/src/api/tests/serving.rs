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
async fn who_is_no_full_member_accepts_nothing_until_it_is_promoted() {
    let api = Api::start_as(Share::clamped(500), FakeGateway::default());
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let request = api.request("GET", "/live", "").header("connection", "close");
            let client = Client::builder(TokioExecutor::new()).build_http();
            tokio::spawn(async move {
                client
                    .request(request.body(Full::<Bytes>::default()).unwrap())
                    .await
            })
        })
        .collect();
    // A connection is in the kernel's queue as soon as it is made; nobody takes it out.
    let mut first = TcpStream::connect(api.address).await.unwrap();
    first
        .write_all(b"GET /live HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    for share in [Share::NONE, Share::clamped(9_999)] {
        api.share.send_replace(share);
        let answer = tokio::time::timeout(Duration::from_millis(100), first.read(&mut [0; 1])).await;
        assert!(answer.is_err(), "it was answered");
    }
    api.share.send_replace(Share::FULL);
    for call in calls {
        let answer = tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap();
        assert_eq!(answer.unwrap().status(), 200, "who waited is served");
    }
    let mut answer = [0; 15];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn one_that_is_full_no_longer_sends_its_callers_elsewhere() {
    let api = Api::start();
    let answer = api.call("GET", "/live", "").await;
    assert!(!answer.headers.contains_key("connection"));
    api.share.send_replace(Share::clamped(9_999));
    // The connection that it has is served to its end.
    let answer = api.call("GET", "/live", "").await;
    assert_eq!(
        (answer.status, &answer.headers["connection"]),
        (200, &"close".parse().unwrap())
    );
    let mut next = TcpStream::connect(api.address).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(100), async {
        next.write_all(b"GET /live HTTP/1.1\r\nhost: h\r\n\r\n")
            .await
            .unwrap();
        next.read(&mut [0; 1]).await
    });
    assert!(waiting.await.is_err(), "a new one waits for a full member");
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

/// Its request is on the way and nobody else could answer it. Connections are taken in order, so that the answer to a later
/// one tells that this one was taken.
#[tokio::test]
async fn a_stop_waits_for_the_first_request_of_who_was_just_taken() {
    let mut api = Api::start();
    let mut taken = TcpStream::connect(api.address).await.unwrap();
    assert_eq!(api.call("GET", "/live", "").await.status, 200);
    api.draining.send_replace(true);
    api.stop.take().unwrap().send(()).unwrap();
    taken
        .write_all(b"GET /live HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, taken.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let good = answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close");
    assert!(good, "{answer}");
}
