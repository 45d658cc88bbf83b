//! A device that shares no code with us: `python/device.py`, on a plain WebSocket library and a Noise library.

use std::io::Write as _;
use std::process::{Command, Output};
use std::time::Duration;

use holdfast_tests::Over;
use holdfast_tests::gateway::{API_KEY, Gateway, Route};
use holdfast_tests::history::digest;
use holdfast_tests::keys::TokenKey;
use holdfast_tests::python::{interpreter, manifest, run};
use holdfast_tests::service::{Log, Service};
use serde_json::{Value, json};

mod ws {
    holdfast_tests::over_one_channel! { Ws: an_independent_device_gets_all_that_the_protocol_promises, it_comes_back_as_it_must }
}
mod wss {
    holdfast_tests::over_one_channel! { Wss: an_independent_device_gets_all_that_the_protocol_promises, it_comes_back_as_it_must }
}
mod udp {
    holdfast_tests::over_one_channel! { Udp: an_independent_device_gets_all_that_the_protocol_promises, it_comes_back_as_it_must }
}
mod lossy_udp {
    holdfast_tests::over_one_channel! { LossyUdp: an_independent_device_gets_all_that_the_protocol_promises }
}

/// Requests that are in flight when the backend dies.
const CRASH_REQUESTS: usize = 10;
const CRASH_PATH: &str = "/crash";
/// A request here asks for the frontend to be killed and started again.
const RESTART_PATH: &str = "/restart";
/// Requests here ask for the backend to be killed, and for the frontend to leave.
const ABSENT_PATH: &str = "/absent";
const LEAVE_PATH: &str = "/leave";
const REFUSED: &str = "holdfast_frontend_refused_total";
const DEVICE: &str = "python";
/// Devices of the checks of coming back.
const RETURNING: [&str; 8] = [
    "witness", "patient", "parting", "lost", "closed", "replaced", "denied", "greedy",
];
const POLL: Duration = Duration::from_millis(50);
/// Short enough to wait for, long enough for a busy machine.
const PING_AFTER_MS: u64 = 1000;
const CLOSE_AFTER_MS: u64 = 4000;
/// The device connects some hundred times.
const ATTEMPTS: i64 = 1000;
/// So that a device that keeps silent after the challenge is soon told.
const CHALLENGE_MS: u64 = 4000;

/// Each channel's checks, all of which must have been made.
fn promises(over: Over) -> usize {
    match over {
        Over::Ws | Over::PythonWs => 36,
        Over::Wss => 18,
        Over::Udp => 54,
        Over::LossyUdp => 16,
    }
}

fn returning(over: Over) -> usize {
    match over {
        Over::Ws | Over::PythonWs => 9,
        Over::Wss | Over::Udp | Over::LossyUdp => 8,
    }
}

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
    let output = tokio::select! {
        output = run_device(&arguments) => output,
        never = trouble(&mut gateway, &service) => match never {},
    };
    assert_all_good(&output, promises(over));
    assert_eq!(service.log(Log::inconsistent_keys), 0, "a key means one request");
    service.assert_contract();
}

/// After losses, refusals and closes of every kind, and not when it was told to stay away.
async fn it_comes_back_as_it_must(over: Over) {
    let service = Service::start().await;
    let mut denied = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(denied, "denied").expect("it takes a line");
    let mut gateway = Gateway::builder(&service)
        .routes(vec![
            Route::new("Demo", service.url("/demo")),
            Route::new("Absent", service.url(ABSENT_PATH)),
            Route::new("Leave", service.url(LEAVE_PATH)),
        ])
        .frontend_set("times.wait", "1s")
        .frontend_set("times.retry_hint", "1s")
        .backend_set("device_keys.deny", denied.path().display().to_string())
        .backend_set("device_keys.attempts_burst", 10)
        .backend_set("device_keys.attempts_per_minute", 30)
        .start()
        .await;
    let mut arguments = arguments(&gateway, over);
    arguments["plan"] = json!("returning");
    for id in RETURNING {
        arguments["devices"][id] = credentials(&gateway, id);
    }
    let output = tokio::select! {
        output = run_device(&arguments) => output,
        never = absences(&mut gateway, &service) => match never {},
    };
    assert_all_good(&output, returning(over));
    service.assert_contract();
}

/// Runs the device to its end.
async fn run_device(arguments: &Value) -> Output {
    let python = tokio::task::spawn_blocking(interpreter)
        .await
        .expect("it does not panic");
    let mut device = tokio::process::Command::new(python);
    device
        .arg(manifest("python/device.py"))
        .arg(arguments.to_string())
        .kill_on_drop(true);
    device.output().await.expect("Python starts")
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
    let mut arguments = credentials(gateway, DEVICE);
    let common = json!({
        "plan": "promises",
        "channel": over.kind().label(),
        "url": format!("{}://{address}", over.kind().label()),
        "ca": gateway.path("ca.pem"),
        "bad_token": TokenKey::generate().token(DEVICE),
        "device": DEVICE,
        "api": gateway.api_url(""),
        "api_key": API_KEY,
        "close_after_ms": CLOSE_AFTER_MS,
        "challenge_ms": CHALLENGE_MS,
        "lossy": over == Over::LossyUdp,
        "crash_requests": CRASH_REQUESTS,
        "devices": {},
    });
    let further = common.as_object().expect("an object").clone();
    arguments.as_object_mut().expect("an object").extend(further);
    arguments
}

/// What a device presents on each channel.
fn credentials(gateway: &Gateway, device: &str) -> Value {
    let identity = gateway.keys.identity(device);
    json!({
        "token": gateway.tokens.token(device),
        "identity": {
            "key_id": identity.key_id,
            "product": identity.product,
            "class": identity.class,
            "device": identity.device.as_str(),
            "key_version": identity.key_version,
        },
        "device_key": gateway.keys.device_key(&identity).to_text(),
    })
}

/// When the device has its requests in flight, kills the backend; the next one's calls are let go. When the device asks for it,
/// kills the frontend.
async fn trouble(gateway: &mut Gateway, service: &Service) -> std::convert::Infallible {
    let wait = |count| {
        let enough = move |log: &Log| made(log, CRASH_PATH) >= count;
        service.wait_for("the device's requests", enough)
    };
    wait(CRASH_REQUESTS).await;
    gateway.backends[0].kill9().await;
    gateway.backends[0].restart().await;
    wait(CRASH_REQUESTS * 2).await;
    service.release();
    asked_for(service, RESTART_PATH).await;
    gateway.frontends[0].kill9().await;
    gateway.frontends[0].restart().await;
    std::future::pending().await
}

/// When the device asks for it, there is no backend until somebody was refused for that; later the frontend leaves and comes back.
async fn absences(gateway: &mut Gateway, service: &Service) -> std::convert::Infallible {
    asked_for(service, ABSENT_PATH).await;
    gateway.backends[0].kill9().await;
    gateway.frontends[0]
        .wait_for_series(REFUSED, &[("reason", "unavailable")], |n| n >= 1.0)
        .await;
    gateway.backends[0].restart().await;
    asked_for(service, LEAVE_PATH).await;
    assert!(
        gateway.frontends[0].term().await.success(),
        "it left in good order"
    );
    gateway.frontends[0].restart().await;
    std::future::pending().await
}

/// Returns when a request came to `path`, however long that takes.
async fn asked_for(service: &Service, path: &str) {
    while service.log(|log| made(log, path)) == 0 {
        tokio::time::sleep(POLL).await;
    }
}

fn made(log: &Log, path: &str) -> usize {
    let path = digest(path.as_bytes());
    log.calls.iter().filter(|call| call.path == path).count()
}

/// Every check was announced and made, and none failed.
fn assert_all_good(output: &Output, checks: usize) {
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{errors}");
    let good = report.lines().filter(|line| line.starts_with("ok ")).count();
    let plan = format!("1..{good}");
    assert_eq!(report.lines().next(), Some(plan.as_str()), "{report}");
    assert_eq!(
        good, checks,
        "a check was left out, or is not counted yet: {report}"
    );
}
