//! The frontend's end of the link to its backends.
//!
//! [`Hub`] is pure: it attaches backends, judges and fences them, meters their frames, carries work between them and the
//! shards, and holds the device index. [`edge`] moves its batches over ZeroMQ.

pub mod edge;
mod hub;
mod index;
mod metrics;
mod peer;
mod status;
pub mod tunnel;

pub use hub::{Hub, HubConfig, HubUsage, MAX_ENDED, PeerUsage};
pub use index::{DeviceIndex, Swap};
pub use metrics::LinkMetrics;
pub use status::{HandOver, HandOverKind, LinkStatus, MAX_HAND_OVERS, PeerStatus, Work};
