use super::*;
use crate::history::digest;
use crate::http::{Answer, Http};

fn signed(service: &Service, sequence: u64, body: &str) -> Request<Bytes> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let signature = verify::sign(service.signing_key(), now, "e1", body.as_bytes());
    Request::post(service.url("/demo"))
        .header("content-type", "application/json")
        .header("ce-specversion", "1.0")
        .header("ce-id", "e1")
        .header("ce-source", "/holdfast/1/d")
        .header("ce-type", "Demo.Echo")
        .header("ce-subject", "d")
        .header("ce-time", "2026-01-02T03:04:05.123Z")
        .header("ce-hfnamespace", "Demo")
        .header("ce-hfname", "Echo")
        .header("ce-hfsession", "s")
        .header("ce-hfsequence", sequence)
        .header("ce-hfattempt", "1")
        .header("idempotency-key", format!("\"s-{sequence}\""))
        .header(
            "traceparent",
            "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
        )
        .header("holdfast-timestamp", now)
        .header("holdfast-signature", format!("v1={signature}"))
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .unwrap()
}

async fn call(service: &Service, body: &str) -> Answer {
    Http::default().send(signed(service, 1, body)).await.unwrap()
}

#[tokio::test]
async fn echoes_records_and_finds_nothing_wrong_with_a_good_call() {
    let service = Service::start().await;
    let answer = call(&service, r#"{"n":1}"#).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (StatusCode::OK, r#"{"n":1}"#)
    );
    service.assert_contract();
    let calls = service.calls();
    assert_eq!((calls.len(), calls[0].attempt, calls[0].sequence), (1, 1, 1));
    assert!(calls[0].is_from("d") && calls[0].left.is_some());
    assert_eq!(
        (calls[0].key, calls[0].body),
        (digest(b"\"s-1\""), digest(br#"{"n":1}"#))
    );
}

#[tokio::test]
async fn does_as_told() {
    let service = Service::start().await;
    assert_eq!(call(&service, r#"{"fail":500}"#).await.status, 500);
    assert_eq!(call(&service, r#"{"empty":true}"#).await.status, 204);
    assert_eq!(call(&service, r#"{"text":"not json"}"#).await.text(), "not json");
    assert_eq!(call(&service, r#"{"big":1000}"#).await.body.len(), 1000);
    let broken = Http::default()
        .send(signed(&service, 1, r#"{"close":true}"#))
        .await;
    assert!(broken.is_err());
}

#[tokio::test]
async fn holds_until_released() {
    let service = Arc::new(Service::start().await);
    let held = tokio::spawn({
        let service = service.clone();
        async move { call(&service, r#"{"hold":true}"#).await }
    });
    service.wait_for_calls(1).await;
    assert_eq!(service.log(Log::open), 1);
    service.release();
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test]
async fn is_down_and_up_again() {
    let service = Service::start().await;
    service.down();
    assert!(Http::default().send(signed(&service, 1, "{}")).await.is_err());
    service.up().await;
    assert_eq!(call(&service, "{}").await.status, 200);
}

#[tokio::test]
async fn notices_each_broken_header() {
    let service = Service::start().await;
    let good = signed(&service, 1, "{}");
    let names: Vec<_> = good.headers().keys().cloned().collect();
    for name in &names {
        for value in [None, Some("x")] {
            let mut bad = signed(&service, 1, "{}");
            bad.headers_mut().remove(name);
            if let Some(value) = value {
                bad.headers_mut().insert(name, value.parse().unwrap());
            }
            let broken = verify::verify(bad.headers(), b"{}", service.signing_key());
            assert!(broken.is_err(), "{name} {value:?}");
        }
    }
    assert!(
        verify::verify(good.headers(), b"{} ", service.signing_key()).is_err(),
        "body is signed"
    );
    assert!(verify::verify(good.headers(), b"{}", b"another key").is_err());
}
