//! What comes from the shards.

use std::time::Instant;

use holdfast_proto::CloseCode;
use holdfast_proto::link::frames::PushResult;
use holdfast_proto::link::{Command, Origin};
use holdfast_proto::{SessionId, ShardId};

use super::Hub;
use crate::exchange::{PeerId, Presence, ToHub, ToShard};
use crate::link::index::Swap;

impl Hub {
    pub fn handle_shard(&mut self, _now: Instant, shard: ShardId, message: ToHub) {
        match message {
            ToHub::Work {
                peer,
                ticket,
                command,
            } => {
                // Work for a peer that is gone meanwhile: the shard hears of that next and gives it to another.
                if let Some(peer) = self.peers.iter_mut().find(|p| p.id == peer) {
                    peer.lane.enqueue(
                        command,
                        Some(Origin {
                            source: shard.0,
                            ticket: ticket.0,
                        }),
                    );
                }
            }
            ToHub::Release { peer, charge } => self.release(peer, Some(charge)),
            ToHub::Drained { peer } => self.on_shard_drained(peer),
            ToHub::Online(presence) => self.on_online(presence),
            ToHub::Offline { device, session } => self.index.on_offline(&device, session),
            ToHub::PushDone { peer, result } => self.answer(peer, Command::PushResult(result)),
            ToHub::BroadcastDone {
                peer,
                number,
                written,
                dropped,
            } => {
                self.on_broadcast_done(peer, number, written, dropped);
            }
            ToHub::Stopped => self.stopped_shards += 1,
        }
    }

    fn on_online(&mut self, presence: Presence) {
        let session = presence.session;
        match self.index.on_online(presence) {
            Swap::New => {}
            Swap::Replaced(older) => self.close(older, CloseCode::Replaced),
            Swap::Superseded => self.close(session, CloseCode::Replaced),
        }
    }

    pub(super) fn close(&mut self, session: SessionId, code: CloseCode) {
        self.tell_shard_of(session, ToShard::Close { session, code });
    }

    /// A frame to a backend that has no ticket: nobody waits for it when the backend is lost.
    pub(super) fn answer(&mut self, peer: PeerId, command: Command) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.id == peer) {
            peer.lane.enqueue(command, None);
        }
    }

    fn on_broadcast_done(&mut self, id: PeerId, number: u64, written: u64, dropped: u64) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        let Some(broadcast) = peer.broadcasts.get_mut(&number) else {
            return;
        };
        broadcast.shards = broadcast.shards.saturating_sub(1);
        broadcast.written += written;
        broadcast.dropped += dropped;
        if broadcast.shards == 0 {
            let (written, dropped) = (broadcast.written, broadcast.dropped);
            peer.broadcasts.remove(&number);
            let result = PushResult {
                number,
                written,
                dropped,
                ..Default::default()
            };
            self.answer(id, Command::PushResult(result));
        }
    }
}
