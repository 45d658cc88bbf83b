//! The machine, as the report names it.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Facts that figures depend on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) memory_gib: f64,
    /// How this program, and with it the baselines, was compiled.
    pub(crate) profile: &'static str,
    /// The 1-minute load average before the run: what else was going on.
    pub(crate) load_before: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let first_word = |text: String| text.split(' ').next().unwrap_or_default().to_owned();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_gib: kib("/proc/meminfo", "MemTotal") as f64 / f64::from(1 << 20),
            profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            load_before: first_word(text("/proc/loadavg")),
        }
    }
}

/// As many descriptors as the system allows, also for all processes that follow.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")
}

/// Bytes of kernel slab in use on the whole machine.
pub(crate) fn slab_bytes() -> u64 {
    kib("/proc/meminfo", "Slab") * 1024
}

/// The number in a line `name:   n kB`; 0 if there is none.
pub(crate) fn kib(path: &str, name: &str) -> u64 {
    field(path, name)
        .and_then(|value| value.split(' ').next()?.parse().ok())
        .unwrap_or_default()
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = text(path);
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && machine.memory_gib > 0.1 && !machine.kernel.is_empty());
        assert!(slab_bytes() > 0);
        assert_eq!(kib("/proc/meminfo", "NoSuchField"), 0);
    }
}
