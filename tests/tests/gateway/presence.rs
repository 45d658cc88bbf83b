//! Presence, closing by an operator, and the login policy: the newcomer wins.

use bytes::Bytes;
use holdfast_tests::gateway::{Gateway, READ_KEY};
use holdfast_tests::http::request;
use holdfast_tests::service::Service;
use holdfast_tests::{ChannelKind, Over, over_each_channel};
use http::Method;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

over_each_channel! {
    presence_is_online_then_offline_and_a_stranger_is_unknown,
    an_operator_closes_a_device,
    a_second_login_replaces_the_first,
    a_device_is_reachable_as_soon_as_it_is_welcomed,
}

async fn presence_is_online_then_offline_and_a_stranger_is_unknown(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    gateway
        .api(Method::GET, "/v1/devices/d", None)
        .await
        .expect_problem(404, "unknown_device");
    let mut device = gateway.dial_as("d").connect().await.unwrap();
    let session = device.hello().await["session"].clone();
    let answer = gateway.api(Method::GET, "/v1/devices/d", None).await;
    assert_eq!(answer.status, 200);
    let presence = answer.json();
    assert_eq!(
        (&presence["device"], &presence["presence"]),
        (&json!("d"), &json!("online")),
        "{presence}"
    );
    let sessions = presence["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 1, "{presence}");
    assert_eq!(
        (&sessions[0]["session"], &sessions[0]["channel"]),
        (&session, &json!(over.kind().label()))
    );
    assert!(
        sessions[0]["address"].as_str().unwrap().starts_with("127."),
        "{presence}"
    );
    assert!(!sessions[0]["since"].is_null(), "{presence}");
    device.close().await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 0.0)
        .await;
    let presence = gateway.api(Method::GET, "/v1/devices/d", None).await.json();
    assert_eq!(
        (&presence["presence"], &presence["sessions"]),
        (&json!("offline"), &json!([]))
    );
}

async fn an_operator_closes_a_device(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let url = gateway.api_url("/v1/devices/d");
    let delete = || request(Method::DELETE, &url, Some(READ_KEY), Bytes::new());
    gateway
        .api_at(0, delete())
        .await
        .expect_problem(403, "scope_missing");
    assert_eq!(
        gateway.api(Method::DELETE, "/v1/devices/d", None).await.status,
        204
    );
    let (goodbye, code) = device.until_closed().await;
    assert_eq!(code, 4001);
    let goodbye = goodbye.expect("a @goodbye before the close");
    assert_eq!(
        (&goodbye["code"], &goodbye["reconnect"]),
        (&json!("closed_by_operator"), &json!(false))
    );
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 0.0)
        .await;
    assert_eq!(
        gateway.api(Method::DELETE, "/v1/devices/d", None).await.status,
        404
    );
}

async fn a_second_login_replaces_the_first(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut first = gateway.device("d").await;
    let mut second = gateway.device("d").await;
    let (goodbye, code) = first.until_closed().await;
    assert_eq!(code, 4000);
    let goodbye = goodbye.expect("a @goodbye before the close");
    assert_eq!(
        (&goodbye["code"], &goodbye["reconnect"]),
        (&json!("replaced"), &json!(false))
    );
    second.request(("Demo", "Echo"), "still", &json!({})).await;
    second.next_reply().await;
    let answer = gateway.push(json!({"device": "d"}), json!(1)).await;
    assert_eq!(answer["results"].as_array().unwrap().len(), 1, "{answer}");
    second.next_push().await;
}

/// P9: who has been welcomed is online for everyone else too, from that moment on.
async fn a_device_is_reachable_as_soon_as_it_is_welcomed(over: Over) {
    let service = Service::start().await;
    // On a path that loses the first acknowledgements of a connection, the next ones may take a while to be asked for.
    let gateway = Gateway::builder(&service)
        .over(over)
        .backend_set("push_timeout", "20s")
        .start()
        .await;
    // In bad weather each takes a second.
    let devices = if over == Over::LossyUdp { 50 } else { 200 };
    for n in 0..devices {
        let id = format!("d{n}");
        let mut device = gateway.device(&id).await;
        let answer = gateway.push(json!({"device": &id}), json!(n)).await;
        assert_eq!(answer["results"][0]["status"], "written", "device {n}: {answer}");
        assert_eq!(device.next_push().await.json(), n);
    }
}

/// A hundred logins of one device at once: one session stays, and it is the one that presence names.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_logins_at_once_one_stays() {
    const LOGINS: usize = 100;
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Wss, &service).await;
    let dials = (0..LOGINS).map(|_| gateway.dial_as("d").connect());
    let mut devices: Vec<_> = futures_util::future::join_all(dials)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    for device in &mut devices {
        // Some are replaced before they get here.
        device.try_send(Message::text("@hello {}")).await.ok();
    }
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 1.0)
        .await;
    let presence = gateway.api(Method::GET, "/v1/devices/d", None).await.json();
    assert_eq!(presence["sessions"].as_array().unwrap().len(), 1, "{presence}");
}
