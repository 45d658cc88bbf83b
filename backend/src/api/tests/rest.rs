//! Everything but pushes.

use serde_json::json;

use super::*;

#[tokio::test]
async fn presence_is_told() {
    let api = Api::start();
    let answer = api.call("GET", "/v1/devices/speaker-1", READ).await;
    let session = json!({"session": SESSION, "channel": "wss", "address": "192.0.2.1:5000", "since": "1970-01-01T00:00:00.000Z"});
    assert_eq!(
        answer.json(),
        json!({"device": "speaker-1", "presence": "online", "sessions": [session]})
    );
    let (_, code, detail) = api.call("GET", "/v1/devices/a%20b", READ).await.problem();
    assert!(code == "invalid_field" && detail.starts_with("id:"), "{detail}");
    api.call("GET", "/v1/devices/%ff", READ)
        .await
        .is(422, "invalid_field");
    api.fail_with(GatewayError::UnknownDevice);
    api.call("GET", "/v1/devices/speaker-1", READ)
        .await
        .is(404, "unknown_device");
}

#[tokio::test]
async fn sessions_are_closed() {
    let api = Api::start();
    let answer = api.call("DELETE", "/v1/devices/speaker-1", ADMIN).await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    api.call("DELETE", "/v1/devices/absent", ADMIN)
        .await
        .is(404, "unknown_device");
    api.fail_with(GatewayError::Unconfirmed {
        closed: 1,
        retry_after: Duration::from_secs(1),
    });
    let answer = api.call("DELETE", "/v1/devices/speaker-1", ADMIN).await;
    answer.is(503, "unconfirmed");
    assert_eq!(answer.headers["retry-after"], "1");
    let (_, _, detail) = answer.problem();
    assert!(detail.starts_with("1 sessions were closed"), "{detail}");
}

#[tokio::test]
async fn every_route_wants_a_key_with_its_scope() {
    let api = Api::start();
    for (method, path, right) in [
        ("POST", "/v1/messages", PUSH),
        ("GET", "/v1/devices/a", READ),
        ("DELETE", "/v1/devices/a", ADMIN),
        ("GET", "/v1/stats", READ),
    ] {
        let answer = api.call(method, path, "").await;
        answer.is(401, "api_key_missing");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        api.call(method, path, &right[1..])
            .await
            .is(401, "api_key_invalid");
        for wrong in [PUSH, READ, ADMIN].into_iter().filter(|key| *key != right) {
            api.call(method, path, wrong).await.is(403, "scope_missing");
        }
        let status = api.call(method, path, right).await.status;
        assert!(![401, 403].contains(&status), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let api = Api::start();
    for path in ["/", "/v1", "/v1/devices", "/v1/devices/a/b", "/v2/messages"] {
        api.call("GET", path, PUSH).await.is(404, "not_found");
    }
    let answer = api.call("PUT", "/v1/messages", PUSH).await;
    answer.is(405, "method_not_allowed");
    assert_eq!(answer.headers["allow"], "POST");
    api.call("POST", "/v1/devices/a", ADMIN)
        .await
        .is(405, "method_not_allowed");
    api.call("POST", "/live", "").await.is(405, "method_not_allowed");
}

#[tokio::test]
async fn health_needs_no_key() {
    let api = Api::start();
    assert_eq!(api.call("GET", "/live", "").await.status, 200);
    assert_eq!(api.call("GET", "/ready", "").await.status, 200);
    *api.gateway.not_ready.lock().unwrap() = Some("draining".to_owned());
    let answer = api.call("GET", "/ready", "").await;
    answer.is(503, "not_ready");
    assert_eq!(answer.json()["detail"], "draining");
    assert_eq!(api.call("GET", "/live", "").await.status, 200);
}

#[tokio::test]
async fn stats_are_told() {
    let answer = Api::start().call("GET", "/v1/stats", READ).await;
    let expected = json!({
        "backend": {"name": "b", "version": "1", "epoch": "e"},
        "frontends": [{"id": 1, "epoch": 5, "state": "active", "sessions": 7}],
        "in_flight": 2,
    });
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn requests_and_push_results_are_counted_with_bounded_labels() {
    let api = Api::start();
    api.push(r#"{"to":{"all":true},"namespace":"N","name":"n","payload":1}"#)
        .await;
    api.call("GET", "/v1/devices/one", READ).await;
    api.call("GET", "/v1/devices/two", READ).await;
    api.call("BREW", "/coffee", "").await;
    let answer = api.call("GET", "/metrics", "").await;
    assert_eq!(answer.headers["content-type"], crate::metrics::CONTENT_TYPE);
    for line in [
        r#"holdfast_backend_api_requests_total{method="GET",path="/v1/devices/{id}",status="200"} 2"#,
        r#"holdfast_backend_api_requests_total{method="POST",path="/v1/messages",status="200"} 1"#,
        r#"holdfast_backend_api_requests_total{method="other",path="other",status="404"} 1"#,
        r#"holdfast_backend_push_results_total{status="written"} 3"#,
        r#"holdfast_backend_push_results_total{status="dropped"} 1"#,
        r#"holdfast_backend_push_results_total{status="offline"} 0"#,
    ] {
        assert!(answer.body.contains(line), "{line}\n{}", answer.body);
    }
}
