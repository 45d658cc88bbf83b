//! More attempts than anybody honest makes: most are turned away before they cost anything, and who is connected notices nothing.

use std::net::IpAddr;

use holdfast_tests::ChannelKind;
use holdfast_tests::device::Device;
use holdfast_tests::dial::{Dial, DialError};
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::DeviceKeys;
use holdfast_tests::service::Service;
use serde_json::json;

const ATTEMPTS: u32 = 120;
const BURST: u32 = 20;
const REFUSED: &str = "holdfast_frontend_refused_total";

/// Few attempts of one source at once, and next to none after that.
async fn start(service: &Service) -> Gateway {
    Gateway::builder(service)
        .over(ChannelKind::Ws)
        .frontend_set("ws.source_attempts_burst", i64::from(BURST))
        .frontend_set("ws.source_attempts_per_minute", 1)
        .frontend_set("times.challenge", "1m")
        .start()
        .await
}

/// One more attempt by somebody who has no key of this gateway.
fn strange(gateway: &Gateway) -> Dial {
    let strangers = DeviceKeys::generate();
    let identity = strangers.identity("d");
    let key = strangers.device_key(&identity);
    gateway.dial_ws().key(identity, key)
}

async fn works(device: &mut Device, n: u32) {
    device.request(("Demo", "Echo"), &n.to_string(), &json!({})).await;
    assert_eq!(device.next_reply().await.reply_to, n.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_is_throttled_and_its_own_sessions_go_on() {
    let service = Service::start().await;
    let gateway = start(&service).await;
    let source: IpAddr = "127.9.8.7".parse().unwrap();
    let mut bound = gateway.dial_as("bound").source(source).connect().await.unwrap();
    bound.hello().await;
    let (mut judged, mut turned_away) = (0, 0);
    for n in 0..ATTEMPTS {
        let answer = strange(&gateway).source(source).refusal().await;
        match answer.status.as_u16() {
            401 => judged += 1,
            _ => {
                answer.expect_problem(429, "too_many_attempts");
                assert!(!answer.header("retry-after").is_empty());
                turned_away += 1;
            }
        }
        works(&mut bound, n).await;
    }
    // The bound device's was one of the burst. However slow this machine is, a place a minute comes free.
    assert!((BURST - 1..=2 * BURST).contains(&judged), "{judged} were judged");
    let throttled = [("reason", "source_throttled")];
    let counted = gateway.frontends[0].metric(REFUSED, &throttled).await;
    assert_eq!(counted, f64::from(turned_away));
    let binds = gateway.backends[0]
        .metric("holdfast_backend_binds_total", &[])
        .await;
    assert_eq!(
        binds,
        f64::from(judged + 1),
        "no backend was asked about the others"
    );
    // Somebody else is somebody else.
    gateway
        .dial_as("other")
        .source("127.9.8.8".parse().unwrap())
        .connect()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sources_are_judged_one_by_one_and_sessions_go_on() {
    let service = Service::start().await;
    let gateway = start(&service).await;
    let mut bound = gateway.device("bound").await;
    let attempts = (0..ATTEMPTS).map(|n| {
        let source = IpAddr::from([127, 10, 0, n as u8 + 1]);
        strange(&gateway).source(source).refusal()
    });
    let flood = futures_util::future::join_all(attempts);
    let goes_on = async {
        for n in 0..ATTEMPTS {
            works(&mut bound, n).await;
        }
    };
    let (answers, ()) = tokio::join!(flood, goes_on);
    for answer in answers {
        answer.expect_problem(401, "handshake_failed");
    }
    assert_eq!(
        gateway.frontends[0]
            .metric("holdfast_frontend_sessions_online", &[])
            .await,
        1.0
    );
}

/// Somebody with a device's key begins handshakes and finishes none: few of those are waited for at a time, and the device itself
/// notices nothing, neither its session nor when it connects from elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_handshakes_of_one_device_are_few_and_cost_its_session_nothing() {
    const UNFINISHED: usize = 4;
    const BEGUN: usize = 30;
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Ws)
        .frontend_set("times.challenge", "1m")
        .backend_set("device_keys.attempts_burst", 1_000)
        .start()
        .await;
    let mut bound = gateway.device("victim").await;
    let (mut challenged, mut turned_away) = (Vec::new(), 0);
    let [source, elsewhere] = [1, 2].map(|n| IpAddr::from([127, 11, 0, n]));
    for n in 0..BEGUN {
        match gateway.dial_as("victim").source(source).connect().await {
            Ok(device) => challenged.push(device),
            Err(DialError::Refused(answer)) => {
                answer.expect_problem(429, "too_many_attempts");
                assert!(!answer.header("retry-after").is_empty());
                turned_away += 1;
            }
            Err(other) => panic!("{other}"),
        }
        works(&mut bound, n as u32).await;
    }
    assert_eq!((challenged.len(), turned_away), (UNFINISHED, BEGUN - UNFINISHED));
    let frontend = &gateway.frontends[0];
    let unfinished = [("reason", "unfinished_handshakes")];
    assert_eq!(frontend.metric(REFUSED, &unfinished).await, turned_away as f64);
    let logins = gateway.backends[0].metric("holdfast_backend_logins_total", &[]);
    assert_eq!(logins.await, 1.0);
    let again = gateway.dial_as("victim").source(elsewhere).connect().await;
    again.unwrap().hello().await;
    let (_, code) = bound.until_closed().await;
    assert_eq!(code, 4000, "replaced by the device itself");
    // Places come free when the attacker gives up.
    drop(challenged);
    frontend
        .wait_for_metric("holdfast_frontend_sessions", |n| n <= 1.0)
        .await;
    gateway.dial_as("victim").source(source).connect().await.unwrap();
}
