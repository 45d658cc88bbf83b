//! Which devices were seen: tells `offline` from `unknown` as long as there is no store.

use std::collections::HashSet;
use std::mem;

use holdfast_proto::DeviceId;

/// A bounded set that forgets those not seen for longest: two generations, of which the older is dropped when the younger
/// has grown to half of the capacity. Costs about 200 bytes per device.
#[derive(Debug)]
pub struct LastSeen {
    young: HashSet<DeviceId>,
    old: HashSet<DeviceId>,
    half: usize,
}

impl LastSeen {
    /// With a capacity of 0 nothing is remembered.
    pub fn new(capacity: usize) -> Self {
        Self {
            young: HashSet::new(),
            old: HashSet::new(),
            half: capacity.div_ceil(2),
        }
    }

    pub fn insert(&mut self, device: &DeviceId) {
        if self.half == 0 || self.young.contains(device) {
            return;
        }
        if self.young.len() >= self.half {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(device.to_owned_bytes());
    }

    pub fn contains(&self, device: &DeviceId) -> bool {
        self.young.contains(device) || self.old.contains(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: usize) -> DeviceId {
        format!("d{n}").parse().unwrap()
    }

    #[test]
    fn the_recently_seen_are_remembered_and_the_set_is_bounded() {
        let mut seen = LastSeen::new(100);
        for n in 0..1000 {
            seen.insert(&device(n));
            seen.insert(&device(0));
            assert!(seen.young.len() + seen.old.len() <= 100);
        }
        assert!(seen.contains(&device(0)) && (951..1000).all(|n| seen.contains(&device(n))));
        assert!(!seen.contains(&device(500)));
        let mut none = LastSeen::new(0);
        none.insert(&device(1));
        assert!(!none.contains(&device(1)));
    }
}
