//! A device that shares no code with us: `python/device.py`, on a plain WebSocket library and a Noise library.

use std::process::{Command, Output};
use std::time::Duration;

use holdfast_tests::gateway::{API_KEY, Gateway, Route};
use holdfast_tests::history::digest;
use holdfast_tests::keys::TokenKey;
use holdfast_tests::python::{interpreter, manifest, run};
use holdfast_tests::service::{Log, Service};
use holdfast_tests::{Over, over_one_channel};
use serde_json::{Value, json};

mod ws {
    over_one_channel! { Ws: an_independent_device_gets_all_that_the_protocol_promises }
}
mod wss {
    over_one_channel! { Wss: an_independent_device_gets_all_that_the_protocol_promises }
}
mod udp {
    over_one_channel! { Udp: an_independent_device_gets_all_that_the_protocol_promises }
}
mod lossy_udp {
    over_one_channel! { LossyUdp: an_independent_device_gets_all_that_the_protocol_promises }
}

/// Requests that are in flight when the backend dies.
const CRASH_REQUESTS: usize = 10;
const CRASH_PATH: &str = "/crash";
/// A request here asks for the frontend to be killed and started again.
const RESTART_PATH: &str = "/restart";
const DEVICE: &str = "python";
const POLL: Duration = Duration::from_millis(50);
/// Short enough to wait for, long enough for a busy machine.
const PING_AFTER_MS: u64 = 1000;
const CLOSE_AFTER_MS: u64 = 4000;
/// The device connects some hundred times.
const ATTEMPTS: i64 = 1000;
/// So that a device that keeps silent after the challenge is soon told.
const CHALLENGE_MS: u64 = 4000;

async fn an_independent_device_gets_all_that_the_protocol_promises(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service)
        .routes(vec![
            Route::new("Demo", service.url("/demo")),
            Route::new("Crash", service.url(CRASH_PATH)),
            Route::new("Restart", service.url(RESTART_PATH)),
        ])
        .frontend_set("times.ping_after", format!("{PING_AFTER_MS}ms"))
        .frontend_set("times.close_after", format!("{CLOSE_AFTER_MS}ms"))
        .frontend_set("times.challenge", format!("{CHALLENGE_MS}ms"))
        .backend_set("device_keys.attempts_burst", ATTEMPTS)
        .start()
        .await;
    let arguments = arguments(&gateway, over);
    let python = tokio::task::spawn_blocking(interpreter)
        .await
        .expect("it does not panic");
    let mut device = tokio::process::Command::new(python);
    device
        .arg(manifest("python/device.py"))
        .arg(arguments.to_string())
        .kill_on_drop(true);
    let output = tokio::select! {
        output = device.output() => output.expect("Python starts"),
        never = trouble(&mut gateway, &service) => match never {},
    };
    assert_all_good(&output);
    assert_eq!(service.log(Log::inconsistent_keys), 0, "a key means one request");
    service.assert_contract();
}

#[test]
fn the_vectors_agree_with_another_implementation() {
    let check = manifest("../proto/vectors/check.py");
    let output = run(Command::new(interpreter()).arg(check));
    let report = String::from_utf8_lossy(&output.stdout);
    for channel in ["ws ", "udp "] {
        let agrees = |line: &&str| line.starts_with(channel) && line.ends_with(" agree");
        assert!(report.lines().filter(agrees).count() >= 13, "{report}");
    }
}

/// Where the gateway is, and what to present.
fn arguments(gateway: &Gateway, over: Over) -> Value {
    let address = match over {
        Over::Ws | Over::PythonWs => gateway.ws(),
        Over::Wss => gateway.wss(),
        Over::Udp => gateway.udp(),
        Over::LossyUdp => gateway.relay().address,
    };
    let identity = gateway.keys.identity(DEVICE);
    json!({
        "channel": over.kind().label(),
        "url": format!("{}://{address}", over.kind().label()),
        "ca": gateway.path("ca.pem"),
        "token": gateway.tokens.token(DEVICE),
        "bad_token": TokenKey::generate().token(DEVICE),
        "device": DEVICE,
        "identity": {
            "key_id": identity.key_id,
            "product": identity.product,
            "class": identity.class,
            "device": identity.device.as_str(),
            "key_version": identity.key_version,
        },
        "device_key": gateway.keys.device_key(&identity).to_text(),
        "api": gateway.api_url(""),
        "api_key": API_KEY,
        "close_after_ms": CLOSE_AFTER_MS,
        "challenge_ms": CHALLENGE_MS,
        "lossy": over == Over::LossyUdp,
        "crash_requests": CRASH_REQUESTS,
    })
}

/// When the device has its requests in flight, kills the backend; the next one's calls are let go. When the device asks for it,
/// kills the frontend.
async fn trouble(gateway: &mut Gateway, service: &Service) -> std::convert::Infallible {
    let made = |log: &Log, path: &str| {
        let path = digest(path.as_bytes());
        log.calls.iter().filter(|call| call.path == path).count()
    };
    let wait = |count| {
        let enough = move |log: &Log| made(log, CRASH_PATH) >= count;
        service.wait_for("the device's requests", enough)
    };
    wait(CRASH_REQUESTS).await;
    gateway.backends[0].kill9().await;
    gateway.backends[0].restart().await;
    wait(CRASH_REQUESTS * 2).await;
    service.release();
    while service.log(|log| made(log, RESTART_PATH)) == 0 {
        tokio::time::sleep(POLL).await;
    }
    gateway.frontends[0].kill9().await;
    gateway.frontends[0].restart().await;
    std::future::pending().await
}

/// Every check that was announced was made, and none failed.
fn assert_all_good(output: &Output) {
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{errors}");
    let good = report.lines().filter(|line| line.starts_with("ok ")).count();
    let plan = format!("1..{good}");
    assert_eq!(report.lines().next(), Some(plan.as_str()), "{report}");
    assert!(good >= 16, "{report}");
}
