//! Leaving in good order, coming back, and refusing to start.

use std::process::Command;

use holdfast_tests::gateway::{Gateway, locate};
use holdfast_tests::service::Service;
use holdfast_tests::{Over, over_each_channel};
use nix::sys::signal::Signal;
use serde_json::json;

over_each_channel! {
    a_leaving_backend_finishes_what_it_has,
    a_leaving_frontend_says_goodbye,
    the_backend_attaches_to_a_restarted_frontend_by_itself,
}

const ECHO: (&str, &str) = ("Demo", "Echo");

#[tokio::test(flavor = "multi_thread")]
async fn both_end_with_exit_code_0_on_sigterm_and_sigint() {
    let service = Service::start().await;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut gateway = Gateway::start(&service).await;
        gateway.backends[0].signal(signal);
        assert_eq!(
            gateway.backends[0].wait_exit().await.code(),
            Some(0),
            "backend, {signal}"
        );
        gateway.frontends[0].signal(signal);
        assert_eq!(
            gateway.frontends[0].wait_exit().await.code(),
            Some(0),
            "frontend, {signal}"
        );
    }
}

/// P4: what the leaving backend has is finished by it, once; what is new goes to the other.
async fn a_leaving_backend_finishes_what_it_has(over: Over) {
    const REQUESTS: usize = 10;
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    for n in 0..REQUESTS {
        device.request(ECHO, &n.to_string(), &json!({"hold": true})).await;
    }
    service.wait_for_calls(REQUESTS).await;
    gateway.add_backend().await;
    gateway.backends[0].signal(Signal::SIGTERM);
    gateway.frontends[0]
        .wait_for_metric("holdfast_link_backends_active", |n| n == 1.0)
        .await;
    let mut other = gateway.device("other").await;
    other.request(ECHO, "new", &json!({})).await;
    other.next_reply().await;
    service.release();
    for n in 0..REQUESTS {
        assert_eq!(device.next_reply().await.reply_to, n.to_string());
    }
    assert_eq!(gateway.backends[0].wait_exit().await.code(), Some(0));
    device.request(ECHO, "next", &json!({})).await;
    device.next_reply().await;
    let once = service.calls().iter().all(|c| c.attempt == 1);
    assert!(
        once && service.calls().len() == REQUESTS + 2,
        "each request reached its service once"
    );
}

/// Its API stays until it is done: who asks is told, and sent elsewhere by `Connection: close`.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_backend_says_that_it_drains() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    gateway.backends[0].signal(Signal::SIGTERM);
    gateway.backends[0].wait_for_status("/ready", 503).await;
    let answer = gateway.api(http::Method::GET, "/v1/devices/d", None).await;
    assert_eq!(answer.header("connection"), "close");
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
    assert_eq!(gateway.backends[0].wait_exit().await.code(), Some(0));
}

async fn a_leaving_frontend_says_goodbye(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    gateway.frontends[0].signal(Signal::SIGTERM);
    let (goodbye, code) = device.until_closed().await;
    assert_eq!(code, 1001);
    let goodbye = goodbye.expect("a @goodbye before the close");
    assert_eq!(
        (&goodbye["code"], &goodbye["reconnect"]),
        (&json!("going_away"), &json!(true))
    );
    assert_eq!(gateway.frontends[0].wait_exit().await.code(), Some(0));
}

/// Also after `kill -9`, which leaves its socket file and lock behind.
async fn the_backend_attaches_to_a_restarted_frontend_by_itself(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let mut sessions = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        gateway.frontends[0].signal(signal);
        gateway.frontends[0].wait_exit().await;
        gateway.frontends[0].restart().await;
        let mut device = gateway.dial_as("d").connect().await.expect("it gets in");
        sessions.push(device.hello().await["session"].to_string());
        device.request(ECHO, "x", &json!({})).await;
        device.next_reply().await;
        let answer = gateway.push(json!({"device": "d"}), json!(1)).await;
        assert_eq!(answer["results"][0]["status"], "written", "{answer}");
        device.next_push().await;
    }
    assert_ne!(sessions[0], sessions[1], "an address is never given twice");
}

/// A second frontend on the same data directory would mint the same session ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_has_one_frontend() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let second = Command::new(locate("holdfast-frontend"))
        .arg("--config")
        .arg(gateway.path("frontend1.toml"))
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(!second.stderr.is_empty());
    let mut device = gateway.device("d").await;
    device.request(ECHO, "x", &json!({})).await;
    device.next_reply().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_config_is_one_clear_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for binary in ["holdfast-frontend", "holdfast-backend"] {
        let config = dir.path().join("bad.toml");
        std::fs::write(&config, "no_such_key = 1\n").unwrap();
        let missing = dir.path().join("missing.toml");
        for path in [&config, &missing] {
            let output = Command::new(locate(binary))
                .arg("--config")
                .arg(path)
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{binary} {}: {stderr}",
                path.display()
            );
            assert_eq!(stderr.trim_end().lines().count(), 1, "{binary}: {stderr}");
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(stderr.contains(name), "{binary} does not name the file: {stderr}");
        }
    }
}
