//! What cannot be done is refused in a line that says why, and nothing changes. And the commands beside the upgrade.

use std::time::Duration;

use holdfast_tests::gateway::{Supervised, locate};
use holdfast_tests::service::Service;
use serde_json::{Value, json};

/// Fails with exit code 1 and one line, which is given.
async fn refused(up: &Supervised, args: &[&str]) -> String {
    let output = up.run(args).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), error.lines().count()),
        (Some(1), 1),
        "{args:?}: {error}"
    );
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_that_cannot_run_here_changes_nothing() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let before = up.json();
    let plain = up.path("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let mut other = std::fs::read(locate("holdfast-backend")).unwrap();
    other.truncate(4_096);
    // e_machine of elf(5): x86_64 is 62, aarch64 183.
    other[18] = if other[18] == 183 { 62 } else { 183 };
    let foreign = up.script("foreign", "");
    std::fs::write(&foreign, other).unwrap();
    for (path, reason) in [
        (up.path("missing").to_str().unwrap(), "there is no"),
        (plain.to_str().unwrap(), "is not executable"),
        (&foreign, "is a program for"),
        ("/tmp", "is not a file"),
    ] {
        let error = refused(&up, &["upgrade", "backend", "--binary", path]).await;
        assert!(
            error.contains("binary_unusable") && error.contains(path) && error.contains(reason),
            "{error}"
        );
    }
    assert_eq!(up.json(), before);
    assert_eq!(up.control("up", "/v1/upgrades").await, json!({"upgrades": []}));
    let (end, _) = up.upgrade(&["--no-canary"]).end().await;
    assert_eq!(
        (&end["outcome"], &end["report"]["new"]["name"]),
        (&json!("promoted"), &json!("backend-2"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_set_by_hand_and_seen_in_the_status() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let set = up.run(&["share", "backend-1", "12.5%"]).await;
    assert!(
        String::from_utf8_lossy(&set.stdout).contains("takes 12.5 % of the devices"),
        "{set:?}"
    );
    wait_for_share(&up, 12.5).await;
    let directory = up.path("control");
    let by_directory = [
        "share",
        "backend-1",
        "100%",
        "--control-dir",
        directory.to_str().unwrap(),
    ];
    assert!(up.run(&by_directory).await.status.success());
    wait_for_share(&up, 100.0).await;
    let nobody = refused(&up, &["share", "backend-7", "5%"]).await;
    assert!(nobody.contains("backend-7"), "{nobody}");
}

async fn wait_for_share(up: &Supervised, percent: f64) {
    let wait = async {
        while up.frontend_status().await["backends"][0]["share_percent"] != percent {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
    assert!(waited.is_ok(), "{}", up.frontend_status().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_of_backends_hand_overs_and_upgrades() {
    let service = Service::start().await;
    let up = Supervised::start(&service, "").await;
    let (end, _) = up.upgrade(&["--no-canary"]).end().await;
    assert_eq!(end["outcome"], "promoted", "{end}");
    let output = up.run(&["status", "--json"]).await;
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let backends = status["backends"].as_array().unwrap();
    assert_eq!(
        (backends.len(), &backends[0]["name"]),
        (1, &json!("backend-2")),
        "{status}"
    );
    assert!(
        backends[0]["build"].is_string() && backends[0]["epoch"] != Value::Null,
        "{status}"
    );
    assert_eq!(status["hand_overs"][0]["kind"], "graceful", "{status}");
    assert_eq!(status["upgrade"]["end"]["outcome"], "promoted", "{status}");
    assert_eq!(status["frontend"]["sessions"], 0, "{status}");
    let table = up.run(&["status"]).await;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for part in [
        "frontend",
        "backend-2",
        "last hand-overs",
        "graceful",
        "1 to backend-2: promoted",
    ] {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
    let admin = up.json()["frontend_admin"].as_str().unwrap().to_owned();
    let alone = up.run(&["status", "--admin", &admin]).await;
    assert!(alone.status.success() && String::from_utf8_lossy(&alone.stdout).contains("backend-2"));
}
