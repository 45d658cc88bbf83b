//! `kill -9` of the backend: P1, P2, P3 and the replay.

use std::time::Duration;

use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::{Log, Service};
use holdfast_tests::{Over, over_each_channel};
use serde_json::json;

over_each_channel! {
    requests_in_flight_are_replayed_in_order_and_answered_once,
    a_kill_at_any_instant_neither_loses_nor_doubles,
    presence_is_right_after_a_crash,
}

const ECHO: (&str, &str) = ("Demo", "Echo");

async fn requests_in_flight_are_replayed_in_order_and_answered_once(over: Over) {
    const REQUESTS: usize = 10;
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    for n in 1..=REQUESTS {
        device
            .request(ECHO, &format!("q{n}"), &json!({"n": n, "hold": true}))
            .await;
    }
    service.wait_for_calls(REQUESTS).await;
    gateway.backends[0].kill9().await;
    gateway.backends[0].restart().await;
    service.wait_for_calls(REQUESTS * 2).await;
    service.release();
    for n in 1..=REQUESTS {
        let reply = device.next_reply().await;
        assert_eq!((reply.seq, &reply.json()["n"]), (n as u64, &json!(n)));
    }
    device.request(ECHO, "next", &json!({})).await;
    assert_eq!(
        device.next_reply().await.reply_to,
        "next",
        "no second answer came in between"
    );
    let calls = service.calls();
    let attempts: Vec<u32> = calls.iter().map(|c| c.attempt).collect();
    let expected: Vec<u32> = [[1; REQUESTS], [2; REQUESTS]]
        .concat()
        .into_iter()
        .chain([1])
        .collect();
    assert_eq!(attempts, expected);
    assert_eq!(service.log(Log::inconsistent_keys), 0, "a key means one request");
    let keys = service.log(|log| log.by_key().len());
    assert_eq!(keys, REQUESTS + 1, "the key is the same on every attempt");
    service.assert_contract();
    let replayed = gateway.frontends[0]
        .metric("holdfast_link_replayed_requests_total", &[])
        .await;
    assert_eq!(replayed, REQUESTS as f64);
}

/// Replies that were already released but not yet written, partly: no request may be lost or answered twice, whatever the
/// instant of the death.
async fn a_kill_at_any_instant_neither_loses_nor_doubles(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let mut seq = 0;
    for round in 0..8u64 {
        for n in 0..20 {
            device
                .request(ECHO, &format!("{round}-{n}"), &json!({"delay_ms": n}))
                .await;
        }
        // The instant of the kill is the subject: it moves through the time in which replies come.
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        gateway.backends[0].kill9().await;
        gateway.backends[0].start();
        for n in 0..20 {
            seq += 1;
            let reply = device.next_reply().await;
            assert_eq!((reply.seq, reply.reply_to), (seq, format!("{round}-{n}")));
        }
    }
    assert_eq!(service.log(Log::inconsistent_keys), 0);
    service.assert_contract();
}

/// A request that kills whoever takes it may do so twice; the third backend refuses it, and all others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_request_is_answered_backend_failed_after_two_deaths() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    service.on_kill(gateway.backends[0].killer());
    let mut bystander = gateway.device("bystander").await;
    let mut poisoner = gateway.device("poisoner").await;
    bystander.request(ECHO, "before", &json!({})).await;
    bystander.next_reply().await;
    poisoner.request(ECHO, "poison", &json!({"kill": true})).await;
    gateway.backends[0].wait_exit().await;
    gateway.backends[0].start();
    gateway.backends[0].wait_exit().await;
    gateway.backends[0].start();
    let error = poisoner.next_error().await;
    assert_eq!((error.code.as_str(), error.retryable), ("backend_failed", false));
    // By number alone: the third backend did not even read its header.
    assert_eq!(error.seq, 1);
    gateway.backends[0]
        .wait_for_metric("holdfast_backend_poison_total", |n| n >= 1.0)
        .await;
    for device in [&mut bystander, &mut poisoner] {
        device.request(ECHO, "after", &json!({})).await;
        assert_eq!(device.next_reply().await.reply_to, "after");
    }
    let poison = service.log(|log| log.by_key().values().map(Vec::len).max());
    assert_eq!(poison, Some(2), "the poison was not tried a third time");
    let answer = gateway.push(json!({"all": true}), json!(1)).await;
    assert_eq!(answer["counts"]["written"], 2, "{answer}");
}

/// Devices that are at any stage of connecting when the backend dies are admitted by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_connect_during_a_crash_get_in() {
    const DEVICES: usize = 60;
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let arriving: Vec<_> = (0..DEVICES)
        .map(|n| {
            let dial = gateway.dial_as(&format!("d{n}"));
            // At once, whatever the others do: on wss silence counts as a hello after a while.
            tokio::spawn(async {
                let mut device = dial.connect().await.expect("P6");
                device.hello().await;
                device
            })
        })
        .collect();
    gateway.backends[0].kill9().await;
    gateway.backends[0].start();
    for device in arriving {
        let mut device = device.await.unwrap();
        device.request(ECHO, "x", &json!({})).await;
        device.next_reply().await;
    }
}

/// What a device did while there was no backend is told to the next one: presence is right afterwards.
async fn presence_is_right_after_a_crash(over: Over) {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(over, &service).await;
    let stays = gateway.device("stays").await;
    let leaves = gateway.device("leaves").await;
    gateway.backends[0].kill9().await;
    leaves.close().await;
    gateway.backends[0].restart().await;
    assert_eq!(presence(&gateway, "stays").await, "online");
    // A fresh backend without a store may not know the device any more, but must not call it online.
    assert_ne!(presence(&gateway, "leaves").await, "online");
    stays.close().await;
}

/// A replay waits for the timeout of its own attempt only: the clock does not start over for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_service_times_out_after_a_replay_too() {
    let service = Service::start().await;
    let route = Route::new("Demo", service.url("/demo")).timeout("500ms");
    let mut gateway = Gateway::builder(&service).routes(vec![route]).start().await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "hang", &json!({"hang": true})).await;
    service.wait_for_calls(1).await;
    gateway.backends[0].kill9().await;
    gateway.backends[0].start();
    let error = device.next_error().await;
    assert_eq!(error.code, "upstream_timeout");
}

async fn presence(gateway: &Gateway, device: &str) -> String {
    let answer = gateway
        .api(http::Method::GET, &format!("/v1/devices/{device}"), None)
        .await;
    if answer.status == 404 {
        return "unknown".to_owned();
    }
    answer.json()["presence"].as_str().expect("a presence").to_owned()
}
