//! What comes from the shards.

use std::time::Instant;

use holdfast_proto::CloseCode;
use holdfast_proto::link::frames::PushResult;
use holdfast_proto::link::{Command, Origin};
use holdfast_proto::{SessionId, ShardId};

use super::Hub;
use crate::exchange::{BroadcastCounts, PeerId, ToHub, ToShard};

impl Hub {
    pub fn handle_shard(&mut self, now: Instant, shard: ShardId, message: ToHub) {
        self.now = now;
        match message {
            ToHub::Work {
                peer,
                ticket,
                command,
            } => {
                if let Command::Login(login) = &command {
                    self.on_login(peer, login);
                }
                // Work for a peer that is gone meanwhile: the shard hears of that next and gives it to another.
                if let Some(peer) = self.peers.iter_mut().find(|p| p.id == peer) {
                    if matches!(command, Command::TextMessage(_) | Command::BinaryMessage(_)) {
                        peer.work.on_request();
                    }
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
            ToHub::ShareTaken { peer } => self.on_share_taken(peer),
            ToHub::Offline { device, session } => self.on_offline(&device, session),
            ToHub::Moved {
                device,
                session,
                address,
            } => self.on_moved(&device, session, address),
            ToHub::PushDone { peer, result } => self.answer(peer, Command::PushResult(result)),
            ToHub::BroadcastDone { peer, number, counts } => self.on_broadcast_done(peer, number, counts),
            ToHub::Stopped => self.stopped_shards += 1,
        }
    }

    pub(super) fn close(&mut self, session: SessionId, code: CloseCode) {
        self.tell_shard_of(session, ToShard::Close { session, code });
    }

    /// A frame to a backend that no session waits for when the backend is lost. A backend that asks and does not take the
    /// answers is fenced.
    pub(super) fn answer(&mut self, id: PeerId, command: Command) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        match peer.outgoing.begin_answer(listed(&command)) {
            Some(origin) => peer.lane.enqueue(command, Some(origin)),
            None => self.fence(id, "backlog"),
        }
    }

    fn on_broadcast_done(&mut self, id: PeerId, number: u64, counts: BroadcastCounts) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        let Some(broadcast) = peer.broadcasts.get_mut(&number) else {
            return;
        };
        broadcast.shards = broadcast.shards.saturating_sub(1);
        broadcast.counts += counts;
        if broadcast.shards == 0 {
            let counts = broadcast.counts;
            peer.broadcasts.remove(&number);
            let result = PushResult {
                number,
                written: counts.written,
                dropped: counts.dropped,
                unconfirmed: counts.unconfirmed,
                ..Default::default()
            };
            self.answer(id, Command::PushResult(result));
        }
    }
}

/// Sessions that an answer lists.
fn listed(command: &Command) -> usize {
    match command {
        Command::QueryResult(f) => f.sessions.len(),
        Command::SyncPage(f) => f.sessions.len(),
        _ => 0,
    }
}
