//! The supervisor's control API on `DIR/control/up.sock`: asking for an upgrade, following it, calling it off. Whoever
//! reaches the socket may do all of it: its directory is the owner's alone.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::record::Record;
use crate::upgrade::event::Event;
use crate::upgrade::plan::Request;

/// What somebody asks of the supervisor. The answer may find nobody any more.
#[derive(Debug)]
pub(super) enum Ask {
    Begin {
        request: Request,
        answer: oneshot::Sender<Result<Begun, Problem>>,
    },
    Cancel {
        id: u64,
        answer: oneshot::Sender<Result<(), Problem>>,
    },
    List {
        answer: oneshot::Sender<Vec<Record>>,
    },
}

/// An upgrade that began. Dropping it is what tells that who asked is gone.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: u64,
    pub(super) events: mpsc::Receiver<Event>,
}

/// An error as the caller sees it: a problem document (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Stable word for programs.
    pub(super) code: &'static str,
    /// One sentence for people.
    pub(super) detail: String,
}

/// Listens, in place of what an `up` that was killed left there. The caller holds the directory's lock.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    let attempt = || -> std::io::Result<UnixListener> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    attempt().with_context(|| format!("cannot listen on {}", path.display()))
}

/// Serves until dropped.
pub(super) async fn serve(listener: UnixListener, asks: mpsc::Sender<Ask>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/upgrades", get(list).post(begin))
        .route("/v1/upgrades/{id}", delete(cancel))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing at this path",
            )
        })
        .method_not_allowed_fallback(async || {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(
                status,
                "method_not_allowed",
                "this path does not take this method",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(asks);
    axum::serve(listener, router).await
}

async fn begin(State(asks): State<mpsc::Sender<Ask>>, body: Bytes) -> Result<Response, Problem> {
    let request = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad_request", error.to_string()))?;
    let Begun { id, events } = ask(&asks, |answer| Ask::Begin { request, answer }).await??;
    // Ends after the last event, so that its sender learns that it was taken.
    let lines = stream::unfold(Some(events), |events| async {
        let mut events = events?;
        let event = events.recv().await?;
        let mut line = serde_json::to_vec(&event).ok()?;
        line.push(b'\n');
        let rest = (!matches!(event, Event::End(_))).then_some(events);
        Some((Ok::<_, Infallible>(Bytes::from(line)), rest))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (UPGRADE_ID, HeaderValue::from(id)),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

async fn cancel(
    State(asks): State<mpsc::Sender<Ask>>,
    UrlPath(id): UrlPath<u64>,
) -> Result<Response, Problem> {
    ask(&asks, |answer| Ask::Cancel { id, answer }).await??;
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn list(State(asks): State<mpsc::Sender<Ask>>) -> Result<Response, Problem> {
    let upgrades = ask(&asks, |answer| Ask::List { answer }).await?;
    Ok(Json(json!({ "upgrades": upgrades })).into_response())
}

async fn ask<T>(
    asks: &mpsc::Sender<Ask>,
    make: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Result<T, Problem> {
    let (answer, answered) = oneshot::channel();
    let stopping = || {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Problem::new(status, "stopping", "`holdfast up` is starting or stopping")
    };
    asks.send(make(answer)).await.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
            "retryable": self.status == StatusCode::SERVICE_UNAVAILABLE,
        });
        let problem = HeaderValue::from_static("application/problem+json");
        (self.status, [(CONTENT_TYPE, problem)], Json(document)).into_response()
    }
}

/// Names the upgrade that a `POST` began.
pub(crate) const UPGRADE_ID: http::HeaderName = http::HeaderName::from_static("holdfast-upgrade");
/// A path and a few numbers.
const MAX_BODY_BYTES: usize = 16 << 10;
