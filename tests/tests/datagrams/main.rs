//! Devices over datagrams, through the real processes.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_tests::ChannelKind;
use holdfast_tests::datagrams::UdpDevice;
use holdfast_tests::device::{ABNORMAL, Incoming};
use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::Service;
use http::Method;
use serde_json::{Value, json};

fn here() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn reply(device: &mut UdpDevice) -> (u64, Value) {
    match device.next().await {
        Incoming::Reply(reply) => (reply.seq, reply.json()),
        other => panic!("expected a reply, not {other:?}"),
    }
}

async fn push(device: &mut UdpDevice) -> Value {
    match device.next().await {
        Incoming::Push(push) => push.json(),
        other => panic!("expected a push, not {other:?}"),
    }
}

async fn presence(gateway: &Gateway, id: &str) -> Value {
    let path = format!("/v1/devices/{id}");
    gateway.api(Method::GET, &path, None).await.json()
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(20), wait).await;
    assert!(done.is_ok(), "waited in vain for {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pushes_and_the_end() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let mut device = gateway.udp_device("d", here()).await;
    for n in 1..=20 {
        device.request(("Demo", "Echo"), &format!("r{n}"), &json!({"n": n}));
        let (seq, _) = reply(&mut device).await;
        assert_eq!(seq, n);
    }
    let answer = gateway.push(json!({"device": "d"}), json!({"ring": 1})).await;
    assert_eq!(push(&mut device).await, json!({"ring": 1}));
    assert_eq!(answer["results"][0]["status"], "written", "{answer}");
    let found = presence(&gateway, "d").await;
    assert_eq!(
        (&found["presence"], &found["sessions"][0]["channel"]),
        (&json!("online"), &json!(ChannelKind::Udp.label()))
    );
    device.close();
    match device.next().await {
        Incoming::Closed { .. } => {}
        other => panic!("{other:?}"),
    }
    until("presence ends", async || {
        presence(&gateway, "d").await["presence"] == "offline"
    })
    .await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_udp_connections", |n| n == 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_dies_and_nobody_notices() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let mut device = gateway.udp_device("d", here()).await;
    for n in 1..=10 {
        device.request(("Demo", "Echo"), &format!("a{n}"), &json!({"n": n}));
    }
    gateway.backends[0].kill9().await;
    for n in 1..=10 {
        device.request(("Demo", "Echo"), &format!("b{n}"), &json!({"n": n}));
    }
    gateway.backends[0].restart().await;
    for n in 1..=20 {
        let (seq, _) = reply(&mut device).await;
        assert_eq!(seq, n);
    }
    gateway.frontends_ready().await;
    gateway.push(json!({"device": "d"}), json!(2)).await;
    assert_eq!(push(&mut device).await, json!(2));
}

/// P9: whoever asks where a device is hears where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_changes_its_address() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let mut device = gateway.udp_device("d", here()).await;
    device.move_to("127.0.0.77:0".parse().unwrap());
    device.send_text("@ping");
    assert!(matches!(device.next().await, Incoming::Control { word, .. } if word == "@pong"));
    until("the new address", async || {
        let found = presence(&gateway, "d").await;
        let address = found["sessions"][0]["address"].as_str();
        address.is_some_and(|address| address.starts_with("127.0.0.77:"))
    })
    .await;
    gateway.push(json!({"device": "d"}), json!(3)).await;
    assert_eq!(push(&mut device).await, json!(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_frontend_does_not_know_its_devices_and_says_so() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let mut device = gateway.udp_device("d", here()).await;
    gateway.frontends[0].kill9().await;
    gateway.frontends[0].restart().await;
    device.send_text("@ping");
    match device.next().await {
        Incoming::Closed { code, reason } => assert_eq!((code, reason.as_str()), (ABNORMAL, "Reset")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_refused() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let identity = gateway.keys.identity("d");
    let wrong = gateway.keys.device_key(&gateway.keys.identity("e"));
    let refused = UdpDevice::connect(gateway.udp(), here(), (&identity, &wrong)).await;
    let refusal = refused.err().flatten().expect("a refusal");
    assert_eq!((refusal.status, refusal.retryable), (401, false), "{refusal:?}");
}

/// Much longer than a datagram, and the reply longer than what a device may send.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_pass() {
    let service = Service::start().await;
    let route = Route {
        max_reply_bytes: Some(4 << 20),
        ..Route::new("Demo", service.url("/demo"))
    };
    let gateway = Gateway::builder(&service).routes(vec![route]).start().await;
    let mut device = gateway.udp_device("d", here()).await;
    let long = "x".repeat(600_000);
    device.request(("Demo", "Echo"), "r", &json!({"big": 3 << 20, "padding": long}));
    let (seq, answer) = reply(&mut device).await;
    assert_eq!((seq, answer.as_str().map(str::len)), (1, Some((3 << 20) - 2)));
}
