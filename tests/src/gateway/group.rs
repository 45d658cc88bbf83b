//! A process group that dies with the test, however the test dies.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The group's leader is a shell that reads a pipe which only this process holds: when the pipe closes, by drop, `^C` or
/// `kill -9` of the test, the shell kills the group.
pub(super) struct Group {
    leader: Child,
}

impl Group {
    pub(super) fn new() -> Self {
        use std::os::unix::process::CommandExt as _;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read _; kill -9 0"]).process_group(0);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            leader: shell.spawn().expect("a shell starts"),
        }
    }

    /// The group's id, for `process_group` of its members.
    pub(super) fn id(&self) -> i32 {
        self.leader.id() as i32
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        killpg(Pid::from_raw(self.id()), Signal::SIGKILL).ok();
        self.leader.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};

    fn member(group: &Group) -> Child {
        Command::new("/bin/sleep")
            .arg("1000")
            .process_group(group.id())
            .spawn()
            .unwrap()
    }

    #[test]
    fn members_die_with_the_group() {
        let group = Group::new();
        let mut member = member(&group);
        drop(group);
        assert_eq!(member.wait().unwrap().signal(), Some(9));
    }

    /// The pipe alone does it, as when the test itself is killed and nothing is dropped.
    #[test]
    fn members_die_when_the_pipe_closes() {
        let mut group = Group::new();
        let mut member = member(&group);
        drop(group.leader.stdin.take());
        assert_eq!(member.wait().unwrap().signal(), Some(9));
    }
}
