//! CPU per operation, with its parts.

use std::collections::BTreeMap;

use crate::process::Cpu;

/// CPU of one process over several rounds of operations.
#[derive(Default)]
pub(super) struct Usage {
    rounds: Vec<(Cpu, u64)>,
}

impl Usage {
    pub(super) fn add(&mut self, used: Cpu, operations: u64) {
        self.rounds.push((used, operations));
    }

    /// Microseconds per operation, round by round.
    pub(super) fn per_operation(&self) -> Vec<f64> {
        self.rounds
            .iter()
            .map(|(cpu, n)| cpu.total() * 1e6 / *n as f64)
            .collect()
    }

    /// Where the time goes: user and system, and each family of threads with how often it is scheduled per operation.
    pub(super) fn parts(&self, name: &str) -> String {
        let user: f64 = self.rounds.iter().map(|(cpu, _)| cpu.user).sum();
        let both: f64 = self.rounds.iter().map(|(cpu, _)| cpu.user + cpu.system).sum();
        let families: Vec<String> = self.families().iter().filter_map(Family::describe).collect();
        let user_share = user / both.max(f64::MIN_POSITIVE) * 100.0;
        format!(
            "{name} per operation: {}; {user_share:.0} % of it in user space",
            families.join(", ")
        )
    }

    /// All rounds together.
    fn families(&self) -> Vec<Family> {
        let operations = self.rounds.iter().map(|(_, n)| n).sum::<u64>() as f64;
        let mut threads: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (name, used) in self.rounds.iter().flat_map(|(cpu, _)| &cpu.threads) {
            let sum = threads.entry(name).or_default();
            *sum = (sum.0 + used.0, sum.1 + used.1);
        }
        let mut families: Vec<Family> = Vec::new();
        for (thread, (seconds, slices)) in threads {
            let (us, slices) = (seconds * 1e6 / operations, slices / operations);
            match families.last_mut().filter(|f| f.name == family(thread)) {
                Some(family) => family.add(us, slices),
                None => families.push(Family {
                    name: family(thread).to_owned(),
                    us,
                    slices,
                    threads: 1,
                    busiest_us: us,
                }),
            }
        }
        families
    }
}

/// Threads whose names differ by a number, per operation.
struct Family {
    name: String,
    us: f64,
    slices: f64,
    threads: usize,
    busiest_us: f64,
}

impl Family {
    fn add(&mut self, us: f64, slices: f64) {
        self.us += us;
        self.slices += slices;
        self.threads += 1;
        self.busiest_us = self.busiest_us.max(us);
    }

    /// None for what does next to nothing.
    fn describe(&self) -> Option<String> {
        let Self { name, us, slices, .. } = self;
        let busiest = match self.threads {
            1 => String::new(),
            n => format!(" (busiest of {n}: {:.0} %)", self.busiest_us / us * 100.0),
        };
        (*us >= LEAST_SHOWN_US).then(|| format!("{name} {us:.2} µs in {slices:.2} slices{busiest}"))
    }
}

/// `shard-1` and `shard-0` are threads of the family `shard`.
fn family(thread: &str) -> &str {
    thread
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('-')
}

const LEAST_SHOWN_US: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_per_operation() {
        let threads = [
            ("idle", 0.0, 9.0),
            ("link", 1.0, 5e5),
            ("shard-0", 3.0, 1e6),
            ("shard-1", 1.0, 0.0),
        ];
        let cpu = Cpu {
            user: 3.0,
            system: 1.0,
            threads: threads.map(|(name, s, n)| (name.to_owned(), (s, n))).into(),
        };
        let mut usage = Usage::default();
        usage.add(cpu, 1_000_000);
        assert_eq!(usage.per_operation(), [5.0]);
        assert_eq!(
            usage.parts("x"),
            "x per operation: link 1.00 µs in 0.50 slices, shard 4.00 µs in 1.00 slices (busiest of 2: 75 %); 75 % of it in user space"
        );
    }
}
