//! The new backend is no good: the old one goes on, untouched, and the report says why.

use std::sync::atomic::Ordering;

use holdfast_tests::gateway::{Following, Supervised, is_running, route, send};
use holdfast_tests::service::Service;
use holdfast_tests::traffic::{Plan, Traffic};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::load::Devices;

const PLAN: Plan = Plan {
    devices: 60,
    per_second: 200,
    payload_bytes: 100,
    max_delay_ms: 20,
    pushes_per_second: 0,
};
const WATCHED: [&str; 4] = ["--canary", "40%", "--watch", "60s"];

/// Checks that the upgrade was rolled back for `reason` and that nothing of it is left; gives its report.
async fn assert_rolled_back(up: &Supervised, upgrade: &mut Following, old: i32, reason: &str) -> Value {
    let (end, status) = upgrade.end().await;
    assert_eq!(
        (&end["outcome"], &end["reason"]),
        (&json!("rolled_back"), &json!(reason)),
        "{end}"
    );
    assert_eq!(status.code(), Some(1));
    assert!(is_running(old), "the old one goes on");
    let json = up.json();
    assert_eq!(
        (&json["backend_pid"], &json["backend_name"]),
        (&json!(old), &json!("backend-1"))
    );
    if let Some(new) = end["report"]["new"]["pid"].as_i64() {
        assert!(!is_running(new as i32), "the new one is gone");
    }
    assert_eq!(up.attached().await, ["backend-1"]);
    assert!(!up.path("control/backend-2.sock").exists() || reason == "crashed" || reason == "unwell");
    let output = up.run(&["device", "--count", "3"]).await;
    assert!(output.status.success(), "{output:?}");
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_never_ready() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let sleeps = up.script("sleeps", "exec sleep 600");
    let mut upgrade = up.upgrade(&["--binary", &sleeps, "--ready-timeout", "1s"]);
    let end = assert_rolled_back(&up, &mut upgrade, old, "not_ready").await;
    assert_eq!(end["detail"], "it was not ready within 1s");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_exits_at_once() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let exits = up.script("exits", "echo the reason >&2; exit 3");
    let mut upgrade = up.upgrade(&["--binary", &exits]);
    let end = assert_rolled_back(&up, &mut upgrade, old, "exited").await;
    assert!(
        end["detail"].as_str().unwrap().contains("exit status: 3"),
        "{end}"
    );
    assert!(end["report"]["notes"].to_string().contains("the reason"), "{end}");
}

/// What the crashed one had is given to the old one: no device notices.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_crashes_in_the_watch() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let traffic = Traffic::through(&up.entrance(), PLAN).await;
    let mut upgrade = up.upgrade(&WATCHED);
    upgrade
        .until("work", |event| event["new"]["requests"].as_u64() > Some(20))
        .await;
    send(new_pid(&up).await, Signal::SIGKILL);
    let end = assert_rolled_back(&up, &mut upgrade, old, "crashed").await;
    assert!(end["detail"].as_str().unwrap().contains("signal: 9"), "{end}");
    assert!(end["report"]["new"]["requests"].as_u64() > Some(20), "{end}");
    assert_unnoticed(traffic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_in_the_watch() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let traffic = Traffic::through(&up.entrance(), PLAN).await;
    let mut upgrade = up.upgrade(&WATCHED);
    upgrade
        .until("work", |event| event["new"]["requests"].as_u64() > Some(20))
        .await;
    send(new_pid(&up).await, Signal::SIGSTOP);
    let end = assert_rolled_back(&up, &mut upgrade, old, "unwell").await;
    assert!(end["report"]["notes"].to_string().contains("was killed"), "{end}");
    assert_unnoticed(traffic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_with_errors() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let mut nowhere = route(&service);
    nowhere.namespace = "Elsewhere".into();
    let wrong = up.with_routes("wrong", &[nowhere]);
    let devices = Devices::start(&up, 40).await;
    let mut upgrade = up.upgrade(&[&["--binary", &wrong], &WATCHED[..]].concat());
    let end = assert_rolled_back(&up, &mut upgrade, old, "errors").await;
    let report = &end["report"];
    assert_eq!(report["new"]["requests"], report["new"]["errors"], "{end}");
    assert_eq!(
        report["new"]["errors_by_code"]["no_route"], report["new"]["errors"],
        "{end}"
    );
    assert_eq!(report["old"]["errors"], 0, "{end}");
    let detail = end["detail"].as_str().unwrap();
    assert_eq!(
        detail,
        "it answered 100.00 % of its requests with errors, the old one 0.00 %"
    );
    let counts = devices.finish().await;
    assert!(counts.replies.load(Ordering::Relaxed) > 0);
    assert!(counts.errors.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_much_slower() {
    let (service, slow) = (Service::start().await, Service::start().await);
    slow.slow(std::time::Duration::from_millis(300));
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let slower = up.with_routes("slower", &[route(&slow)]);
    let devices = Devices::start(&up, 60).await;
    let mut upgrade = up.upgrade(&[&["--binary", &slower], &WATCHED[..]].concat());
    let end = assert_rolled_back(&up, &mut upgrade, old, "slow").await;
    let p95 = |side: &str| end["report"][side]["p95_us"].as_u64().unwrap();
    assert!(p95("new") >= 250_000 && p95("new") > 2 * p95("old"), "{end}");
    assert_eq!(devices.finish().await.errors.load(Ordering::Relaxed), 0);
}

async fn new_pid(up: &Supervised) -> i32 {
    let status = up.control("backend-2", "/status").await;
    status["pid"].as_i64().unwrap() as i32
}

async fn assert_unnoticed(traffic: Traffic) {
    traffic.settle().await;
    let report = traffic.finish().await;
    assert_eq!((report.violations, report.suppressed), (vec![], 0));
    assert_eq!(report.answered, report.sent);
}
