//! Sessions: what a device's connection is to Holdfast, above any channel and without any socket.
//!
//! [`Shard`] owns the sessions of one thread. It takes what channels and the hub report (`handle_*`) and gives out what they
//! shall do (`poll_output`, `take_to_hub`). It has no clock: `now` is passed in. It parses no JSON.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod config;
mod metrics;
mod roster;
#[allow(clippy::module_inception)]
mod session;
mod shard;
mod state;
mod unfinished;
mod wheel;
mod window;

pub use config::{ShardConfig, SourceLimit, Sources};
pub use metrics::{ReasonLabel, ShardMetrics};
pub use session::{
    MAX_BLOB_BYTES, MAX_CONTROL_BYTES, MAX_CONTROLS, MAX_PRINCIPAL_BYTES, Session, SessionKey,
};
pub use shard::{
    Challenge, Goodbye, MAX_TO_REFUSE, Output, Refusal, SessionUsage, Shard, ShardUsage, Stalled,
};
pub use state::{CloseReason, IllegalTransition, State};
pub use unfinished::{MAX_UNFINISHED, Unfinished, UnfinishedPlace};
pub use wheel::{TICK, Wheel};
pub use window::{Answer, Dispatch, FinalReply, ReplyError, Window, WindowLimits};
