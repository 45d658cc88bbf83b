//! `POST /v1/messages`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_proto::event::{parse_binary, parse_text};
use serde_json::json;

use super::*;

fn message(extra: &str) -> String {
    format!(r#"{{"to":{{"device":"speaker-1"}},"namespace":"Alerts","name":"Fire"{extra}}}"#)
}

fn to(target: &str) -> String {
    format!(r#"{{"to":{target},"namespace":"Alerts","name":"Fire","payload":1}}"#)
}

#[tokio::test]
async fn a_text_push_is_rendered_once_with_its_payload_byte_for_byte() {
    let api = Api::start();
    let answer = api
        .push(message(
            r#","payload": {"b":1.10, "a":[ ]} ,"keep":false,"wait":"written","ttl_s":null"#,
        ))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let pushed = api.last_push();
    assert!(pushed.id.starts_with("m-") && pushed.id.len() == 38);
    let expected = json!({"id": pushed.id, "results": [{"device": "speaker-1", "session": SESSION, "status": "written"}]});
    assert_eq!(answer.json(), expected);
    let PushMessage::Text(text) = &pushed.message else {
        panic!()
    };
    let event = parse_text(text).unwrap();
    assert_eq!(
        (&*event.namespace, &*event.name, event.id.as_deref()),
        ("Alerts", "Fire", Some(pushed.id.as_str()))
    );
    assert_eq!(event.payload_in(text), r#"{"b":1.10, "a":[ ]}"#);
}

#[tokio::test]
async fn a_null_payload_is_a_payload() {
    let api = Api::start();
    assert_eq!(api.push(message(r#","payload":null"#)).await.status, 200);
    let PushMessage::Text(text) = api.last_push().message else {
        panic!()
    };
    assert!(text.ends_with(br#""payload":null}"#));
}

#[tokio::test]
async fn a_binary_push_carries_the_decoded_bytes() {
    let api = Api::start();
    let payload = b"\0\xff raw";
    let answer = api
        .push(message(&format!(r#","binary":"{}""#, STANDARD.encode(payload))))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let pushed = api.last_push();
    let PushMessage::Binary(bytes) = &pushed.message else {
        panic!()
    };
    let event = parse_binary(bytes).unwrap();
    assert_eq!(
        (event.header.namespace.as_str(), &event.header.id),
        ("Alerts", &pushed.id)
    );
    assert_eq!(event.payload, &payload[..]);
}

#[tokio::test]
async fn sessions_and_all_are_targets_too() {
    let api = Api::start();
    let answer = api.push(to(&format!(r#"{{"session":"{SESSION}"}}"#))).await;
    let result = json!({"session": SESSION, "status": "dropped", "reason": "slow_consumer"});
    assert_eq!(answer.json()["results"], json!([result]));
    assert_eq!(
        api.last_push().target,
        PushTarget::Session(SESSION.parse().unwrap())
    );
    let answer = api.push(to(r#"{"all":true,"group":null}"#)).await;
    assert_eq!(
        answer.json()["counts"],
        json!({"written": 3, "dropped": 1, "unconfirmed": 2, "frontends_unconfirmed": 1})
    );
    assert_eq!(api.last_push().target, PushTarget::All);
}

#[tokio::test]
async fn what_is_not_built_is_unsupported_by_name() {
    let api = Api::start();
    let payload = r#","payload":1"#;
    let cases = [
        ("keep", message(&format!(r#"{payload},"keep":true"#))),
        ("wait", message(&format!(r#"{payload},"wait":"acked""#))),
        ("topic", message(&format!(r#"{payload},"topic":"t""#))),
        ("priority", message(&format!(r#"{payload},"priority":1"#))),
        (
            "collapse_key",
            message(&format!(r#"{payload},"collapse_key":"k""#)),
        ),
        ("ttl_s", message(&format!(r#"{payload},"ttl_s":60"#))),
        ("to.devices", to(r#"{"devices":["a"]}"#)),
        ("to.group", to(r#"{"group":"g"}"#)),
    ];
    for (field, body) in cases {
        let (status, code, detail) = api.push(body).await.problem();
        assert_eq!((status, code.as_str()), (422, "unsupported"), "{detail}");
        assert!(detail.starts_with(&format!("{field}:")), "{detail}");
    }
    let request = api
        .request("POST", "/v1/messages", PUSH)
        .header("Idempotency-Key", "k");
    let answer = api
        .send(request.body(Full::new(message(payload).into())).unwrap())
        .await;
    let (status, code, detail) = answer.problem();
    assert_eq!((status, code.as_str()), (422, "unsupported"));
    assert!(detail.contains("Idempotency-Key"));
    assert!(api.gateway.pushes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn bad_fields_are_named() {
    let api = Api::start();
    let long = "x".repeat(129);
    let cases = [
        ("to:", r#"{"namespace":"N","name":"n","payload":1}"#.to_owned()),
        ("to:", to("{}")),
        ("to:", to("7")),
        ("to:", to(r#"{"device":"a","all":true}"#)),
        ("to: unknown field `devise`", to(r#"{"devise":"a"}"#)),
        ("to.device:", to(r#"{"device":"a b"}"#)),
        ("to.device:", to(r#"{"device":7}"#)),
        (
            "to.session:",
            to(r#"{"session":"00000000-0000-4000-8000-000000000000"}"#),
        ),
        ("to.all:", to(r#"{"all":false}"#)),
        (
            "namespace:",
            r#"{"to":{"all":true},"name":"n","payload":1}"#.to_owned(),
        ),
        (
            "namespace:",
            r#"{"to":{"all":true},"namespace":"","name":"n","payload":1}"#.to_owned(),
        ),
        (
            "name:",
            format!(r#"{{"to":{{"all":true}},"namespace":"N","name":"{long}","payload":1}}"#),
        ),
        ("payload:", message("")),
        ("binary:", message(r#","payload":1,"binary":"AA==""#)),
        ("binary:", message(r#","binary":"A""#)),
        ("binary:", message(r#","binary":[]"#)),
        ("keep:", message(r#","payload":1,"keep":"yes""#)),
        ("wait:", message(r#","payload":1,"wait":"read""#)),
        ("body: unknown field `paylod`", message(r#","paylod":1"#)),
        (
            "body: duplicate field `name`",
            message(r#","payload":1,"name":"x""#),
        ),
    ];
    for (field, body) in cases {
        let (status, code, detail) = api.push(body.clone()).await.problem();
        assert_eq!(
            (status, code.as_str()),
            (422, "invalid_field"),
            "{body}: {detail}"
        );
        assert!(detail.starts_with(field), "{body}: {detail}");
    }
    assert!(api.gateway.pushes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_a_json_object_is_bad_json() {
    let api = Api::start();
    for body in [
        &b""[..],
        b"[]",
        b"null",
        b"{",
        b"{\"to\":}",
        b"{\"name\":\"\xff\"}",
    ] {
        api.push(Bytes::copy_from_slice(body)).await.is(400, "bad_json");
    }
    api.push("{\"a\":".repeat(100_000)).await.problem();
}

#[tokio::test]
async fn sizes_are_bounded() {
    let api = Api::start();
    let fits = MAX_MESSAGE_BYTES - 200;
    let payload = |length: usize| message(&format!(r#","payload":"{}""#, "x".repeat(length)));
    assert_eq!(api.push(payload(fits)).await.status, 200);
    api.push(payload(MAX_MESSAGE_BYTES))
        .await
        .is(413, "payload_too_large");
    api.push(" ".repeat(MAX_BODY_BYTES + 1))
        .await
        .is(413, "payload_too_large");
    let binary = STANDARD.encode(vec![0; fits]);
    assert_eq!(
        api.push(message(&format!(r#","binary":"{binary}""#)))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_unannounced_body_is_bounded_too() {
    let api = Api::start();
    let chunk = Bytes::from(vec![b' '; 64 * 1024]);
    let stream = futures_util::stream::iter((0..40).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let body = axum::body::Body::from_stream(stream);
    let client: Client<_, axum::body::Body> = Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .request(api.request("POST", "/v1/messages", PUSH).body(body).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn the_gateway_s_refusals_say_when_to_come_back() {
    let api = Api::start();
    let body = message(r#","payload":1"#);
    api.fail_with(GatewayError::Unavailable { retry_after: SOON });
    let answer = api.push(body.clone()).await;
    answer.is(503, "unavailable");
    assert_eq!(answer.headers["retry-after"], "2");
    api.fail_with(GatewayError::Overloaded { retry_after: SOON });
    api.push(body).await.is(429, "overloaded");
}
