//! The client against real services on ephemeral ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use holdfast_proto::{ErrorCode, Sequence};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::metrics::new_registry;
use crate::route::{Route, RouteTable};
use crate::service::{client_tls, idempotency_key};

const KEY: [u8; 32] = [7; 32];
const LIMIT: usize = 4096;

fn client() -> ServiceClient {
    client_with(ReplyMemory::new(1 << 20))
}

pub(in crate::service) fn client_with(memory: ReplyMemory) -> ServiceClient {
    ServiceClient::new(ServiceSettings {
        signer: Signer::from_hex(&"07".repeat(32)).unwrap(),
        tls: client_tls(None).unwrap(),
        metrics: ServiceMetrics::register(&mut new_registry()),
        memory,
    })
}

fn route(url: &str, timeout: &str) -> Arc<Route> {
    route_with(
        "*",
        url,
        &format!("timeout=\"{timeout}\"\nmax_reply_bytes={LIMIT}"),
    )
}

pub(super) fn route_with(name: &str, url: &str, limits: &str) -> Arc<Route> {
    let text = format!("[[route]]\nnamespace=\"*\"\nname=\"{name}\"\nurl=\"{url}\"\n{limits}");
    RouteTable::parse(&text).unwrap().routes()[0].clone()
}

pub(super) fn request(route: Arc<Route>) -> ServiceRequest {
    ServiceRequest {
        route,
        namespace: "Demo".into(),
        name: "Echo".into(),
        event_id: Some("req 1".into()),
        device: "speaker-1".parse().unwrap(),
        session: "00010000-0000-8001-8000-000000000004".parse().unwrap(),
        sequence: Sequence(7),
        attempt: 1,
        binary: false,
        payload: Bytes::from_static(b"{\"a\":1}"),
        retry_key: None,
        received_at: UNIX_EPOCH,
    }
}

pub(in crate::service) async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/svc?x=1")
}

/// A service that reads a request's head and answers with exactly `answer`, then closes.
async fn serve_raw(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    address
}

async fn read_request(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"{\"a\":1}") {
        assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
    }
}

async fn call_raw(answer: impl Into<Vec<u8>>) -> CallOutcome {
    let address = serve_raw(answer.into()).await;
    client()
        .call(request(route(&format!("http://{address}/"), "5s")))
        .await
        .outcome
}

async fn call_axum(router: Router) -> CallOutcome {
    client()
        .call(request(route(&serve(router).await, "5s")))
        .await
        .outcome
}

pub(super) fn failed(outcome: CallOutcome) -> (ErrorCode, FailureDetail, bool) {
    match outcome {
        CallOutcome::Failed {
            code,
            detail,
            transport_failure,
        } => (code, detail, transport_failure),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_payload_arrives_signed_and_the_reply_comes_back() {
    async fn check(headers: HeaderMap, body: Bytes) -> Vec<u8> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).unwrap();
        for part in [
            headers["holdfast-timestamp"].as_bytes(),
            b".",
            headers["ce-id"].as_bytes(),
            b".",
            &body,
        ] {
            mac.update(part);
        }
        let digits = mac
            .finalize()
            .into_bytes()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>();
        assert_eq!(headers["holdfast-signature"], format!("v1={digits}"));
        assert_eq!(
            (&headers["ce-id"], &headers["ce-hfattempt"]),
            (&"req%201".parse().unwrap(), &"2".parse().unwrap())
        );
        let request = request(route("http://h", "1s"));
        let key = idempotency_key(&request.device, request.session, request.sequence, None);
        assert_eq!(headers["idempotency-key"], format!("\"{key}\""));
        assert_eq!(
            (&headers["content-type"], &headers["content-length"]),
            (&"application/json".parse().unwrap(), &"7".parse().unwrap())
        );
        assert!(headers["host"].to_str().unwrap().starts_with("127.0.0.1:"));
        [b" ", &body[..], b"\n"].concat()
    }
    let outcome = call_axum(Router::new().route("/svc", post(check))).await;
    assert_eq!(outcome, CallOutcome::Reply(Bytes::from_static(b"{\"a\":1}")));
}

#[tokio::test]
async fn connections_are_reused_and_reopened_when_the_service_closed_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            for _ in 0..2 {
                read_request(&mut stream).await;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
                    .await
                    .unwrap();
            }
        }
    });
    let (client, route) = (client(), route(&url, "5s"));
    for _ in 0..6 {
        assert_eq!(
            client.call(request(route.clone())).await.outcome,
            CallOutcome::Reply(Bytes::from_static(b"1"))
        );
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn no_content_and_empty_bodies_are_empty_replies() {
    for status in [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::ACCEPTED] {
        let router = Router::new().route("/svc", post(move || async move { status }));
        assert_eq!(call_axum(router).await, CallOutcome::Empty);
    }
}

#[tokio::test]
async fn other_statuses_are_errors_but_no_transport_failures() {
    for status in [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_FOUND,
        StatusCode::FOUND,
    ] {
        let router = Router::new().route("/svc", post(move || async move { (status, "{}") }));
        let expected = (
            ErrorCode::UpstreamError,
            FailureDetail::Status(status.as_u16()),
            false,
        );
        assert_eq!(failed(call_axum(router).await), expected);
    }
}

#[tokio::test]
async fn a_text_request_wants_json_and_a_binary_one_takes_anything() {
    let url = serve(Router::new().route("/svc", post(|| async { "hello" }))).await;
    let text = client().call(request(route(&url, "5s"))).await.outcome;
    assert_eq!(failed(text), (ErrorCode::BadReply, FailureDetail::NotJson, false));
    let binary = ServiceRequest {
        binary: true,
        ..request(route(&url, "5s"))
    };
    assert_eq!(
        client().call(binary).await.outcome,
        CallOutcome::Reply(Bytes::from_static(b"hello"))
    );
}

#[tokio::test]
async fn replies_are_taken_up_to_the_limit_and_not_beyond() {
    let json = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    let announced = |length: usize| Router::new().route("/svc", post(move || async move { json(length) }));
    let chunked = |length: usize| {
        let chunks: Vec<_> = json(length)
            .into_bytes()
            .chunks(1000)
            .map(Bytes::copy_from_slice)
            .collect();
        let answer = move || {
            let stream = futures_util::stream::iter(chunks.clone().into_iter().map(Ok::<_, std::io::Error>));
            async move { Body::from_stream(stream) }
        };
        Router::new().route("/svc", post(answer))
    };
    for router in [announced(LIMIT), chunked(LIMIT)] {
        assert_eq!(call_axum(router).await, CallOutcome::Reply(json(LIMIT).into()));
    }
    let too_large = (ErrorCode::ReplyTooLarge, FailureDetail::ReplyTooLarge, false);
    for router in [announced(LIMIT + 1), chunked(LIMIT + 1), announced(1 << 20)] {
        assert_eq!(failed(call_axum(router).await), too_large);
    }
    let endless = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(failed(call_raw(endless).await), too_large);
}

#[tokio::test]
async fn a_service_that_hangs_times_out() {
    let hang = || async { std::future::pending::<()>().await };
    let url = serve(Router::new().route("/svc", post(hang))).await;
    let outcome = client().call(request(route(&url, "50ms"))).await.outcome;
    assert_eq!(
        failed(outcome),
        (ErrorCode::UpstreamTimeout, FailureDetail::Timeout, true)
    );
}

#[tokio::test]
async fn a_body_that_never_ends_times_out() {
    let trickle = || async {
        Body::from_stream(futures_util::stream::unfold(true, |first| async move {
            if !first {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"[")), false))
        }))
    };
    let url = serve(Router::new().route("/svc", post(trickle))).await;
    let outcome = client().call(request(route(&url, "50ms"))).await.outcome;
    assert_eq!(failed(outcome).0, ErrorCode::UpstreamTimeout);
}

#[tokio::test]
async fn what_breaks_off_or_is_not_http_is_a_transport_failure() {
    let broken = (ErrorCode::UpstreamUnavailable, FailureDetail::Broken, true);
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"a\"";
    let garbage = "220 smtp.example ESMTP\r\n";
    let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(5000));
    for answer in [cut, garbage, "", &head] {
        assert_eq!(failed(call_raw(answer).await), broken, "{answer:.40}");
    }
}

#[tokio::test]
async fn a_written_request_is_not_sent_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
                .await
                .unwrap();
            read_request(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let (client, route) = (client(), route(&url, "5s"));
    assert_eq!(
        client.call(request(route.clone())).await.outcome,
        CallOutcome::Reply(Bytes::from_static(b"1"))
    );
    let outcome = client.call(request(route)).await.outcome;
    assert_eq!(failed(outcome).0, ErrorCode::UpstreamUnavailable);
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_host_are_transport_failures() {
    let unused = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for url in [format!("http://{unused}/"), "http://host.invalid/".to_owned()] {
        let outcome = client().call(request(route(&url, "5s"))).await.outcome;
        assert_eq!(
            failed(outcome),
            (ErrorCode::UpstreamUnavailable, FailureDetail::Connect, true)
        );
    }
}

async fn serve_tls(State(()): State<()>) -> &'static str {
    "{\"tls\":true}"
}

#[tokio::test]
async fn https_trusts_the_given_authority_only() {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, pair.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().route("/", post(serve_tls)).with_state(());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    let route = route(&format!("https://localhost:{port}/"), "5s");
    assert_eq!(
        failed(client().call(request(route.clone())).await.outcome).1,
        FailureDetail::Connect
    );
    let metrics = ServiceMetrics::register(&mut new_registry());
    let settings = ServiceSettings {
        signer: Signer::from_hex(&"07".repeat(32)).unwrap(),
        tls: client_tls(Some(&path)).unwrap(),
        metrics,
        memory: ReplyMemory::new(1 << 20),
    };
    let outcome = ServiceClient::new(settings).call(request(route)).await.outcome;
    assert_eq!(outcome, CallOutcome::Reply(Bytes::from_static(b"{\"tls\":true}")));
}
