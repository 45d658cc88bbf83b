//! The control socket: what whoever runs this backend asks of it and tells it, as HTTP over a Unix socket of its own.
//!
//! It needs no key: the socket lies in a directory of mode 0700. Unlike the API it answers from the start to the end of the
//! process, whatever the backend's share of the sessions is.

mod socket;
mod status;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use axum::{Json, Router};
use holdfast_proto::Share;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::api::{Duty, Problem, Server, dress, method_not_allowed, not_found};
use crate::core::ShareRefused;
use crate::metrics::{CONTENT_TYPE as METRICS_TYPE, render};

pub(crate) use socket::make_private;
pub use socket::{ControlError, ControlSocket};
pub use status::{Durations, FrontendStatus, RequestCounts, Status};

/// Connections at once; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 32;
/// Largest body of a request, in bytes.
pub const MAX_BODY_BYTES: usize = 1024;
/// Longest time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests may take to finish when the process ends.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// The backend as its control socket sees it.
#[async_trait]
pub trait Member: Send + Sync {
    fn status(&self) -> Status;

    /// Whether every configured frontend is attached; one sentence says why not.
    fn attached(&self) -> Result<(), String>;

    /// From now on this is its part of the sessions; when it comes back, [`Member::status`] says so.
    async fn set_share(&self, share: Share) -> Result<(), ShareRefused>;
}

#[derive(Clone)]
struct Control {
    member: Arc<dyn Member>,
    registry: Arc<Registry>,
}

/// Serves until `shutdown` resolves, then removes the socket.
pub async fn serve(
    socket: ControlSocket,
    member: Arc<dyn Member>,
    registry: Arc<Registry>,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let (guard, listener) = socket.into_parts();
    let server = Server {
        acceptor: tokio::net::UnixListener::from_std(listener)?,
        router: router(Control { member, registry }),
        max_connections: MAX_CONNECTIONS,
        stop_grace: STOP_GRACE,
        duty: Duty {
            draining: watch::channel(false).1,
            share: watch::channel(Share::FULL).1,
        },
    };
    server.run(shutdown).await;
    drop(guard);
    Ok(())
}

fn router(control: Control) -> Router {
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/share", put(share))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn(dress))
        .with_state(control)
}

async fn ready(State(control): State<Control>) -> Result<&'static str, Problem> {
    match control.member.attached() {
        Ok(()) => Ok("ready\n"),
        Err(why) => {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why);
            Err(problem.retry_after(Duration::from_secs(1)))
        }
    }
}

async fn metrics(State(control): State<Control>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], render(&control.registry))
}

async fn status(State(control): State<Control>) -> Json<Status> {
    Json(control.member.status())
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    percent: f64,
}

async fn share(State(control): State<Control>, body: Body) -> Result<Json<Status>, Problem> {
    let body = read_body(body).await?;
    let wanted: Wanted = serde_json::from_slice(&body).map_err(|error| {
        let detail = format!("wanted is {{\"percent\": number}}: {error}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    })?;
    let share = Share::from_percent(wanted.percent).map_err(|error| Problem::field("percent", error))?;
    match control.member.set_share(share).await {
        Ok(()) => Ok(Json(control.member.status())),
        Err(refused) => {
            let code = match refused {
                ShareRefused::Draining => "draining",
                ShareRefused::Unsupported => "unsupported",
            };
            Err(Problem::new(StatusCode::CONFLICT, code, refused.to_string()))
        }
    }
}

async fn read_body(body: Body) -> Result<bytes::Bytes, Problem> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            format!("the body is larger than {MAX_BODY_BYTES} bytes"),
        )),
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

#[cfg(test)]
mod tests;
