//! The machine: what the report says of it, and whether it allows as many devices.

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::channel::Channel;
use super::gateway::SERVICE_CONNECTIONS;
use super::report::Machine;
use super::table::grouped;
use holdfast_proto::descriptors;

pub(crate) fn read() -> Machine {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = text("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model
        .and_then(|rest| rest.split_once(':'))
        .map(|(_, name)| name.trim());
    Machine {
        cores: cores(),
        cpu: model.unwrap_or("unknown CPU").to_owned(),
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Takes as many file descriptors as the system allows, for this process and those that it starts.
pub(crate) fn allow_descriptors(devices: u32) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")?;
    // Else devices and service would stand still for it, and the gateway be blamed.
    descriptors::make_room();
    check_descriptors(devices, hard)
}

fn check_descriptors(devices: u32, limit: u64) -> Result<()> {
    let kinds = Channel::ALL.len() as u64;
    // They take turns, so the first kinds may have one more.
    let of = |turn: u64| (u64::from(devices) + kinds - 1 - turn) / kinds;
    let taken = (0..)
        .zip(Channel::ALL)
        .map(|(turn, channel)| of(turn) * channel.descriptors());
    let needed = OTHER_DESCRIPTORS + taken.sum::<u64>();
    if needed > limit {
        bail!(
            "--devices {devices}: that takes {} file descriptors, and this system allows a process {} (`ulimit -Hn`): \
             at most {} devices",
            grouped(needed),
            grouped(limit),
            grouped(limit.saturating_sub(OTHER_DESCRIPTORS))
        );
    }
    Ok(())
}

/// The backends' connections to the service, of two at a time, and what any process needs.
const OTHER_DESCRIPTORS: u64 = 2 * SERVICE_CONNECTIONS as u64 + 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_devices_for_the_system_are_refused_with_the_number_that_is_not() {
        assert!(check_descriptors(100, 20_000).is_ok());
        assert!(check_descriptors(17_752, 20_000).is_ok());
        let error = check_descriptors(17_753, 20_000).unwrap_err().to_string();
        assert!(error.contains("at most 17,752 devices"), "{error}");
    }

    #[test]
    fn the_machine_says_what_it_is() {
        let machine = read();
        assert!(machine.cores >= 1 && !machine.kernel.is_empty());
    }
}
