//! What both ends of Holdfast share: identifiers, the link's schema and its pure state, close and error codes, and the
//! device protocol's message forms.
//!
//! There is no socket, no task and no clock here. Time comes in as an argument.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod codes;
pub mod config;
pub mod event;
pub mod ids;
pub mod link;
pub mod share;

pub use codes::{CLOSED_BY_DEVICE, CONNECTION_LOST, CloseCode, ErrorCode};
pub use ids::{
    DeviceId, FrontendEpoch, FrontendId, Generation, IdError, Sequence, SessionId, SessionParts, ShardId,
    Slot,
};
/// Whether a device's message is text or binary.
pub use link::frames::MessageKind;
pub use share::{Share, ShareError};
