//! `holdfast up` where its lines are not read, its disk is full, or its directory does not let programs start.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast_tests::gateway::{is_running, locate, send};
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A `holdfast up` whose lines are ours to read or not to. Ends with it.
struct Up {
    process: Child,
    /// As `up` sees it.
    dir: PathBuf,
    /// As this test sees it: `up` may have mounts of its own.
    seen: PathBuf,
    _root: tempfile::TempDir,
}

impl Up {
    /// `mount` are options of a tmpfs for its directory, in a mount namespace of its own. None where that is not allowed.
    fn start(mount: Option<&str>, more: &[&str]) -> Option<Self> {
        for name in ["holdfast-frontend", "holdfast-backend"] {
            locate(name);
        }
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("dir");
        fs::create_dir(&dir).unwrap();
        let mut command = match mount {
            None => Command::new(locate("holdfast")),
            Some(options) => {
                let script = format!(
                    "mount -t tmpfs -o {options} tmpfs '{}' || exit 77; exec \"$@\"",
                    dir.display()
                );
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "sh", "-c", &script, "sh"])
                    .arg(locate("holdfast"));
                command
            }
        };
        let base = 10_000 + rand::random::<u16>() % 5_500 * 4;
        command
            .arg("--dir")
            .arg(&dir)
            .args(["up", "--port-base", &base.to_string()]);
        command
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let process = command.spawn().ok()?;
        let seen = match mount {
            None => dir.clone(),
            Some(_) => PathBuf::from(format!("/proc/{}/root{}", process.id(), dir.display())),
        };
        let mut up = Self {
            process,
            dir,
            seen,
            _root: root,
        };
        let until = Instant::now() + PATIENCE;
        while !up.seen.join("up.json").exists() {
            if let Some(status) = up.process.try_wait().unwrap() {
                let mut said = String::new();
                up.process.stderr.take()?.read_to_string(&mut said).unwrap();
                assert!(mount.is_some(), "`holdfast up` ended with {status}: {said}");
                eprintln!("not tried, since this needs a mount: {status} {said}");
                return None;
            }
            assert!(Instant::now() < until, "`holdfast up` writes no up.json");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(up)
    }

    fn pid(&self, key: &str) -> i32 {
        let json: Value = serde_json::from_slice(&fs::read(self.seen.join("up.json")).unwrap()).unwrap();
        json[key].as_i64().unwrap() as i32
    }

    /// Runs a command where `up` runs.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(locate("holdfast"));
        if self.dir != self.seen {
            command = Command::new("nsenter");
            command.arg(format!("--mount=/proc/{}/ns/mnt", self.process.id()));
            command.arg(locate("holdfast"));
        }
        command
            .arg("--dir")
            .arg(&self.dir)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a device until its requests are answered; the backend is killed before, as an interruption that says something.
    fn survives_a_crash(&mut self) {
        let (frontend, backend) = (self.pid("frontend_pid"), self.pid("backend_pid"));
        send(backend, Signal::SIGKILL);
        let output = self.run(&["device", "--count", "20", "--rate", "20"]);
        assert!(output.status.success(), "{output:?}");
        assert!(
            self.process.try_wait().unwrap().is_none(),
            "`holdfast up` has ended"
        );
        assert!(is_running(frontend), "the frontend was not left alone");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its children end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn nobody_who_reads_its_lines_is_no_reason_to_end() {
    let mut up = Up::start(None, &[]).unwrap();
    drop((up.process.stdout.take(), up.process.stderr.take()));
    up.survives_a_crash();
    assert!(wait_until(|| up.pid("backend_restarts") == 1));
}

#[test]
fn a_full_disk_is_no_reason_to_end() {
    // A script is not copied, which would take all the room.
    let scripts = tempfile::tempdir().unwrap();
    let backend = script(scripts.path(), &locate("holdfast-backend"));
    let Some(mut up) = Up::start(Some("size=4m"), &["--backend-bin", &backend]) else {
        return;
    };
    let ballast = fs::write(up.seen.join("ballast"), vec![1; 8 << 20]);
    assert!(ballast.is_err(), "the disk is not full");
    let mut said = BufReader::new(up.process.stderr.take().unwrap()).lines();
    up.survives_a_crash();
    assert!(
        said.any(|line| line.unwrap().contains("up.json is not true any more")),
        "it says nothing of it"
    );
    fs::remove_file(up.seen.join("ballast")).unwrap();
    assert!(
        up.run(&["push", "nobody", "{}"]).stderr.is_empty(),
        "its API still answers"
    );
}

#[test]
fn where_no_program_can_be_started_it_is_started_from_where_it_is() {
    let Some(mut up) = Up::start(Some("noexec"), &[]) else {
        return;
    };
    let mut said = BufReader::new(up.process.stderr.take().unwrap()).lines();
    assert!(
        said.any(|line| line.unwrap().contains("is it mounted noexec?")),
        "it says nothing of it"
    );
    up.survives_a_crash();
    let upgraded = up.run(&["upgrade", "backend", "--no-canary"]);
    let text = String::from_utf8_lossy(&upgraded.stdout).into_owned();
    assert!(
        upgraded.status.success() && text.contains("is it mounted noexec?"),
        "{upgraded:?}"
    );
}

fn script(dir: &Path, program: &Path) -> String {
    let path = dir.join("backend.sh");
    fs::write(&path, format!("#!/bin/sh\nexec '{}' \"$@\"\n", program.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn wait_until(done: impl Fn() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
