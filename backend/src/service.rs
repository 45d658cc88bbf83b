//! Calling services: one device request becomes one HTTP POST in CloudEvents 1.0 binary mode, and its answer an outcome.
//!
//! [`ServiceClient`] belongs to one worker thread: its connections live on that thread's runtime. It decides nothing about
//! concurrency, order or breakers; its caller does, and may drop a call at any await.
//!
//! A call is never repeated once a byte of it was written. The HTTP client itself tries again on a fresh connection when a
//! pooled one turns out closed before the request was written, which no service can notice.

mod client;
mod connect;
mod headers;
mod idempotency;
mod key_endpoint;
mod memory;
mod metrics;
mod reply;
mod sign;
mod tls;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use holdfast_proto::{DeviceId, ErrorCode, Sequence, SessionId};

use crate::route::Route;

pub use client::{ServiceClient, ServiceSettings};
pub use idempotency::{MAX_IDEMPOTENCY_KEY_BYTES, idempotency_key};
pub use key_endpoint::{
    KeyEndpoint, KeyEndpointMetrics, KeyEndpointSettings, KeyQuestion, LookupError, MAX_KEY_ANSWER_BYTES,
};
pub use memory::{ROUTE_SHARE, ReplyMemory, ReplyRoom, UNRESERVED_BYTES};
pub use metrics::ServiceMetrics;
pub use sign::{SIGNATURE_HEADER, Signer, TIMESTAMP_HEADER};
pub use tls::client_tls;

/// One request of a device, on its way to a service. Its fields were checked when the event's header was read.
#[derive(Debug, Clone)]
pub struct ServiceRequest {
    pub route: Arc<Route>,
    /// 1 to 128 bytes.
    pub namespace: String,
    /// 1 to 128 bytes.
    pub name: String,
    /// The event's id; when absent, `<session>-<sequence>` takes its place.
    pub event_id: Option<String>,
    pub device: DeviceId,
    pub session: SessionId,
    pub sequence: Sequence,
    /// How often this request was with a backend before: 0 the first time. Services see this plus one.
    pub attempt: u32,
    /// Whether the device sent it as a binary message.
    pub binary: bool,
    /// The payload as the device sent it.
    pub payload: Bytes,
    /// Names the request across the device's reconnects.
    pub retry_key: Option<String>,
    /// When the frontend received it.
    pub received_at: SystemTime,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// A 2xx with a body. For a text request it is one JSON value, without surrounding white space.
    Reply(Bytes),
    /// A 2xx without a body.
    Empty,
    Failed {
        /// What the device is told.
        code: ErrorCode,
        /// What we know.
        detail: FailureDetail,
        /// Whether the service did not answer at all, which is what circuit breakers count.
        transport_failure: bool,
    },
}

/// A call's end, and the room that its reply takes until its owner has taken it over.
#[derive(Debug)]
pub struct Called {
    pub outcome: CallOutcome,
    pub room: ReplyRoom,
}

/// Why a call failed, for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FailureDetail {
    #[error("no connection (refused, unreachable, name, TLS or connect timeout)")]
    Connect,
    #[error("the connection broke off, or what came was not HTTP")]
    Broken,
    #[error("no complete answer within the route's timeout")]
    Timeout,
    #[error("status {0}")]
    Status(u16),
    #[error("the reply is over the route's limit")]
    ReplyTooLarge,
    #[error("no memory for the reply within the route's timeout")]
    NoRoom,
    #[error("the reply to a text request is not JSON")]
    NotJson,
    #[error("the event cannot be put into HTTP headers")]
    Unsendable,
}

impl FailureDetail {
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Connect | Self::Broken => ErrorCode::UpstreamUnavailable,
            Self::Timeout => ErrorCode::UpstreamTimeout,
            Self::Status(_) => ErrorCode::UpstreamError,
            Self::ReplyTooLarge => ErrorCode::ReplyTooLarge,
            Self::NoRoom => ErrorCode::Overloaded,
            Self::NotJson => ErrorCode::BadReply,
            Self::Unsendable => ErrorCode::BadRequest,
        }
    }

    /// A service that answers, even badly, can be reached.
    pub fn is_transport_failure(self) -> bool {
        matches!(self, Self::Connect | Self::Broken | Self::Timeout)
    }
}

impl From<FailureDetail> for CallOutcome {
    fn from(detail: FailureDetail) -> Self {
        Self::Failed {
            code: detail.code(),
            detail,
            transport_failure: detail.is_transport_failure(),
        }
    }
}
