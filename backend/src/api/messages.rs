//! `POST /v1/messages`: checks a push, renders the message that devices get, once, and reports what became of it.

use std::time::Duration;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_proto::event::{PushHeader, render_push_binary, render_push_text};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::target::Body;
use super::{ApiState, Problem, PushCounts, PushMessage, PushReport, PushRequest, PushResult};

/// Largest request body, in bytes: a message of the largest size in base64, and the rest of the JSON.
pub const MAX_BODY_BYTES: usize = 1536 * 1024;
/// Largest message to a device, in bytes, with its header.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Longest time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Answer {
    id: String,
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Results(Vec<PushResult>),
    Counts(PushCounts),
}

impl From<PushReport> for Report {
    fn from(report: PushReport) -> Self {
        match report {
            PushReport::Results(results) => Self::Results(results),
            PushReport::Counts(counts) => Self::Counts(counts),
        }
    }
}

pub(super) async fn push(State(state): State<ApiState>, request: Request) -> Result<Response, Problem> {
    if request.headers().contains_key("idempotency-key") {
        return Err(Problem::unsupported("Idempotency-Key"));
    }
    let permit = reserve(&state, &request)?;
    let body = read_body(request.into_body()).await?;
    let request = check(&body)?;
    drop(body);
    let id = request.id.clone();
    let report = state.gateway.push(request).await?;
    drop(permit);
    state.metrics.count_push(&report);
    Ok(Json(Answer {
        id,
        report: report.into(),
    })
    .into_response())
}

/// Takes the body's size from what all bodies together may hold.
fn reserve(state: &ApiState, request: &Request) -> Result<OwnedSemaphorePermit, Problem> {
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    let bytes = announced.unwrap_or(MAX_BODY_BYTES);
    if bytes > MAX_BODY_BYTES {
        return Err(too_large(format!(
            "the body is larger than {MAX_BODY_BYTES} bytes"
        )));
    }
    let kib = bytes.div_ceil(1024).max(1) as u32;
    state
        .body_budget
        .clone()
        .try_acquire_many_owned(kib)
        .map_err(|_| {
            let detail = "too many messages are being taken in";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", detail)
                .retry_after(Duration::from_secs(1))
        })
}

async fn read_body(body: HttpBody) -> Result<Bytes, Problem> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(format!(
            "the body is larger than {MAX_BODY_BYTES} bytes"
        ))),
        Ok(Err(_)) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "the body broke off",
        )),
        Err(_) => {
            let detail = format!("the body did not arrive within {BODY_TIMEOUT:?}");
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail))
        }
    }
}

fn check(bytes: &[u8]) -> Result<PushRequest, Problem> {
    let body = Body::parse(bytes)?;
    let target = body.target()?;
    let (namespace, name) = (body.namespace()?, body.name()?);
    let id = format!("m-{}", Uuid::new_v4());
    let header = PushHeader {
        namespace: &namespace,
        name: &name,
        id: &id,
    };
    let message = match (body.payload, body.binary()?) {
        (Some(payload), None) => {
            PushMessage::Text(bounded(render_push_text(&header, payload.get().as_bytes()))?)
        }
        (None, Some(base64)) => {
            let payload = STANDARD.decode(base64.as_bytes()).map_err(|_| {
                Problem::field("binary", "wanted is base64 (RFC 4648 section 4) with padding")
            })?;
            PushMessage::Binary(bounded(render_push_binary(&header, &payload))?)
        }
        (None, None) => return Err(Problem::field("payload", "payload or binary is required")),
        (Some(_), Some(_)) => return Err(Problem::field("binary", "payload and binary exclude each other")),
    };
    Ok(PushRequest { id, target, message })
}

fn bounded(message: Vec<u8>) -> Result<Bytes, Problem> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(too_large(format!(
            "the message is larger than {MAX_MESSAGE_BYTES} bytes"
        )));
    }
    Ok(message.into())
}

fn too_large(detail: String) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
}
