//! What the two backends do not say of themselves: losses that only the frontend saw, and what happens after the point of no
//! return.

use holdfast_tests::device::Device;
use holdfast_tests::gateway::{Supervised, is_running, send};
use holdfast_tests::service::Service;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A device whose request the service holds, so that the backend which has it cannot leave.
async fn device_with_a_held_request(up: &Supervised, service: &Service) -> Device {
    let mut device = up.dial_as("held").connect().await.unwrap();
    device.hello().await;
    device
        .request(("Demo", "Echo"), "held", &json!({"hold": true}))
        .await;
    service.wait_for_calls(1).await;
    device
}

/// Waits until the frontend has lost this backend in such a way.
async fn wait_for_loss(up: &Supervised, backend: &str, kind: &str) {
    let is_it = |end: &Value| end["backend"] == backend && end["kind"] == kind;
    while !up.frontend_status().await["hand_overs"]
        .as_array()
        .unwrap()
        .iter()
        .any(is_it)
    {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// It answers whenever it is asked, but for a moment it did not: its devices' requests were given to the old one.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_its_frontend_loses_for_a_moment_is_rolled_back() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let mut upgrade = up.upgrade(&["--canary", "50%", "--watch", "60s"]);
    upgrade.until("figures", |event| event["event"] == "watch").await;
    let new = up.control("backend-2", "/status").await["pid"].as_i64().unwrap() as i32;
    send(new, Signal::SIGSTOP);
    wait_for_loss(&up, "backend-2", "hang").await;
    send(new, Signal::SIGCONT);
    let (end, status) = upgrade.end().await;
    assert_eq!(
        (&end["outcome"], &end["reason"], status.code()),
        (&json!("rolled_back"), &json!("lost"), Some(1)),
        "{end}"
    );
    let report = &end["report"];
    assert_eq!(
        (&report["old"]["lost"], &report["new"]["lost"]),
        (&json!(0), &json!(1)),
        "{end}"
    );
    assert_eq!(report["compared"]["losses"], true, "{end}");
    assert!(is_running(old) && !is_running(new));
    assert_eq!(up.attached().await, ["backend-1"]);
}

/// There is no way back then: it is started again, and who watches learns of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_one_that_crashes_while_the_old_one_leaves_is_started_again_and_told() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let mut device = device_with_a_held_request(&up, &service).await;
    let mut upgrade = up.upgrade(&["--no-canary"]);
    upgrade.until_phase("draining").await;
    up.wait_for_json("the new backend", |json| json["backend_name"] == "backend-2")
        .await;
    let new = up.pid("backend_pid");
    send(new, Signal::SIGKILL);
    upgrade
        .until("a note of its death", |event| {
            event["text"]
                .as_str()
                .is_some_and(|text| text.contains("it is started again"))
        })
        .await;
    up.wait_for_json("another process", |json| json["backend_pid"] != new)
        .await;
    service.release();
    let (end, _) = upgrade.end().await;
    assert_eq!(end["outcome"], "promoted", "{end}");
    let notes = end["report"]["notes"].to_string();
    assert!(
        notes.contains("the new one ended once while the old one left") && notes.contains("signal: 9"),
        "{end}"
    );
    assert_eq!(device.next_reply().await.reply_to, "held");
    assert_eq!(up.attached().await, ["backend-2"]);
    let output = up.run(&["device", "--count", "5"]).await;
    assert!(output.status.success(), "{output:?}");
}

/// The last look at it is short: whoever asked for the upgrade waits for its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_that_hangs_does_not_hold_the_end_up() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "drain_grace = \"1s\"").await;
    let _device = device_with_a_held_request(&up, &service).await;
    let mut upgrade = up.upgrade(&["--no-canary"]);
    upgrade.until_phase("draining").await;
    let frontend = up.pid("frontend_pid");
    send(frontend, Signal::SIGSTOP);
    let (end, _) = upgrade.end().await;
    send(frontend, Signal::SIGCONT);
    assert_eq!(
        (&end["outcome"], &end["report"]["hand_over"]),
        (&json!("promoted"), &Value::Null),
        "{end}"
    );
    // Its grace is 1 s, and the look back at most twice 3 s; half a minute was too long.
    let took_ms = end["report"]["took_ms"].as_u64().unwrap();
    assert!(took_ms < 30_000, "{end}");
}
