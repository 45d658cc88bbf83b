//! Health, metrics and statistics.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::{ApiState, Problem, Readiness, Stats};
use crate::metrics::{CONTENT_TYPE as METRICS_TYPE, render};

/// The process answers.
pub(super) async fn live() -> &'static str {
    "live\n"
}

/// The process should get traffic.
pub(super) async fn ready(State(state): State<ApiState>) -> Result<&'static str, Problem> {
    match state.gateway.readiness() {
        Readiness::Ready => Ok("ready\n"),
        Readiness::NotReady(why) => {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why);
            Err(problem.retry_after(Duration::from_secs(1)))
        }
    }
}

pub(super) async fn metrics(State(state): State<ApiState>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], render(&state.registry))
}

pub(super) async fn stats(State(state): State<ApiState>) -> Json<Stats> {
    Json(state.gateway.stats())
}
