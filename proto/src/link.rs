//! The link's frames and the pure state of one end of it.
//!
//! [`frames`] is generated from `link.proto`. [`Lane`] numbers, acknowledges and meters the frames of one pair of epochs,
//! and tells when the other end must be taken for gone. It holds no socket and no clock: whoever owns it moves the
//! batches and passes `now`. What a frame *means* is the owner's affair.
//!
//! Deliberately absent: retransmission. A lost socket ends both epochs; what was unanswered is replayed by the owner.

mod codec;
mod credit;
mod epoch;
mod lane;

/// The generated types.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod frames {
    include!(concat!(env!("OUT_DIR"), "/holdfast.link.v1.rs"));
}

/// Without the keys: a frame may end up in a log.
impl std::fmt::Debug for frames::Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Challenge")
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

pub use codec::{MAX_BATCH_BYTES, MAX_BATCH_FRAMES, decode_batch, encode_notice, read_notice};
pub use credit::{Class, Grant, Grants};
pub use epoch::Epoch;
pub use frames::frame::Command;
pub use lane::{
    Gone, HEADER_DELAY, Incoming, Lane, LaneConfig, LaneError, LaneStats, LaneUsage, MAX_UNACKNOWLEDGED,
    Origin, UNKNOWN_EPOCH,
};

/// The protocol versions that this build speaks, both included.
pub const PROTOCOL_VERSIONS: std::ops::RangeInclusive<u32> = 1..=1;

/// Feature of a frontend that respects `Ready.share`.
pub const FEATURE_SHARE: &str = "share";

/// Longest payload of a reply, in bytes: what a route may allow, and what a frontend always has room for.
pub const MAX_REPLY_BYTES: usize = 4 * 1024 * 1024;

/// Picks the highest version that both ends speak.
pub fn common_version(hello: &frames::Hello) -> Option<u32> {
    let highest = hello.version_max.min(*PROTOCOL_VERSIONS.end());
    let lowest = hello.version_min.max(*PROTOCOL_VERSIONS.start());
    (lowest <= highest).then_some(highest)
}

/// Whether the sender of this Hello lists `feature`.
pub fn has_feature(hello: &frames::Hello, feature: &str) -> bool {
    hello.features.iter().any(|f| f == feature)
}

impl From<crate::Share> for frames::Ready {
    fn from(share: crate::Share) -> Self {
        Self {
            share: share.hundredths().into(),
            standby: share.is_none(),
        }
    }
}

impl From<frames::Ready> for crate::Share {
    /// What is above the whole counts as the whole.
    fn from(ready: frames::Ready) -> Self {
        match ready {
            frames::Ready { standby: true, .. } => Self::NONE,
            frames::Ready { share: 0, .. } => Self::FULL,
            frames::Ready { share, .. } => Self::clamped(share),
        }
    }
}

impl From<crate::SessionId> for frames::SessionId {
    fn from(id: crate::SessionId) -> Self {
        let (high, low) = id.halves();
        Self { high, low }
    }
}

impl TryFrom<frames::SessionId> for crate::SessionId {
    type Error = crate::IdError;

    fn try_from(id: frames::SessionId) -> Result<Self, crate::IdError> {
        Self::from_halves(id.high, id.low)
    }
}

/// Reads an optional id field; absent counts as malformed.
pub fn session_id(id: Option<frames::SessionId>) -> Result<crate::SessionId, crate::IdError> {
    id.ok_or(crate::IdError::Session)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cross_the_link_and_older_senders_mean_full() {
        use crate::Share;
        let there_and_back = |share: Share| Share::from(frames::Ready::from(share));
        for hundredths in [0, 1, 50, 9_999, 10_000] {
            let share = Share::clamped(hundredths);
            assert_eq!(there_and_back(share), share);
        }
        let said = |share, standby| Share::from(frames::Ready { share, standby });
        assert_eq!(said(0, false), Share::FULL);
        assert_eq!(said(70_000, false), Share::FULL);
        assert_eq!(said(500, true), Share::NONE);
    }

    #[test]
    fn a_challenge_does_not_show_its_keys() {
        let challenge = frames::Challenge {
            message: "@challenge".into(),
            to_server: "secret 1".into(),
            to_device: "secret 2".into(),
        };
        let admitted = frames::Admitted {
            challenge: Some(challenge),
            ..Default::default()
        };
        let shown = format!("{admitted:?}");
        assert!(
            shown.contains("@challenge") && !shown.contains("secret"),
            "{shown}"
        );
    }

    #[test]
    fn features_are_compared_whole() {
        let hello = frames::Hello {
            features: vec!["shares".into(), FEATURE_SHARE.into()],
            ..Default::default()
        };
        assert!(has_feature(&hello, FEATURE_SHARE) && !has_feature(&hello, "shar"));
        assert!(!has_feature(&frames::Hello::default(), FEATURE_SHARE));
    }

    #[test]
    fn versions_meet_at_the_highest_common_one() {
        let speaks = |min, max| frames::Hello {
            version_min: min,
            version_max: max,
            ..Default::default()
        };
        assert_eq!(common_version(&speaks(1, 1)), Some(1));
        assert_eq!(common_version(&speaks(0, 9)), Some(1));
        assert_eq!(common_version(&speaks(2, 3)), None);
        assert_eq!(common_version(&speaks(0, 0)), None);
    }
}
