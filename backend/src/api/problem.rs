//! Errors as problem documents (RFC 9457).

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::GatewayError;

/// An error as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    /// Stable word for programs.
    code: &'static str,
    /// One sentence for people.
    detail: String,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    retryable: bool,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// Says when the same request may succeed, which makes the problem retryable.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// A field whose value is not allowed.
    pub(crate) fn field(field: &str, allowed: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_field",
            format!("{field}: {allowed}"),
        )
    }

    /// An option that is described but not built.
    pub(super) fn unsupported(field: &str) -> Self {
        let detail = format!("{field}: this server does not support it");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", detail)
    }

    pub(super) fn unauthorized(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            retryable: self.retry_after.is_some(),
        };
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<GatewayError> for Problem {
    fn from(error: GatewayError) -> Self {
        let detail = error.to_string();
        match error {
            GatewayError::UnknownDevice => Self::new(StatusCode::NOT_FOUND, "unknown_device", detail),
            GatewayError::Unavailable { retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(retry_after)
            }
            GatewayError::Unconfirmed { retry_after, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unconfirmed", detail).retry_after(retry_after)
            }
            GatewayError::Overloaded { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", detail).retry_after(retry_after)
            }
        }
    }
}

const PROBLEM_JSON: &str = "application/problem+json";
const NOSNIFF: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-content-type-options"),
    HeaderValue::from_static("nosniff"),
);

pub(crate) async fn not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path",
    )
}

pub(crate) async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method",
    )
}

/// Turns an error that the framework answered with plain text into a problem document, and sets what every response has.
pub(crate) async fn dress(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error
        && response
            .headers()
            .get(CONTENT_TYPE)
            .is_none_or(|t| t != PROBLEM_JSON)
    {
        response = Problem::new(status, "bad_request", "the request cannot be read").into_response();
    }
    let (name, value) = NOSNIFF;
    response.headers_mut().insert(name, value);
    response
}
