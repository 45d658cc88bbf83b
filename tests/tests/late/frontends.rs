//! Frontends that restart or hang under backends that go on.

use std::collections::HashSet;

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::{Log, Service};
use http::Method;
use serde_json::json;

use super::{ECHO, NOTICED};

const CANCELLED: &str = "holdfast_backend_requests_cancelled_total";
const ACTIVE: &str = "holdfast_link_backends_active";
const REPEATED: &str = "holdfast_backend_closes_repeated_total";
const OWED: &str = "holdfast_backend_closes_owed";
const LOSSES: &str = "holdfast_backend_link_losses_total";

/// Its sessions are over, and with them whatever the backends had of them; both find the new one, and nothing of the old
/// life reaches it.
#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_restarts_under_two_backends() {
    const DEVICES: usize = 20;
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).backends(2).start().await;
    let mut sessions = HashSet::new();
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let mut device = gateway.dial_as(&format!("d{n}")).connect().await.unwrap();
        sessions.insert(device.hello().await["session"].as_str().unwrap().to_owned());
        device.request(ECHO, "held", &json!({"hold": true})).await;
        devices.push(device);
    }
    service.wait_for_calls(DEVICES).await;
    gateway.frontends[0].kill9().await;
    let mut cancelled = 0.0;
    for backend in &gateway.backends {
        cancelled += backend.wait_for_metric(CANCELLED, |n| n >= 1.0).await;
    }
    assert_eq!(cancelled, DEVICES as f64, "the work of both was given up, once");
    gateway.frontends[0].restart().await;
    gateway.frontends[0].wait_for_metric(ACTIVE, |n| n == 2.0).await;
    service.release();
    let old: Vec<String> = sessions.iter().cloned().collect();
    for n in 0..DEVICES {
        let mut device = gateway.dial_as(&format!("d{n}")).connect().await.unwrap();
        let session = device.hello().await["session"].as_str().unwrap().to_owned();
        assert!(sessions.insert(session), "a session's uuid is never used again");
        device.request(ECHO, "new", &json!({})).await;
        let reply = device.next_reply().await;
        assert_eq!(
            (reply.seq, reply.reply_to.as_str()),
            (1, "new"),
            "no answer of the life before"
        );
    }
    for session in old.iter().take(3) {
        let answer = gateway.push(json!({"session": session}), json!(1)).await;
        assert_eq!(answer["results"][0]["status"], "offline", "{answer}");
    }
    assert_eq!(service.calls().len(), 2 * DEVICES);
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    service.assert_contract();
}

/// A device moves to another frontend while its old one hangs: the CLOSE of its old session is owed until that one is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_replaced_while_its_frontend_hung_is_closed_when_it_wakes() {
    let service = Service::start().await;
    let builder = Gateway::builder(&service).frontends(2).link_timeout(NOTICED);
    let mut gateway = builder.start().await;
    let mut old = gateway.device_at(1, "d").await;
    gateway.frontends[1].stop();
    gateway.backends[0].wait_for_metric(LOSSES, |n| n >= 1.0).await;
    let mut new = gateway.device_at(0, "d").await;
    gateway.backends[0].wait_for_metric(OWED, |n| n == 1.0).await;
    let answer = gateway.api(Method::DELETE, "/v1/devices/nobody", None).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["code"]),
        (503, &json!("unconfirmed"))
    );
    gateway.frontends[1].cont();
    let (goodbye, code) = old.until_closed().await;
    assert_eq!((code, &goodbye.unwrap()["reconnect"]), (4000, &json!(false)));
    gateway.backends[0].wait_for_metric(OWED, |n| n == 0.0).await;
    assert!(gateway.backends[0].metric(REPEATED, &[]).await >= 1.0);
    new.request(ECHO, "x", &json!({})).await;
    new.next_reply().await;
    gateway.frontends[1].wait_ready().await;
}
