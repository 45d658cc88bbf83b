//! Who has no key, or says that he is somewhere else: what he is answered, and what he costs.

use std::time::Duration;

use holdfast_proto::secure::{Identity, Initiator, SecureChannel};
use holdfast_tests::Over;
use holdfast_tests::datagram::{
    Hello, Liar, MIN_HELLO_BYTES, Packet, Said, challenge, data_header, refused, reset,
};
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::{DeviceKeys, now_ms};
use holdfast_tests::service::Service;
use serde_json::json;

use crate::stranger::{Stranger, address, strange_hello};

const DROPPED: &str = "holdfast_udp_datagrams_dropped_total";
const RESETS: &str = "holdfast_udp_resets_total";
const UNFINISHED: &str = "holdfast_udp_attempts_unfinished";
const SESSIONS: &str = "holdfast_frontend_sessions";
const ADMISSIONS: &str = "holdfast_backend_admissions_total";
const BINDS: &str = "holdfast_backend_binds_total";
const LOGINS: &str = "holdfast_backend_logins_total";
const REFUSED: &str = "holdfast_frontend_refused_total";
/// Nothing that is on its way takes longer.
const LATER: Duration = Duration::from_millis(300);

/// What is sent, and whether it is worth an answer.
fn datagrams(keys: &DeviceKeys) -> Vec<(&'static str, Vec<u8>, bool)> {
    let hello = strange_hello(keys, "d").encode(&[]);
    let mut noise = Hello::new();
    noise.credential = vec![7; 100];
    let mut version = hello.clone();
    version[1] = 2;
    let mut padding = strange_hello(keys, "d").encode(&[]);
    *padding.last_mut().expect("it is long") = 1;
    let mut credit = strange_hello(keys, "d");
    credit.receive_messages = 0;
    let filled_up = |length| {
        let mut hello = strange_hello(keys, "d").encode(&[]);
        hello.resize(length, 0);
        hello
    };
    let data = |length: usize| {
        let mut data = data_header(0x00ff_ffff_1234_5678, 5).to_vec();
        data.resize(length, 9);
        data
    };
    vec![
        ("another's key", hello.clone(), true),
        ("no credential at all", noise.encode(&[]), true),
        ("as long as may be", filled_up(1472), true),
        ("a byte longer", filled_up(1473), false),
        ("a short hello", hello[..MIN_HELLO_BYTES - 1].to_vec(), false),
        ("padding that says something", padding, false),
        ("no credit", credit.encode(&[]), false),
        ("an unknown version", version, false),
        ("an unknown type", vec![0x99; 300], false),
        ("nothing", Vec::new(), false),
        ("a byte", vec![0x40], false),
        ("data of nobody", data(29), true),
        ("data of nobody, long", data(1200), true),
        ("too little data", data(28), false),
        ("a reset", reset(5, &[1; 16]), false),
        ("a challenge", challenge(5, 6, &[1; 48]), false),
        ("a refusal", refused(5, 503, "unavailable"), false),
        ("a retry", [&[2, 1][..], &[0; 8], &[20], &[3; 20]].concat(), false),
    ]
}

/// Whoever is named as the source of a datagram gets no more than was sent, so nobody can be flooded by way of us.
#[tokio::test(flavor = "multi_thread")]
async fn no_address_is_sent_more_than_came_from_it() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let before = gateway.frontends[0].metric(DROPPED, &[]).await;
    let mut silent = 0;
    for (n, (what, datagram, answered)) in datagrams(&gateway.keys).into_iter().enumerate() {
        let mut victim = Stranger::at(address(20, n), gateway.udp()).await;
        let mut heard = 0;
        for _ in 0..5 {
            victim.says(&datagram).await;
            heard += victim.listens(LATER / 3).await.len();
            assert!(
                victim.heard_bytes <= victim.sent_bytes,
                "{what}: {} bytes for {}",
                victim.heard_bytes,
                victim.sent_bytes
            );
        }
        assert_eq!(heard > 0, answered, "{what}: {heard} answers");
        silent += if answered || datagram.is_empty() { 0 } else { 5 };
    }
    let dropped = gateway.frontends[0].metric(DROPPED, &[]).await - before;
    assert_eq!(dropped, f64::from(silent), "each is counted");
    assert_eq!(gateway.backends[0].metric(LOGINS, &[]).await, 0.0);
    gateway.device("d").await;
}

/// A device's own HELLO, recorded and sent from elsewhere, gets one short answer for each time, and nothing after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_that_nobody_follows_up_is_the_last_word() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("shards", 1)
        .frontend_set("times.challenge", "6s")
        .start()
        .await;
    let identity = gateway.keys.identity("d");
    let (hello, _) = Hello::of(&identity, &gateway.keys.device_key(&identity));
    let hello = hello.encode(&[]);
    let mut device = Stranger::at(address(21, 0), gateway.udp()).await;
    let mut challenges = Vec::new();
    for _ in 0..5 {
        device.says(&hello).await;
        challenges.push(device.hears().await);
        assert_eq!(device.listens(LATER).await, [], "nothing is repeated");
    }
    assert!(matches!(challenges[0], Said::Challenge { .. }), "{challenges:?}");
    challenges.dedup();
    assert_eq!(challenges.len(), 1, "an identical HELLO gets the cached answer");
    for n in 1..10 {
        let mut victim = Stranger::at(address(21, n), gateway.udp()).await;
        victim.says(&hello).await;
        for said in victim.listens(LATER / 3).await {
            let poor = matches!(said, Said::Retry { .. }) || said == challenges[0];
            assert!(poor, "{said:?}");
        }
        assert!(victim.heard_bytes <= 66, "{}", victim.heard_bytes);
    }
    assert_eq!(device.listens(Duration::from_secs(3)).await, []);
    assert_eq!(gateway.backends[0].metric(BINDS, &[]).await, 1.0);
    gateway.frontends[0].wait_for_metric(SESSIONS, |n| n == 0.0).await;
    assert_eq!(gateway.frontends[0].metric(UNFINISHED, &[]).await, 0.0);
    assert_eq!(gateway.backends[0].metric(LOGINS, &[]).await, 0.0);
}

/// Who has a device's key may finish the handshake at his own address and then speak in another's name.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_key_makes_nobody_else_a_target() {
    const BIG: usize = 200_000;
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let identity = gateway.keys.identity("d");
    let key = gateway.keys.device_key(&identity);
    for (n, at_once) in [true, false].into_iter().enumerate() {
        let source = address(22, n * 2).into();
        let mut liar = Liar::connect(gateway.udp(), source, &identity, &key).await;
        let mut victim = Stranger::at(address(22, n * 2 + 1), gateway.udp()).await;
        if !at_once {
            liar.hello().await;
        }
        // The first packets, or later ones, come from where the victim is.
        for _ in 0..3 {
            let number = liar.next_number;
            liar.next_number += 1;
            let ping = prost::Message::encode_to_vec(&Packet::ping());
            victim.says(&liar.seal(number, ping)).await;
            victim.listens(LATER / 3).await;
            assert!(
                victim.heard_bytes <= victim.sent_bytes,
                "at once: {at_once}, {} bytes for {}",
                victim.heard_bytes,
                victim.sent_bytes
            );
        }
        if at_once {
            liar.say("@hello {}").await;
        }
        // A long reply goes to where the device has shown to be, and only there.
        let big =
            json!({"header": {"namespace": "Demo", "name": "Echo", "id": "x"}, "payload": {"big": BIG}});
        liar.say(&big.to_string()).await;
        liar.until("the reply", |packet| {
            packet.pieces.iter().any(|piece| piece.length as usize >= BIG)
        })
        .await;
        victim.listens(LATER).await;
        assert!(
            victim.heard_bytes <= victim.sent_bytes,
            "at once: {at_once}, {} bytes for {}",
            victim.heard_bytes,
            victim.sent_bytes
        );
    }
}

/// Unknown connections are told so, in fewer bytes than they sent and not without end.
#[tokio::test(flavor = "multi_thread")]
async fn resets_are_bounded() {
    const SENT: usize = 40_000;
    /// A shard's, for a second and at once.
    const PER_SECOND: f64 = 5_000.0;
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(Over::Udp)
        .frontend_set("shards", 1)
        .start()
        .await;
    let mut bound = gateway.device("bound").await;
    let mut stranger = Stranger::at(address(26, 0), gateway.udp()).await;
    let begun = std::time::Instant::now();
    let mut datagram = data_header(0, 0).to_vec();
    datagram.resize(29, 3);
    for n in 0..SENT {
        datagram[5..9].copy_from_slice(&(n as u32).to_be_bytes());
        stranger.says(&datagram).await;
        if n % 4_000 == 0 {
            bound.request(("Demo", "Echo"), "x", &json!({})).await;
            bound.next_reply().await;
        }
    }
    let resets = gateway.frontends[0].metric(RESETS, &[]).await;
    let allowed = PER_SECOND * (begun.elapsed().as_secs_f64() + 1.0);
    assert!(resets >= 100.0 && resets <= allowed, "{resets} of {allowed}");
    stranger.listens(LATER).await;
    assert!(stranger.heard_bytes < stranger.sent_bytes);
}

/// What it is, the HELLO, and how it is answered.
type Case = (&'static str, Hello, u16, &'static str);

fn bad_credentials(keys: &DeviceKeys) -> Vec<Case> {
    let identity = keys.identity("d");
    let key = keys.device_key(&identity);
    let strangers = DeviceKeys::generate().device_key(&identity);
    let unknown = Identity {
        key_id: "k9".to_owned(),
        ..identity.clone()
    };
    let another = Identity {
        class: "other".to_owned(),
        ..identity.clone()
    };
    let (now, hour) = (now_ms(), 3_600_000);
    let hello = |identity: &Identity, key, at| Hello::of_time(identity, key, at).0;
    let mut of_ws = Hello::new();
    let made = Initiator::new(SecureChannel::Ws, &identity, &key, Some(now)).expect("a good identity");
    let decode = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, made.1);
    of_ws.credential = decode.expect("base64url");
    let mut changed = hello(&identity, &key, now);
    changed.receive_bytes += 1;
    let mut noise = Hello::new();
    noise.credential = vec![1, 2, 3];
    vec![
        (
            "another's key",
            hello(&identity, &strangers, now),
            401,
            "handshake_failed",
        ),
        (
            "another's name",
            hello(&keys.identity("e"), &key, now),
            401,
            "handshake_failed",
        ),
        (
            "another class",
            hello(&another, &key, now),
            401,
            "handshake_failed",
        ),
        ("made for ws", of_ws, 401, "handshake_failed"),
        ("parameters changed on the way", changed, 401, "handshake_failed"),
        ("unknown key id", hello(&unknown, &key, now), 401, "key_unknown"),
        (
            "an hour old",
            hello(&identity, &key, now - hour),
            401,
            "clock_skew",
        ),
        (
            "of the next hour",
            hello(&identity, &key, now + hour),
            401,
            "clock_skew",
        ),
        ("noise", noise, 400, "bad_credential"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_does_not_hold_is_refused_by_name_and_counted() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(Over::Udp, &service).await;
    let cases = bad_credentials(&gateway.keys);
    let mut stranger = Stranger::at(address(27, 0), gateway.udp()).await;
    for (what, hello, expected, expected_code) in &cases {
        match stranger.asks(hello).await {
            Said::Refused {
                attempt,
                status,
                retryable,
                code,
                ..
            } => {
                assert_eq!((attempt, retryable), (hello.attempt, false), "{what}");
                assert_eq!((status, code.as_str()), (*expected, *expected_code), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    for code in ["handshake_failed", "key_unknown", "clock_skew", "bad_credential"] {
        let expected = cases.iter().filter(|case| case.3 == code).count();
        let labels = [("channel", "udp"), ("outcome", code)];
        let counted = gateway.backends[0].metric(ADMISSIONS, &labels).await;
        assert_eq!(counted, expected as f64, "{code}");
    }
    let denied = [("reason", "denied")];
    let counted = gateway.frontends[0].metric(REFUSED, &denied).await;
    assert_eq!(counted, cases.len() as f64);
    // The device itself is none the worse for it.
    gateway.device("d").await;
}
