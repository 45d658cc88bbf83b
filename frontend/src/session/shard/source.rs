//! Where a session's device is: what that address may ask for, and that it changes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use holdfast_proto::ChannelKind;
use holdfast_proto::throttle::source_of;

use super::Shard;
use crate::exchange::ToHub;
use crate::session::session::SessionKey;
use crate::session::state::State;

impl Shard {
    /// Like [`accept`](Shard::accept), for a device that has not shown that it is where it says: what is done in the name of that
    /// address must not be held against whoever is there.
    pub fn accept_unproven(
        &mut self,
        now: Instant,
        kind: ChannelKind,
        address: SocketAddr,
    ) -> Option<SessionKey> {
        let key = self.accept(now, kind, address)?;
        self.get(key)?.proven = false;
        Some(key)
    }

    /// How long the source of a handshake is to stay away, if it had too many.
    pub(super) fn throttled(&mut self, now: Instant, key: SessionKey) -> Option<Duration> {
        let session = self.get(key).filter(|s| s.proven)?;
        let (source, kind) = (source_of(session.address.ip()), session.kind);
        let wait = self.config.sources.of(kind)?.check(now, &source).err()?;
        Some(wait + self.retry_hint())
    }

    /// The device is at another address, and has shown that it is: whoever asks where it is hears of that one (P9).
    pub fn handle_moved(&mut self, key: SessionKey, address: SocketAddr) {
        let Some(session) = self.get(key) else { return };
        session.address = address;
        session.proven = true;
        let (session_id, device) = (session.id, session.device.clone());
        let is_known = matches!(session.state, State::LoggingIn(_) | State::Online);
        if let (true, Some(device)) = (is_known, device) {
            self.metrics.moves.inc();
            self.to_hub.push(ToHub::Moved {
                device,
                session: session_id,
                address,
            });
        }
    }
}
