//! Backends of other protocol versions, beside those of this one.

use std::ops::RangeInclusive;

use holdfast_proto::link::Command;
use holdfast_tests::ChannelKind;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::peer::{Answers, Peer};
use holdfast_tests::service::Service;
use serde_json::json;

use super::{ECHO, TODAY};

const ACTIVE: &str = "holdfast_link_backends_active";
const REFUSED: &str = "holdfast_link_refused_total";
const MALFORMED: &str = "holdfast_link_malformed_total";

/// A backend that also speaks this version takes its share, says what this one does not know, and carries on alone.
async fn serves_beside_this_one(versions: RangeInclusive<u32>) {
    const DEVICES: usize = 24;
    let service = Service::start().await;
    let mut gateway = Gateway::start_over(ChannelKind::Wss, &service).await;
    let mut peer = Peer::attach(&gateway.link(), "other-version", versions, Answers::Itself).await;
    peer.attached().await;
    gateway.frontends[0].wait_for_metric(ACTIVE, |n| n == 2.0).await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let mut device = gateway.device(&format!("d{n}")).await;
        device.request(ECHO, "first", &json!({"n": n})).await;
        assert_eq!(device.next_reply().await.json(), json!({"n": n}));
        devices.push(device);
    }
    let here = service.calls().len();
    assert!(
        (1..DEVICES).contains(&here),
        "{here} of {DEVICES} requests came to this version"
    );
    assert_eq!(
        gateway.backends[0].term().await.code(),
        Some(0),
        "the work is handed over"
    );
    for (n, device) in devices.iter_mut().enumerate() {
        device.request(ECHO, "second", &json!({"n": n})).await;
        assert_eq!(device.next_reply().await.seq, 2);
    }
    gateway.backends[0].restart().await;
    drop(peer);
    for device in &mut devices {
        device.request(ECHO, "third", &json!({})).await;
        assert_eq!(device.next_reply().await.seq, 3);
    }
    assert_eq!(gateway.frontends[0].metric(MALFORMED, &[]).await, 0.0);
    assert_eq!(gateway.frontends[0].metric(REFUSED, &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_of_the_next_version_serves_beside_this_one() {
    serves_beside_this_one(*TODAY.start()..=*TODAY.end() + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_of_the_previous_version_serves_beside_this_one() {
    serves_beside_this_one(*TODAY.start() - 1..=*TODAY.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_without_a_common_version_are_refused_and_disturb_nobody() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Wss, &service).await;
    let mut device = gateway.device("d").await;
    let (next, previous) = (*TODAY.end() + 1, *TODAY.start() - 1);
    for (count, versions) in [(1.0, next..=next + 1), (2.0, previous..=previous)] {
        let mut peer = Peer::attach(&gateway.link(), "stranger", versions.clone(), Answers::Itself).await;
        let refused = peer
            .until("a refusal", |command| match command {
                Command::Refused(refused) => Some(refused),
                _ => None,
            })
            .await;
        assert_eq!(refused.code, "version");
        let said = format!("{} to {}", versions.start(), versions.end());
        assert!(refused.reason.contains(&said), "{}", refused.reason);
        gateway.frontends[0]
            .wait_for_metric(REFUSED, |n| n == count)
            .await;
    }
    assert_eq!(gateway.frontends[0].metric(ACTIVE, &[]).await, 1.0);
    device.request(ECHO, "x", &json!({})).await;
    device.next_reply().await;
}
