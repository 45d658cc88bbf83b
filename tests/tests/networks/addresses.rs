//! A device's address changes while a slow request is under way: the reply finds it, in the same session.

use std::time::Duration;

use futures_util::future::join_all;
use holdfast_tests::Over;
use holdfast_tests::device::Incoming;
use holdfast_tests::network::{DEVICE, DEVICE_MOVED, ROUTER, ROUTER_MOVED, with_network};
use holdfast_tests::service::Service;
use serde_json::json;
use tokio::time::sleep;

use crate::common::{ECHO, MOVES, Sdk, assert_each_once, gateway, held, session_at};

const REQUESTS: usize = 5;
/// Longer than the router remembers who is silent.
const FORGOTTEN: Duration = Duration::from_millis(3500);

/// From one network to the next.
#[test]
fn a_device_that_gets_another_address_is_followed() {
    with_network(|network| async move {
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let sdk = Sdk::online(&network, &gateway, "sdk").await;
        sdk.assert_same_session(&gateway, DEVICE).await;
        // Of one datagram, and of many.
        let replies = join_all((0..REQUESTS).map(|n| sdk.ask(&held(n, n * 4_000))));
        service.wait_for_calls(REQUESTS).await;
        network.move_devices();
        service.release();
        for (n, reply) in replies.await.into_iter().enumerate() {
            assert_eq!(reply.expect("a reply").payload, held(n, n * 4_000).to_string());
        }
        gateway.frontends[0].wait_for_metric(MOVES, |n| n == 1.0).await;
        sdk.assert_same_session(&gateway, DEVICE_MOVED).await;
        let pushed = gateway.push(json!({"device": "sdk"}), json!("there")).await;
        assert_eq!(pushed["results"][0]["status"], "written", "{pushed}");
        assert_eq!(sdk.device.counters().pushes(), 1);
        assert_each_once(&service, REQUESTS);
    });
}

/// A home router after a night's disconnection.
#[test]
fn a_device_behind_a_router_that_gets_another_address_is_followed() {
    with_network(|network| async move {
        network.translate("20000-29999");
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let sdk = Sdk::online(&network, &gateway, "sdk").await;
        sdk.assert_same_session(&gateway, ROUTER).await;
        let replies = join_all((0..REQUESTS).map(|n| sdk.ask(&held(n, n * 4_000))));
        service.wait_for_calls(REQUESTS).await;
        network.renumber_router();
        // The kernel forgets mappings in the background.
        sleep(Duration::from_secs(1)).await;
        service.release();
        for (n, reply) in replies.await.into_iter().enumerate() {
            assert_eq!(reply.expect("a reply").payload, held(n, n * 4_000).to_string());
        }
        sdk.assert_same_session(&gateway, ROUTER_MOVED).await;
        assert_each_once(&service, REQUESTS);
    });
}

/// The reply comes to a port that is nobody's any more, and its sender is told so; when the device says something, it comes from another
/// port.
#[test]
fn a_device_whose_router_forgot_it_is_followed() {
    with_network(|network| async move {
        network.translate("20000-29999");
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let dial = gateway.dial_as("d").on(network.devices());
        let mut device = dial.connect().await.expect("it gets in");
        device.hello().await;
        let before = session_at(&gateway, "d", |shown| (20_000..30_000).contains(&shown.port())).await;
        device.request(ECHO, "held", &held(0, 20_000)).await;
        service.wait_for_calls(1).await;
        sleep(FORGOTTEN).await;
        network.translate_to("30000-39999");
        service.release();
        let early = device.next_within(Duration::from_secs(1)).await;
        assert!(early.is_none(), "the router did not forget: {early:?}");
        device.send_text("@ping").await;
        let (mut pong, mut reply) = (false, false);
        while !(pong && reply) {
            match device.next().await {
                Incoming::Control { word, .. } if word == "@pong" && !pong => pong = true,
                Incoming::Reply(event) if !reply => reply = event.json() == held(0, 20_000),
                other => panic!("{other:?}"),
            }
        }
        let after = session_at(&gateway, "d", |shown| shown.port() >= 30_000).await;
        assert_eq!(
            (&after["session"], &after["since"]),
            (&before["session"], &before["since"])
        );
        assert_each_once(&service, 1);
    });
}
