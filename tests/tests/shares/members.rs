//! Who gets how many of the sessions.

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use serde_json::json;

use super::{ECHO, answered_during, devices, round, wait_for_share};

/// Five standard deviations around what is expected of `count` draws.
fn assert_part(got: u64, count: usize, part: f64) {
    let (expected, spread) = (
        count as f64 * part,
        5.0 * (count as f64 * part * (1.0 - part)).sqrt(),
    );
    let off = (got as f64 - expected).abs();
    assert!(off <= spread, "{got} of {count}, not {expected} ± {spread}");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_members_share_the_sessions_and_take_over_from_each_other() {
    const DEVICES: usize = 150;
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).backends(2).start().await;
    let mut devices = devices(&gateway, DEVICES).await;
    let two = answered_during(&gateway, round(&mut devices)).await;
    assert_eq!(two.iter().sum::<u64>(), DEVICES as u64);
    assert_part(two[0], DEVICES, 0.5);

    gateway.add_backend().await;
    let three = answered_during(&gateway, round(&mut devices)).await;
    for got in &three {
        assert_part(*got, DEVICES, 1.0 / 3.0);
    }
    assert!(
        three[0] <= two[0] && three[1] <= two[1],
        "only the newcomer gains: {two:?} {three:?}"
    );

    assert_eq!(gateway.backends[0].term().await.code(), Some(0));
    gateway.backends.remove(0);
    let left = answered_during(&gateway, round(&mut devices)).await;
    assert_eq!(left.iter().sum::<u64>(), DEVICES as u64);
    assert!(left[0] >= three[1] && left[1] >= three[2], "{three:?} {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_and_more_of_it_when_that_is_raised() {
    const DEVICES: usize = 300;
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let mut devices = devices(&gateway, DEVICES).await;
    let canary = gateway.add_backend_as(&["--share", "20%"], &[]).await;
    let at_20 = answered_during(&gateway, round(&mut devices)).await;
    assert_part(at_20[canary], DEVICES, 0.2);
    assert_eq!(gateway.status_of(0, canary).await["share_percent"], 20.0);
    let again = answered_during(&gateway, round(&mut devices)).await;
    assert_eq!(again, at_20, "the same sessions");

    gateway.control(canary).share(60.0).await;
    wait_for_share(&gateway, (0, canary), 60.0).await;
    let at_60 = answered_during(&gateway, round(&mut devices)).await;
    assert_part(at_60[canary], DEVICES, 0.6);
    gateway.control(canary).share(100.0).await;
    wait_for_share(&gateway, (0, canary), 100.0).await;
    let promoted = answered_during(&gateway, round(&mut devices)).await;
    assert_part(promoted[canary], DEVICES, 0.5);
    gateway.control(canary).share(20.0).await;
    wait_for_share(&gateway, (0, canary), 20.0).await;
    let back = answered_during(&gateway, round(&mut devices)).await;
    assert_eq!(back, at_20, "a rollback gives back what it took");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_gets_nothing_until_it_is_asked_to_take_over() {
    let service = Service::start().await;
    let mut gateway = Gateway::start(&service).await;
    let standby = gateway.add_backend_as(&["--share", "0%"], &[]).await;
    let mut before = devices(&gateway, 60).await;
    let answered = answered_during(&gateway, round(&mut before)).await;
    assert_eq!(answered, [60, 0]);
    let status = gateway.status_of(0, standby).await;
    assert_eq!(
        (&status["state"], &status["requests"]),
        (&json!("standby"), &json!(0))
    );
    let metrics = gateway
        .control(standby)
        .call(http::Method::GET, "/metrics", None)
        .await
        .text();
    assert!(
        !metrics.contains("holdfast_backend_logins_total{result=\"welcomed\"}"),
        "nobody logged in there"
    );

    // Alone it is still a standby: what comes waits.
    gateway.backends[0].kill9().await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_link_backends", |n| n == 1.0)
        .await;
    before[0].request(ECHO, "waits", &json!({})).await;
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_requests_total", |n| n == 61.0)
        .await;
    assert_eq!(gateway.control(standby).answered().await, 0);
    gateway.control(standby).share(100.0).await;
    assert_eq!(before[0].next_reply().await.reply_to, "waits");
    round(&mut before).await;
}

/// Whoever has no share finishes what it has, stays attached, and comes back when asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_gives_its_share_away_keeps_only_what_it_has() {
    const DEVICES: usize = 40;
    let service = Service::start().await;
    let gateway = Gateway::builder(&service).backends(2).start().await;
    let mut devices = devices(&gateway, DEVICES).await;
    for device in &mut devices {
        device.request(ECHO, "held", &json!({"hold": true})).await;
    }
    service.wait_for_calls(DEVICES).await;
    let held = gateway.status_of(0, 0).await["in_flight"].as_u64().unwrap();
    assert!(held > 0);
    gateway.control(0).share(0.0).await;
    wait_for_share(&gateway, (0, 0), 0.0).await;
    for device in &mut devices {
        device.request(ECHO, "new", &json!({})).await;
    }
    let status = gateway.status_of(0, 0).await;
    assert_eq!(
        (&status["state"], &status["in_flight"]),
        (&json!("standby"), &json!(held))
    );
    service.release();
    for device in &mut devices {
        assert_eq!(device.next_reply().await.reply_to, "held");
        assert_eq!(device.next_reply().await.reply_to, "new");
    }
    let status = gateway.status_of(0, 0).await;
    assert_eq!(
        (&status["requests"], &status["in_flight"]),
        (&json!(held), &json!(0))
    );
    assert!(
        service.calls().iter().all(|c| c.attempt == 1),
        "nothing was replayed"
    );
    gateway.control(0).share(100.0).await;
    wait_for_share(&gateway, (0, 0), 100.0).await;
    let after = answered_during(&gateway, round(&mut devices)).await;
    assert_eq!(after[0], held, "the sessions that it had had");
}
