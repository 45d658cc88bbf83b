//! What happened: a digest of everything, and the latest of it for people.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::queue::Time;

/// Lines kept for the report of a failure.
const MAX_LINES: usize = 160;

#[derive(Debug)]
pub(crate) struct Trace {
    digest: DefaultHasher,
    lines: VecDeque<(u64, Time, Box<dyn Note>)>,
    print: bool,
    step: u64,
}

/// Anything worth a line. It is put into words only when somebody reads it.
pub(crate) trait Note: Debug {}

impl<T: Debug> Note for T {}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        // The default hasher has fixed keys: its digest is the same in every run.
        Self {
            digest: DefaultHasher::new(),
            lines: VecDeque::new(),
            print,
            step: 0,
        }
    }

    pub(crate) fn begin_step(&mut self, step: u64) {
        self.step = step;
    }

    pub(crate) fn note<N: Debug + Hash + 'static>(&mut self, at: Time, note: N) {
        (at, &note).hash(&mut self.digest);
        if self.print {
            println!("{}", line(self.step, at, &note));
        }
        if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((self.step, at, Box::new(note)));
    }

    /// For the digest only.
    pub(crate) fn mix<N: Hash>(&mut self, at: Time, note: N) {
        (at, &note).hash(&mut self.digest);
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub(crate) fn latest(&self) -> Vec<String> {
        self.lines
            .iter()
            .map(|(step, at, note)| line(*step, *at, note))
            .collect()
    }
}

fn line(step: u64, at: Time, note: &dyn Debug) -> String {
    format!("{step:>7} {:>10.6}s {note:?}", at.as_secs_f64())
}
