//! Keeps the device index true: a device is found from the moment at which it can know that it is online.
//!
//! LOGIN and its answer pass through here, so the entry is made before the shard hears of the answer and says `@welcome`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use holdfast_proto::link::frames::{self, logged_in};
use holdfast_proto::link::{Class, Command, session_id};
use holdfast_proto::{ChannelKind, CloseCode, DeviceId, SessionId};

use super::Hub;
use crate::exchange::{PeerId, Presence};
use crate::link::index::Swap;

/// Ended sessions whose requests are dropped in one pass over the queues.
pub const MAX_ENDED: usize = 64;

/// A login that a backend was given.
#[derive(Debug)]
pub(super) struct Login {
    peer: PeerId,
    presence: Presence,
}

impl Hub {
    /// LOGIN is on its way. The entry lives until the session is over or online, so sessions bound their number.
    pub(super) fn on_login(&mut self, peer: PeerId, login: &frames::Login) {
        let Some(session) = &login.session else { return };
        let device = DeviceId::from_bytes(session.device.clone());
        let kind = ChannelKind::from_frame(login.channel());
        if let (Ok(id), Ok(device), Some(kind), Ok(address)) =
            (session_id(session.id), device, kind, login.address.parse())
        {
            let presence = Presence {
                device,
                session: id,
                kind,
                address,
                admitted: self.admitted(login),
                since_ms: 0,
            };
            self.logins.insert(id, Login { peer, presence });
        }
    }

    fn admitted(&self, login: &frames::Login) -> Instant {
        let ago = Duration::from_millis(login.admitted_ms_ago.into());
        self.now.checked_sub(ago).unwrap_or(self.now)
    }

    /// The answer to LOGIN is about to be given to the shard. Gives the session that must close after it has heard.
    pub(super) fn on_login_answer(&mut self, peer: PeerId, answer: &frames::LoggedIn) -> Option<SessionId> {
        let session = session_id(answer.id).ok()?;
        if self.logins.get(&session)?.peer != peer {
            return None;
        }
        let Login { presence, .. } = self.logins.remove(&session)?;
        let Some(logged_in::Result::Welcomed(welcomed)) = &answer.result else {
            return None;
        };
        let since_ms = welcomed.login_ms;
        match self.index.on_online(Presence { since_ms, ..presence }) {
            Swap::New => None,
            Swap::Replaced(older) => {
                self.close(older, CloseCode::Replaced);
                None
            }
            Swap::Superseded => Some(session),
        }
    }

    /// A session is over that was online or tried to be.
    pub(super) fn on_offline(&mut self, device: &DeviceId, session: SessionId) {
        self.logins.remove(&session);
        self.index.on_offline(device, session);
        self.forget_requests(session);
    }

    /// The device of a session is elsewhere now.
    pub(super) fn on_moved(&mut self, device: &DeviceId, session: SessionId, address: SocketAddr) {
        if let Some(login) = self.logins.get_mut(&session) {
            login.presence.address = address;
        }
        self.index.on_moved(device, session, address);
    }

    /// What an ended session still had waiting for credit is dropped, or devices that come and go could fill the queues of
    /// a slow backend beyond what windows bound.
    fn forget_requests(&mut self, session: SessionId) {
        if self.peers.iter().all(|p| p.lane.queued(Class::Requests) == 0) {
            self.ended.clear();
            return;
        }
        self.ended.insert(session);
        if self.ended.len() < MAX_ENDED {
            return;
        }
        let ended = std::mem::take(&mut self.ended);
        for peer in &mut self.peers {
            let queued = peer.lane.queued(Class::Requests);
            peer.lane.retain_queued(Class::Requests, |command| match command {
                Command::TextMessage(request) | Command::BinaryMessage(request) => {
                    let id = request.session.as_ref().and_then(|s| session_id(s.id).ok());
                    id.is_none_or(|id| !ended.contains(&id))
                }
                _ => true,
            });
            let dropped = queued - peer.lane.queued(Class::Requests);
            peer.work.on_dropped(dropped as u64);
        }
    }
}
