//! What /proc says about a process: CPU time, by thread, and memory.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::machine::kib;

/// CPU time of one process so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// User and system time in seconds, in steps of 10 ms.
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// By thread name: time in seconds (exact), and how often threads of the name were scheduled.
    pub(crate) threads: BTreeMap<String, (f64, f64)>,
}

impl Cpu {
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        let (user, system) = parse_stat(&stat).context("/proc/PID/stat is not as it should be")?;
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = task?.path();
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let schedstat = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            let mut numbers = schedstat.split_whitespace().filter_map(|n| n.parse::<f64>().ok());
            let (ns, slices) = (numbers.next().unwrap_or(0.0), numbers.nth(1).unwrap_or(0.0));
            let entry: &mut (f64, f64) = threads.entry(name.trim().to_owned()).or_default();
            entry.0 += ns / 1e9;
            entry.1 += slices;
        }
        Ok(Self {
            user,
            system,
            threads,
        })
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let threads = self.threads.iter().map(|(name, (seconds, slices))| {
            let (s, n) = before.threads.get(name).copied().unwrap_or_default();
            (name.clone(), (seconds - s, slices - n))
        });
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
            threads: threads.collect(),
        }
    }

    /// Together with another process.
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.user += other.user;
        self.system += other.system;
        for (name, used) in &other.threads {
            let sum = self.threads.entry(name.clone()).or_default();
            *sum = (sum.0 + used.0, sum.1 + used.1);
        }
        self
    }

    /// Seconds in all: the scheduler's exact account where there is one, else that in steps of 10 ms.
    pub(crate) fn total(&self) -> f64 {
        let exact: f64 = self.threads.values().map(|(seconds, _)| seconds).sum();
        if exact > 0.0 {
            exact
        } else {
            self.user + self.system
        }
    }
}

/// User and system seconds. The process's name may hold spaces and parentheses; what follows its last one does not.
fn parse_stat(stat: &str) -> Option<(f64, f64)> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user / TICKS_PER_SECOND, system / TICKS_PER_SECOND))
}

/// USER_HZ, which Linux shows to user space on every architecture of today.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of private, dirtied memory: what would be free if the process were not there.
pub(crate) fn private_dirty(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    fs::metadata(&path).with_context(|| format!("process {pid} is gone"))?;
    Ok(kib(&path, "Private_Dirty") * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_strange_name() {
        let stat = "42 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 3";
        assert_eq!(parse_stat(stat), Some((1.5, 0.5)));
        assert_eq!(parse_stat("42 (a) R 1"), None);
    }

    #[test]
    fn our_own_use_is_seen() {
        let pid = std::process::id();
        let before = Cpu::read(pid).unwrap();
        assert!(before.since(&before).total() < 1e-9);
        assert!(private_dirty(pid).unwrap() > 0);
    }
}
