//! Which link may have another request in flight.
//!
//! A part of all places is kept for each configured link and the rest is shared, so that a frontend whose requests are slow
//! cannot take every place. Of those who may take one, the link with the fewest requests goes first (max-min fairness).

use crate::link::LinkIndex;

/// The part of all places that is kept, for all links together.
const RESERVED_SHARE: usize = 4;

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    max: usize,
    links: usize,
}

impl Shares {
    pub(super) fn new(max: usize, links: usize) -> Self {
        Self { max, links }
    }

    /// The room that there is when each link has as many as `in_flight` says.
    pub(super) fn room(self, in_flight: impl Fn(LinkIndex) -> usize) -> Room {
        let reserved = self.max / (RESERVED_SHARE * self.links);
        let links = (0..self.links).map(LinkIndex::new);
        let shared: usize = links.map(|link| in_flight(link).saturating_sub(reserved)).sum();
        Room {
            reserved,
            shared_left: shared < self.max - reserved * self.links,
        }
    }

    /// The same with twice as many places.
    pub(super) fn doubled(self) -> Self {
        Self {
            max: 2 * self.max,
            ..self
        }
    }
}

/// Who may take one more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    reserved: usize,
    shared_left: bool,
}

impl Room {
    /// Whether a link with so many may have another.
    pub(super) fn allows(self, in_flight: usize) -> bool {
        self.shared_left || in_flight < self.reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(max: usize, in_flight: &[usize]) -> Vec<bool> {
        let shares = Shares::new(max, in_flight.len());
        let room = shares.room(|of| in_flight[of.get()]);
        in_flight.iter().map(|n| room.allows(*n)).collect()
    }

    #[test]
    fn one_link_has_all_places() {
        assert_eq!(allowed(8, &[7]), [true]);
        assert_eq!(allowed(8, &[8]), [false]);
    }

    #[test]
    fn each_link_keeps_its_part_of_a_quarter() {
        assert_eq!(allowed(16, &[13, 0]), [true, true]);
        assert_eq!(allowed(16, &[14, 0]), [false, true]);
        assert_eq!(allowed(16, &[14, 1]), [false, true]);
        assert_eq!(allowed(16, &[14, 2]), [false, false]);
        assert_eq!(allowed(16, &[7, 8]), [true, true]);
        assert_eq!(allowed(16, &[8, 8]), [false, false]);
    }

    #[test]
    fn whoever_comes_the_total_is_kept() {
        for max in [1, 2, 3, 8, 17, 100] {
            let mut in_flight = [0; 5];
            let shares = Shares::new(max, in_flight.len());
            while let Some(link) = {
                let room = shares.room(|of| in_flight[of.get()]);
                in_flight.iter().position(|n| room.allows(*n))
            } {
                in_flight[link] += 1;
            }
            assert_eq!(in_flight.iter().sum::<usize>(), max, "{in_flight:?}");
        }
    }
}
