//! A network through which nothing gets for twenty seconds.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use holdfast_tests::Over;
use holdfast_tests::network::{DEVICE, with_network};
use holdfast_tests::service::Service;
use holdfast_tests::traffic::Plan;
use serde_json::json;
use tokio::time::sleep;

use crate::common::{Sdk, assert_each_once, gateway, held, judge, traffic};

const OUTAGE: Duration = Duration::from_secs(20);

#[test]
fn twenty_seconds_of_darkness_end_nothing() {
    const PLAN: Plan = Plan {
        devices: 10,
        per_second: 20,
        payload_bytes: 600,
        max_delay_ms: 50,
        pushes_per_second: 5,
    };
    with_network(|network| async move {
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let traffic = traffic(&network, &gateway, PLAN).await;
        sleep(Duration::from_secs(1)).await;
        network.black_hole();
        sleep(OUTAGE).await;
        assert!(network.dropped() > 0, "it was not dark");
        network.heal();
        let healed = Instant::now();
        traffic.settle().await;
        println!("all answered {:?} after the light came back", healed.elapsed());
        judge(traffic, PLAN, &gateway, &service).await;
    });
}

#[test]
fn the_sdk_waits_for_the_light_and_logs_in_once() {
    const REQUESTS: usize = 10;
    with_network(|network| async move {
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let sdk = Sdk::online(&network, &gateway, "sdk").await;
        // Half are with the service when it gets dark, half are asked in the dark.
        let before: Vec<_> = (0..REQUESTS / 2).map(|n| sdk.ask(&held(n, n * 4_000))).collect();
        service.wait_for_calls(REQUESTS / 2).await;
        network.black_hole();
        service.release();
        let dark = Instant::now();
        let after: Vec<_> = (REQUESTS / 2..REQUESTS)
            .map(|n| sdk.ask(&held(n, n * 4_000)))
            .collect();
        let pushed = gateway.push(json!({"device": "sdk"}), json!("dark")).await;
        assert_eq!(pushed["results"][0]["status"], "unconfirmed", "{pushed}");
        sleep(OUTAGE.saturating_sub(dark.elapsed())).await;
        assert_eq!(service.calls().len(), REQUESTS / 2, "it was not dark");
        network.heal();
        let healed = Instant::now();
        for (n, reply) in join_all(before.into_iter().chain(after))
            .await
            .into_iter()
            .enumerate()
        {
            assert_eq!(reply.expect("a reply").payload, held(n, n * 4_000).to_string());
        }
        println!("all answered {:?} after the light came back", healed.elapsed());
        sdk.assert_same_session(&gateway, DEVICE).await;
        assert_eq!(sdk.device.counters().pushes(), 1);
        assert_each_once(&service, REQUESTS);
    });
}
