//! Room for file descriptors, made while a process has one thread.
//!
//! The kernel doubles a process's table of descriptors as they come. In a process of several threads it waits each time until
//! every core has passed a quiet point (an RCU grace period): on a busy machine for seconds, and every thread that opens
//! something waits with it. A backend that was started again under load connects to its services a thousand times at once, so
//! it would stand still just then. A process of one thread does not wait, and its table keeps its size, through exec too.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::close;

/// Lets the process open as many files as it may: the soft limit becomes the hard one (RLIMIT_NOFILE). A program that cannot do with more
/// than 1,024, for which there is a soft limit at all, is none of ours. Call it before [`make_room`]; failing is no error.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How many files the process may have open; as good as none when it cannot be found out.
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Makes the table as large as the limit allows, and not larger than [`MAX_ROOM`]. Without it things are slower, so failing is
/// no error.
pub fn make_room() {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let Ok(last) = i32::try_from(soft.min(MAX_ROOM) - 1) else {
        return;
    };
    // A descriptor at its end makes it so large.
    if let Ok(copy) = fcntl(std::io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(last)) {
        let _ = close(copy);
    }
}

/// 8 bytes of the kernel's memory each.
const MAX_ROOM: u64 = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_limit_is_raised_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        raise_limit();
        assert_eq!(limit(), hard);
    }

    #[test]
    fn the_table_is_large_afterwards() {
        make_room();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let size: u64 = size.unwrap().trim().parse().unwrap();
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(size >= soft.min(MAX_ROOM), "{size} of {soft}");
    }
}
