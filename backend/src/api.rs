//! The HTTP API: pushes, presence, closing, statistics and health, for services and operators.
//!
//! Requests are checked here down to the field, and turned into plain values; what they do is behind [`Gateway`]. Every
//! error, also those of the HTTP machinery, is a problem document (RFC 9457) with a stable `code`.

mod devices;
mod gateway;
mod health;
mod keys;
mod messages;
mod metrics;
mod patience;
mod problem;
mod serve;
mod target;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

pub use gateway::{
    BackendStats, Frontend, Gateway, GatewayError, Presence, PresenceState, PushCounts, PushMessage,
    PushReport, PushRequest, PushResult, PushStatus, PushTarget, Readiness, SessionInfo, Stats,
};
pub use keys::{ApiKeys, MAX_API_KEYS, MIN_SECRET_CHARS, Scope};
pub use messages::{MAX_BODY_BYTES, MAX_MESSAGE_BYTES};
pub use metrics::ApiMetrics;
pub use problem::Problem;
pub(crate) use problem::{dress, method_not_allowed, not_found};
pub(crate) use serve::Server;
pub use serve::{Duty, MAX_CONNECTIONS, listen_or_inherit, serve};

/// Bodies of pushes that may be in memory at once, in KiB: a body takes its announced size, or the largest allowed.
const BODY_BUDGET_KIB: usize = 64 * 1024;

/// What the handlers share. Cloning is cheap.
#[derive(Clone)]
pub struct ApiState {
    gateway: Arc<dyn Gateway>,
    keys: Arc<ApiKeys>,
    registry: Arc<Registry>,
    metrics: ApiMetrics,
    /// In KiB.
    body_budget: Arc<Semaphore>,
}

impl ApiState {
    /// `registry` holds the metrics of all subsystems by now; `metrics` is registered in it.
    pub fn new(
        gateway: Arc<dyn Gateway>,
        keys: ApiKeys,
        registry: Arc<Registry>,
        metrics: ApiMetrics,
    ) -> Self {
        let body_budget = Arc::new(Semaphore::new(BODY_BUDGET_KIB));
        Self {
            gateway,
            keys: Arc::new(keys),
            registry,
            metrics,
            body_budget,
        }
    }
}

/// All routes of the API.
pub fn router(state: ApiState) -> Router {
    let push = Router::new().route("/v1/messages", post(messages::push));
    let read = Router::new()
        .route("/v1/devices/{id}", get(devices::presence))
        .route("/v1/stats", get(health::stats));
    let admin = Router::new().route("/v1/devices/{id}", axum::routing::delete(devices::close));
    let guarded = |router: Router<ApiState>, scope| {
        let guard = keys::Guard {
            keys: state.keys.clone(),
            scope,
        };
        router.route_layer(from_fn_with_state(guard, keys::require))
    };
    Router::new()
        .merge(guarded(push, Scope::Push))
        .merge(guarded(read, Scope::Read))
        .merge(guarded(admin, Scope::Admin))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn(problem::dress))
        .layer(from_fn_with_state(state.metrics.clone(), metrics::count))
        .with_state(state)
}

#[cfg(test)]
mod tests;
