//! The secure handshake and the records of the channels that we encrypt ourselves (PROTOCOL.md says what is on the wire).
//!
//! A device sends a [`Credential`]: who it says it is, and message 1 of Noise NNpsk0 under its [`DeviceKey`]. The backend verifies
//! that ([`Verified`]) and answers with message 2, which reaches the device as the [`render_challenge`] message, or in a datagram. Both
//! ends then hold [`TrafficKeys`]. Where records follow (for datagrams see [`crate::udp`]) each direction has a [`Sealer`] at one end and
//! an [`Opener`] at the other, and an [`Assembler`] puts messages together again.
//!
//! There is no socket, clock or task here; the only randomness is the ephemeral key that `snow` draws for a handshake. Who may try
//! how often is not decided here either: see [`crate::throttle`].

mod assemble;
mod control;
mod credential;
mod handshake;
mod hkdf;
mod identity;
mod keys;
mod records;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod vectors;
mod wiped;

pub use assemble::{AssembleError, Assembler, Whole, chunks};
pub use control::{ControlError, ControlRecord, MAX_REASON_BYTES};
pub use credential::{
    Credential, CredentialError, MAX_CHALLENGE_BYTES, MAX_CREDENTIAL_BYTES, MAX_CREDENTIAL_TEXT,
    PARAMETER_BYTES, parse_challenge, render_challenge,
};
pub use handshake::{HandshakeError, Initiator, MESSAGE_2_BYTES, PATTERN, TrafficKeys, Verified};
/// What the vectors of udp are made with.
#[cfg(test)]
pub(crate) use handshake::{fixed, prologue};
pub use identity::{
    IDENTITY_VERSION, Identity, IdentityError, MAX_CLASS_BYTES, MAX_IDENTITY_BYTES, MAX_KEY_ID_BYTES,
    MAX_PRODUCT_BYTES,
};
pub use keys::{DeviceKey, KEY_BYTES, KEY_TEXT_CHARS, KeyError, MasterKey, TrafficKey};
pub use records::{
    MAX_CHUNK_BYTES, MAX_RECORD_BYTES, OpenRun, Opened, Opener, RECORD_OVERHEAD, REKEY_RECORDS, RecordError,
    RecordKind, SealRun, Sealer,
};
pub(crate) use records::{expand, nonce, rekey};

/// Which kind of channel a handshake is for: bound into it, so that what was made for one is worth nothing on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecureChannel {
    Ws,
    Udp,
    /// A remote backend's tunnel.
    Link,
}

impl SecureChannel {
    /// The word in the handshake's prologue.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Udp => "udp",
            Self::Link => "link",
        }
    }
}
