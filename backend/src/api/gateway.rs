//! What the API asks of the rest of the backend, in plain values.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_proto::{DeviceId, FrontendEpoch, FrontendId, SessionId};
use serde::Serialize;
use serde::ser::Serializer;

/// The side of the backend that reaches devices. Implementations bound their own waiting.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Sends a push and waits, at most the configured push timeout, for what became of it.
    async fn push(&self, request: PushRequest) -> Result<PushReport, GatewayError>;

    /// Asks the frontends, at most the configured query timeout. [`GatewayError::UnknownDevice`] when all answered that
    /// there is no session and the device was not seen before.
    async fn presence(&self, device: DeviceId) -> Result<Presence, GatewayError>;

    /// Closes the device's sessions; returns how many, 0 if it had none. [`GatewayError::Unconfirmed`] when a frontend did
    /// not say in time what it closed.
    async fn close(&self, device: DeviceId) -> Result<u64, GatewayError>;

    fn readiness(&self) -> Readiness;

    fn stats(&self) -> Stats;
}

/// Why the gateway did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// Answered with `404 unknown_device`.
    #[error("no such device is known")]
    UnknownDevice,
    /// No frontend is attached. Answered with `503 unavailable`.
    #[error("no frontend is attached")]
    Unavailable { retry_after: Duration },
    /// Some frontends did not answer: `closed` sessions were closed, and others may be left. Answered with
    /// `503 unconfirmed`; asking again is safe.
    #[error("{closed} sessions were closed, but a frontend did not answer: others may be left")]
    Unconfirmed { closed: u64, retry_after: Duration },
    /// No room at the moment. Answered with `429 overloaded`.
    #[error("too much is under way")]
    Overloaded { retry_after: Duration },
}

/// A push, checked and rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRequest {
    /// `m-` and a random uuid; also in the message's header.
    pub id: String,
    pub target: PushTarget,
    pub message: PushMessage,
}

/// Who gets it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PushTarget {
    Device(DeviceId),
    Session(SessionId),
    All,
}

/// The whole message as devices get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushMessage {
    /// JSON, at most [`MAX_MESSAGE_BYTES`](super::MAX_MESSAGE_BYTES).
    Text(Bytes),
    /// Length, header, raw bytes; the same bound.
    Binary(Bytes),
}

/// What became of a push, in the form that goes with its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushReport {
    /// For a device or a session: one result per session, or one that names none.
    Results(Vec<PushResult>),
    /// For all.
    Counts(PushCounts),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushResult {
    /// Left out when only the session is known.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_text")]
    pub device: Option<DeviceId>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_text")]
    pub session: Option<SessionId>,
    pub status: PushStatus,
    /// Goes with `dropped`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is true of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PushStatus {
    /// The session's socket took it.
    Written,
    /// The device has no session.
    Offline,
    /// No such device or session is known.
    Unknown,
    /// It was sent to a frontend that did not say in time what became of it, or that does not know: the session ended meanwhile.
    Unconfirmed,
    /// The frontend let it go, for the reason given.
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PushCounts {
    /// Sessions whose sockets took it.
    pub written: u64,
    /// Sessions that did not get it.
    pub dropped: u64,
    /// Sessions whose sockets had not taken it when the frontend stopped waiting, or that ended meanwhile: they may have it, or get it.
    pub unconfirmed: u64,
    /// Frontends that did not say in time what became of it.
    pub frontends_unconfirmed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Presence {
    #[serde(serialize_with = "text")]
    pub device: DeviceId,
    pub presence: PresenceState,
    pub sessions: Vec<SessionInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PresenceState {
    Online,
    Offline,
    /// A frontend did not answer.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    #[serde(serialize_with = "text")]
    pub session: SessionId,
    /// `ws`, `wss` or `udp`.
    pub channel: String,
    /// Where the device connects from.
    pub address: String,
    /// When the session began; RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
}

/// Whether this backend should get traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// With one sentence saying why.
    NotReady(String),
}

/// A snapshot for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub backend: BackendStats,
    pub frontends: Vec<Frontend>,
    /// Requests of devices that this backend is working on.
    pub in_flight: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendStats {
    pub name: String,
    pub version: String,
    /// This process's boot uuid.
    pub epoch: String,
}

/// One configured frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Frontend {
    /// `None` until it has said who it is.
    #[serde(serialize_with = "frontend_number")]
    pub id: Option<FrontendId>,
    /// Which life of it; `None` as long as the id.
    #[serde(serialize_with = "frontend_epoch")]
    pub epoch: Option<FrontendEpoch>,
    /// A word such as `connecting`, `standby`, `active`, `draining` or `lost`.
    pub state: &'static str,
    /// Sessions that it last reported.
    pub sessions: u64,
}

fn text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn optional_text<T: std::fmt::Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn frontend_number<S: Serializer>(id: &Option<FrontendId>, serializer: S) -> Result<S::Ok, S::Error> {
    id.map(|id| id.0).serialize(serializer)
}

fn frontend_epoch<S: Serializer>(epoch: &Option<FrontendEpoch>, serializer: S) -> Result<S::Ok, S::Error> {
    epoch.map(|epoch| epoch.0).serialize(serializer)
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&crate::rfc3339::Rfc3339(*time))
}
