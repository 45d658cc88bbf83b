//! How many handshakes have begun in a device's name and not finished, from one source, over all shards.

use holdfast_proto::DeviceId;
use holdfast_proto::throttle::Source;

use crate::tally::{Tally, TallyKey};

/// Handshakes of one device, from one source, that may wait for their proof at a time. A device needs one, and a few more when its
/// network fails while it connects; who replays a recorded first message gets no more than these, and takes none from the device
/// unless it sits where the device does.
pub const MAX_UNFINISHED: u8 = 4;

/// The counts, exact and shared by the shards: there are at most as many as sessions that wait for their proof, and whoever fills his
/// own place, or those of many sources, takes none of another's.
#[derive(Debug)]
pub struct Unfinished {
    counts: Tally,
}

/// One unfinished handshake's place: give it back with [`Unfinished::leave`].
#[derive(Debug, PartialEq, Eq)]
pub struct UnfinishedPlace(TallyKey);

impl Unfinished {
    /// `seed` is random and secret.
    pub fn new(seed: u128) -> Self {
        Self {
            counts: Tally::new(seed),
        }
    }

    /// Counts one more for the device and source, unless it has [`MAX_UNFINISHED`].
    pub fn enter(&self, device: &DeviceId, source: Source) -> Option<UnfinishedPlace> {
        let key = self.counts.key(&[&source, device.as_bytes()]);
        let entered = self.counts.enter(key, MAX_UNFINISHED.into());
        entered.then_some(UnfinishedPlace(key))
    }

    /// The handshake is finished, or will never be.
    pub fn leave(&self, place: UnfinishedPlace) {
        self.counts.leave(place.0);
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

    /// One recorded credential, sent from a whole /48 of IPv6.
    #[test]
    fn no_number_of_other_sources_or_devices_takes_a_devices_places() {
        let unfinished = Unfinished::new(7);
        let stolen: DeviceId = "stolen".parse().unwrap();
        let source = |n: u16| {
            let mut source = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0];
            source[6..].copy_from_slice(&n.to_be_bytes());
            source
        };
        let taken: Vec<_> = (0..=u16::MAX)
            .flat_map(|n| std::iter::repeat_n(n, MAX_UNFINISHED.into()))
            .map(|n| unfinished.enter(&stolen, source(n)).unwrap())
            .collect();
        for n in 0..1_000 {
            let device: DeviceId = format!("device-{n}").parse().unwrap();
            assert!(unfinished.enter(&device, HERE).is_some(), "{n}");
        }
        assert!(unfinished.enter(&stolen, source(9)).is_none());
        taken.into_iter().for_each(|place| unfinished.leave(place));
        assert!(unfinished.enter(&stolen, source(9)).is_some());
    }
}
