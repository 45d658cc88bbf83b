//! Which bytes of a message are there.

/// A set of offsets: all below `prefix`, and runs beyond it, which are sorted, apart from each other and from the prefix.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Covered {
    prefix: u32,
    beyond: Vec<(u32, u32)>,
}

impl Covered {
    /// How many bytes from the first on are there without a gap.
    pub(super) fn prefix(&self) -> u32 {
        self.prefix
    }

    /// How many runs lie beyond a gap.
    pub(super) fn runs(&self) -> usize {
        self.beyond.len()
    }

    /// Adds `start..end`.
    pub(super) fn insert(&mut self, start: u32, end: u32) {
        if start <= self.prefix {
            self.prefix = self.prefix.max(end);
            let reached = self.beyond.iter().take_while(|run| run.0 <= self.prefix).count();
            if let Some((_, last)) = self.beyond.drain(..reached).next_back() {
                self.prefix = self.prefix.max(last);
            }
            return;
        }
        let first = self.beyond.partition_point(|run| run.1 < start);
        let touching = self.beyond[first..].iter().take_while(|run| run.0 <= end).count();
        if touching == 0 {
            self.beyond.insert(first, (start, end));
            return;
        }
        let low = start.min(self.beyond[first].0);
        let high = end.max(self.beyond[first + touching - 1].1);
        self.beyond[first] = (low, high);
        self.beyond.drain(first + 1..first + touching);
    }

    /// Whether adding `start..end` would make one run more.
    pub(super) fn would_add_run(&self, start: u32, end: u32) -> bool {
        if start <= self.prefix {
            return false;
        }
        let first = self.beyond.partition_point(|run| run.1 < start);
        self.beyond.get(first).is_none_or(|run| run.0 > end)
    }

    /// The first part of `start..end` that is not there.
    pub(super) fn missing(&self, start: u32, end: u32) -> Option<(u32, u32)> {
        let mut start = start.max(self.prefix);
        for &(low, high) in &self.beyond[self.beyond.partition_point(|run| run.1 <= start)..] {
            if low > start {
                return (start < end).then_some((start, end.min(low)));
            }
            start = high;
        }
        (start < end).then_some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_covers_what_was_inserted(runs in prop::collection::vec((0u32..60, 1u32..12), 1..40), ask in (0u32..70, 0u32..20)) {
            let mut covered = Covered::default();
            let mut set = [false; 100];
            for (start, length) in runs {
                let (start, end) = (start, start + length);
                let before = covered.runs();
                let adds = covered.would_add_run(start, end);
                covered.insert(start, end);
                set[start as usize..end as usize].fill(true);
                prop_assert_eq!(covered.runs() > before, adds);
                let prefix = set.iter().take_while(|s| **s).count();
                prop_assert_eq!(covered.prefix() as usize, prefix);
                let starts = (1..100).filter(|i| set[*i] && !set[i - 1] && *i > prefix).count();
                prop_assert_eq!(covered.runs(), starts);
            }
            let (start, end) = (ask.0, ask.0 + ask.1);
            let first = (start..end).find(|i| !set[*i as usize]);
            let expected = first.map(|low| (low, (low..end).find(|i| set[*i as usize]).unwrap_or(end)));
            prop_assert_eq!(covered.missing(start, end), expected);
        }
    }
}
