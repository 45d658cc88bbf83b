//! P6 and P1 while no backend is attached.

use std::time::{Duration, Instant};

use holdfast_tests::device::Incoming;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use holdfast_tests::{Over, over_each_channel};
use serde_json::json;
use tokio::time::sleep;

over_each_channel! {
    a_device_that_arrives_before_the_backend_waits_and_is_admitted,
    without_a_backend_the_wait_ends_in_503_with_a_hint,
    a_device_outlives_its_backend_and_its_requests_wait,
}

/// How long a connecting device waits for a backend where none comes.
const WAIT_LIMIT: Duration = Duration::from_secs(5);

async fn a_device_that_arrives_before_the_backend_waits_and_is_admitted(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).over(over).backends(0).start().await;
    let arriving = tokio::spawn(gateway.dial_as("early").connect());
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 1.0)
        .await;
    // The wait itself is what is tested: it must outlast this.
    sleep(Duration::from_millis(500)).await;
    assert!(!arriving.is_finished(), "answered although there is no backend");
    gateway.add_backend().await;
    let mut device = arriving
        .await
        .expect("it does not panic")
        .expect("admitted once there is a backend");
    device.hello().await;
    device.request(("Demo", "Echo"), "x", &json!({})).await;
    device.next_reply().await;
}

/// A bad token is refused as such, although its device had to wait for someone who can tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_arrives_before_the_backend_is_still_judged() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).backends(0).start().await;
    let arriving = tokio::spawn(gateway.dial().token("a.b.c").refusal());
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 1.0)
        .await;
    gateway.add_backend().await;
    arriving.await.unwrap().expect_problem(401, "token_invalid");
}

async fn without_a_backend_the_wait_ends_in_503_with_a_hint(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(over)
        .backends(0)
        .frontend_set("times.wait", format!("{}s", WAIT_LIMIT.as_secs()))
        .start()
        .await;
    let begun = Instant::now();
    let answer = gateway.dial_as("d").refusal().await;
    let took = begun.elapsed();
    let problem = answer.expect_problem(503, "unavailable");
    assert_eq!(problem["retryable"], true);
    let hint: u64 = answer
        .header("retry-after")
        .parse()
        .expect("Retry-After in seconds");
    assert!((1..=60).contains(&hint), "Retry-After: {hint}");
    assert!(
        took >= WAIT_LIMIT - Duration::from_millis(100),
        "gave up after {took:?}"
    );
    // Over a lossy path the answer may have to be asked for again.
    println!("gave up after {took:?}");
}

async fn a_device_outlives_its_backend_and_its_requests_wait(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    gateway.backends[0].kill9().await;
    // What is sent before that counts as lost with it.
    gateway.frontends[0]
        .wait_for_metric("holdfast_link_backends", |n| n == 0.0)
        .await;
    for n in 0..3 {
        device.request(("Demo", "Echo"), &n.to_string(), &json!({})).await;
    }
    device.send_text("@ping").await;
    let pong = device.next().await;
    assert!(
        matches!(&pong, Incoming::Control { word, .. } if word == "@pong"),
        "{pong:?}"
    );
    gateway.backends[0].restart().await;
    for n in 0..3 {
        assert_eq!(device.next_reply().await.reply_to, n.to_string());
    }
    let attempts: Vec<u32> = service.calls().iter().map(|c| c.attempt).collect();
    assert_eq!(attempts, [1, 1, 1], "no backend had these before");
}
