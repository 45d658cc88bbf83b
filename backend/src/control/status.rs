//! What `GET /status` says.

use std::collections::BTreeMap;

use holdfast_proto::{ErrorCode, FrontendEpoch, FrontendId, Share};
use serde::{Serialize, Serializer};

use crate::dispatch::{DURATION_BOUNDS_US, RequestMetrics};

/// The backend, its links and what it has answered since it started.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    /// This process's boot uuid.
    pub epoch: String,
    pub pid: u32,
    #[serde(rename = "share_percent", serialize_with = "percent")]
    pub share: Share,
    pub draining: bool,
    /// Requests of devices that it is working on.
    pub in_flight: u64,
    /// In the order of the configuration.
    pub frontends: Vec<FrontendStatus>,
    pub requests: RequestCounts,
}

/// One configured frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrontendStatus {
    /// As it is configured.
    pub address: String,
    /// `connecting`, `standby`, `active`, `draining`, `finished` or `lost`.
    pub state: &'static str,
    /// Who it is, once it has said so.
    #[serde(serialize_with = "frontend_id")]
    pub frontend_id: Option<FrontendId>,
    #[serde(serialize_with = "frontend_epoch")]
    pub frontend_epoch: Option<FrontendEpoch>,
}

/// Totals that only grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Final answers, errors included.
    pub answered: u64,
    /// Errors by code; codes that never came are left out.
    pub errors: BTreeMap<&'static str, u64>,
    pub duration_us: Durations,
}

/// From a request's arrival to its result, before that waits for its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Durations {
    /// Upper limits in microseconds.
    pub bounds: &'static [u64],
    /// By bound, and one for what is above the last. Not cumulative over the bounds.
    pub counts: Vec<u64>,
    pub sum: u64,
}

impl RequestCounts {
    pub fn read(metrics: &RequestMetrics) -> Self {
        let errors = ErrorCode::ALL.map(|code| (code.label(), metrics.errors(code)));
        let durations = metrics.durations.read();
        Self {
            answered: metrics.answered(),
            errors: errors.into_iter().filter(|(_, count)| *count > 0).collect(),
            duration_us: Durations {
                bounds: &DURATION_BOUNDS_US,
                counts: durations.counts.to_vec(),
                sum: durations.sum_us,
            },
        }
    }
}

fn percent<S: Serializer>(share: &Share, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(share.percent())
}

fn frontend_id<S: Serializer>(id: &Option<FrontendId>, serializer: S) -> Result<S::Ok, S::Error> {
    id.map(|id| id.0).serialize(serializer)
}

fn frontend_epoch<S: Serializer>(epoch: &Option<FrontendEpoch>, serializer: S) -> Result<S::Ok, S::Error> {
    epoch.map(|epoch| epoch.0).serialize(serializer)
}
