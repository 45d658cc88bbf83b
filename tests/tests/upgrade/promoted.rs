//! The new backend takes over.

use std::os::unix::fs::MetadataExt as _;

use holdfast_tests::gateway::{Supervised, is_running, locate, send};
use holdfast_tests::service::Service;
use holdfast_tests::traffic::{Plan, Traffic};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::load::Callers;

const PLAN: Plan = Plan {
    devices: 100,
    per_second: 300,
    payload_bytes: 200,
    // A new backend may take twice as long as the old one: next to these a short stall of one of the two is little.
    max_delay_ms: 300,
    pushes_per_second: 20,
};
const ECHO: (&str, &str) = ("Demo", "Echo");

/// P1 to P4, without and with a canary; API calls run through both.
#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_load_are_noticed_by_nobody() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let traffic = Traffic::through(&up.entrance(), PLAN).await;
    let callers = Callers::start(&up);
    let first = up.pid("backend_pid");

    let mut plain = up.upgrade(&["--no-canary"]);
    let (end, status) = plain.end().await;
    assert_eq!(
        (&end["outcome"], status.code()),
        (&json!("promoted"), Some(0)),
        "{end}"
    );
    assert_eq!(end["report"]["hand_over"]["kind"], "graceful", "{end}");
    assert!(!is_running(first));

    let binary = up.path("holdfast-backend-new");
    std::fs::copy(locate("holdfast-backend"), &binary).unwrap();
    let binary = binary.to_str().unwrap();
    let mut canary = up.upgrade(&["--binary", binary, "--canary", "25%", "--watch", "3s"]);
    let watch = canary
        .until("figures of both", |event| {
            event["new"]["requests"].as_u64() > Some(0) && event["old"]["requests"].as_u64() > Some(0)
        })
        .await;
    assert_eq!(watch["share_percent"], 25.0);
    let (end, status) = canary.end().await;
    assert_eq!(
        (&end["outcome"], status.code()),
        (&json!("promoted"), Some(0)),
        "{end}"
    );
    let report = &end["report"];
    assert_eq!(report["hand_over"]["kind"], "graceful", "{end}");
    assert_eq!(report["compared"]["errors"], true, "{end}");
    assert_eq!(
        (&report["old"]["errors"], &report["new"]["errors"]),
        (&json!(0), &json!(0))
    );

    traffic.settle().await;
    callers.finish().await;
    let report = traffic.finish().await;
    assert_eq!((report.violations, report.suppressed), (vec![], 0));
    assert_eq!(report.answered, report.sent);
    assert!(report.pushes_written > 0);
    service.assert_contract();
    service.log(|log| {
        let calls = log.by_key();
        assert_eq!(
            calls.len() as u64,
            report.sent,
            "every request reached the service"
        );
        assert!(calls.values().all(|calls| calls.len() == 1), "once");
    });
    assert_eq!(up.attached().await, ["backend-3"]);
}

/// up.json stays true, and what is started again is what was upgraded to, even when its file has been replaced since.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_an_upgrade_starts_the_new_program_again() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let binary = up.path("holdfast-backend-new");
    std::fs::copy(locate("holdfast-backend"), &binary).unwrap();
    let inode = std::fs::metadata(&binary).unwrap().ino();
    let named = binary.to_str().unwrap().to_owned();
    let (end, _) = up.upgrade(&["--binary", &named, "--no-canary"]).end().await;
    assert_eq!(end["outcome"], "promoted", "{end}");
    let json = up.json();
    assert_eq!(
        (&json["backend_name"], &json["backend_bin"]),
        (&json!("backend-2"), &json!(named))
    );
    assert_eq!(json["backend_pid"], end["report"]["new"]["pid"]);

    std::fs::remove_file(&binary).unwrap();
    up.script("holdfast-backend-new", "exit 1");
    let before = up.pid("backend_pid");
    send(before, Signal::SIGKILL);
    up.wait_for_json("a new backend", |json| json["backend_pid"] != before)
        .await;
    let program = std::fs::metadata(format!("/proc/{}/exe", up.pid("backend_pid"))).unwrap();
    assert_eq!(program.ino(), inode);
    assert_eq!(
        (up.json()["backend_restarts"].as_u64(), up.attached().await),
        (Some(1), vec!["backend-2".into()])
    );
    let output = up.run(&["device", "--count", "5"]).await;
    assert!(output.status.success(), "{output:?}");
}

/// The old one's work is given to the new one when its grace is over, and the report says so.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_one_that_does_not_finish_in_time_is_left_behind() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "drain_grace = \"1s\"").await;
    let mut device = up.dial_as("d").connect().await.unwrap();
    device.hello().await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    let (end, status) = up.upgrade(&["--no-canary"]).end().await;
    assert_eq!(
        (&end["outcome"], status.code()),
        (&json!("promoted"), Some(0)),
        "{end}"
    );
    let hand_over = &end["report"]["hand_over"];
    assert_eq!(
        (&hand_over["kind"], &hand_over["requests"]),
        (&json!("grace_over"), &json!(1)),
        "{end}"
    );
    service.wait_for_calls(2).await;
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
    let calls = service.calls();
    assert_eq!(
        (calls[0].key, calls[0].attempt, calls[1].attempt),
        (calls[1].key, 1, 2)
    );
}

/// One that hangs cannot even leave: it is killed once it has had the time that it could ask for.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_one_that_hangs_is_killed() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "drain_grace = \"1s\"").await;
    let old = up.pid("backend_pid");
    let mut upgrade = up.upgrade(&["--canary", "50%", "--watch", "1s"]);
    upgrade.until_phase("canary").await;
    send(old, Signal::SIGSTOP);
    let (end, _) = upgrade.end().await;
    assert_eq!(end["outcome"], "promoted", "{end}");
    assert!(end["report"]["notes"].to_string().contains("was killed"), "{end}");
    assert!(!is_running(old));
    let output = up.run(&["device", "--count", "5"]).await;
    assert!(output.status.success(), "{output:?}");
}

/// That the old one crashes says nothing against the new one: it is started again, and the watch goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_one_that_crashes_in_the_watch_is_started_again_and_replaced_at_its_end() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let old = up.pid("backend_pid");
    let mut upgrade = up.upgrade(&["--canary", "50%", "--watch", "3s"]);
    upgrade
        .until("the first figures", |event| event["event"] == "watch")
        .await;
    send(old, Signal::SIGKILL);
    upgrade
        .until("a note", |event| {
            event["text"]
                .as_str()
                .is_some_and(|text| text.contains("started again"))
        })
        .await;
    let (end, _) = upgrade.end().await;
    assert_eq!(
        (&end["outcome"], &end["report"]["old"]["restarts"]),
        (&json!("promoted"), &json!(1)),
        "{end}"
    );
    assert_eq!(up.attached().await, ["backend-2"]);
    assert_eq!(up.json()["backend_name"], "backend-2");
}
