//! What both ends of Holdfast share: identifiers, the link's schema and its pure state, close and error codes, the
//! device protocol's message forms, the handshake and records of the channels that we encrypt, and the transport over UDP.
//!
//! There is no socket, no task and no clock here. Time comes in as an argument.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod channel;
pub mod codes;
pub mod config;
pub mod descriptors;
pub mod event;
pub mod ids;
pub mod link;
pub mod recent;
pub mod secure;
pub mod share;
pub mod throttle;
pub mod tunnel;
pub mod udp;
pub mod watch;

pub use channel::ChannelKind;
pub use codes::{CLOSED_BY_DEVICE, CONNECTION_LOST, CloseCode, ErrorCode};
pub use ids::{
    DeviceId, FrontendEpoch, FrontendId, Generation, IdError, Sequence, SessionId, SessionParts, ShardId,
    Slot,
};
/// Whether a device's message is text or binary.
pub use link::frames::MessageKind;
pub use share::{Share, ShareError};

/// What was built, as Hello, `/status` and metrics name it: the version, or `<version>+<build>` when whoever compiled it named
/// the build (`HOLDFAST_BUILD` in the environment of the compiler).
pub fn build_name(version: &str, build: Option<&str>) -> String {
    match build {
        Some(build) if !build.is_empty() => format!("{version}+{build}"),
        _ => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_build_may_have_a_name() {
        assert_eq!(super::build_name("1.2", None), "1.2");
        assert_eq!(super::build_name("1.2", Some("")), "1.2");
        assert_eq!(super::build_name("1.2", Some("ab12")), "1.2+ab12");
    }
}
