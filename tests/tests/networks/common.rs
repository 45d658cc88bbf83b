//! What the tests over real networks share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_client::{Device, Error, Reply, Request};
use holdfast_tests::Over;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::network::{Network, SERVER};
use holdfast_tests::service::{Log, Service};
use holdfast_tests::traffic::{Entrance, Plan, Report, Traffic};
use http::Method;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tokio::time::sleep;

pub(crate) const ECHO: (&str, &str) = ("Demo", "Echo");
/// Times a device has shown to be at another address.
pub(crate) const MOVES: &str = "holdfast_udp_path_validations_total";
const SESSIONS: &str = "holdfast_frontend_sessions";
/// A device that moved says something each second.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// A gateway at the network's far side.
pub(crate) async fn gateway(service: &Service, over: Over) -> Gateway {
    Gateway::builder(service).over(over).at(SERVER).start().await
}

/// Traffic of devices at the near side.
pub(crate) async fn traffic(network: &Arc<Network>, gateway: &Gateway, plan: Plan) -> Traffic {
    let entrance = Entrance {
        dial: Box::new(|id| gateway.dial_as(id).on(network.devices())),
        messages_url: gateway.api_url("/v1/messages"),
    };
    Traffic::through(&entrance, plan).await
}

/// Nothing lost, doubled or misordered, no push that was written and not seen, nobody logged out or in.
pub(crate) async fn judge(traffic: Traffic, plan: Plan, gateway: &Gateway, service: &Service) -> Report {
    // Devices are still connected when their traffic is over, and leave with the report.
    let sessions = gateway.frontends[0].metric(SESSIONS, &[]).await;
    let report = traffic.finish().await;
    assert_eq!(report.violations, []);
    assert_eq!((report.suppressed, report.answered), (0, report.sent));
    assert!(report.sent > u64::from(plan.devices), "{} requests", report.sent);
    let pushes = plan.pushes_per_second == 0 || report.pushes_written > 0;
    assert!(pushes, "no push was written");
    assert_eq!(sessions, f64::from(plan.devices));
    service.assert_contract();
    let (calls, keys) = service.log(|log| (log.calls.len() as u64, log.by_key().len() as u64));
    assert_eq!(
        (calls, keys),
        (report.sent, report.sent),
        "each reached its service once"
    );
    report
}

/// The SDK at the near side, over `udp`, which says when it hears nothing that it is there, every second.
pub(crate) struct Sdk {
    pub(crate) device: Device,
    id: &'static str,
    session: Value,
}

impl Sdk {
    pub(crate) async fn online(network: &Network, gateway: &Gateway, id: &'static str) -> Self {
        let identity = gateway.keys.identity(id);
        let key = gateway.keys.device_key(&identity);
        let builder = Device::builder_with_key(format!("udp://{}", gateway.udp()), identity, key)
            .keep_alive(Duration::from_secs(1))
            .expect_order(true)
            .seed(1);
        let started = {
            let runtime = network.devices();
            let _there = runtime.enter();
            builder.start()
        };
        let device = started.expect("good settings");
        device.wait_online().await.expect("it gets in");
        let session = session(gateway, id).await;
        Self { device, id, session }
    }

    /// A request whose reply is awaited on the devices' side, so that nobody has to be asked for it.
    pub(crate) fn ask(&self, payload: &Value) -> impl Future<Output = Result<Reply, Error>> + use<> {
        let payload = to_raw_value(payload).expect("JSON");
        let pending = self.device.send(Request::json(ECHO.0, ECHO.1, payload));
        async move { pending?.await }
    }

    /// One login, one session, without an end, and presence shows it at `address`, now or soon: a reply may come while the way back is
    /// still being proved.
    pub(crate) async fn assert_same_session(&self, gateway: &Gateway, address: IpAddr) {
        let now = session_at(gateway, self.id, |shown| shown.ip() == address).await;
        for what in ["session", "since", "channel"] {
            assert_eq!(now[what], self.session[what], "{what}: {now}");
        }
        let counters = self.device.counters();
        assert_eq!((counters.connects(), counters.violations()), (1, 0));
    }
}

/// The device's only session, as presence shows it.
pub(crate) async fn session(gateway: &Gateway, id: &str) -> Value {
    let path = format!("/v1/devices/{id}");
    let presence = gateway.api(Method::GET, &path, None).await.json();
    let sessions = presence["sessions"].as_array();
    assert_eq!(sessions.map(Vec::len), Some(1), "{presence}");
    presence["sessions"][0].clone()
}

/// The same, once its address is the one that is awaited.
pub(crate) async fn session_at(gateway: &Gateway, id: &str, is_it: impl Fn(SocketAddr) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = session(gateway, id).await;
        let shown = now["address"].as_str().and_then(|shown| shown.parse().ok());
        if shown.is_some_and(&is_it) {
            return now;
        }
        assert!(Instant::now() < deadline, "{now} did not move");
        sleep(POLL).await;
    }
}

/// Something to ask for that the service answers only when it is told.
pub(crate) fn held(n: usize, bytes: usize) -> Value {
    json!({"hold": true, "n": n, "pad": "x".repeat(bytes)})
}

/// Each of `count` requests reached its service once.
pub(crate) fn assert_each_once(service: &Service, count: usize) {
    assert_eq!(service.calls().len(), count, "each once");
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    service.assert_contract();
}
