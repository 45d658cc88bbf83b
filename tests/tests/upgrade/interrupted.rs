//! Who asked, who supervises, or a second asker gets in between.

use std::time::Duration;

use holdfast_tests::device::Device;
use holdfast_tests::gateway::{Supervised, is_running};
use holdfast_tests::service::Service;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ECHO: (&str, &str) = ("Demo", "Echo");
const LONG_WATCH: [&str; 4] = ["--canary", "40%", "--watch", "60s"];

/// A device whose request the service holds, so that the backend which has it cannot leave.
async fn device_with_a_held_request(up: &Supervised, service: &Service) -> Device {
    let mut device = up.dial_as("held").connect().await.unwrap();
    device.hello().await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    device
}

/// The record of the last upgrade, once it is over.
async fn last_end(up: &Supervised) -> Value {
    loop {
        let record = up.control("up", "/v1/upgrades").await["upgrades"][0].clone();
        if !record["end"].is_null() {
            return record["end"].clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_before_the_promotion_rolls_back() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let sleeps = up.script("sleeps", "exec sleep 600");
    let starting = [&["--binary", sleeps.as_str()], &LONG_WATCH[..]].concat();
    for (args, phase) in [(&starting[..], "starting"), (&LONG_WATCH[..], "canary")] {
        let mut upgrade = up.upgrade(args);
        upgrade.until_phase(phase).await;
        upgrade.signal(Signal::SIGINT);
        let (end, status) = upgrade.end().await;
        assert_eq!(
            (&end["outcome"], &end["reason"]),
            (&json!("rolled_back"), &json!("cancelled")),
            "{end}"
        );
        assert_eq!(status.code(), Some(1));
        let said = upgrade.stderr().await;
        assert!(said.contains("interrupted: rolling back"), "{said}");
        assert!(is_running(old) && !is_running(end["report"]["new"]["pid"].as_i64().unwrap() as i32));
        assert_eq!(up.attached().await, ["backend-1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_after_the_promotion_is_too_late() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let mut device = device_with_a_held_request(&up, &service).await;
    let mut upgrade = up.upgrade(&["--no-canary"]);
    upgrade.until_phase("draining").await;
    upgrade.signal(Signal::SIGINT);
    // The old one cannot leave before this, so the signal has been dealt with by then or is none of the upgrade's.
    let mut lines = String::new();
    while !lines.contains("too_late") {
        lines.push_str(&upgrade.stderr_line().await);
    }
    service.release();
    let (end, status) = upgrade.end().await;
    assert_eq!(
        (&end["outcome"], status.code()),
        (&json!("promoted"), Some(0)),
        "{end}"
    );
    assert_eq!(device.next_reply().await.reply_to, "held");
    assert_eq!(service.calls().len(), 1, "once at the service");
    assert_eq!(up.attached().await, ["backend-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asker_that_is_killed_before_the_promotion_means_no() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let mut upgrade = up.upgrade(&LONG_WATCH);
    upgrade.until_phase("canary").await;
    upgrade.signal(Signal::SIGKILL);
    let end = last_end(&up).await;
    assert_eq!(
        (&end["outcome"], &end["reason"]),
        (&json!("rolled_back"), &json!("asker_gone")),
        "{end}"
    );
    assert_eq!(up.attached().await, ["backend-1"]);
    // Nothing stands in the way of the next one.
    let (end, _) = up.upgrade(&["--no-canary"]).end().await;
    assert_eq!(end["outcome"], "promoted", "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asker_that_is_killed_after_the_promotion_changes_nothing() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let _device = device_with_a_held_request(&up, &service).await;
    let mut upgrade = up.upgrade(&["--no-canary"]);
    upgrade.until_phase("draining").await;
    upgrade.signal(Signal::SIGKILL);
    upgrade.process.wait().await.unwrap();
    service.release();
    assert_eq!(last_end(&up).await["outcome"], "promoted");
    assert_eq!(up.attached().await, ["backend-2"]);
    assert_eq!(up.json()["backend_name"], "backend-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_upgrade_is_refused_at_once() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let mut first = up.upgrade(&LONG_WATCH);
    first.until_phase("canary").await;
    let second = up.run(&["upgrade", "backend", "--no-canary"]).await;
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(
        (second.status.code(), error.lines().count()),
        (Some(1), 1),
        "{error}"
    );
    assert!(
        error.contains("upgrade_in_progress") && error.contains("backend-2"),
        "{error}"
    );
    let running = up.control("up", "/v1/upgrades").await;
    assert_eq!(running["upgrades"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&running["upgrades"][0]["phase"], &running["upgrades"][0]["end"]),
        (&json!("canary"), &Value::Null)
    );
    first.signal(Signal::SIGINT);
    assert_eq!(first.end().await.0["outcome"], "rolled_back");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_up_in_the_watch_stops_everything() {
    let service = Service::start().await;
    let mut up = Supervised::start(&service, "").await;
    let mut upgrade = up.upgrade(&LONG_WATCH);
    upgrade.until("figures", |event| event["event"] == "watch").await;
    let new = up.control("backend-2", "/status").await["pid"].as_i64().unwrap() as i32;
    let pids = [up.pid("frontend_pid"), up.pid("backend_pid"), new];
    up.signal(Signal::SIGTERM);
    let (end, status) = upgrade.end().await;
    assert_eq!(
        (&end["outcome"], &end["reason"]),
        (&json!("rolled_back"), &json!("stopping")),
        "{end}"
    );
    assert_eq!(status.code(), Some(1));
    assert_eq!(up.process.wait().await.unwrap().code(), Some(0));
    assert_eq!(pids.map(is_running), [false; 3]);
    assert!(!up.path("up.json").exists() && !up.path("control/up.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_up_while_the_old_one_leaves_stops_everything() {
    let service = Service::start().await;
    let mut up = Supervised::start(&service, "drain_grace = \"2s\"").await;
    let _device = device_with_a_held_request(&up, &service).await;
    let old = up.pid("backend_pid");
    let mut upgrade = up.upgrade(&["--no-canary"]);
    upgrade.until_phase("draining").await;
    up.wait_for_json("the new backend", |json| json["backend_name"] == "backend-2")
        .await;
    let pids = [up.pid("frontend_pid"), up.pid("backend_pid"), old];
    up.signal(Signal::SIGTERM);
    let (end, _) = upgrade.end().await;
    assert_eq!(end["outcome"], "promoted", "{end}");
    assert_eq!(up.process.wait().await.unwrap().code(), Some(0));
    assert_eq!(pids.map(is_running), [false; 3]);
}
