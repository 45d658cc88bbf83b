//! Paced devices whose every message goes into a history.

mod device;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::device::Device;
use crate::dial::Dial;
use crate::gateway::{API_KEY, Gateway};
use crate::history::{Checker, Conn, Event, Expectations, Violation, digest};
use crate::http::{Http, request};

/// Devices that connect at the same time.
const CONNECTING: usize = 50;
/// How often a condition on the history is looked at.
const POLL: Duration = Duration::from_millis(20);
/// What was sent is answered within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much, how fast.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub devices: u32,
    /// Requests per second over all devices.
    pub per_second: u32,
    /// Roughly the size of a request's payload.
    pub payload_bytes: usize,
    /// Services answer after 0 to this, at random.
    pub max_delay_ms: u64,
    /// Pushes per second over all devices.
    pub pushes_per_second: u32,
}

/// Running traffic.
pub struct Traffic {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    stop_pushing: watch::Sender<bool>,
    devices: JoinSet<Device>,
    pusher: tokio::task::JoinHandle<()>,
}

/// What came of it.
pub struct Report {
    pub violations: Vec<Violation>,
    /// Violations beyond those.
    pub suppressed: u64,
    pub sent: u64,
    pub answered: u64,
    pub pushes_written: u64,
    /// From sending to reading the reply, sorted.
    pub latencies: Vec<Duration>,
}

struct Shared {
    plan: Plan,
    checker: Mutex<Checker>,
    latencies: Mutex<Vec<Duration>>,
    sent: AtomicU64,
    pushes_written: AtomicU64,
}

/// Where traffic goes in.
pub struct Entrance<'a> {
    /// How a device of this name comes in.
    pub dial: Box<dyn Fn(&str) -> Dial + 'a>,
    /// Where pushes are posted.
    pub messages_url: String,
}

impl Entrance<'_> {
    async fn device(&self, id: &str) -> Device {
        let mut device = (self.dial)(id)
            .connect()
            .await
            .unwrap_or_else(|e| panic!("{id} did not get in: {e}"));
        device.hello().await;
        device
    }
}

impl Traffic {
    /// Connects all devices to the gateway's first frontend, then starts sending.
    pub async fn start(gateway: &Gateway, plan: Plan) -> Self {
        let entrance = Entrance {
            dial: Box::new(|id| gateway.dial_as(id)),
            messages_url: gateway.api_url("/v1/messages"),
        };
        Self::through(&entrance, plan).await
    }

    /// Connects all devices, then starts sending.
    pub async fn through(entrance: &Entrance<'_>, plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            plan,
            checker: Mutex::new(Checker::new(Expectations::default())),
            latencies: Mutex::default(),
            sent: AtomicU64::new(0),
            pushes_written: AtomicU64::new(0),
        });
        let mut connected = Vec::new();
        let all: Vec<u32> = (0..plan.devices).collect();
        for some in all.chunks(CONNECTING) {
            let names: Vec<String> = some.iter().map(|n| name(*n)).collect();
            let dials = names.iter().map(|name| entrance.device(name));
            connected.extend(futures_util::future::join_all(dials).await);
        }
        let stop = watch::Sender::new(false);
        let mut devices = JoinSet::new();
        for (n, device) in (0..).zip(connected) {
            shared.record(Event::Opened { conn: Conn(n) });
            devices.spawn(device::run(shared.clone(), Conn(n), device, stop.subscribe()));
        }
        let url = entrance.messages_url.clone();
        let stop_pushing = watch::Sender::new(false);
        let pusher = tokio::spawn(push(shared.clone(), url, stop_pushing.subscribe()));
        Self {
            shared,
            stop,
            stop_pushing,
            devices,
            pusher,
        }
    }

    /// Waits until every request that was sent before this call has been answered; panics when one is not.
    pub async fn settle(&self) {
        let mark = self.shared.checker().events();
        let deadline = Instant::now() + PATIENCE;
        while self
            .shared
            .checker()
            .oldest_unanswered()
            .is_some_and(|oldest| oldest <= mark)
        {
            assert!(
                Instant::now() < deadline,
                "{} requests stay unanswered",
                self.unanswered()
            );
            sleep(POLL).await;
        }
    }

    pub fn unanswered(&self) -> usize {
        self.shared.checker().unanswered()
    }

    /// Violations so far: lets a long run stop at the first one.
    pub fn violations(&self) -> Vec<Violation> {
        self.shared.checker().violations().to_vec()
    }

    /// Stops sending, waits for what is owed, looks for anything beyond it, and judges.
    pub async fn finish(mut self) -> Report {
        // A device listens until its last pong: what is pushed after that would be written, and seen by nobody.
        self.stop_pushing.send_replace(true);
        self.pusher.await.expect("the pusher ends when told");
        self.stop.send_replace(true);
        let drained = async {
            let mut devices = Vec::new();
            while let Some(device) = self.devices.join_next().await {
                devices.push(device.expect("a device's task does not panic"));
            }
            devices
        };
        // What is left unanswered is the checker's to report.
        let devices = timeout(PATIENCE * 2, drained).await;
        let shared = self.shared;
        let checker = std::mem::replace(&mut *shared.checker(), Checker::new(Expectations::default()));
        let (suppressed, answered) = (checker.suppressed(), checker.answered());
        let mut latencies = std::mem::take(&mut *lock(&shared.latencies));
        latencies.sort_unstable();
        let report = Report {
            violations: checker.finish(),
            suppressed,
            sent: shared.sent.load(Ordering::Relaxed),
            answered,
            pushes_written: shared.pushes_written.load(Ordering::Relaxed),
            latencies,
        };
        drop(devices);
        report
    }
}

impl Report {
    /// The latency that `share` (0 to 1) of the requests did not exceed.
    pub fn percentile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let place = (last as f64 * share) as usize;
        self.latencies.get(place).copied().unwrap_or_default()
    }
}

impl Shared {
    fn record(&self, event: Event) {
        self.checker().handle(event);
    }

    fn checker(&self) -> MutexGuard<'_, Checker> {
        lock(&self.checker)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(n: u32) -> String {
    format!("load-{n}")
}

/// Pushes to one device after the other. A call that fails (the backend is being killed) promises nothing.
async fn push(shared: Arc<Shared>, url: String, mut stop: watch::Receiver<bool>) {
    if shared.plan.pushes_per_second == 0 {
        return;
    }
    let http = Http::default();
    let mut ticks = interval(Duration::from_secs(1) / shared.plan.pushes_per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0u32.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.changed() => return,
        }
        let conn = n % shared.plan.devices;
        let payload = format!("p-{n}");
        let id = digest(format!("\"{payload}\"").as_bytes());
        let body = json!({
            "to": {"device": name(conn)}, "namespace": "Load", "name": "Push", "payload": payload,
        });
        shared.record(Event::PushAsked { conn: Conn(conn), id });
        let body = body.to_string().into();
        let Ok(answer) = http.send(request(Method::POST, &url, Some(API_KEY), body)).await else {
            continue;
        };
        if answer.status == 200 && answer.json()["results"][0]["status"] == "written" {
            shared.pushes_written.fetch_add(1, Ordering::Relaxed);
            shared.record(Event::PushWritten { conn: Conn(conn), id });
        }
    }
}
