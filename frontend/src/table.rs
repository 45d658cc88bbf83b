//! Tables that grow without moving what they hold.
//!
//! A vector that is full copies everything into one of twice its size: with a million sessions a pause that every device of the shard
//! notices, and the old buffer is left behind. Here a full table gets one more chunk, as large as all before it together, of which
//! the system gives what is used.

use std::ops::{Index, IndexMut};

/// Entries of the first chunk, a power of two.
const FIRST: usize = 16;

/// An array that grows at its end. What is in it stays where it is.
#[derive(Debug)]
pub(crate) struct Chunked<T> {
    /// All are full but the last; none ever grows beyond its first allocation.
    chunks: Vec<Vec<T>>,
    len: usize,
}

/// In which chunk, and where in it. The first has `FIRST` entries, as has the second, and each next one twice as many.
fn place(index: usize) -> (usize, usize) {
    match (index / FIRST).checked_ilog2() {
        None => (0, index),
        Some(doubled) => (doubled as usize + 1, index - (FIRST << doubled)),
    }
}

impl<T> Chunked<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, value: T) {
        let (chunk, _) = place(self.len);
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(self.len.max(FIRST)));
        }
        self.chunks[chunk].push(value);
        self.len += 1;
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        let (chunk, offset) = place(index);
        self.chunks.get(chunk)?.get(offset)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        let (chunk, offset) = place(index);
        self.chunks.get_mut(chunk)?.get_mut(offset)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Index<usize> for Chunked<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        let (chunk, offset) = place(index);
        &self.chunks[chunk][offset]
    }
}

impl<T> IndexMut<usize> for Chunked<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        let (chunk, offset) = place(index);
        &mut self.chunks[chunk][offset]
    }
}

/// Values under small numbers, which are used again: the one that became free last is the next.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    entries: Chunked<Entry<T>>,
    /// The first vacant entry.
    free: Option<u32>,
    used: usize,
}

#[derive(Debug)]
enum Entry<T> {
    /// The next vacant one.
    Vacant(Option<u32>),
    Used(T),
}

impl<T> Slots<T> {
    /// Values in it.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Where the next value will be.
    pub(crate) fn next(&self) -> u32 {
        self.free.unwrap_or(self.entries.len() as u32)
    }

    /// Tells where the value is.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let at = self.next();
        match self.entries.get_mut(at as usize) {
            Some(entry) => {
                if let Entry::Vacant(next) = entry {
                    self.free = *next;
                }
                *entry = Entry::Used(value);
            }
            None => self.entries.push(Entry::Used(value)),
        }
        self.used += 1;
        at
    }

    pub(crate) fn get(&self, at: u32) -> Option<&T> {
        match self.entries.get(at as usize)? {
            Entry::Used(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        match self.entries.get_mut(at as usize)? {
            Entry::Used(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    pub(crate) fn remove(&mut self, at: u32) -> Option<T> {
        let entry = self.entries.get_mut(at as usize)?;
        if let Entry::Vacant(_) = entry {
            return None;
        }
        let next = self.free.replace(at);
        self.used -= 1;
        match std::mem::replace(entry, Entry::Vacant(next)) {
            Entry::Used(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Used(value) => Some(value),
            Entry::Vacant(_) => None,
        })
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            entries: Chunked::default(),
            free: None,
            used: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_in_it_stays_where_it_is() {
        const MANY: usize = 100 * FIRST;
        let mut table = Chunked::default();
        let mut places: Vec<*const usize> = Vec::new();
        for n in 0..MANY {
            assert_eq!((table.len(), table.get(n)), (n, None));
            table.push(n);
            places.push(&raw const table[n]);
        }
        assert!(table.iter().copied().eq(0..MANY));
        assert!((0..MANY).all(|n| table[n] == n && table.get(n) == Some(&n)));
        assert!((0..MANY).all(|n| places[n] == &raw const table[n]));
        assert_eq!((table.get(MANY), table.get(usize::MAX / 2)), (None, None));
        table[FIRST] = 7;
        assert_eq!(table.get_mut(FIRST), Some(&mut 7));
    }

    #[test]
    fn chunks_have_the_room_that_their_places_need() {
        let mut table = Chunked::default();
        (0..10 * FIRST).for_each(|n| table.push(n));
        let sizes: Vec<usize> = table.chunks.iter().map(Vec::len).collect();
        assert_eq!(sizes, [FIRST, FIRST, 2 * FIRST, 4 * FIRST, 2 * FIRST]);
        assert_eq!(table.chunks[4].capacity(), 8 * FIRST);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert,
        Remove(usize),
    }

    proptest! {
        #[test]
        fn slots_are_a_map_from_numbers_that_are_used_again(
            steps in prop::collection::vec(
                prop_oneof![3 => Just(Step::Insert), 2 => (0..4000_usize).prop_map(Step::Remove)],
                0..3000,
            )
        ) {
            let (mut slots, mut model, mut most) = (Slots::default(), BTreeMap::new(), 0);
            for (value, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert => {
                        let next = slots.next();
                        let at = slots.insert(value);
                        prop_assert_eq!(at, next);
                        prop_assert_eq!(model.insert(at, value), None);
                    }
                    Step::Remove(at) => {
                        let at = (at % (model.len() + 2)) as u32;
                        prop_assert_eq!(slots.remove(at), model.remove(&at));
                    }
                }
                most = most.max(model.len());
                prop_assert_eq!(slots.len(), model.len());
            }
            prop_assert!(slots.entries.len() <= most, "numbers are used again");
            prop_assert!(slots.values().eq(model.values()));
            for at in 0..most as u32 + 1 {
                prop_assert_eq!(slots.get(at), model.get(&at));
                prop_assert_eq!(slots.get_mut(at).copied(), model.get(&at).copied());
            }
        }
    }
}
