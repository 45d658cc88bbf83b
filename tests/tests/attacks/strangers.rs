//! Who comes with a credential that is not good, or on the wrong channel: the answer, and that it is counted.

use holdfast_proto::secure::{DeviceKey, Identity, Initiator, SecureChannel};
use holdfast_tests::ChannelKind;
use holdfast_tests::dial::Dial;
use holdfast_tests::gateway::Gateway;
use holdfast_tests::keys::{DeviceKeys, now_ms};
use holdfast_tests::service::Service;

const REFUSED: &str = "holdfast_frontend_refused_total";
const ADMISSIONS: &str = "holdfast_backend_admissions_total";

fn credential(channel: SecureChannel, identity: &Identity, key: &DeviceKey, now_ms: u64) -> String {
    let made = Initiator::new(channel, identity, key, Some(now_ms));
    format!("Holdfast {}", made.unwrap().1)
}

/// What it is, how it is shown, and the code and status that answer it.
type Case = (&'static str, String, u16, &'static str);

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
    let ws = |identity: &Identity, key: &DeviceKey, at| credential(SecureChannel::Ws, identity, key, at);
    let for_udp = credential(SecureChannel::Udp, &identity, &key, now);
    let proofs = [
        (
            "another's key",
            ws(&identity, &strangers, now),
            "handshake_failed",
        ),
        (
            "another's name",
            ws(&keys.identity("e"), &key, now),
            "handshake_failed",
        ),
        ("another class", ws(&another, &key, now), "handshake_failed"),
        ("made for udp", for_udp, "handshake_failed"),
        ("unknown key id", ws(&unknown, &key, now), "key_unknown"),
        ("an hour old", ws(&identity, &key, now - hour), "clock_skew"),
        ("of the next hour", ws(&identity, &key, now + hour), "clock_skew"),
    ];
    let noise = ("noise", "Holdfast AAAA".to_owned(), 400, "bad_credential");
    let proofs = proofs.map(|(what, shown, code)| (what, shown, 401, code));
    proofs.into_iter().chain([noise]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_does_not_hold_is_refused_by_name_and_counted() {
    let service = Service::start().await;
    let gateway = Gateway::start_over(ChannelKind::Ws, &service).await;
    let cases = bad_credentials(&gateway.keys);
    for (what, shown, status, code) in &cases {
        let answer = gateway.dial_ws().header("Authorization", shown).refusal().await;
        assert_eq!(answer.json()["code"], *code, "{what}: {}", answer.text());
        answer.expect_problem(*status, code);
        if *status == 401 {
            assert_eq!(answer.header("www-authenticate"), "Holdfast", "{what}");
        }
    }
    let backend = &gateway.backends[0];
    for code in ["handshake_failed", "key_unknown", "clock_skew", "bad_credential"] {
        let expected = cases.iter().filter(|case| case.3 == code).count();
        let labels = [("channel", "ws"), ("outcome", code)];
        assert_eq!(
            backend.metric(ADMISSIONS, &labels).await,
            expected as f64,
            "{code}"
        );
    }
    let denied = [("reason", "denied")];
    assert_eq!(
        gateway.frontends[0].metric(REFUSED, &denied).await,
        cases.len() as f64
    );
    // The device itself is none the worse for it.
    gateway.device("d").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_on_the_wrong_channel_is_refused_and_counted() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let identity = gateway.keys.identity("d");
    let holdfast = credential(
        SecureChannel::Ws,
        &identity,
        &gateway.keys.device_key(&identity),
        now_ms(),
    );
    let noise = format!("holdfast.v1, noise.{}", holdfast.trim_start_matches("Holdfast "));
    let token = gateway.tokens.token("d");
    let wrong: [Dial; 4] = [
        gateway.dial_ws().token(&token),
        gateway.dial_ws().subprotocol_token(&token),
        gateway.dial().header("Authorization", &holdfast),
        gateway.dial().header("Sec-WebSocket-Protocol", &noise),
    ];
    let count = wrong.len() as f64;
    for dial in wrong {
        dial.refusal().await.expect_problem(400, "wrong_channel");
    }
    gateway
        .dial_ws()
        .refusal()
        .await
        .expect_problem(401, "credential_missing");
    let frontend = &gateway.frontends[0];
    for (reason, expected) in [("wrong_channel", count), ("credential_missing", 1.0)] {
        // Who is turned away by the channel itself may read so before it is counted.
        frontend
            .wait_for_series(REFUSED, &[("reason", reason)], |n| n == expected)
            .await;
    }
    let binds = gateway.backends[0]
        .metric("holdfast_backend_binds_total", &[])
        .await;
    assert_eq!(binds, 0.0, "no backend was asked");
}

/// The sub-protocol that browsers use carries the credential just as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_credential_is_taken_as_a_sub_protocol_too() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let identity = gateway.keys.identity("d");
    let key = gateway.keys.device_key(&identity);
    let shown = credential(SecureChannel::Ws, &identity, &key, now_ms());
    let entry = format!("holdfast.v1, noise.{}", shown.trim_start_matches("Holdfast "));
    let dial = gateway.dial_ws().header("Sec-WebSocket-Protocol", &entry);
    let device = dial.connect().await.unwrap();
    assert_eq!(device.headers["sec-websocket-protocol"], "holdfast.v1");
}
