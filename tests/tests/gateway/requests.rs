//! Requests and replies: order, exactness, and what a service's route changes about them.

use holdfast_tests::device::{Device, Incoming};
use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::Service;
use holdfast_tests::{Over, over_each_channel};
use serde_json::json;

over_each_channel! {
    replies_come_in_the_order_of_requests_whatever_order_services_answer_in,
    text_payloads_pass_byte_for_byte,
    binary_payloads_pass_byte_for_byte_and_stay_binary,
    text_and_binary_requests_share_one_order,
    a_request_without_an_id_is_answered_by_number,
    an_unordered_route_lets_replies_overtake,
    a_namespace_has_an_order_of_its_own_if_its_route_says_so,
    a_one_way_request_is_delivered_and_never_answered,
    many_devices_get_their_own_answers,
}

const ECHO: (&str, &str) = ("Demo", "Echo");

/// P2: twenty requests whose service answers the last one first.
async fn replies_come_in_the_order_of_requests_whatever_order_services_answer_in(over: Over) {
    const REQUESTS: u64 = 20;
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    for n in 1..=REQUESTS {
        let payload = json!({"n": n, "delay_ms": (REQUESTS - n) * 20});
        device.request(ECHO, &format!("q{n}"), &payload).await;
    }
    for n in 1..=REQUESTS {
        let reply = device.next_reply().await;
        assert_eq!(
            (reply.seq, reply.reply_to.as_str()),
            (n, format!("q{n}").as_str())
        );
        assert_eq!(
            (reply.namespace.as_str(), reply.name.as_str()),
            ("Demo", "Echo.Reply")
        );
        assert_eq!(
            (reply.id.as_str(), &reply.json()["n"]),
            (format!("r-{n}").as_str(), &json!(n))
        );
    }
    let mut calls = service.calls();
    calls.sort_by_key(|c| c.left);
    let answered: Vec<u64> = calls.iter().map(|c| c.sequence).collect();
    assert!(
        !answered.is_sorted(),
        "the service answered in order, so this proved nothing"
    );
    service.assert_contract();
}

async fn text_payloads_pass_byte_for_byte(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let payload = r#"{"b" : 1.0e+2,  "a":[ 1,2 ],"b":"\u00e9é\/", "big":12345678901234567890123}"#;
    device
        .send_text(format!(
            r#" {{"payload":{payload} , "header":{{"name":"Echo","namespace":"Demo","id":"x"}}}}"#
        ))
        .await;
    let reply = device.next_reply().await;
    assert_eq!(std::str::from_utf8(&reply.payload).unwrap(), payload);
    assert!(!reply.binary);
}

async fn binary_payloads_pass_byte_for_byte_and_stay_binary(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    let payload: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    device.request_binary(ECHO, "bin", &payload).await;
    device.request_binary(ECHO, "none", b"").await;
    let reply = device.next_reply().await;
    assert!(reply.binary);
    assert_eq!(
        (reply.reply_to.as_str(), reply.seq, reply.name.as_str()),
        ("bin", 1, "Echo.Reply")
    );
    assert!(reply.payload == payload, "the payload was changed");
    let reply = device.next_reply().await;
    assert_eq!((reply.seq, reply.payload.len()), (2, 0));
    let kind = service.log(|log| log.headers[0]["content-type"].clone());
    assert_eq!(kind, "application/octet-stream");
    service.assert_contract();
}

async fn text_and_binary_requests_share_one_order(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "slow", &json!({"delay_ms": 200})).await;
    device.request_binary(ECHO, "fast", b"raw").await;
    assert_eq!(device.next_reply().await.reply_to, "slow");
    assert_eq!(device.next_reply().await.reply_to, "fast");
}

async fn a_request_without_an_id_is_answered_by_number(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.device("d").await;
    device
        .send_text(r#"{"header":{"namespace":"Demo","name":"Echo"}}"#)
        .await;
    let reply = device.next_reply().await;
    assert_eq!((reply.seq, reply.reply_to.as_str()), (1, ""));
    assert_eq!(reply.payload, "null", "no payload means null");
}

async fn an_unordered_route_lets_replies_overtake(over: Over) {
    let service = Service::start().await;
    let route = Route::new("Demo", service.url("/demo")).order("none");
    let gateway = Gateway::builder(&service)
        .over(over)
        .routes(vec![route])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    device.request(ECHO, "free", &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, "free");
    service.release();
    assert_eq!(device.next_reply().await.reply_to, "held");
}

async fn a_namespace_has_an_order_of_its_own_if_its_route_says_so(over: Over) {
    let service = Service::start().await;
    let route = |namespace| Route::new(namespace, service.url("/demo")).order("namespace");
    let gateway = Gateway::builder(&service)
        .over(over)
        .routes(vec![route("A"), route("B")])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    device.request(("A", "X"), "a1", &json!({"hold": true})).await;
    device.request(("A", "Y"), "a2", &json!({})).await;
    device.request(("B", "X"), "b1", &json!({})).await;
    device.request(("B", "X"), "b2", &json!({})).await;
    assert_eq!(next_ids(&mut device, 2).await, ["b1", "b2"]);
    service.release();
    assert_eq!(next_ids(&mut device, 2).await, ["a1", "a2"]);
}

async fn a_one_way_request_is_delivered_and_never_answered(over: Over) {
    let service = Service::start().await;
    let mut silent = Route::new("Log", service.url("/log"));
    silent.one_way = Some(true);
    let routes = vec![silent, Route::new("Demo", service.url("/demo"))];
    let gateway = Gateway::builder(&service).over(over).routes(routes).start().await;
    let mut device = gateway.device("d").await;
    // More than a window of them: the window must move without a reply.
    for n in 0..100 {
        device
            .request(("Log", "Line"), &format!("l{n}"), &json!({"n": n}))
            .await;
    }
    device.request(ECHO, "end", &json!({})).await;
    let reply = device.next_reply().await;
    assert_eq!((reply.reply_to.as_str(), reply.seq), ("end", 101));
    assert_eq!(service.calls().len(), 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_specific_route_wins_and_routes_reload_without_a_restart() {
    let service = Service::start().await;
    let mut special = Route::new("Demo", service.url("/special"));
    special.name = "Special".to_owned();
    let any = Route::new("*", service.url("/any"));
    let demo = Route::new("Demo", service.url("/demo"));
    let gateway = Gateway::builder(&service)
        .routes(vec![any, demo.clone(), special])
        .start()
        .await;
    let mut device = gateway.device("d").await;
    for kind in [("Demo", "Special"), ("Demo", "Echo"), ("Other", "Special")] {
        device.request(kind, "x", &json!({})).await;
        device.next_reply().await;
    }
    let paths: Vec<u64> = service.calls().iter().map(|c| c.path).collect();
    let expected = ["/special", "/demo", "/any"].map(|p| holdfast_tests::history::digest(p.as_bytes()));
    assert_eq!(paths, expected);
    gateway.write_routes(&[demo]);
    loop {
        device.request(("Other", "Special"), "x", &json!({})).await;
        match device.next().await {
            Incoming::Reply(_) => {}
            Incoming::Error(error) => break assert_eq!(error.code, "no_route"),
            other => panic!("{other:?}"),
        }
    }
    device.request(ECHO, "x", &json!({})).await;
    device.next_reply().await;
}

async fn many_devices_get_their_own_answers(over: Over) {
    const DEVICES: u64 = 50;
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        devices.push(gateway.device(&format!("d{n}")).await);
    }
    for (n, device) in devices.iter_mut().enumerate() {
        for k in 0..10 {
            let payload = json!({"who": n, "k": k, "delay_ms": (n * 7 + k * 13) % 50});
            device.request(ECHO, &k.to_string(), &payload).await;
        }
    }
    for (n, device) in devices.iter_mut().enumerate() {
        for k in 0..10 {
            let reply = device.next_reply().await;
            assert_eq!((&reply.json()["who"], &reply.json()["k"]), (&json!(n), &json!(k)));
        }
    }
    service.assert_contract();
    assert_eq!(service.log(|log| log.inconsistent_keys()), 0);
}

async fn next_ids(device: &mut Device, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(device.next_reply().await.reply_to);
    }
    ids
}
