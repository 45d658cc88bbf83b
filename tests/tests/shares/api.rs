//! One listening socket for the API in several processes, of which only full members accept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_tests::gateway::{Gateway, READ_KEY};
use holdfast_tests::service::Service;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CALLERS: usize = 16;
/// Nobody waits longer for an answer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Callers that connect, ask who answers, and begin again; the first that is refused, reset or kept waiting fails the test.
struct Callers {
    stop: Arc<AtomicBool>,
    first: Arc<AtomicU64>,
    second: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Callers {
    fn start(address: SocketAddr) -> Self {
        let mut callers = Self {
            stop: Arc::default(),
            first: Arc::default(),
            second: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..CALLERS {
            let (stop, first, second) = (
                callers.stop.clone(),
                callers.first.clone(),
                callers.second.clone(),
            );
            callers.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match who_answers(address).await.as_str() {
                        "backend1" => first.fetch_add(1, Ordering::Relaxed),
                        "backend2" => second.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other} answered"),
                    };
                }
            });
        }
        callers
    }

    fn counts(&self) -> (u64, u64) {
        (
            self.first.load(Ordering::Relaxed),
            self.second.load(Ordering::Relaxed),
        )
    }

    /// Waits until the counts say so; fails when a caller failed.
    async fn until(&mut self, what: &str, reached: impl Fn((u64, u64)) -> bool) {
        let wait = async {
            while !reached(self.counts()) {
                if let Ok(Some(ended)) = timeout(Duration::from_millis(5), self.tasks.join_next()).await {
                    ended.expect("no call fails");
                }
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{what} did not come: {:?}", self.counts());
    }

    async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no call fails");
        }
    }
}

/// One connection, one request: the name of the backend that answers.
async fn who_answers(address: SocketAddr) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!(
            "GET /v1/stats HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {READ_KEY}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, exchange)
        .await
        .expect("no connection hangs")
        .expect("none is refused or reset");
    let text = String::from_utf8(answer).expect("text");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let body = text.split_once("\r\n\r\n").expect("a body").1;
    let stats: Value = serde_json::from_str(body).expect("JSON");
    stats["backend"]["name"].as_str().expect("a name").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn not_one_connection_fails_while_a_canary_comes_is_promoted_and_the_old_one_leaves() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).shared_api().start().await;
    let address = gateway.backends[0]
        .url
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    let mut callers = Callers::start(address);
    callers.until("an answer", |(first, _)| first > 100).await;
    let canary = gateway.add_backend_as(&["--share", "5%"], &[]).await;
    let before = callers.counts().0;
    callers
        .until("an answer beside the canary", |(first, _)| first > before + 500)
        .await;
    assert_eq!(callers.counts().1, 0, "the canary accepts nothing");

    gateway.control(canary).share(100.0).await;
    callers
        .until("an answer of the promoted one", |(_, second)| second > 0)
        .await;
    gateway.backends[0].signal(Signal::SIGTERM);
    assert_eq!(gateway.backends[0].wait_exit().await.code(), Some(0));
    let (first, second) = callers.counts();
    callers
        .until("an answer after the old one has left", |(_, now)| {
            now > second + 500
        })
        .await;
    assert!(callers.counts().0 <= first + CALLERS as u64, "it answers no more");
    callers.finish().await;
}

/// A canary that is told to stop never touches the socket; and a full member that becomes less leaves it to the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_comes_and_goes_without_a_connection_noticing() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).shared_api().start().await;
    let address = gateway.backends[0]
        .url
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    let mut callers = Callers::start(address);
    let canary = gateway.add_backend_as(&["--share", "50%"], &[]).await;
    callers.until("an answer", |(first, _)| first > 100).await;
    gateway.control(canary).share(100.0).await;
    callers
        .until("the promoted one's answer", |(_, second)| second > 0)
        .await;
    gateway.control(canary).share(0.0).await;
    let (first, second) = callers.counts();
    callers
        .until("the other's answer", |(now, _)| now > first + 500)
        .await;
    assert!(
        callers.counts().1 <= second + CALLERS as u64,
        "it accepts no more"
    );
    assert_eq!(gateway.backends[canary].term().await.code(), Some(0));
    let before = callers.counts().0;
    callers
        .until("an answer without it", |(now, _)| now > before + 100)
        .await;
    callers.finish().await;
}
