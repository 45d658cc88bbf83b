//! `/v1/devices/{id}`: presence, and closing.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_proto::DeviceId;

use super::{ApiState, GatewayError, Presence, Problem};

pub(super) async fn presence(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Presence>, Problem> {
    Ok(Json(state.gateway.presence(device(path)?).await?))
}

pub(super) async fn close(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    match state.gateway.close(device(path)?).await? {
        0 => Err(GatewayError::UnknownDevice.into()),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

fn device(path: Result<Path<String>, PathRejection>) -> Result<DeviceId, Problem> {
    let Path(text) = path.map_err(|_| Problem::field("id", "not UTF-8"))?;
    text.parse().map_err(|error| Problem::field("id", error))
}
