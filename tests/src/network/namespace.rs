//! One network namespace without a name.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// It lives as long as this, or a thread or process in it.
pub(super) struct Namespace(File);

impl Namespace {
    /// Panics where there can be none, naming the variable by which that may be accepted.
    pub(super) fn new(skip: &str) -> Self {
        let made = in_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").map_err(|_| nix::errno::Errno::ENOENT)
        });
        Self(made.unwrap_or_else(|e| {
            panic!(
                "tests over real networks need network namespaces of their own, and there are none: {e}. Run them as root or within \
                 `unshare --user --map-root-user`, or set {skip}=1 to do without them"
            )
        }))
    }

    /// A path by which this process and its children name it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// This thread is in it from now on.
    pub(super) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("who made a namespace may enter it");
    }

    /// Runs `work` in it, on a thread of its own.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_a_thread(|| {
            self.enter();
            work()
        })
    }

    pub(super) fn ip(&self, arguments: &str) -> String {
        self.command("ip", "iproute2", arguments)
    }

    pub(super) fn tc(&self, arguments: &str) -> String {
        self.command("tc", "iproute2", arguments)
    }

    /// It waits for whoever else changes rules: one kind of `iptables` has one lock for all namespaces.
    pub(super) fn iptables(&self, arguments: &str) -> String {
        self.command("iptables", "iptables", &format!("-w {arguments}"))
    }

    /// Sets what `/proc/sys/net` has of this namespace.
    pub(super) fn write(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(path, value))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// What the command said; panics when it failed.
    fn command(&self, program: &str, package: &str, arguments: &str) -> String {
        let mut command = Command::new(program);
        // Where a user's path has no administrator's tools.
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .args(arguments.split_whitespace());
        let output = self
            .run(|| command.output())
            .unwrap_or_else(|e| panic!("{program} does not start ({e}): install the package {package}"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {complained}");
        said
    }
}

/// So that the caller's thread stays in its namespace.
fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
