//! How many handshakes have begun in a device's name and not finished, from one source, over all shards.

use std::hash::Hasher;
use std::sync::atomic::{AtomicU8, Ordering};

use holdfast_proto::DeviceId;
use holdfast_proto::throttle::Source;
use siphasher::sip::SipHasher13;

/// Handshakes of one device, from one source, that may wait for their proof at a time. A device needs one, and a few more when its
/// network fails while it connects; who replays a recorded first message gets no more than these, and takes none from the device
/// unless it sits where the device does.
pub const MAX_UNFINISHED: u8 = 4;

/// Places in the table, one byte each. Devices that fall into one place share its limit: with 1,000 handshakes under way a device has a
/// neighbour in its place about once in 65.
const PLACES: usize = 1 << 16;

/// A fixed table of counts, shared by the shards without a lock.
pub struct Unfinished {
    seed: u64,
    counts: Box<[AtomicU8]>,
}

/// One unfinished handshake's place: give it back with [`Unfinished::leave`].
#[derive(Debug, PartialEq, Eq)]
pub struct UnfinishedPlace(u16);

impl Unfinished {
    /// `seed` keeps strangers from choosing devices that share a place with another.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            counts: (0..PLACES).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// Counts one more for the device and source, unless it has [`MAX_UNFINISHED`].
    pub fn enter(&self, device: &DeviceId, source: Source) -> Option<UnfinishedPlace> {
        let mut hasher = SipHasher13::new_with_keys(self.seed, !self.seed);
        hasher.write(&source);
        hasher.write(device.as_bytes());
        let place = hasher.finish() as u16;
        let room = |count: u8| (count < MAX_UNFINISHED).then(|| count + 1);
        self.counts[usize::from(place)]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        Some(UnfinishedPlace(place))
    }

    /// The handshake is finished, or will never be.
    pub fn leave(&self, place: UnfinishedPlace) {
        let before = self.counts[usize::from(place.0)].fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a place was left twice");
    }
}

impl std::fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unfinished").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Source = [1; 8];

    #[test]
    fn a_device_has_four_places_and_gets_them_back() {
        let unfinished = Unfinished::new(7);
        let device: DeviceId = "lamp".parse().unwrap();
        let mut places: Vec<_> = (0..4).map(|_| unfinished.enter(&device, HERE).unwrap()).collect();
        assert_eq!(unfinished.enter(&device, HERE), None);
        assert!(unfinished.enter(&"speaker".parse().unwrap(), HERE).is_some());
        assert!(
            unfinished.enter(&device, [9; 8]).is_some(),
            "another source takes nothing from it"
        );
        unfinished.leave(places.pop().unwrap());
        assert!(unfinished.enter(&device, HERE).is_some());
        assert_eq!(unfinished.enter(&device, HERE), None);
    }
}
