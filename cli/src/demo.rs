//! The demo service: what a service behind Holdfast looks like, as small as possible. It checks no signature; a real one
//! should.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

/// Serves `POST /demo` until dropped.
pub(crate) async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let router = Router::new()
        .route("/demo", post(handle))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    axum::serve(listener, router).await
}

/// Answers by the event's name, which the gateway puts into `ce-hfname`.
async fn handle(headers: HeaderMap, body: Bytes) -> Response {
    match headers.get("ce-hfname").and_then(|name| name.to_str().ok()) {
        Some("Echo") => echo(&headers, body),
        Some("Slow") => match serde_json::from_slice::<Slow>(&body) {
            Ok(Slow { delay_ms }) if delay_ms <= MAX_DELAY_MS => {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                echo(&headers, body)
            }
            _ => (StatusCode::BAD_REQUEST, "delay_ms: 0 to 60000").into_response(),
        },
        Some("Fail") => (StatusCode::INTERNAL_SERVER_ERROR, "this always fails").into_response(),
        Some("Time") => axum::Json(time(SystemTime::now())).into_response(),
        _ => (StatusCode::NOT_FOUND, "Echo, Slow, Fail or Time").into_response(),
    }
}

#[derive(Deserialize)]
struct Slow {
    delay_ms: u64,
}

fn echo(headers: &HeaderMap, body: Bytes) -> Response {
    let json = HeaderValue::from_static("application/json");
    let content_type = headers.get(CONTENT_TYPE).cloned().unwrap_or(json);
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

fn time(now: SystemTime) -> serde_json::Value {
    let unix_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    json!({ "unix_ms": unix_ms, "rfc3339": humantime::format_rfc3339_millis(now).to_string() })
}

const MAX_DELAY_MS: u64 = 60_000;
/// Above the gateway's own limit of 1 MiB for a message.
const MAX_BODY_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn call(name: &'static str, body: &'static str) -> (StatusCode, Bytes) {
        let headers = HeaderMap::from_iter([("ce-hfname".parse().unwrap(), HeaderValue::from_static(name))]);
        let response = handle(headers, Bytes::from_static(body.as_bytes())).await;
        (
            response.status(),
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    #[tokio::test]
    async fn it_answers_by_name() {
        assert_eq!(
            call("Echo", "{ \"n\": 1 }").await,
            (StatusCode::OK, Bytes::from_static(b"{ \"n\": 1 }"))
        );
        assert_eq!(call("Slow", "{\"delay_ms\":1}").await.0, StatusCode::OK);
        assert_eq!(
            call("Slow", "{\"delay_ms\":60001}").await.0,
            StatusCode::BAD_REQUEST
        );
        assert_eq!(call("Fail", "{}").await.0, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(call("Other", "{}").await.0, StatusCode::NOT_FOUND);
        assert_eq!(call("Time", "{}").await.0, StatusCode::OK);
    }

    #[test]
    fn time_is_both_numbers_and_text() {
        let expected = json!({ "unix_ms": 1500, "rfc3339": "1970-01-01T00:00:01.500Z" });
        assert_eq!(time(UNIX_EPOCH + Duration::from_millis(1500)), expected);
    }
}
