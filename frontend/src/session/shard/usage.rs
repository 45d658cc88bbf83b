//! How much of its bounds a shard uses (P7), for tests and the simulation, which hold it to them.

use super::Shard;
use crate::session::session::SessionKey;

/// Over all sessions of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShardUsage {
    pub sessions: u32,
    /// Sessions that wait for a backend before they are online.
    pub waiting: u32,
    /// Of unanswered requests and control messages.
    pub window_bytes: usize,
    pub out_bytes: usize,
    /// Places in the queue of sessions that wait for room in the total of all windows.
    pub starved: usize,
    pub broadcasts: usize,
}

/// Of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionUsage {
    /// The label of its state.
    pub state: &'static str,
    pub requests: usize,
    pub request_bytes: usize,
    /// Handed to the channel and not yet written.
    pub messages: usize,
    pub out_bytes: usize,
    pub pushes: usize,
    pub controls: usize,
    pub control_bytes: usize,
    pub stalled: bool,
}

impl Shard {
    pub fn usage(&self) -> ShardUsage {
        ShardUsage {
            sessions: self.live,
            waiting: self.waiting,
            window_bytes: self.window_bytes,
            out_bytes: self.out_bytes,
            starved: self.starved.len(),
            broadcasts: self.broadcasts.len(),
        }
    }

    /// `None` when the session is gone.
    pub fn session_usage(&self, key: SessionKey) -> Option<SessionUsage> {
        let session = self.slots.get(key.slot as usize)?.session.as_ref();
        let session = session.filter(|s| s.key() == key)?;
        let active = session.active.as_ref();
        Some(SessionUsage {
            state: session.state.label(),
            requests: active.map_or(0, |a| a.window.len()),
            request_bytes: active.map_or(0, |a| a.window.bytes()),
            messages: active.map_or(0, |a| a.outbox.len()),
            out_bytes: active.map_or(0, |a| a.out_bytes),
            pushes: active.map_or(0, |a| a.pushes),
            controls: active.map_or(0, |a| a.controls.len()),
            control_bytes: active.map_or(0, |a| a.controls.iter().map(|c| c.text.len()).sum()),
            stalled: session.stalled,
        })
    }
}
