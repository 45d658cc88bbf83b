//! The memory for replies, exceeded by real services.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::stream;
use holdfast_proto::ErrorCode;
use tokio::sync::{Semaphore, mpsc};

use super::tests::{client_with, failed, request, route_with, serve};
use super::*;
use crate::route::Route;
use crate::service::ROUTE_SHARE;

const BODY: usize = 64 * 1024;
/// Room for two bodies of one route, and for two of others.
const ROOM: usize = ROUTE_SHARE * 2 * BODY;

/// Sends the first half of each body at once and the second when a permit is there.
struct Halves {
    url: String,
    go_on: Arc<Semaphore>,
    /// One message per body whose first half is out.
    begun: mpsc::UnboundedReceiver<()>,
}

impl Halves {
    async fn start(announced: bool) -> Self {
        let go_on = Arc::new(Semaphore::new(0));
        let (begin, begun) = mpsc::unbounded_channel();
        let gate = go_on.clone();
        let answer = move || async move {
            let second = {
                let gate = gate.clone();
                async move {
                    begin.send(()).unwrap();
                    gate.acquire().await.unwrap().forget();
                    half(b'x', b'"')
                }
            };
            let body = stream::iter([half(b'"', b'x')]);
            let body = futures_util::StreamExt::chain(body, stream::once(second));
            let response = axum::http::Response::builder();
            let response = match announced {
                true => response.header("content-length", BODY),
                false => response,
            };
            response.body(Body::from_stream(body)).unwrap()
        };
        let url = serve(Router::new().route("/svc", post(answer))).await;
        Self { url, go_on, begun }
    }

    fn route(&self, name: &str, timeout: &str) -> Arc<Route> {
        let limits = format!("timeout=\"{timeout}\"\nmax_reply_bytes={BODY}");
        route_with(name, &self.url, &limits)
    }
}

fn half(first: u8, last: u8) -> Result<Bytes, std::io::Error> {
    let mut half = vec![b'x'; BODY / 2];
    (half[0], half[BODY / 2 - 1]) = (first, last);
    Ok(half.into())
}

fn spawn(client: &ServiceClient, route: &Arc<Route>) -> tokio::task::JoinHandle<Called> {
    let (client, route) = (client.clone(), route.clone());
    tokio::spawn(async move { client.call(request(route)).await })
}

fn metric(memory: &ReplyMemory, name: &str) -> u64 {
    let mut registry = crate::metrics::new_registry();
    memory.register(&mut registry);
    let text = crate::metrics::render(&registry);
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(&format!("holdfast_backend_{name} ")));
    line.and_then(|value| value.parse().ok()).unwrap()
}

async fn until(memory: &ReplyMemory, name: &str, at_least: u64) {
    let reached = async {
        while metric(memory, name) < at_least {
            tokio::task::yield_now().await;
        }
    };
    let patience = Duration::from_secs(30);
    timeout(patience, reached)
        .await
        .unwrap_or_else(|_| panic!("{name} is {}", metric(memory, name)));
}

/// Bodies beyond the route's part wait until there is room, then come whole; another route is not held up meanwhile.
async fn bodies_wait_their_turn(announced: bool) {
    let memory = ReplyMemory::new(ROOM);
    let client = client_with(memory.clone());
    let mut service = Halves::start(announced).await;
    let route = service.route("slow", "30s");
    let calls: Vec<_> = (0..5).map(|_| spawn(&client, &route)).collect();
    for _ in 0..5 {
        service.begun.recv().await.unwrap();
    }
    // All five have begun; those that are read take all that their route may have.
    until(&memory, "reply_memory_waits_total", 3).await;
    assert_eq!(metric(&memory, "reply_memory_bytes"), 2 * BODY as u64);

    let quick =
        serve(Router::new().route("/svc", post(|| async { format!("\"{}\"", "y".repeat(BODY - 2)) }))).await;
    let other = route_with(
        "quick",
        &quick,
        &format!("timeout=\"30s\"\nmax_reply_bytes={BODY}"),
    );
    let called = client.call(request(other)).await;
    assert!(matches!(&called.outcome, CallOutcome::Reply(body) if body.len() == BODY));
    drop(called);

    service.go_on.add_permits(5);
    for call in calls {
        let called = call.await.unwrap();
        assert!(matches!(&called.outcome, CallOutcome::Reply(body) if body.len() == BODY));
    }
    assert_eq!(metric(&memory, "reply_memory_bytes"), 0);
    assert_eq!(metric(&memory, "reply_memory_refused_total"), 0);
}

#[tokio::test]
async fn announced_bodies_wait_their_turn() {
    bodies_wait_their_turn(true).await;
}

#[tokio::test]
async fn unannounced_bodies_wait_their_turn() {
    bodies_wait_their_turn(false).await;
}

#[tokio::test]
async fn a_body_that_finds_no_room_in_time_is_overload_and_no_fault_of_the_service() {
    let memory = ReplyMemory::new(ROOM);
    let client = client_with(memory.clone());
    let mut service = Halves::start(true).await;
    let (slow, hasty) = (service.route("slow", "30s"), service.route("slow", "200ms"));
    let holders: Vec<_> = (0..2).map(|_| spawn(&client, &slow)).collect();
    for _ in 0..2 {
        service.begun.recv().await.unwrap();
    }
    until(&memory, "reply_memory_bytes", 2 * BODY as u64).await;
    let called = client.call(request(hasty)).await;
    assert_eq!(
        failed(called.outcome),
        (ErrorCode::Overloaded, FailureDetail::NoRoom, false)
    );
    assert_eq!(metric(&memory, "reply_memory_refused_total"), 1);
    service.go_on.add_permits(3);
    for holder in holders {
        assert!(matches!(holder.await.unwrap().outcome, CallOutcome::Reply(_)));
    }
}

/// A reply keeps its room until its owner has taken it over: the way there is bounded too.
#[tokio::test]
async fn the_room_is_free_when_the_reply_was_taken_over() {
    let memory = ReplyMemory::new(ROOM);
    let client = client_with(memory.clone());
    let body = format!("\"{}\"", "y".repeat(9_998));
    let answer =
        move || async move { Body::from_stream(stream::iter([Ok::<_, std::io::Error>(Bytes::from(body))])) };
    let url = serve(Router::new().route("/svc", post(answer))).await;
    let route = route_with("r", &url, &format!("max_reply_bytes={BODY}"));
    let called = client.call(request(route)).await;
    assert!(matches!(&called.outcome, CallOutcome::Reply(body) if body.len() == 10_000));
    // It reserved what its route allows, and gave back what it did not need.
    assert_eq!(metric(&memory, "reply_memory_bytes"), 10_000);
    drop(called);
    assert_eq!(metric(&memory, "reply_memory_bytes"), 0);
}
