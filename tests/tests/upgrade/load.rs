//! Callers of the API and devices whose answers are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_tests::device::Incoming;
use holdfast_tests::gateway::{API_KEY, Supervised};
use holdfast_tests::http::{Http, request};
use http::Method;
use serde_json::json;
use tokio::task::JoinSet;

/// Calls the API over and over, each time on a connection of its own.
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(u64, Vec<String>)>,
}

impl Callers {
    pub(crate) fn start(up: &Supervised) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            tasks.spawn(call_over_and_over(up.api_url("/v1/stats"), stop.clone()));
        }
        Self { stop, tasks }
    }

    /// Panics when a call was refused, reset or answered with anything but 200.
    pub(crate) async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            let (calls, failed) = result.unwrap();
            assert!(calls > 0 && failed.is_empty(), "{calls} calls: {failed:?}");
        }
    }
}

async fn call_over_and_over(url: String, stop: Arc<AtomicBool>) -> (u64, Vec<String>) {
    let (mut calls, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        calls += 1;
        let answer = Http::default()
            .send(request(Method::GET, &url, Some(API_KEY), Bytes::new()))
            .await;
        match answer {
            Ok(answer) if answer.status == 200 => {}
            other => failed.push(format!("{other:?}")),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (calls, failed)
}

/// Devices that send one request after the other, whatever the answer.
pub(crate) struct Devices {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) replies: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) closed: AtomicU64,
}

impl Devices {
    pub(crate) async fn start(up: &Supervised, count: usize) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let mut tasks = JoinSet::new();
        for n in 0..count {
            let name = format!("device-{n}");
            let dial = up.dial_as(&name);
            let mut device = dial.connect().await.unwrap();
            device.hello().await;
            let (stop, counts) = (stop.clone(), counts.clone());
            tasks.spawn(async move {
                for id in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    device
                        .request(("Demo", "Echo"), &id.to_string(), &json!({}))
                        .await;
                    let counter = match device.next().await {
                        Incoming::Reply(_) => &counts.replies,
                        Incoming::Error(_) => &counts.errors,
                        other => {
                            eprintln!("{name}: {other:?}");
                            counts.closed.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
        Self { stop, counts, tasks }
    }

    /// Lets each device have its last answer; none may have been disconnected.
    pub(crate) async fn finish(mut self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            result.unwrap();
        }
        assert_eq!(self.counts.closed.load(Ordering::Relaxed), 0);
        self.counts
    }
}
