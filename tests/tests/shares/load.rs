//! Sessions that move while they are busy.

use std::time::Duration;

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use holdfast_tests::traffic::{Plan, Traffic};
use nix::sys::signal::Signal;
use serde_json::json;

const PLAN: Plan = Plan {
    devices: 100,
    per_second: 400,
    payload_bytes: 200,
    max_delay_ms: 100,
    pushes_per_second: 0,
};

/// Lets the traffic do this much more.
async fn more(gateway: &Gateway, requests: f64) {
    const TAKEN: &str = "holdfast_frontend_requests_total";
    let before = gateway.frontends[0].metric(TAKEN, &[]).await;
    gateway.frontends[0]
        .wait_for_metric(TAKEN, |n| n >= before + requests)
        .await;
}

/// P2, P3, P4: each request is answered once, in order, and reached its service once, without a replay.
async fn judge(traffic: Traffic, service: &Service) {
    let report = traffic.finish().await;
    assert_eq!(report.violations, []);
    assert_eq!((report.suppressed, report.answered), (0, report.sent));
    service.assert_contract();
    let (calls, keys) = service.log(|log| (log.calls.len() as u64, log.by_key().len() as u64));
    assert_eq!(
        (calls, keys),
        (report.sent, report.sent),
        "each request reached its service once"
    );
    assert!(service.calls().iter().all(|c| c.attempt == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_come_and_leave_under_load_move_sessions_and_lose_nothing() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let traffic = Traffic::start(&gateway, PLAN).await;
    for old in 0..3 {
        more(&gateway, 200.0).await;
        let new = gateway.add_backend_as(&["--share", "10%"], &[]).await;
        more(&gateway, 100.0).await;
        gateway.control(new).share(100.0).await;
        more(&gateway, 100.0).await;
        gateway.backends[old].signal(Signal::SIGTERM);
        assert_eq!(gateway.backends[old].wait_exit().await.code(), Some(0));
    }
    more(&gateway, 200.0).await;
    let status = gateway.status(0).await;
    assert_eq!(status["sessions"], PLAN.devices);
    let ends: Vec<_> = status["hand_overs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| (&h["kind"], &h["backend"]))
        .collect();
    let (kind, name) = (json!("graceful"), |n| json!(format!("backend{n}")));
    assert_eq!(ends, [(&kind, &name(3)), (&kind, &name(2)), (&kind, &name(1))]);
    judge(traffic, &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_that_change_all_the_time_under_load_lose_nothing() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let traffic = Traffic::start(&gateway, PLAN).await;
    gateway.add_backend_as(&["--share", "0%"], &[]).await;
    gateway.add_backend_as(&["--share", "60%"], &[]).await;
    for round in 0..20 {
        // The first stays full, so that there is always one; two canaries come to more than the whole at times.
        gateway.control(1).share(f64::from(round * 37 % 101)).await;
        gateway.control(2).share(f64::from(round * 73 % 101)).await;
        more(&gateway, 40.0).await;
    }
    gateway.control(1).share(0.0).await;
    gateway.control(2).share(0.0).await;
    let gone = async {
        for backend in [1, 2] {
            while gateway.status_of(0, backend).await["in_flight"] != 0 {
                tokio::task::yield_now().await;
            }
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(30), gone).await;
    assert!(gone.is_ok(), "a standby comes to have nothing");
    let before = [
        gateway.control(1).answered().await,
        gateway.control(2).answered().await,
    ];
    assert!(before.iter().all(|n| *n > 0));
    more(&gateway, 200.0).await;
    assert_eq!(
        [
            gateway.control(1).answered().await,
            gateway.control(2).answered().await
        ],
        before
    );
    assert_eq!(
        gateway.status(0).await["hand_overs"],
        json!([]),
        "all stayed attached"
    );
    judge(traffic, &service).await;
}
