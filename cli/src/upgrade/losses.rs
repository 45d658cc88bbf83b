//! How often the frontend has lost each of the two backends in the watch. Pure.
//!
//! A backend that is lost for a moment and attaches again answers for itself, and its figures look well: only the frontend
//! knows, and the services that got its requests twice.

use std::collections::BTreeSet;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Old,
    New,
}

/// A backend's time on its frontend ended otherwise than gracefully.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) which: Which,
    /// Each has one of its own.
    pub(crate) epoch: String,
}

/// Counts from the first look on.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Those of the last look, as many as a frontend remembers; `None` before the first.
    known: Option<BTreeSet<String>>,
    old: u32,
    new: u32,
}

impl Losses {
    /// Takes what the frontend remembers at this moment.
    pub(crate) fn handle_look(&mut self, losses: &[Loss]) {
        if let Some(known) = &self.known {
            for loss in losses.iter().filter(|loss| !known.contains(&loss.epoch)) {
                let count = match loss.which {
                    Which::Old => &mut self.old,
                    Which::New => &mut self.new,
                };
                *count = count.saturating_add(1);
            }
        }
        self.known = Some(losses.iter().map(|loss| loss.epoch.clone()).collect());
    }

    /// Whether the frontend has said anything.
    pub(crate) fn are_known(&self) -> bool {
        self.known.is_some()
    }

    pub(crate) fn old(&self) -> u32 {
        self.old
    }

    pub(crate) fn new_one(&self) -> u32 {
        self.new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(which: Which, epoch: &str) -> Loss {
        Loss {
            which,
            epoch: epoch.into(),
        }
    }

    #[test]
    fn what_was_there_before_the_watch_does_not_count_and_nothing_counts_twice() {
        let mut losses = Losses::default();
        assert!(!losses.are_known());
        let before = loss(Which::New, "a");
        losses.handle_look(std::slice::from_ref(&before));
        assert_eq!((losses.old(), losses.new_one()), (0, 0));
        let second = loss(Which::New, "b");
        losses.handle_look(&[second.clone(), before.clone()]);
        losses.handle_look(&[second.clone(), before]);
        assert_eq!((losses.old(), losses.new_one()), (0, 1));
        // A frontend remembers a few only; one that was started again none.
        losses.handle_look(&[loss(Which::Old, "c"), second]);
        losses.handle_look(&[]);
        losses.handle_look(&[loss(Which::New, "d")]);
        assert_eq!((losses.old(), losses.new_one()), (1, 2));
        assert!(losses.are_known());
    }
}
