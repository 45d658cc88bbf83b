//! When a HELLO must show where it came from, and what is kept of those that do not.

use std::time::Duration;

use holdfast_tests::Over;
use holdfast_tests::datagram::{Hello, Said};
use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;
use serde_json::json;

use crate::stranger::{Stranger, address, strange_hello};

const RETRIES: &str = "holdfast_udp_retries_total";
const UNFINISHED: &str = "holdfast_udp_attempts_unfinished";
const SESSIONS: &str = "holdfast_frontend_sessions";
const BINDS: &str = "holdfast_backend_binds_total";
const LOGINS: &str = "holdfast_backend_logins_total";
const REFUSED: &str = "holdfast_frontend_refused_total";
/// Nothing that is on its way takes longer.
const LATER: Duration = Duration::from_millis(300);

/// Who has recorded a device's attempts says them again in its name, as far as its address: it gets in all the same.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_attempts_keep_their_device_from_nothing() {
    const RECORDED: usize = 8;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let identity = gateway.keys.identity("victim");
    let key = gateway.keys.device_key(&identity);
    let home = address(29, 0);
    let recorded: Vec<Vec<u8>> = (0..RECORDED)
        .map(|_| Hello::of(&identity, &key).0.encode(&[]))
        .collect();
    // Several ports each, so that every shard hears of it.
    for hello in &recorded {
        for _ in 0..8 {
            let mut spoofed = Stranger::at(home, gateway.udp()).await;
            spoofed.says(hello).await;
            spoofed.listens(LATER / 10).await;
        }
    }
    let dial = gateway.dial_as("victim").source(home.into());
    let mut device = dial.connect().await.expect("it gets in");
    device.hello().await;
    assert_eq!(gateway.backends[0].metric(LOGINS, &[]).await, 1.0);
}

/// Always asked for a cookie: who does not get what is sent to his address costs nothing, and a cookie is good for one place.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_good_for_one_address_and_one_hello() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("udp.cookie", "always")
        .start()
        .await;
    let frontend = &gateway.frontends[0];
    for n in 0..100 {
        let mut stranger = Stranger::at(address(23, n), gateway.udp()).await;
        stranger
            .says(&strange_hello(&gateway.keys, "d").encode(&[]))
            .await;
        let said = stranger.hears().await;
        assert!(matches!(said, Said::Retry { .. }), "{said:?}");
    }
    for gauge in [UNFINISHED, SESSIONS] {
        assert_eq!(frontend.metric(gauge, &[]).await, 0.0, "{gauge}");
    }
    assert_eq!(gateway.backends[0].metric(BINDS, &[]).await, 0.0);
    let identity = gateway.keys.identity("d");
    let (hello, _) = Hello::of(&identity, &gateway.keys.device_key(&identity));
    let mut device = Stranger::at(address(24, 0), gateway.udp()).await;
    device.says(&hello.encode(&[])).await;
    let Said::Retry { attempt, cookie } = device.hears().await else {
        panic!("expected a RETRY");
    };
    assert_eq!(attempt, hello.attempt);
    let mut wrong: Vec<Vec<u8>> = (0..cookie.len())
        .map(|at| {
            let mut cookie = cookie.clone();
            cookie[at] ^= 1;
            hello.encode(&cookie)
        })
        .collect();
    let mut other = hello.clone();
    other.attempt += 1;
    wrong.push(other.encode(&cookie));
    wrong.push(strange_hello(&gateway.keys, "d").encode(&cookie));
    wrong.push(hello.encode(&cookie[1..]));
    for datagram in wrong {
        device.says(&datagram).await;
        let said = device.hears().await;
        assert!(matches!(said, Said::Retry { .. }), "{said:?}");
    }
    for elsewhere in [address(24, 0), address(24, 1)] {
        let mut elsewhere = Stranger::at(elsewhere, gateway.udp()).await;
        elsewhere.says(&hello.encode(&cookie)).await;
        let said = elsewhere.hears().await;
        assert!(matches!(said, Said::Retry { .. }), "{said:?}");
    }
    assert_eq!(gateway.backends[0].metric(BINDS, &[]).await, 0.0);
    device.says(&hello.encode(&cookie)).await;
    assert!(matches!(device.hears().await, Said::Challenge { .. }));
    assert_eq!(gateway.backends[0].metric(BINDS, &[]).await, 1.0);
    // The devices' own transport does all this by itself.
    gateway.device("e").await;
}

/// More attempts than are judged at once: the others keep no place until they have shown where they are.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_nothing_is_kept_of_who_shows_no_cookie() {
    const ABOVE: usize = 8;
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .backends(0)
        .frontend_set("shards", 1)
        .frontend_set("udp.cookie_above", ABOVE as i64)
        .start()
        .await;
    let mut strangers = Vec::new();
    for n in 0..200 {
        let mut stranger = Stranger::at(address(25, n), gateway.udp()).await;
        stranger
            .says(&strange_hello(&gateway.keys, "d").encode(&[]))
            .await;
        strangers.push(stranger);
    }
    let asked = |n: f64| n >= (200 - ABOVE - 1) as f64;
    gateway.frontends[0].wait_for_metric(RETRIES, asked).await;
    for gauge in [UNFINISHED, SESSIONS] {
        let kept = gateway.frontends[0].metric(gauge, &[]).await;
        assert!((1.0..=(ABOVE + 1) as f64).contains(&kept), "{gauge}: {kept}");
    }
    // Who answers gets in with the others.
    let arriving = tokio::spawn(gateway.dial_as("d").connect());
    gateway.frontends[0]
        .wait_for_metric(UNFINISHED, |n| n >= (ABOVE + 2) as f64)
        .await;
    gateway.add_backend().await;
    let mut device = arriving.await.expect("it does not panic").expect("admitted");
    device.hello().await;
    gateway.frontends[0]
        .wait_for_metric(UNFINISHED, |n| n == 0.0)
        .await;
}

/// As on `ws`: a source that is where it says may try so often, and a device's own unfinished handshakes are few.
#[tokio::test(flavor = "multi_thread")]
async fn one_source_is_throttled_and_its_own_sessions_go_on() {
    const BURST: usize = 20;
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("udp.cookie", "always")
        .frontend_set("udp.source_attempts_burst", BURST as i64)
        .frontend_set("udp.source_attempts_per_minute", 1)
        .start()
        .await;
    let source = address(28, 0);
    let mut bound = gateway
        .dial_as("bound")
        .source(source.into())
        .connect()
        .await
        .expect("it gets in");
    bound.hello().await;
    let (mut judged, mut turned_away) = (0, 0);
    for _ in 0..60 {
        let hello = strange_hello(&gateway.keys, "d");
        let mut stranger = Stranger::at(source, gateway.udp()).await;
        match stranger.asks(&hello).await {
            Said::Refused { status: 401, .. } => judged += 1,
            Said::Refused {
                status: 429,
                code,
                retry_after_ms,
                ..
            } => {
                assert_eq!(code, "too_many_attempts");
                assert!(retry_after_ms > 0);
                turned_away += 1;
            }
            other => panic!("{other:?}"),
        }
        bound.request(("Demo", "Echo"), "x", &json!({})).await;
        bound.next_reply().await;
    }
    assert!((BURST - 1..=2 * BURST).contains(&judged), "{judged} were judged");
    let throttled = [("reason", "source_throttled")];
    let counted = gateway.frontends[0].metric(REFUSED, &throttled).await;
    assert_eq!(counted, f64::from(turned_away));
    assert_eq!(
        gateway.backends[0].metric(BINDS, &[]).await,
        (judged + 1) as f64,
        "no backend was asked about the others"
    );
}
