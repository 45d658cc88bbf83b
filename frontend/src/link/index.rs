//! Which session a device has here. One entry per device: the login policy is `replace`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use holdfast_proto::link::frames;
use holdfast_proto::{DeviceId, SessionId};
use rustc_hash::FxHashMap;

use crate::exchange::Presence;

/// Sessions in one page of a sync.
pub(super) const PAGE_SESSIONS: usize = 256;

/// What a login changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The device had no session.
    New,
    /// This older session lost its entry: close it.
    Replaced(SessionId),
    /// A session that was admitted later holds the entry: close this one.
    Superseded,
}

/// Devices that are online. Pages go by the order in which sessions came, so that one that stays is in exactly one page.
#[derive(Debug, Default)]
pub struct DeviceIndex {
    devices: FxHashMap<DeviceId, Entry>,
    order: BTreeMap<u64, DeviceId>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    presence: Presence,
    order: u64,
}

impl DeviceIndex {
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    pub fn get(&self, device: &DeviceId) -> Option<&Presence> {
        self.devices.get(device).map(|e| &e.presence)
    }

    /// A login took effect. Of a device's sessions the one stays that was admitted last, not the one that logged in last: when `@hello`
    /// comes, who sits between decides. Of two admitted at once the one that comes later here.
    pub fn on_online(&mut self, presence: Presence) -> Swap {
        let mut swap = Swap::New;
        if let Some(held) = self.devices.get(&presence.device) {
            if held.presence.session == presence.session {
                return Swap::New;
            }
            if held.presence.admitted > presence.admitted {
                return Swap::Superseded;
            }
            swap = Swap::Replaced(held.presence.session);
            self.order.remove(&held.order);
        }
        self.next += 1;
        self.order.insert(self.next, presence.device.clone());
        self.devices.insert(
            presence.device.clone(),
            Entry {
                order: self.next,
                presence,
            },
        );
        swap
    }

    /// The session is over; a newer one's entry stays.
    pub fn on_offline(&mut self, device: &DeviceId, session: SessionId) {
        if self
            .devices
            .get(device)
            .is_some_and(|e| e.presence.session == session)
            && let Some(entry) = self.devices.remove(device)
        {
            self.order.remove(&entry.order);
        }
    }

    /// The session's device is at another address; an entry of another session stays as it is.
    pub fn on_moved(&mut self, device: &DeviceId, session: SessionId, address: SocketAddr) {
        let entry = self.devices.get_mut(device);
        if let Some(entry) = entry.filter(|e| e.presence.session == session) {
            entry.presence.address = address;
        }
    }

    /// Sessions after `cursor`, and where the next page begins (0: there is none).
    pub fn page(&self, cursor: u64) -> (Vec<frames::SessionInfo>, u64) {
        let from = cursor.saturating_add(1);
        let page: Vec<(&u64, &DeviceId)> = self.order.range(from..).take(PAGE_SESSIONS).collect();
        let next = if page.len() == PAGE_SESSIONS {
            page.last().map_or(0, |(order, _)| **order)
        } else {
            0
        };
        let infos = page
            .into_iter()
            .filter_map(|(_, device)| self.get(device))
            .map(session_info)
            .collect();
        (infos, next)
    }
}

/// A session as the link tells it.
pub(super) fn session_info(presence: &Presence) -> frames::SessionInfo {
    frames::SessionInfo {
        id: Some(presence.session.into()),
        device: presence.device.as_bytes().clone(),
        channel: presence.kind.frame() as i32,
        address: presence.address.to_string(),
        since_ms: presence.since_ms,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    use super::*;
    use holdfast_proto::{ChannelKind, FrontendEpoch, FrontendId, Generation, SessionParts, ShardId, Slot};

    fn session(n: u32) -> SessionId {
        SessionId::mint(SessionParts {
            frontend: FrontendId(1),
            epoch: FrontendEpoch(1),
            shard: ShardId(0),
            slot: Slot(n),
            generation: Generation(1),
        })
        .unwrap()
    }

    fn at(second: u64) -> Instant {
        static START: OnceLock<Instant> = OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(second)
    }

    fn login(device: &str, n: u32, admitted: u64) -> Presence {
        let address = "127.0.0.1:1".parse().unwrap();
        Presence {
            device: device.parse().unwrap(),
            session: session(n),
            kind: ChannelKind::Wss,
            address,
            admitted: at(admitted),
            since_ms: 1,
        }
    }

    #[test]
    fn who_was_admitted_last_holds_the_entry() {
        let mut index = DeviceIndex::default();
        assert_eq!(index.on_online(login("a", 1, 10)), Swap::New);
        assert_eq!(index.on_online(login("a", 1, 10)), Swap::New);
        assert_eq!(index.on_online(login("a", 2, 20)), Swap::Replaced(session(1)));
        assert_eq!(index.on_online(login("a", 3, 15)), Swap::Superseded);
        let device = "a".parse().unwrap();
        index.on_offline(&device, session(1));
        assert_eq!(index.get(&device).unwrap().session, session(2));
        index.on_offline(&device, session(2));
        assert!(index.is_empty() && index.order.is_empty());
    }

    #[test]
    fn a_session_that_moves_takes_its_entry_along() {
        let mut index = DeviceIndex::default();
        index.on_online(login("a", 2, 10));
        let (device, there) = ("a".parse().unwrap(), "192.0.2.9:9".parse().unwrap());
        index.on_moved(&device, session(1), there);
        assert_ne!(index.get(&device).unwrap().address, there, "an older session's");
        index.on_moved(&device, session(2), there);
        assert_eq!(index.get(&device).unwrap().address, there);
        assert_eq!(index.page(0).0[0].address, "192.0.2.9:9");
    }

    #[test]
    fn pages_show_each_session_once() {
        let mut index = DeviceIndex::default();
        for n in 0..600 {
            index.on_online(login(&format!("d{n}"), n, 1));
        }
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let (page, next) = index.page(cursor);
            assert!(page.len() <= PAGE_SESSIONS);
            seen.extend(page.into_iter().map(|i| i.device));
            // One that was shown leaves meanwhile: nothing is skipped for it.
            index.on_offline(&"d0".parse().unwrap(), session(0));
            if next == 0 {
                break;
            }
            cursor = next;
        }
        assert_eq!(seen.len(), 600);
    }
}
