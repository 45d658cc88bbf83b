//! Networks that lose, delay and reorder, under traffic whose every message is judged.

use std::time::Duration;

use holdfast_tests::Over;
use holdfast_tests::network::{Jitter, with_network};
use holdfast_tests::service::Service;
use holdfast_tests::traffic::Plan;
use tokio::time::sleep;

use crate::common::{gateway, judge, traffic};

const PLAN: Plan = Plan {
    devices: 20,
    per_second: 100,
    payload_bytes: 600,
    max_delay_ms: 50,
    pushes_per_second: 20,
};
const LASTS: Duration = Duration::from_secs(6);
/// Of packets, each way.
const LOSS: f64 = 0.1;

#[test]
fn a_tenth_lost_each_way_is_noticed_by_nobody() {
    with_network(|network| async move {
        network.lose(LOSS);
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let traffic = traffic(&network, &gateway, PLAN).await;
        sleep(LASTS).await;
        let report = judge(traffic, PLAN, &gateway, &service).await;
        let (dropped, late) = (network.dropped(), report.percentile(0.99));
        println!(
            "{} requests, {dropped} datagrams lost, 99 % within {late:?}",
            report.sent
        );
        assert!(dropped > report.sent / 10, "{dropped} lost");
    });
}

#[test]
fn messages_of_many_datagrams_get_through_loss() {
    const LONG: Plan = Plan {
        devices: 5,
        per_second: 10,
        payload_bytes: 20_000,
        ..PLAN
    };
    with_network(|network| async move {
        network.lose(LOSS);
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let traffic = traffic(&network, &gateway, LONG).await;
        sleep(LASTS).await;
        let report = judge(traffic, LONG, &gateway, &service).await;
        let late = report.percentile(0.99);
        println!(
            "{} requests, {} datagrams lost, 99 % within {late:?}",
            report.sent,
            network.dropped()
        );
        assert!(network.dropped() > report.sent, "{} lost", network.dropped());
    });
}

/// What TCP makes of the same network: the test's own yardstick.
#[test]
fn a_tenth_lost_each_way_is_survived_over_tcp() {
    with_network(|network| async move {
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Ws).await;
        let traffic = traffic(&network, &gateway, PLAN).await;
        network.lose_all_kinds(LOSS);
        sleep(LASTS).await;
        let report = judge(traffic, PLAN, &gateway, &service).await;
        let late = report.percentile(0.99);
        println!(
            "{} requests, {} packets lost, 99 % within {late:?}",
            report.sent,
            network.dropped()
        );
        assert!(network.dropped() > report.sent / 10, "{} lost", network.dropped());
    });
}

#[test]
fn delay_jitter_and_reordering_misorder_nothing() {
    const JITTER: Jitter = Jitter {
        at_least: Duration::from_millis(20),
        at_most: Duration::from_millis(60),
    };
    const MIXED: Plan = Plan {
        payload_bytes: 3_000,
        ..PLAN
    };
    with_network(|network| async move {
        let reordering = network.delay(JITTER);
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let traffic = traffic(&network, &gateway, MIXED).await;
        sleep(LASTS).await;
        let report = judge(traffic, MIXED, &gateway, &service).await;
        let (passed, overtaken) = reordering.counts();
        let (half, late) = (report.percentile(0.5), report.percentile(0.99));
        println!(
            "{} requests, {passed} datagrams, {overtaken} overtaken, half within {half:?}, 99 % within {late:?}",
            report.sent
        );
        assert!(overtaken > passed / 10, "{overtaken} of {passed} overtaken");
        assert!(half >= JITTER.at_least * 2, "{half:?}: nothing was delayed");
    });
}

#[test]
fn loss_and_reordering_together_misorder_nothing() {
    const JITTER: Jitter = Jitter {
        at_least: Duration::from_millis(1),
        at_most: Duration::from_millis(40),
    };
    with_network(|network| async move {
        network.lose(LOSS);
        let reordering = network.delay(JITTER);
        let service = Service::start().await;
        let gateway = gateway(&service, Over::Udp).await;
        let traffic = traffic(&network, &gateway, PLAN).await;
        sleep(LASTS).await;
        let report = judge(traffic, PLAN, &gateway, &service).await;
        let ((passed, overtaken), late) = (reordering.counts(), report.percentile(0.99));
        println!(
            "{} requests, {} of {passed} datagrams lost, {overtaken} overtaken, 99 % within {late:?}",
            report.sent,
            network.dropped()
        );
        assert!(network.dropped() > report.sent / 10 && overtaken > passed / 10);
    });
}
