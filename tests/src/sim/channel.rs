//! What a connection's channel does: reads what the device sent, opens it, and writes what the session wants.

use bytes::Bytes;
use holdfast_frontend::session::{SessionKey, Stalled};
use holdfast_proto::{CloseCode, MessageKind};

use super::conn::{ConnId, FromDevice, Stage};
use super::shard::Place;
use super::world::World;

/// Messages that one read may hold.
const MESSAGES_PER_READ: usize = 8;

impl World {
    /// What the connection's task does when it runs: writes what waits, then reads, if it may.
    pub(super) fn serve(&mut self, place: Place, conn: ConnId) {
        self.write_on(place, conn);
        self.pump(place);
        let c = &mut self.conns[conn.0];
        let Some(key) = c.key.filter(|_| matches!(c.stage, Stage::Open | Stage::Binding)) else {
            return;
        };
        let broke = c.inbox.iter().any(|item| matches!(item, FromDevice::Reset));
        let closed = c.inbox.iter().any(|item| matches!(item, FromDevice::Close));
        // A write to a socket whose other end is closed breaks it; reading comes only after all is written.
        if c.out.is_blocked() && (broke || closed) || c.stage == Stage::Open && broke {
            return self.lose_conn(place, (conn, key), false);
        }
        if c.out.is_blocked() || c.stage == Stage::Binding || c.stalled.is_some() {
            return;
        }
        for _ in 0..1 + self.rng.below(MESSAGES_PER_READ) {
            let Some(item) = self.conns[conn.0].inbox.pop_front() else {
                return;
            };
            if !self.take_item(place, (conn, key), item) {
                break;
            }
        }
        if !self.conns[conn.0].inbox.is_empty()
            && let Some(shard) = self.shard(place)
        {
            shard.ready.insert(conn);
        }
    }

    /// Whether the next item may be taken in the same turn.
    fn take_item(&mut self, place: Place, (conn, key): (ConnId, SessionKey), item: FromDevice) -> bool {
        let now = self.instant();
        let c = &self.conns[conn.0];
        let (secure, by_device) = (c.kind.secure().is_some(), c.proof.is_authentic(c.kind));
        match item {
            FromDevice::Upgrade(credential) => {
                self.note_attempt(place, conn);
                let Some(shard) = self.shard(place) else {
                    return false;
                };
                shard.core.handle_upgrade(now, key, credential);
                self.conns[conn.0].stage = Stage::Binding;
                self.check_turned_away(place, (conn, key));
                false
            }
            FromDevice::Message(..) if secure => self.reject(place, (conn, key), CloseCode::ClearText),
            FromDevice::Record(seal, ..) if !c.proof.opens(&seal) => {
                self.reject(place, (conn, key), CloseCode::RecordRejected)
            }
            FromDevice::Message(kind, payload) | FromDevice::Record(_, kind, payload) => {
                self.take_message(place, (conn, key), (kind, payload))
            }
            FromDevice::Alive => {
                if let Some(shard) = self.shard(place) {
                    shard.core.handle_alive(now, key);
                }
                true
            }
            FromDevice::Close | FromDevice::Reset => {
                let by_device = by_device && matches!(item, FromDevice::Close);
                self.lose_conn(place, (conn, key), by_device);
                false
            }
        }
    }

    fn take_message(
        &mut self,
        place: Place,
        (conn, key): (ConnId, SessionKey),
        (kind, payload): (MessageKind, Bytes),
    ) -> bool {
        let now = self.instant();
        let is_first = self.state_of(place, key) == Some("challenging");
        if is_first {
            self.note_first(conn, (kind, &payload));
        }
        let Some(shard) = self.shard(place) else {
            return false;
        };
        let taken = shard.core.handle_message(now, key, kind, payload);
        if is_first {
            let state = self.state_of(place, key);
            self.check_first(conn, state);
        }
        let Err(Stalled(payload)) = taken else {
            return true;
        };
        self.conns[conn.0].stalled = Some((kind, payload));
        self.saw("stall", "");
        false
    }

    /// The channel cannot go on with what came, as the driver tells the session.
    fn reject(&mut self, place: Place, (conn, key): (ConnId, SessionKey), code: CloseCode) -> bool {
        let now = self.instant();
        self.conns[conn.0].proof.fault = Some(code);
        if let Some(shard) = self.shard(place) {
            shard.core.close(now, key, code);
        }
        false
    }

    fn lose_conn(&mut self, place: Place, (conn, key): (ConnId, SessionKey), by_device: bool) {
        let now = self.instant();
        let Some(shard) = self.shard(place) else { return };
        shard.set_conn(key, None);
        shard.core.handle_closed(now, key, by_device);
        shard.lost.push((key, conn));
        let c = &mut self.conns[conn.0];
        c.stage = Stage::Over;
        c.end_reason = Some(if by_device {
            "closed_by_device"
        } else {
            "connection_lost"
        });
        c.out.cut();
        self.trace.note(self.now, ("session ends", conn, key, by_device));
    }

    /// Moves bytes to the kernel and tells the session what went out with them.
    pub(super) fn write_on(&mut self, place: Place, conn: ConnId) {
        let now = self.instant();
        let c = &mut self.conns[conn.0];
        let written = c.out.advance();
        let (key, open) = (c.key, matches!(c.stage, Stage::Open | Stage::Binding));
        if let (Some(key), true) = (key, open && written > 0)
            && let Some(shard) = self.shard(place)
        {
            shard.core.handle_written(now, key, written);
        }
        self.schedule_read(conn);
    }
}
