//! What can happen to devices on `udp` alone: a frontend that forgot them, an address that changes, a path that goes dark.

use std::time::Duration;

use holdfast_client::{Request, State};
use holdfast_tests::Over;
use holdfast_tests::device::{ABNORMAL, Device, Incoming};
use holdfast_tests::gateway::Gateway;
use holdfast_tests::lossy::{Relay, Way, Weather};
use holdfast_tests::service::{Log, Service};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

const ECHO: (&str, &str) = ("Demo", "Echo");
const SESSIONS: &str = "holdfast_frontend_sessions";
const MOVES: &str = "holdfast_udp_path_validations_total";
const CLOSED: &str = "holdfast_frontend_closed_total";
/// Of silence, where that is the subject: long enough for those who are to live on a busy machine.
const CLOSE_AFTER: Duration = Duration::from_secs(6);

/// A device that is online through the relay.
async fn device_through(gateway: &Gateway, relay: &Relay, id: &str) -> Device {
    let dial = gateway.dial_udp_at(relay.address, id);
    let mut device = dial.connect().await.expect("it gets in");
    device.hello().await;
    device
}

async fn works(device: &mut Device, id: &str) {
    device.request(ECHO, id, &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, id);
}

async fn presence(gateway: &Gateway, id: &str) -> Value {
    let answer = gateway.api(Method::GET, &format!("/v1/devices/{id}"), None).await;
    answer.json()
}

/// Its keys are gone with the frontend, but not the key by which resets are proved.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_frontend_tells_its_devices_that_it_forgot_them() {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(Over::Udp, &service).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut devices = Vec::new();
        for id in ["a", "b", "c"] {
            devices.push(gateway.device(id).await);
        }
        gateway.frontends[0].signal(signal);
        gateway.frontends[0].wait_exit().await;
        gateway.frontends[0].restart().await;
        for device in &mut devices {
            if signal == Signal::SIGTERM {
                assert_eq!(device.until_closed().await.1, 1001);
                continue;
            }
            device.send_text("@ping").await;
            let reset = Incoming::Closed {
                code: ABNORMAL,
                reason: "reset".to_owned(),
            };
            assert_eq!(device.next().await, reset);
        }
        works(&mut gateway.device("a").await, "again").await;
    }
    assert_eq!(service.log(Log::inconsistent_keys), 0);
}

/// The SDK needs no deadline for that: it is told with the first thing that it sends, comes back, and asks again.
#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_comes_back_to_a_restarted_frontend() {
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(Over::Udp, &service).await;
    let identity = gateway.keys.identity("sdk");
    let key = gateway.keys.device_key(&identity);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let device = holdfast_client::Device::builder_with_key(format!("udp://{}", gateway.udp()), identity, key)
        .seed(1)
        .on_state(move |state| {
            if let State::Waiting { error, .. } = state {
                // After the test nobody listens.
                let _ = tell.send(error.to_string());
            }
        })
        .start()
        .expect("good settings");
    device.wait_online().await.expect("it gets in");
    let request = || Request::json("Demo", "Echo", to_raw_value(&json!({})).expect("JSON"));
    device.call(request()).await.expect("a reply");
    gateway.frontends[0].kill9().await;
    gateway.frontends[0].restart().await;
    let begun = std::time::Instant::now();
    // What was asked of the frontend before it is known to be another may be lost with it.
    while device.call(request()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("back after {:?}", begun.elapsed());
    let lost = told.recv().await.expect("it lost its connection");
    assert!(lost.contains("does not know this connection"), "{lost}");
}

/// A router forgot the mapping in the middle of a request: the reply finds the device, and presence says where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_address_changes_is_followed() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let relay = Relay::before(gateway.udp(), Weather::CLEAR, 1);
    let mut device = device_through(&gateway, &relay, "d").await;
    let address = presence(&gateway, "d").await["sessions"][0]["address"].clone();
    assert_eq!(address, relay.seen_address().to_string());
    for moves in 1..=3u32 {
        service.hold_again();
        let held = json!({"hold": true, "pad": "x".repeat(20_000)});
        device.request(ECHO, "held", &held).await;
        service.wait_for_calls(moves as usize * 2 - 1).await;
        relay.move_devices();
        device.send_text("@ping").await;
        assert!(matches!(device.next().await, Incoming::Control { word, .. } if word == "@pong"));
        service.release();
        assert_eq!(device.next_reply().await.json(), held);
        gateway.frontends[0]
            .wait_for_metric(MOVES, |n| n == f64::from(moves))
            .await;
        let sessions = presence(&gateway, "d").await["sessions"].clone();
        assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{sessions}");
        assert_eq!(sessions[0]["address"], relay.seen_address().to_string());
        works(&mut device, "after").await;
    }
    // The device itself may be what moves.
    let (_, before) = device.look().await;
    device.move_on().await;
    works(&mut device, "moved").await;
    assert_ne!(device.look().await.1, before);
    assert_eq!(gateway.frontends[0].metric(SESSIONS, &[]).await, 1.0);
}

/// Over and over, while requests and replies of many datagrams are on their way in bad weather.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_stays_loses_nothing() {
    const REQUESTS: usize = 60;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let relay = Relay::before(gateway.udp(), Weather::STORMY, 1);
    let (mut outbox, mut inbox) = device_through(&gateway, &relay, "d").await.split();
    let talk = async {
        for n in 0..REQUESTS {
            let payload = json!({"n": n, "delay_ms": n % 7 * 10, "pad": "x".repeat(n % 5 * 3_000)});
            let text = holdfast_tests::device::event_text(ECHO, &n.to_string(), &payload);
            outbox.send_text(text).await.expect("P1");
        }
        // Who keeps silent is not found where he has gone to.
        let mut beats = tokio::time::interval(Duration::from_millis(100));
        let mut n = 0;
        while n < REQUESTS {
            tokio::select! {
                message = inbox.next() => match message {
                    Incoming::Reply(reply) => {
                        assert_eq!(reply.reply_to, n.to_string());
                        n += 1;
                    }
                    Incoming::Control { word, .. } if word == "@pong" => {}
                    other => panic!("reply {n}: {other:?}"),
                },
                _ = beats.tick() => outbox.send_text("@ping").await.expect("P1"),
            }
        }
    };
    let wander = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            relay.move_devices();
        }
    };
    tokio::select! {
        () = talk => {}
        () = wander => {}
    }
    assert_eq!(service.calls().len(), REQUESTS, "each once");
}

/// Nothing says that it is gone but its silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_vanishes_is_logged_out_in_its_time() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("times.ping_after", "1s")
        .frontend_set("times.close_after", format!("{}s", CLOSE_AFTER.as_secs()))
        .start()
        .await;
    let stays = gateway.device("stays").await;
    let begun = std::time::Instant::now();
    gateway.device("gone").await.vanish().await;
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 1.0).await;
    let took = begun.elapsed();
    assert!(took >= CLOSE_AFTER, "{took:?}");
    println!("logged out after {took:?}");
    assert_eq!(presence(&gateway, "gone").await["presence"], "offline");
    assert_eq!(presence(&gateway, "stays").await["presence"], "online");
    let silent = [("reason", "heartbeat_timeout")];
    assert_eq!(gateway.frontends[0].metric(CLOSED, &silent).await, 1.0);
    stays.close().await;
}

/// Also one that the frontend takes no messages of at the moment, and one that has pushes under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_vanishes_while_it_is_held_up_is_logged_out_too() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("times.ping_after", "1s")
        .frontend_set("times.close_after", format!("{}s", CLOSE_AFTER.as_secs()))
        .start()
        .await;
    let mut device = gateway.device("full").await;
    for n in 0..60 {
        device.request(ECHO, &n.to_string(), &json!({"hold": true})).await;
    }
    service.wait_for_calls(32).await;
    device.vanish().await;
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
    let relay = Relay::before(gateway.udp(), Weather::CLEAR, 1);
    let _deaf = device_through(&gateway, &relay, "deaf").await;
    relay.black_hole();
    for n in 0..10 {
        let push = json!({"to": {"device": "deaf"}, "namespace": "A", "name": "B", "payload": n});
        let call = gateway.api(Method::POST, "/v1/messages", Some(push));
        // How it ends is not known so soon.
        tokio::time::timeout(Duration::from_millis(50), call).await.ok();
    }
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
    service.release();
    assert_eq!(presence(&gateway, "full").await["presence"], "offline");
}

/// P9: what the device has not acknowledged was not written, whether it arrived or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_nobody_acknowledges_is_never_written() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("udp.give_up", "5s")
        .start()
        .await;
    for (id, deaf) in [("mute", false), ("gone", true)] {
        let relay = Relay::before(gateway.udp(), Weather::CLEAR, 1);
        let mut device = device_through(&gateway, &relay, id).await;
        let written = gateway.push(json!({"device": id}), json!("before")).await;
        assert_eq!(written["results"][0]["status"], "written", "{written}");
        device.next_push().await;
        relay.set(Way::ToServer, Weather::BLACK_HOLE);
        if deaf {
            relay.black_hole();
        }
        let answer = gateway.push(json!({"device": id}), json!("after")).await;
        let status = answer["results"][0]["status"].as_str().unwrap_or_default();
        assert!(["unconfirmed", "dropped"].contains(&status), "{id}: {answer}");
        if !deaf {
            assert_eq!(device.next_push().await.json(), "after", "it did arrive");
        }
        // Whom nothing reaches any more is given up.
        gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
        assert_eq!(presence(&gateway, id).await["presence"], "offline");
    }
}

/// A path that is dark for a while costs time and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_dark_path_delays_and_loses_nothing() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let relay = Relay::before(gateway.udp(), Weather::CLEAR, 1);
    let mut device = device_through(&gateway, &relay, "d").await;
    device.request(ECHO, "held", &json!({"hold": true})).await;
    service.wait_for_calls(1).await;
    relay.black_hole();
    service.release();
    for n in 0..5 {
        device.request(ECHO, &n.to_string(), &json!({})).await;
    }
    assert!(device.next_within(Duration::from_secs(3)).await.is_none());
    for way in Way::BOTH {
        relay.set(way, Weather::CLEAR);
    }
    assert_eq!(device.next_reply().await.reply_to, "held");
    for n in 0..5 {
        assert_eq!(device.next_reply().await.reply_to, n.to_string());
    }
    assert_eq!(service.calls().len(), 6, "each once");
}

/// What came while the frontend hung is there when it wakes; nobody is taken for gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_hung_frontend_loses_no_device_and_no_request() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::LossyUdp)
        .frontend_set("times.ping_after", "1s")
        .frontend_set("times.close_after", format!("{}s", CLOSE_AFTER.as_secs()))
        .start()
        .await;
    let mut device = gateway.device("d").await;
    gateway.frontends[0].stop();
    for n in 0..5 {
        device.request(ECHO, &n.to_string(), &json!({})).await;
    }
    tokio::time::sleep(CLOSE_AFTER * 3 / 2).await;
    gateway.frontends[0].cont();
    for n in 0..5 {
        assert_eq!(device.next_reply().await.reply_to, n.to_string());
    }
    assert_eq!(service.log(|log| log.by_key().len()), 5);
}
