//! What a service sees of a request.

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use holdfast_tests::{Over, over_each_channel};
use serde_json::json;

over_each_channel! {
    a_call_is_a_signed_cloud_event,
    what_a_device_chose_cannot_leave_its_header,
    a_retry_key_outlives_the_connection,
    an_event_without_an_id_gets_one,
}

async fn a_call_is_a_signed_cloud_event(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.dial_as("speaker:1").connect().await.unwrap();
    let session = device.hello().await["session"].as_str().unwrap().to_owned();
    device.request(("Demo", "Echo"), "req-1", &json!({"a": 1})).await;
    device.next_reply().await;
    service.assert_contract();
    let headers = service.log(|log| log.headers[0].clone());
    let key = format!("\"{session}-1\"");
    let expected = [
        ("ce-id", "req-1"),
        ("ce-source", "/holdfast/1/speaker:1"),
        ("ce-type", "Demo.Echo"),
        ("ce-subject", "speaker:1"),
        ("ce-hfnamespace", "Demo"),
        ("ce-hfname", "Echo"),
        ("ce-hfsession", &session),
        ("ce-hfsequence", "1"),
        ("ce-hfattempt", "1"),
        ("idempotency-key", &key),
        ("content-type", "application/json"),
    ];
    for (name, value) in expected {
        assert_eq!(headers[name], value, "{name}");
    }
}

/// CloudEvents HTTP binding 1.0, section 3.1.3.2: spaces, quotes, percent signs and all beyond printable ASCII are encoded.
async fn what_a_device_chose_cannot_leave_its_header(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    device
        .request(("Demo", "É \"%"), "a\r\nx-evil: 1", &json!({}))
        .await;
    device.next_reply().await;
    service.assert_contract();
    let headers = service.log(|log| log.headers[0].clone());
    assert!(!headers.contains_key("x-evil"));
    assert_eq!(headers["ce-id"], "a%0D%0Ax-evil:%201");
    assert_eq!(headers["ce-hfname"], "%C3%89%20%22%25");
}

async fn a_retry_key_outlives_the_connection(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let text = r#"{"header":{"namespace":"Demo","name":"Buy","id":"1","retry_key":"order-7"},"payload":{}}"#;
    for _ in 0..2 {
        let mut device = gateway.device("till").await;
        device.send_text(text).await;
        device.next_reply().await;
        device.close().await;
    }
    let keys = service.log(|log| {
        log.headers
            .iter()
            .map(|h| h["idempotency-key"].clone())
            .collect::<Vec<_>>()
    });
    assert_eq!(keys, ["\"till/order-7\"", "\"till/order-7\""]);
    let sessions = service.log(|log| log.calls[0].session == log.calls[1].session);
    assert!(!sessions, "two connections, two sessions");
}

async fn an_event_without_an_id_gets_one(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.dial_as("d").connect().await.unwrap();
    let session = device.hello().await["session"].as_str().unwrap().to_owned();
    device
        .send_text(r#"{"header":{"namespace":"Demo","name":"Echo"},"payload":{}}"#)
        .await;
    device.next_reply().await;
    service.assert_contract();
    assert_eq!(
        service.log(|log| log.headers[0]["ce-id"].clone()),
        format!("{session}-1")
    );
}
