//! Who may be proving itself at a time: a pure table of places.
//!
//! Strangers can fill it, for silence costs them nothing; so it is never full for whoever has the key. A newcomer takes the place of the
//! oldest connection that has not said a whole first message, out of the network that has most of those. A backend says its first
//! message in the moment in which it connects, so it is past that before anybody can push it out.

use std::collections::HashMap;

use holdfast_proto::throttle::Source;

/// Names a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlaceId(u64);

/// Every place is taken by somebody who has shown a message that was made with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoPlace;

/// The places; `T` is how their holders are told that they lost theirs.
#[derive(Debug)]
pub(super) struct Places<T> {
    limit: usize,
    limit_per_source: usize,
    next: u64,
    /// The oldest first.
    taken: Vec<Taken<T>>,
}

#[derive(Debug)]
struct Taken<T> {
    id: PlaceId,
    source: Source,
    /// It has not said a whole first message.
    silent: bool,
    holder: T,
}

impl<T> Places<T> {
    pub(super) fn new(limit: usize, limit_per_source: usize) -> Self {
        Self {
            limit,
            limit_per_source,
            next: 0,
            taken: Vec::new(),
        }
    }

    /// Gives a place to a connection from `source` that has said nothing yet, and the holder who lost his for that.
    pub(super) fn enter(&mut self, source: Source, holder: T) -> Result<(PlaceId, Option<T>), NoPlace> {
        self.take(source, true, holder)
    }

    /// `id` has shown that its first message was made with the key: from now on nobody takes its place. One that has just lost it gets
    /// another, and its new name.
    pub(super) fn confirm(
        &mut self,
        id: PlaceId,
        source: Source,
        holder: T,
    ) -> Result<(PlaceId, Option<T>), NoPlace> {
        match self.taken.iter_mut().find(|taken| taken.id == id) {
            Some(taken) => {
                taken.silent = false;
                Ok((id, None))
            }
            None => self.take(source, false, holder),
        }
    }

    /// Gives a place back. One that was lost is none any more.
    pub(super) fn leave(&mut self, id: PlaceId) {
        self.taken.retain(|taken| taken.id != id);
    }

    /// How many are taken, and how many of them by who has shown the key.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        let confirmed = self.taken.iter().filter(|taken| !taken.silent).count();
        (self.taken.len(), confirmed)
    }

    fn take(&mut self, source: Source, silent: bool, holder: T) -> Result<(PlaceId, Option<T>), NoPlace> {
        let of_source = self.taken.iter().filter(|taken| taken.source == source).count();
        let lost = if of_source >= self.limit_per_source {
            let own = self.taken.iter().position(|t| t.silent && t.source == source);
            Some(own.ok_or(NoPlace)?)
        } else if self.taken.len() >= self.limit {
            Some(self.most_expendable().ok_or(NoPlace)?)
        } else {
            None
        };
        let lost = lost.map(|index| self.taken.remove(index).holder);
        let id = PlaceId(self.next);
        self.next += 1;
        self.taken.push(Taken {
            id,
            source,
            silent,
            holder,
        });
        Ok((id, lost))
    }

    /// The oldest silent one of the network that has most of them.
    fn most_expendable(&self) -> Option<usize> {
        let silent = || self.taken.iter().enumerate().filter(|(_, taken)| taken.silent);
        let mut crowds = HashMap::<_, usize>::new();
        for (_, taken) in silent() {
            *crowds.entry(network_of(taken.source)).or_default() += 1;
        }
        // Of equal ones the last is taken, so they are looked at from the newest.
        let worst = silent()
            .rev()
            .max_by_key(|(_, taken)| crowds[&network_of(taken.source)]);
        worst.map(|(index, _)| index)
    }
}

/// An IPv4 address, or an IPv6 network of 48 bits, which is what one site has at most.
fn network_of(source: Source) -> [u8; 6] {
    let [network @ .., _, _] = source;
    network
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v6(site: u8, network: u8) -> Source {
        [0x20, 1, 0, 0, 0, site, 0, network]
    }

    #[test]
    fn a_newcomer_pushes_out_the_oldest_of_the_greatest_crowd() {
        let mut places = Places::new(6, 4);
        // Of the site 1 four networks are there, of others one each; the oldest is none of the crowd.
        for source in [v6(2, 0), v6(1, 0), v6(1, 1), v6(1, 2), v6(1, 3), v6(3, 0)] {
            assert_eq!(places.enter(source, source).unwrap().1, None);
        }
        assert_eq!(places.enter(v6(4, 0), v6(4, 0)).unwrap().1, Some(v6(1, 0)));
        assert_eq!(places.enter(v6(5, 0), v6(5, 0)).unwrap().1, Some(v6(1, 1)));
        assert_eq!(places.enter(v6(6, 0), v6(6, 0)).unwrap().1, Some(v6(1, 2)));
        // Now all are alone.
        assert_eq!(places.enter(v6(7, 0), v6(7, 0)).unwrap().1, Some(v6(2, 0)));
    }

    #[test]
    fn a_source_that_has_its_share_pushes_out_its_own() {
        let mut places = Places::new(100, 2);
        places.enter(v6(2, 0), "other").unwrap();
        let (first, _) = places.enter(v6(1, 0), "first").unwrap();
        places.enter(v6(1, 0), "second").unwrap();
        places.confirm(first, v6(1, 0), "first").unwrap();
        assert_eq!(places.enter(v6(1, 0), "third").unwrap().1, Some("second"));
        let (third, _) = places.confirm(PlaceId(3), v6(1, 0), "third").unwrap();
        assert_eq!(places.enter(v6(1, 0), "fourth"), Err(NoPlace));
        places.leave(third);
        assert!(places.enter(v6(1, 0), "fourth").is_ok());
    }

    #[test]
    fn whoever_showed_the_key_keeps_its_place_or_gets_another() {
        let mut places = Places::new(2, 2);
        let (first, _) = places.enter(v6(1, 0), 1).unwrap();
        let (second, _) = places.enter(v6(2, 0), 2).unwrap();
        places.confirm(second, v6(2, 0), 2).unwrap();
        assert_eq!(places.enter(v6(3, 0), 3).unwrap().1, Some(1));
        let (again, lost) = places.confirm(first, v6(1, 0), 1).unwrap();
        assert_eq!((again == first, lost), (false, Some(3)));
        assert_eq!(places.enter(v6(4, 0), 4), Err(NoPlace));
        places.leave(first);
        assert_eq!(places.enter(v6(4, 0), 4), Err(NoPlace), "that one had gone");
        places.leave(again);
        assert!(places.enter(v6(4, 0), 4).is_ok());
    }

    proptest! {
        /// However many come: the bounds hold, and no place is refused or taken away but as the rules say.
        #[test]
        fn the_bounds_hold(steps in proptest::collection::vec((0u8..4, 0u8..4, 0u8..3), 1..200)) {
            let (limit, per_source) = (7, 3);
            let mut places = Places::new(limit, per_source);
            for (site, network, what) in steps {
                let source = v6(site, network);
                let oldest = places.taken.first().map(|t| (t.id, t.source));
                match (what, oldest) {
                    (0, Some((id, _))) => places.leave(id),
                    (1, Some((id, source))) => prop_assert_eq!(places.confirm(id, source, ()), Ok((id, None))),
                    _ => {
                        let had_silent = places.taken.iter().any(|t| t.silent);
                        let entered = places.enter(source, ());
                        let of_source = places.taken.iter().filter(|t| t.source == source && !t.silent).count();
                        prop_assert!(entered.is_ok() || !had_silent || of_source == per_source);
                    }
                }
                prop_assert!(places.taken.len() <= limit);
                let of_source = places.taken.iter().filter(|t| t.source == source).count();
                prop_assert!(of_source <= per_source);
            }
        }
    }
}
