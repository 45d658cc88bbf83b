//! Several frontends on one backend, several backends on one frontend.

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::{Log, Service};
use holdfast_tests::{Over, over_each_channel};
use http::Method;
use serde_json::json;

over_each_channel! {
    a_login_at_one_frontend_replaces_the_session_at_another,
    a_frontend_s_death_does_not_touch_the_other_s_devices,
}

const ECHO: (&str, &str) = ("Demo", "Echo");

#[tokio::test(flavor = "multi_thread")]
async fn two_frontends_share_one_backend() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service).frontends(2).start().await;
    let mut devices = [gateway.device_at(0, "a").await, gateway.device_at(1, "b").await];
    for device in &mut devices {
        device.request(ECHO, "x", &json!({})).await;
        device.next_reply().await;
    }
    for (id, device) in ["a", "b"].into_iter().zip(&mut devices) {
        let answer = gateway.push(json!({"device": id}), json!(id)).await;
        assert_eq!(answer["results"].as_array().map(Vec::len), Some(1), "{answer}");
        assert_eq!(answer["results"][0]["status"], "written", "{answer}");
        assert_eq!(device.next_push().await.json(), id);
        let presence = gateway
            .api(Method::GET, &format!("/v1/devices/{id}"), None)
            .await
            .json();
        assert_eq!(presence["presence"], "online", "{presence}");
    }
    let answer = gateway.push(json!({"all": true}), json!("all")).await;
    assert_eq!(answer["counts"]["written"], 2, "{answer}");
    for device in &mut devices {
        assert_eq!(device.next_push().await.json(), "all");
    }
    let sources = service.log(|log| {
        log.headers
            .iter()
            .map(|h| h["ce-source"].clone())
            .collect::<Vec<_>>()
    });
    assert_eq!(sources, ["/holdfast/1/a", "/holdfast/2/b"]);
    service.assert_contract();
}

async fn a_login_at_one_frontend_replaces_the_session_at_another(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service).over(over).frontends(2).start().await;
    let mut first = gateway.device_at(0, "d").await;
    let mut second = gateway.device_at(1, "d").await;
    let (goodbye, code) = first.until_closed().await;
    assert_eq!(code, 4000);
    assert_eq!(goodbye.expect("a @goodbye")["reconnect"], false);
    second.request(ECHO, "x", &json!({})).await;
    second.next_reply().await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions", |n| n == 0.0)
        .await;
}

/// P9: with one frontend out of reach, what is not known is reported as such.
#[tokio::test(flavor = "multi_thread")]
async fn presence_with_a_frontend_missing_is_unknown() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).frontends(2).start().await;
    let _here = gateway.device_at(0, "here").await;
    gateway.device_at(1, "there").await;
    gateway.frontends[1].kill9().await;
    let presence = gateway.api(Method::GET, "/v1/devices/here", None).await.json();
    assert_eq!(presence["presence"], "online", "{presence}");
    let presence = gateway.api(Method::GET, "/v1/devices/there", None).await.json();
    assert_eq!(presence["presence"], "unknown", "{presence}");
}

/// One frontend's death is not the other's: requests there go on as if nothing had been.
async fn a_frontend_s_death_does_not_touch_the_other_s_devices(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).over(over).frontends(2).start().await;
    let mut device = gateway.device_at(0, "a").await;
    let _gone = gateway.device_at(1, "b").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    gateway.frontends[1].kill9().await;
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
    assert_eq!(service.calls().len(), 1, "nothing was replayed");
    gateway.frontends[1].restart().await;
    let mut back = gateway.device_at(1, "b").await;
    back.request(ECHO, "x", &json!({})).await;
    back.next_reply().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backends_share_one_frontend_and_cover_for_each_other() {
    const DEVICES: usize = 20;
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).backends(2).start().await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        devices.push(gateway.device(&format!("d{n}")).await);
    }
    for device in &mut devices {
        device.request(ECHO, "held", &json!({"hold": true})).await;
    }
    service.wait_for_calls(DEVICES).await;
    gateway.backends[0].kill9().await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_link_replayed_requests_total", |n| {
            (1.0..DEVICES as f64).contains(&n)
        })
        .await;
    service.release();
    for device in &mut devices {
        assert_eq!(device.next_reply().await.reply_to, "held");
        device.request(ECHO, "next", &json!({})).await;
        assert_eq!(device.next_reply().await.reply_to, "next");
    }
    let again = service.calls().iter().filter(|c| c.attempt == 2).count();
    assert!(
        (1..DEVICES).contains(&again),
        "{again} of {DEVICES} were at the dead one"
    );
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}
