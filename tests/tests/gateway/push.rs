//! Pushes through the HTTP API, and P9: the status says what happened.

use bytes::Bytes;
use holdfast_tests::gateway::{API_KEY, Gateway, READ_KEY};
use holdfast_tests::http::request;
use holdfast_tests::service::Service;
use holdfast_tests::{Over, over_each_channel};
use http::Method;
use serde_json::{Value, json};

over_each_channel! {
    a_push_to_an_online_device_is_written_with_its_id,
    offline_and_unknown_devices_are_told_apart,
    a_session_and_all_can_be_addressed,
    a_binary_push_arrives_as_it_was,
    pushes_to_one_device_keep_the_order_of_the_calls,
}

const MESSAGES: &str = "/v1/messages";

fn only_result(answer: &Value) -> &Value {
    let results = answer["results"]
        .as_array()
        .unwrap_or_else(|| panic!("no results in {answer}"));
    assert_eq!(results.len(), 1, "{answer}");
    &results[0]
}

async fn a_push_to_an_online_device_is_written_with_its_id(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let mut other = gateway.device("e").await;
    let answer = gateway.push(json!({"device": "d"}), json!({"level": 3})).await;
    let result = only_result(&answer);
    assert_eq!(
        (&result["device"], &result["status"]),
        (&json!("d"), &json!("written"))
    );
    let push = device.next_push().await;
    assert_eq!((push.namespace.as_str(), push.name.as_str()), ("Alerts", "Fire"));
    assert_eq!(
        (push.id.as_str(), push.json()),
        (answer["id"].as_str().unwrap(), json!({"level": 3}))
    );
    gateway.push(json!({"device": "e"}), json!("only yours")).await;
    assert_eq!(
        other.next_push().await.json(),
        "only yours",
        "the first push was not for this device"
    );
}

async fn offline_and_unknown_devices_are_told_apart(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    gateway.device("gone").await.close().await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 0.0)
        .await;
    for (device, status) in [("gone", "offline"), ("never-seen", "unknown")] {
        let answer = gateway.push(json!({"device": device}), json!(1)).await;
        assert_eq!(only_result(&answer)["status"], status, "{answer}");
    }
}

async fn a_session_and_all_can_be_addressed(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut first = gateway.dial_as("a").connect().await.unwrap();
    let session = first.hello().await["session"].clone();
    let mut second = gateway.device("b").await;
    let answer = gateway.push(json!({"session": session}), json!("one")).await;
    assert_eq!(only_result(&answer)["status"], "written");
    assert_eq!(first.next_push().await.json(), "one");
    let answer = gateway.push(json!({"all": true}), json!("all")).await;
    assert_eq!(answer["counts"]["written"], 2, "{answer}");
    assert_eq!(first.next_push().await.json(), "all");
    assert_eq!(second.next_push().await.json(), "all");
    let mut gone = session.as_str().unwrap().to_owned();
    // Another generation of the same slot; the last two bits of every id are 0.
    let other = if gone.ends_with('4') { "8" } else { "4" };
    gone.replace_range(gone.len() - 1.., other);
    let answer = gateway.push(json!({"session": gone}), json!(1)).await;
    assert_ne!(only_result(&answer)["status"], "written", "{answer}");
}

async fn a_binary_push_arrives_as_it_was(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let body = json!({"to": {"device": "d"}, "namespace": "Fw", "name": "Chunk", "binary": "AAH/"});
    let answer = gateway.api(Method::POST, MESSAGES, Some(body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let push = device.next_push().await;
    assert!(push.binary);
    assert_eq!(
        (push.name.as_str(), push.payload.as_ref()),
        ("Chunk", &[0u8, 1, 255][..])
    );
}

async fn pushes_to_one_device_keep_the_order_of_the_calls(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    for n in 0..50 {
        gateway.push(json!({"device": "d"}), json!(n)).await;
    }
    for n in 0..50 {
        assert_eq!(device.next_push().await.json(), n);
    }
}

/// Fields of later versions are refused by name, never ignored.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused_by_name() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let message = |field: &str, value: Value| {
        let mut body = json!({"to": {"device": "d"}, "namespace": "A", "name": "B", "payload": 1});
        body[field] = value;
        body
    };
    let cases = [
        ("keep", message("keep", json!(true))),
        ("topic", message("topic", json!("t"))),
        ("collapse_key", message("collapse_key", json!("c"))),
        ("wait", message("wait", json!("acked"))),
        ("priority", message("priority", json!(1))),
        ("devices", message("to", json!({"devices": ["d"]}))),
        ("group", message("to", json!({"group": "g"}))),
    ];
    for (field, body) in cases {
        let problem = gateway
            .api(Method::POST, MESSAGES, Some(body))
            .await
            .expect_problem(422, "unsupported");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(field), "{field} is not named in {problem}");
    }
    let invalid = [
        message("namespace", json!("")),
        message("name", json!("x".repeat(129))),
        message("to", json!({"device": "a b"})),
        message("to", json!({"session": "no uuid"})),
        message("binary", json!("AAA=")),
        message("no_such_field", json!(1)),
    ];
    for body in invalid {
        let answer = gateway.api(Method::POST, MESSAGES, Some(body.clone())).await;
        assert!(
            [400, 422].contains(&answer.status.as_u16()),
            "{body}: {} {}",
            answer.status,
            answer.text()
        );
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_wants_a_key_with_the_scope() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let body = json!({"to": {"all": true}, "namespace": "A", "name": "B", "payload": 1}).to_string();
    let post = |key: Option<&str>, body: &str| {
        request(
            Method::POST,
            &gateway.api_url(MESSAGES),
            key,
            Bytes::copy_from_slice(body.as_bytes()),
        )
    };
    gateway
        .api_at(0, post(None, &body))
        .await
        .expect_problem(401, "api_key_missing");
    gateway
        .api_at(0, post(Some("hf_wrong"), &body))
        .await
        .expect_problem(401, "api_key_invalid");
    gateway
        .api_at(0, post(Some(READ_KEY), &body))
        .await
        .expect_problem(403, "scope_missing");
    gateway
        .api_at(0, post(Some(API_KEY), "{"))
        .await
        .expect_problem(400, "bad_json");
    for path in ["/live", "/ready", "/metrics"] {
        let open = request(Method::GET, &gateway.api_url(path), None, Bytes::new());
        assert_eq!(gateway.api_at(0, open).await.status, 200, "{path}");
    }
    assert_eq!(gateway.api(Method::GET, "/nowhere", None).await.status, 404);
    assert_eq!(gateway.api(Method::PATCH, MESSAGES, None).await.status, 405);
}
