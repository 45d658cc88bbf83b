//! Who gets in, and how the others are told.

use holdfast_tests::device::Incoming;
use holdfast_tests::dial::Dial;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::{TokenKey, now};
use holdfast_tests::service::Service;
use holdfast_tests::{ChannelKind, Over, over_each_channel};
use serde_json::json;

over_each_channel! {
    hello_is_answered_with_what_the_device_must_know,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_gets_in_by_header_or_by_sub_protocol() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Wss, &service).await;
    let by_header = gateway.dial_as("d1").connect().await.unwrap();
    assert!(!by_header.headers.contains_key("sec-websocket-protocol"));
    let by_protocol = gateway
        .dial()
        .subprotocol_token(&gateway.tokens.token("d2"))
        .connect()
        .await
        .unwrap();
    assert_eq!(by_protocol.headers["sec-websocket-protocol"], "holdfast.v1");
}

async fn hello_is_answered_with_what_the_device_must_know(over: Over) {
    let service = Service::start().await;
    let gateway = Gateway::start_over(over, &service).await;
    let mut device = gateway.dial_as("d").connect().await.unwrap();
    let welcome = device.hello().await;
    let session: Vec<usize> = welcome["session"]
        .as_str()
        .unwrap()
        .split('-')
        .map(str::len)
        .collect();
    assert_eq!(session, [8, 4, 4, 4, 12], "{welcome}");
    assert_eq!(welcome["heartbeat_ms"], 30_000);
    assert_eq!(welcome["max_message"], 1 << 20);
    assert_eq!(welcome["window"], 32);
    device.send_text("@ping").await;
    assert_eq!(
        device.next().await,
        Incoming::Control {
            word: "@pong".to_owned(),
            body: json!(null)
        }
    );
}

/// A device that knows nothing of `@hello` may begin with a request, and gets no `@welcome`.
#[tokio::test(flavor = "multi_thread")]
async fn hello_may_be_left_out() {
    let service = Service::start().await;
    let gateway = Gateway::builder(&service)
        .over(ChannelKind::Wss)
        // The second device's silence is the subject.
        .frontend_set("times.hello", "1s")
        .start()
        .await;
    let mut device = gateway.dial_as("d").connect().await.unwrap();
    device.request(("Demo", "Echo"), "first", &json!({})).await;
    assert_eq!(device.next_reply().await.seq, 1);
    let mut silent = gateway.dial_as("e").connect().await.unwrap();
    gateway.frontends[0]
        .wait_for_metric("holdfast_frontend_sessions_online", |n| n == 2.0)
        .await;
    gateway.push(json!({"device": "e"}), json!(1)).await;
    silent.next_push().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_hold_is_a_plain_401() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let (keys, hour) = (&gateway.tokens, now() + 3600);
    let header = |alg: &str| json!({"alg": alg, "typ": "JWT"});
    let good = keys.token("d");
    let (body, _) = good.rsplit_once('.').unwrap();
    let unsigned = keys.sign_with_header(header("none"), json!({"sub": "d", "exp": hour}));
    let bare = unsigned[..=unsigned.rfind('.').unwrap()].to_owned();
    let cases = [
        (
            "expired",
            keys.sign(json!({"sub": "d", "exp": now() - 1})),
            "token_expired",
        ),
        ("for ever", keys.sign(json!({"sub": "d"})), "token_invalid"),
        (
            "not yet",
            keys.sign(json!({"sub": "d", "exp": hour, "nbf": now() + 600})),
            "token_invalid",
        ),
        ("nobody", keys.sign(json!({"exp": hour})), "token_invalid"),
        (
            "empty name",
            keys.sign(json!({"sub": "", "exp": hour})),
            "token_invalid",
        ),
        (
            "bad name",
            keys.sign(json!({"sub": "a b/c", "exp": hour})),
            "token_invalid",
        ),
        (
            "long name",
            keys.sign(json!({"sub": "x".repeat(129), "exp": hour})),
            "token_invalid",
        ),
        ("another's key", TokenKey::generate().token("d"), "token_invalid"),
        ("no algorithm", unsigned, "token_invalid"),
        ("no signature", bare, "token_invalid"),
        ("cut off", body.to_owned(), "token_invalid"),
        ("HS256 by the public key", keys.confused("d"), "token_invalid"),
        (
            "RS256",
            keys.sign_with_header(header("RS256"), json!({"sub": "d", "exp": hour})),
            "token_invalid",
        ),
        ("noise", "a.b.c".to_owned(), "token_invalid"),
    ];
    for (what, token, code) in cases {
        for dial in [
            gateway.dial().token(&token),
            gateway.dial().subprotocol_token(&token),
        ] {
            let answer = dial.refusal().await;
            assert_eq!(answer.status, 401, "{what}: {}", answer.text());
            answer.expect_problem(401, code);
        }
    }
    gateway
        .dial()
        .refusal()
        .await
        .expect_problem(401, "token_missing");
    gateway
        .dial()
        .header("Authorization", "Basic eDp5")
        .refusal()
        .await
        .expect_problem(401, "token_missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_upgrade_is_a_400() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let token = gateway.tokens.token("d");
    let without = |name: &str| gateway.dial().token(&token).without_header(name);
    let cases: [(&str, Dial); 5] = [
        ("no upgrade", without("Upgrade")),
        ("no connection", without("Connection")),
        ("no key", without("Sec-WebSocket-Key")),
        ("no version", without("Sec-WebSocket-Version")),
        (
            "old version",
            without("Sec-WebSocket-Version").header("Sec-WebSocket-Version", "8"),
        ),
    ];
    for (what, dial) in cases {
        let answer = dial.refusal().await;
        assert_eq!(
            answer.json()["code"],
            "bad_upgrade",
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
        assert!(
            [400, 426].contains(&answer.status.as_u16()),
            "{what}: {}",
            answer.status
        );
    }
}
