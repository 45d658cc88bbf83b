//! One session's record: what a restart of the backend must not lose.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::link::frames;
use holdfast_proto::{ChannelKind, DeviceId, Sequence, SessionId};

use super::state::{Delivery, State};
use super::window::Window;
use crate::exchange::PeerId;

/// Largest blob that a backend may leave with a session, in bytes.
pub const MAX_BLOB_BYTES: usize = 1024;
/// Largest principal, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 512;
/// Largest control message, in bytes.
pub const MAX_CONTROL_BYTES: usize = 4096;
/// Control messages of one session that wait for their answer.
pub const MAX_CONTROLS: usize = 64;

/// A session's place and which of the place's sessions it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey {
    pub slot: u32,
    pub generation: u32,
}

/// The record. About 300 bytes; everything that only a busy session needs is boxed in `active`.
#[derive(Debug)]
pub struct Session {
    pub(super) id: SessionId,
    pub(super) kind: ChannelKind,
    pub(super) state: State,
    pub(super) device: Option<DeviceId>,
    pub(super) principal: Bytes,
    pub(super) blob: Bytes,
    pub(super) blob_version: u32,
    pub(super) address: SocketAddr,
    /// Whether `address` is where the device is: over datagrams anybody may write any sender on the envelope.
    pub(super) proven: bool,
    /// The backend that has, or last had, its requests.
    pub(super) serving: Option<PeerId>,
    pub(super) next: Sequence,
    pub(super) heard: Instant,
    pub(super) pinged: bool,
    /// A message waits at the channel until the window has room.
    pub(super) stalled: bool,
    /// It is in the shard's queue of those that starve.
    pub(super) starved: bool,
    pub(super) active: Option<Box<Active>>,
}

/// What a session holds while something is under way.
#[derive(Debug, Default)]
pub(super) struct Active {
    pub(super) window: Window,
    /// Handed to the channel and not yet written, in order.
    pub(super) outbox: VecDeque<Outgoing>,
    pub(super) out_bytes: usize,
    pub(super) pushes: usize,
    pub(super) controls: VecDeque<Control>,
    pub(super) next_control: u64,
}

/// What was handed to the channel, and who wants to know that it was written.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: usize,
    /// In which turn of the shard's outputs: in the current one the channel may not have it yet.
    pub(super) turn: u32,
    pub(super) what: Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Reply(Sequence),
    Push { peer: PeerId, number: u64 },
    Broadcast { peer: PeerId, number: u64 },
    Other,
}

/// A control message that a backend answers.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) number: u64,
    pub(super) update: bool,
    pub(super) text: Bytes,
    pub(super) delivery: Delivery,
    /// When it was last given to a backend.
    pub(super) since: Instant,
    /// How often its blob write came too late.
    pub(super) conflicts: u8,
}

impl Session {
    pub(super) fn new(id: SessionId, kind: ChannelKind, address: SocketAddr, now: Instant) -> Self {
        Self {
            id,
            kind,
            state: State::Accepted { since: now },
            device: None,
            principal: Bytes::new(),
            blob: Bytes::new(),
            blob_version: 0,
            address,
            proven: true,
            serving: None,
            next: Sequence(1),
            heard: now,
            pinged: false,
            stalled: false,
            starved: false,
            active: None,
        }
    }

    pub(super) fn key(&self) -> SessionKey {
        let parts = self.id.parts();
        SessionKey {
            slot: parts.slot.0,
            generation: parts.generation.0,
        }
    }

    /// What every frame about this session carries.
    pub(super) fn frame(&self) -> frames::Session {
        frames::Session {
            id: Some(self.id.into()),
            device: self
                .device
                .as_ref()
                .map(|d| d.as_bytes().clone())
                .unwrap_or_default(),
            principal: self.principal.clone(),
            blob: self.blob.clone(),
            blob_version: self.blob_version,
        }
    }

    /// What the rendezvous hash takes.
    pub(super) fn hash_key(&self) -> &[u8] {
        match (&self.device, &self.state) {
            (Some(device), _) => device.as_bytes(),
            (None, State::Binding(binding)) => &binding.credential,
            (None, _) => &[],
        }
    }

    /// Applies a blob write whose base version is still current.
    pub(super) fn write_blob(&mut self, write: frames::BlobWrite) -> Result<(), BlobError> {
        if write.blob.len() > MAX_BLOB_BYTES {
            return Err(BlobError::TooLarge);
        }
        if write.base_version != self.blob_version {
            return Err(BlobError::Conflict);
        }
        self.blob = Bytes::copy_from_slice(&write.blob);
        self.blob_version = self.blob_version.wrapping_add(1);
        Ok(())
    }

    /// Whether a frame that was or will be sent still waits for a backend.
    pub(super) fn wants_backend(&self) -> bool {
        match &self.state {
            State::Binding(binding) => binding.delivery.with.is_none(),
            State::LoggingIn(login) => login.delivery.with.is_none(),
            State::Closing(closing) => closing.delivery.with.is_none(),
            State::Online => self
                .active
                .as_ref()
                .is_some_and(|active| active.has_undelivered()),
            State::Accepted { .. } | State::Challenging { .. } => false,
        }
    }
}

/// Why a blob write was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlobError {
    TooLarge,
    Conflict,
}

impl Active {
    pub(super) fn is_idle(&self) -> bool {
        self.window.is_empty() && self.outbox.is_empty() && self.controls.is_empty()
    }

    pub(super) fn has_undelivered(&self) -> bool {
        self.window.has_unsent() || self.controls.iter().any(|c| c.delivery.with.is_none())
    }

    /// Whether another control message may wait.
    pub(super) fn takes_control(&self) -> bool {
        self.controls.len() < MAX_CONTROLS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle session costs is a promise: it may not grow unnoticed.
    #[test]
    fn an_idle_session_stays_small() {
        let size = size_of::<Option<Session>>();
        println!("an idle session's record weighs {size} bytes");
        assert!(size <= 320, "{size} bytes");
    }
}
