//! When a request cannot be answered by its service, an error says why, in the reply's place.

use std::time::{Duration, Instant};

use holdfast_tests::device::Device;
use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::Service;
use holdfast_tests::{Over, over_each_channel};
use serde_json::{Value, json};

over_each_channel! {
    a_service_s_failures_have_codes_of_their_own,
    a_204_is_an_empty_reply,
    a_timeout_takes_the_reply_s_place_and_holds_nothing_up_longer,
    an_unreadable_request_is_answered_by_its_number,
    errors_to_binary_requests_are_binary,
    a_full_route_is_overloaded_at_once,
}

const ECHO: (&str, &str) = ("Demo", "Echo");

/// Asks once; the answer must be an error in the request's place, after which the connection is as good as before.
async fn expect_error(device: &mut Device, kind: (&str, &str), payload: Value) -> (String, bool) {
    device.request(kind, "bad", &payload).await;
    device.request(ECHO, "good", &json!({})).await;
    let error = device.next_error().await;
    assert_eq!(error.reply_to, "bad");
    let reply = device.next_reply().await;
    assert_eq!((reply.reply_to.as_str(), reply.seq), ("good", error.seq + 1));
    assert!(!error.message.is_empty());
    (error.code, error.retryable)
}

async fn a_service_s_failures_have_codes_of_their_own(over: Over) {
    let service = Service::start().await;
    let mut route = Route::new("Demo", service.url("/demo"));
    route.max_reply_bytes = Some(10_000);
    let gateway = Gateway::builder(&service)
        .over(over)
        .routes(vec![route])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    let cases = [
        (("Nowhere", "X"), json!({}), "no_route", false),
        (ECHO, json!({"fail": 500}), "upstream_error", false),
        (ECHO, json!({"fail": 404}), "upstream_error", false),
        (ECHO, json!({"fail": 302}), "upstream_error", false),
        (ECHO, json!({"text": "not json"}), "bad_reply", false),
        (ECHO, json!({"big": 10_001}), "reply_too_large", false),
        (ECHO, json!({"close": true}), "upstream_unavailable", true),
    ];
    for (kind, payload, code, retryable) in cases {
        let error = expect_error(&mut device, kind, payload.clone()).await;
        assert_eq!(error, (code.to_owned(), retryable), "for {payload}");
    }
    device.request(ECHO, "full", &json!({"big": 10_000})).await;
    assert_eq!(device.next_reply().await.payload.len(), 10_000);
}

async fn a_204_is_an_empty_reply(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "text", &json!({"empty": true})).await;
    device.request_binary(ECHO, "binary", br#"{"empty":true}"#).await;
    assert_eq!(device.next_reply().await.payload, "null");
    assert_eq!(device.next_reply().await.payload, "");
}

/// P2 and P3: the hanging call costs its own timeout, not more, and those behind it are answered after it. They have more time, by a
/// route of their own: the order is the session's.
async fn a_timeout_takes_the_reply_s_place_and_holds_nothing_up_longer(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(over)
        .routes(vec![
            Route::new("Slow", service.url("/demo")).timeout("300ms"),
            Route::new("Demo", service.url("/demo")),
        ])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    let asked = Instant::now();
    let error = expect_error(&mut device, ("Slow", "Echo"), json!({"hang": true})).await;
    assert_eq!(error, ("upstream_timeout".to_owned(), true));
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_millis(300),
        "answered after {took:?}, before the timeout"
    );
    println!("both answered after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_down_is_unavailable_and_recovers_by_itself() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "before", &json!({})).await;
    device.next_reply().await;
    service.down();
    device.request(ECHO, "down", &json!({})).await;
    let error = device.next_error().await;
    assert_eq!(
        (error.code.as_str(), error.retryable),
        ("upstream_unavailable", true)
    );
    service.up().await;
    device.request(ECHO, "after", &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, "after");
}

async fn an_unreadable_request_is_answered_by_its_number(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let long = "x".repeat(129);
    let unreadable = [
        "hello".to_owned(),
        "{".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        r#"{"header":{"namespace":"Demo"}}"#.to_owned(),
        r#"{"header":{"namespace":"Demo","name":7}}"#.to_owned(),
        r#"{"header":{"namespace":"Demo","name":"Echo"},"payload":{}} x"#.to_owned(),
        format!(r#"{{"header":{{"namespace":"Demo","name":"{long}"}}}}"#),
        format!(r#"{{"header":{{"namespace":"Demo","name":"Echo","id":"{long}"}}}}"#),
    ];
    for (n, text) in (1..).zip(&unreadable) {
        device.send_text(text.clone()).await;
        let error = device.next_error().await;
        assert_eq!(
            (error.code.as_str(), error.seq),
            ("bad_request", n),
            "for {text:?}"
        );
        assert!(!error.retryable && !error.binary);
    }
    device.send_binary(vec![0xff; 20]).await;
    let error = device.next_error().await;
    assert_eq!((error.code.as_str(), error.binary), ("bad_request", true));
    assert_eq!(service.calls().len(), 0);
    device.request(ECHO, "fine", &json!({})).await;
    assert_eq!(device.next_reply().await.seq, unreadable.len() as u64 + 2);
}

async fn errors_to_binary_requests_are_binary(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    device.request_binary(("Nowhere", "X"), "b", b"\0").await;
    let error = device.next_error().await;
    assert!(error.binary);
    assert_eq!((error.code.as_str(), error.reply_to.as_str()), ("no_route", "b"));
}

/// P7: a full route says so at once, and what it had taken is answered all the same.
async fn a_full_route_is_overloaded_at_once(over: Over) {
    let service = Service::start().await;
    let mut route = Route::new("Demo", service.url("/demo"))
        .order("none")
        .timeout("30s");
    (route.concurrency, route.queue) = (Some(2), Some(3));
    let gateway = Gateway::builder(&service)
        .over(over)
        .routes(vec![route])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    for n in 0..10 {
        device.request(ECHO, &n.to_string(), &json!({"hold": true})).await;
    }
    for _ in 0..5 {
        let error = device.next_error().await;
        assert_eq!((error.code.as_str(), error.retryable), ("overloaded", true));
    }
    service.release();
    for _ in 0..5 {
        device.next_reply().await;
    }
    assert_eq!(service.calls().len(), 5);
}
