//! CPU time of the processes of a run, from `/proc`.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use super::generator::THREADS;
use super::service;

/// CPU time so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    pub(crate) frontend: Seconds,
    /// All backends, those that ended included.
    pub(crate) backend: Seconds,
    pub(crate) service: Seconds,
    pub(crate) generator: Seconds,
    /// All that the machine's cores did, whoever asked for it.
    pub(crate) machine: Seconds,
}

type Seconds = f64;

impl Cpu {
    /// Of the children of `up`, and of this process's threads.
    pub(crate) fn read(up_pid: u32) -> Self {
        let mut cpu = Self {
            machine: machine(),
            ..Self::default()
        };
        if let Some(up) = read(&format!("/proc/{up_pid}/stat")) {
            // The frontend ends last; the children that were waited for before were backends.
            cpu.backend = up.children;
        }
        for child in processes().filter(|process| process.parent == up_pid) {
            let part = if child.name.starts_with(FRONTEND) {
                &mut cpu.frontend
            } else {
                &mut cpu.backend
            };
            *part += child.own;
        }
        for thread in threads() {
            if thread.name == service::THREAD {
                cpu.service += thread.own;
            } else if thread.name.starts_with(THREADS) {
                cpu.generator += thread.own;
            }
        }
        cpu
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        let less = |now: f64, before: f64| ((now - before).max(0.0) * 100.0).round() / 100.0;
        Self {
            frontend: less(self.frontend, before.frontend),
            backend: less(self.backend, before.backend),
            service: less(self.service, before.service),
            generator: less(self.generator, before.generator),
            machine: less(self.machine, before.machine),
        }
    }

    /// Cores in use, if this was over so many seconds.
    pub(crate) fn per(&self, seconds: f64) -> Self {
        let part = |time: f64| (time / seconds * 1000.0).round() / 1000.0;
        Self {
            frontend: part(self.frontend),
            backend: part(self.backend),
            service: part(self.service),
            generator: part(self.generator),
            machine: part(self.machine),
        }
    }
}

/// From one `stat` file: proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    parent: u32,
    own: Seconds,
    /// Of children that ended and were waited for.
    children: Seconds,
}

fn processes() -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter(|e| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    numbers.filter_map(|entry| parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
}

fn threads() -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    entries.filter_map(|entry| parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
}

fn read(path: &str) -> Option<Stat> {
    parse(&fs::read_to_string(path).ok()?)
}

fn parse(stat: &str) -> Option<Stat> {
    // The name may hold spaces and parentheses.
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field).and_then(|text| text.parse::<u64>().ok());
    let seconds = |a: usize, b: usize| Some((number(a)? + number(b)?) as f64 / TICKS_PER_SECOND);
    Some(Stat {
        name: name.to_owned(),
        parent: number(1)? as u32,
        own: seconds(11, 12)?,
        children: seconds(13, 14)?,
    })
}

/// user, nice, system, irq, softirq; proc_stat(5).
fn machine() -> Seconds {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = first
        .split_ascii_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum();
    busy as f64 / TICKS_PER_SECOND
}

/// A machine's share of its cores that was in use.
pub(crate) fn busy_share(machine: Seconds, time: Duration, cores: usize) -> f64 {
    machine / (time.as_secs_f64() * cores.max(1) as f64).max(f64::EPSILON)
}

/// `USER_HZ`, which Linux fixes for programs on all its architectures.
const TICKS_PER_SECOND: f64 = 100.0;
/// A process's name there has 15 bytes.
const FRONTEND: &str = "holdfast-fronte";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_its_name_holds() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194560 100 0 0 0 150 50 30 20 20 0 1 0 100 0 0";
        let expected = Stat {
            name: "a (b) c".into(),
            parent: 7,
            own: 2.0,
            children: 0.5,
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("42 (a) S"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn this_process_is_found() {
        let own = std::process::id();
        assert!(read(&format!("/proc/{own}/stat")).is_some());
        assert!(threads().next().is_some());
        assert!(machine() > 0.0);
        assert!(processes().any(|process| process.parent != own));
    }
}
