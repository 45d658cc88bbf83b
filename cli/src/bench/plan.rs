//! Which events, in which order. Pure.

#![deny(clippy::disallowed_methods)]

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::phase::Kind;

/// How many of each kind, shuffled; the same seed gives the same order.
pub(crate) fn shuffled(counts: &[(Kind, u32)], seed: u64) -> Vec<Kind> {
    let mut events: Vec<Kind> = counts
        .iter()
        .flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count as usize))
        .collect();
    events.shuffle(&mut SmallRng::seed_from_u64(seed));
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_in_an_order_that_the_seed_decides() {
        let counts = [(Kind::Upgrade, 10), (Kind::Kill, 10), (Kind::Hang, 0)];
        let plan = shuffled(&counts, 7);
        assert_eq!(plan.len(), 20);
        assert_eq!(plan.iter().filter(|kind| **kind == Kind::Kill).count(), 10);
        assert_eq!(plan, shuffled(&counts, 7));
        assert_ne!(plan, shuffled(&counts, 8));
    }
}
