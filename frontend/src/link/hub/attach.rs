//! Backends that come, leave and are lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_proto::Share;
use holdfast_proto::link::frames::{self, Frame, Header};
use holdfast_proto::link::{
    Command, Epoch, FEATURE_SHARE, Lane, LaneStats, PROTOCOL_VERSIONS, common_version, encode_notice,
};

use super::{Hub, MAX_BOOTS, MAX_NOTICES};
use crate::BUILD;
use crate::exchange::{PeerId, ToShard};
use crate::link::peer::{Outgoing, Peer, ShareState, Stage};
use crate::link::status::{HandOver, HandOverKind};

/// Longest name or build of a backend that is kept, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Strangers are told that their epoch is over at most this often.
const NOTICE_INTERVAL: Duration = Duration::from_millis(10);

impl Hub {
    /// A batch from an identity that is not attached: a Hello, or an epoch that is over.
    pub(super) fn handle_stranger(
        &mut self,
        now: Instant,
        identity: &Bytes,
        header: Header,
        frames: Vec<(Frame, u32)>,
    ) {
        let Some(epoch) = header.from.map(Epoch::from) else {
            self.metrics.malformed.inc();
            return;
        };
        let hello = match frames.first() {
            Some((
                Frame {
                    command: Some(Command::Hello(hello)),
                },
                _,
            )) if header.first_frame == 1 => hello.clone(),
            _ => {
                self.metrics.stale_epoch.inc();
                if self.last_notice.is_none_or(|at| now >= at + NOTICE_INTERVAL) {
                    self.last_notice = Some(now);
                    self.notify(identity, epoch, Command::Fenced(frames::Fenced {}));
                }
                return;
            }
        };
        if let Err((code, reason)) = self.admit(epoch, &hello) {
            self.metrics.refused.inc();
            let refused = frames::Refused {
                code: code.into(),
                reason,
            };
            return self.notify(identity, epoch, Command::Refused(refused));
        }
        let id = self.attach(now, identity, epoch, hello);
        self.handle_lane(now, id, (header, frames));
    }

    fn admit(&mut self, epoch: Epoch, hello: &frames::Hello) -> Result<(), (&'static str, String)> {
        if common_version(hello).is_none() {
            let (min, max) = (PROTOCOL_VERSIONS.start(), PROTOCOL_VERSIONS.end());
            let reason = format!(
                "this frontend speaks link versions {min} to {max}, the backend {} to {}",
                hello.version_min, hello.version_max
            );
            return Err(("version", reason));
        }
        if self
            .boots
            .iter()
            .any(|(boot, attach)| *boot == epoch.boot && *attach >= epoch.attach)
        {
            return Err((
                "stale_epoch",
                "a later attachment of this backend is known".into(),
            ));
        }
        // The same process attached anew: it has given the older attachment up.
        let older = self
            .peers
            .iter()
            .find(|p| p.lane.remote().boot == epoch.boot)
            .map(|p| p.id);
        if let Some(older) = older {
            self.lose(older, "reattached");
        }
        if self.peers.len() >= self.config.max_backends {
            return Err((
                "too_many_backends",
                format!("{} backends are attached", self.peers.len()),
            ));
        }
        self.boots.retain(|(boot, _)| *boot != epoch.boot);
        if self.boots.len() >= MAX_BOOTS {
            self.boots.pop_front();
        }
        self.boots.push_back((epoch.boot, epoch.attach));
        Ok(())
    }

    fn attach(&mut self, now: Instant, identity: &Bytes, epoch: Epoch, hello: frames::Hello) -> PeerId {
        self.next_peer += 1;
        self.next_attach += 1;
        let id = PeerId(self.next_peer);
        let local = Epoch {
            boot: self.config.boot,
            attach: self.next_attach,
        };
        let mut lane = Lane::new(self.config.lane, local, epoch, now);
        lane.enqueue(Command::Hello(self.hello()), None);
        let identity = Bytes::copy_from_slice(identity);
        self.by_identity.insert(identity.clone(), id);
        let peer = Peer {
            id,
            identity,
            lane,
            stage: Stage::Greeted,
            share: ShareState::NONE,
            name: shorten(hello.name),
            build: shorten(hello.build),
            since: now,
            work: Arc::default(),
            leaving: None,
            outgoing: Outgoing::new(self.config.shards),
            broadcasts: Default::default(),
            counted: LaneStats::default(),
            moved: (0, now),
        };
        self.metrics.attached.inc();
        self.metrics.info(&peer.name, &peer.build, epoch).set(1);
        self.peers.push(peer);
        self.update_gauges();
        id
    }

    fn hello(&self) -> frames::Hello {
        frames::Hello {
            version_min: *PROTOCOL_VERSIONS.start(),
            version_max: *PROTOCOL_VERSIONS.end(),
            features: vec![FEATURE_SHARE.into()],
            build: BUILD.clone(),
            name: format!("frontend-{}", self.config.frontend.0),
            frontend_id: self.config.frontend.0.into(),
            frontend_epoch: self.config.epoch.0,
            heartbeat_ms: u32::try_from(self.config.heartbeat.as_millis()).unwrap_or(u32::MAX),
            max_message_bytes: self.config.max_message_bytes,
            window_requests: self.config.window_requests,
        }
    }

    fn notify(&mut self, identity: &Bytes, to: Epoch, command: Command) {
        if self.notices.len() < MAX_NOTICES {
            let from = Epoch {
                boot: self.config.boot,
                attach: 0,
            };
            self.notices
                .push_back((identity.clone(), encode_notice(from, to, command)));
        }
    }

    /// Said again it changes the share. Who has said DRAINING has no share to speak of any more.
    pub(super) fn on_ready(&mut self, id: PeerId, share: Share) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        match peer.stage {
            Stage::Greeted => {
                peer.stage = Stage::Active;
                peer.share = ShareState::new(share);
                let seed = peer.seed();
                self.tell_all_shards(|_| ToShard::PeerActive {
                    peer: id,
                    seed,
                    share,
                });
            }
            Stage::Active if peer.share.wanted == share => return,
            Stage::Active => {
                peer.share.wanted = share;
                self.tell_share(id);
            }
            Stage::Draining { .. } | Stage::Marked | Stage::Done => {
                self.metrics.malformed.inc();
                return;
            }
        }
        self.update_gauges();
    }

    fn tell_share(&mut self, id: PeerId) {
        let shards = self.config.shards;
        let active = |p: &&mut Peer| p.id == id && p.stage == Stage::Active;
        let peer = self.peers.iter_mut().find(active);
        if let Some(share) = peer.and_then(|p| p.share.poll(shards)) {
            self.tell_all_shards(|_| ToShard::PeerShare { peer: id, share });
        }
    }

    /// A shard goes by the share that it was last told.
    pub(super) fn on_share_taken(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) {
            peer.share.on_taken();
            self.tell_share(id);
        }
    }

    pub(super) fn on_draining(&mut self, id: PeerId) {
        let shards = usize::from(self.config.shards);
        let leaving = |p: &&mut Peer| p.id == id && matches!(p.stage, Stage::Greeted | Stage::Active);
        let Some(peer) = self.peers.iter_mut().find(leaving) else {
            return;
        };
        peer.stage = Stage::Draining { shards };
        peer.leaving = Some((self.now, peer.work.in_flight()));
        self.tell_all_shards(|_| ToShard::PeerDraining { peer: id });
        self.update_gauges();
    }

    /// A shard gives this peer no more work.
    pub(super) fn on_shard_drained(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.id == id)
            && let Stage::Draining { shards } = &mut peer.stage
        {
            *shards = shards.saturating_sub(1);
        }
    }

    /// A leaving peer whose shards have all stopped and whose last work is out learns where the work ended. True when
    /// there was one.
    pub(super) fn mark_all_drained(&mut self) -> bool {
        let mut marked = false;
        let ready = |p: &&mut Peer| p.stage == (Stage::Draining { shards: 0 }) && p.work_is_out();
        for peer in self.peers.iter_mut().filter(ready) {
            peer.stage = Stage::Marked;
            let last_frame = peer.lane.last_frame();
            peer.lane
                .enqueue(Command::DrainMark(frames::DrainMark { last_frame }), None);
            marked = true;
        }
        marked
    }

    pub(super) fn on_done(&mut self, id: PeerId) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) else {
            return;
        };
        if peer.stage != Stage::Marked {
            return self.fence(id, "protocol");
        }
        peer.stage = Stage::Done;
        let sent = peer.outgoing.sent.clone();
        let hand_over = peer.hand_over(self.now, HandOverKind::Graceful);
        self.metrics.drained.inc();
        self.note_hand_over(hand_over);
        self.tell_all_shards(|shard| ToShard::PeerGone {
            peer: id,
            sent: sent[shard],
            graceful: true,
        });
        self.update_gauges();
    }

    /// Declares a backend gone and tells it so.
    pub(super) fn fence(&mut self, id: PeerId, cause: &'static str) {
        let Some(peer) = self.peers.iter().find(|p| p.id == id) else {
            return;
        };
        let (identity, epoch) = (peer.identity.clone(), peer.lane.remote());
        self.metrics.fenced.inc();
        self.notify(&identity, epoch, Command::Fenced(frames::Fenced {}));
        self.lose(id, cause);
    }

    /// The crash path: whatever this backend had goes to another.
    pub(super) fn lose(&mut self, id: PeerId, cause: &'static str) {
        let Some(peer) = self.remove(id) else { return };
        if peer.stage == Stage::Done {
            return;
        }
        self.metrics.gone(cause);
        let kind = HandOverKind::of_loss(cause, peer.leaving.is_some());
        self.note_hand_over(peer.hand_over(self.now, kind));
        self.tell_all_shards(|shard| ToShard::PeerGone {
            peer: id,
            sent: peer.outgoing.sent[shard],
            graceful: false,
        });
    }

    fn note_hand_over(&mut self, hand_over: HandOver) {
        self.metrics.handed_over(hand_over.kind);
        self.hand_overs.note(hand_over);
        self.changed = true;
    }

    /// A backend that has left.
    pub(super) fn forget(&mut self, id: PeerId) {
        self.remove(id);
    }

    fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let index = self.peers.iter().position(|p| p.id == id)?;
        let peer = self.peers.remove(index);
        self.by_identity.remove(&peer.identity);
        self.metrics
            .remove_info(&peer.name, &peer.build, peer.lane.remote());
        self.update_gauges();
        Some(peer)
    }

    fn update_gauges(&mut self) {
        self.changed = true;
        self.metrics.backends.set(self.peers.len() as i64);
        self.metrics
            .active
            .set(self.peers.iter().filter(|p| p.takes_work()).count() as i64);
    }
}

fn shorten(mut text: String) -> String {
    let mut end = text.len().min(MAX_NAME_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
