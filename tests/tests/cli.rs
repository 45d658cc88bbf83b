//! `holdfast up` and the commands beside it, as someone new would use them: real processes, generated keys.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests")]

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_tests::gateway::locate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// `holdfast up` on a directory of its own; ends with it.
struct Up {
    process: Child,
    dir: tempfile::TempDir,
}

impl Up {
    /// Starts it on ports that nobody uses now, and tries others should somebody have been faster.
    fn start() -> Self {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let base = 20_000 + rand::random::<u16>() % 8_000 * 5;
            let process = holdfast(dir.path())
                .args(["up", "--port-base", &base.to_string()])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let mut up = Self { process, dir };
            let file = up.dir.path().join("up.json");
            let exited = |up: &mut Self| up.process.try_wait().unwrap().is_some();
            if wait_until(|| file.exists() || exited(&mut up)) && !exited(&mut up) {
                return up;
            }
        }
        panic!("holdfast up did not start");
    }

    fn json(&self) -> Value {
        let text = std::fs::read(self.dir.path().join("up.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn pid(&self, key: &str) -> i32 {
        self.json()[key].as_i64().unwrap().try_into().unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        holdfast(self.dir.path()).args(args).output().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["frontend.log", "backend-1.log"] {
                let text = std::fs::read_to_string(self.dir.path().join("logs").join(log));
                eprintln!("== {log}\n{}", text.unwrap_or_default());
            }
        }
        // Its children end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn holdfast(dir: &Path) -> Command {
    // The other two must be there before this one looks for them beside itself.
    locate("holdfast-frontend");
    locate("holdfast-backend");
    let mut command = Command::new(locate("holdfast"));
    command.arg("--dir").arg(dir).stdin(Stdio::null());
    command
}

fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn assert_success(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} {error}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// Connects to the API over and over until told to stop; gives how often that was refused.
fn connect_over_and_over(api: String, stop: Arc<AtomicBool>) -> (usize, usize) {
    let address = api.trim_start_matches("http://").to_owned();
    let (mut tried, mut refused) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        tried += 1;
        refused += usize::from(TcpStream::connect(&address).is_err());
        std::thread::sleep(Duration::from_millis(2));
    }
    (tried, refused)
}

#[test]
fn a_device_gets_echoes_while_the_backend_is_killed_and_nothing_is_refused() {
    let mut up = Up::start();
    let output = up.run(&["device", "--count", "20", "--rate", "200"]);
    assert_success(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("replies 20"));

    let stop = Arc::new(AtomicBool::new(false));
    let (api, stopped) = (up.json()["api"].as_str().unwrap().to_owned(), stop.clone());
    let connecting = std::thread::spawn(move || connect_over_and_over(api, stopped));
    let mut device = holdfast(up.dir.path())
        .args(["device", "--device", "steady", "--count", "200", "--rate", "100"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..2 {
        let before = up.pid("backend_pid");
        signal(before, Signal::SIGKILL);
        assert!(
            wait_until(|| up.pid("backend_pid") != before),
            "the backend was not started again"
        );
    }
    assert!(
        device.wait().unwrap().success(),
        "a request got no reply, or an error"
    );
    stop.store(true, Ordering::Relaxed);
    let (tried, refused) = connecting.join().unwrap();
    assert!(
        tried > 0 && refused == 0,
        "{refused} of {tried} connections to the API were refused"
    );
    assert_eq!(up.json()["backend_restarts"], 2);
    assert_eq!(up.json()["frontend_restarts"], 0);

    let pids = [up.pid("frontend_pid"), up.pid("backend_pid")];
    signal(up.process.id().try_into().unwrap(), Signal::SIGINT);
    assert_eq!(up.process.wait().unwrap().code(), Some(0));
    for pid in pids {
        assert!(
            kill(Pid::from_raw(pid), None).is_err(),
            "process {pid} was left behind"
        );
    }
    assert!(!up.dir.path().join("up.json").exists());
}

#[test]
fn push_status_and_token_work_beside_it() {
    let up = Up::start();
    let token = up.run(&["token", "some-device", "--ttl", "1h"]);
    assert_success(&token);
    assert_eq!(
        String::from_utf8_lossy(&token.stdout).trim().split('.').count(),
        3
    );

    let offline = up.run(&["push", "nobody", "{}"]);
    assert_eq!(offline.status.code(), Some(1), "only `written` is a success");

    let mut device = holdfast(up.dir.path())
        .args(["device", "--device", "listener", "--count", "1", "--rate", "1"])
        .args(["--event", r#"Demo.Slow {"delay_ms":5000}"#])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let written = wait_until(|| {
        up.run(&["push", "listener", r#"{"text":"hello"}"#])
            .status
            .success()
    });
    assert!(written, "the push was never written");
    let status = up.run(&["status", "--json"]);
    assert_success(&status);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(status.is_object(), "{status}");
    assert!(device.wait().unwrap().success());
}

#[test]
fn a_bad_token_and_an_unknown_route_are_told_in_one_line() {
    let up = Up::start();
    let denied = up.run(&["device", "--count", "1", "--token", "not.a.token"]);
    assert_eq!(denied.status.code(), Some(1));
    let line = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert!(
        line.starts_with("holdfast: ") && line.trim().lines().count() == 1,
        "{line}"
    );
    assert!(line.contains("token_invalid") || line.contains("401"), "{line}");

    let nowhere = up.run(&["device", "--count", "1", "--event", "Nowhere.At {}"]);
    let text = String::from_utf8_lossy(&nowhere.stdout).into_owned();
    assert!(text.contains("no_route"), "{text}");
}

#[test]
fn a_device_gets_in_over_ws_and_udp_with_the_key_that_is_printed_and_with_no_other() {
    let up = Up::start();
    let json = up.json();
    let master = json["master_key"].as_str().unwrap();
    let key_file = |device: &str| {
        let printed = up.run(&["key", device, "--product", "lamp", "--master", master]);
        assert_success(&printed);
        let file = up.dir.path().join(format!("{device}.key"));
        std::fs::write(&file, &printed.stdout).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    };
    let (key, others) = (key_file("lamp-1"), key_file("lamp-2"));
    let shown = up.run(&["key", "lamp-1", "--product", "lamp", "--json"]);
    assert_success(&shown);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let key_id = shown["key_id"].as_str().unwrap();
    for channel in ["ws", "udp"] {
        let url = json[channel].as_str().unwrap();
        assert!(url.starts_with(&format!("{channel}://")), "{url}");
        let echoes = |key: &str, key_id: &str, more: &[&str]| {
            let with = ["--url", url, "--key-file", key, "--key-id", key_id];
            let lamp = ["device", "--device", "lamp-1", "--count", "20", "--rate", "200"];
            up.run(&[&lamp[..], &with, more].concat())
        };
        let product = ["--product", "lamp"];
        let by_default = up.run(&["device", "--channel", channel, "--count", "20", "--rate", "200"]);
        for output in [echoes(&key, key_id, &product), by_default] {
            assert_success(&output);
            let line = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(line.contains("replies 20"), "{channel}: {line}");
        }
        for (what, output, code) in [
            (
                "another's key",
                echoes(&others, key_id, &product),
                "handshake_failed",
            ),
            ("another product", echoes(&key, key_id, &[]), "handshake_failed"),
            ("another key id", echoes(&key, "k9", &product), "key_unknown"),
        ] {
            let line = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(
                (output.status.code(), line.lines().count()),
                (Some(1), 1),
                "{channel}: {line}"
            );
            assert!(
                line.starts_with("holdfast: ") && line.contains(code),
                "{channel}, {what}: {line}"
            );
        }
    }
}

#[test]
fn a_scripted_device_that_is_interrupted_tells_what_was_until_then() {
    let up = Up::start();
    let mut device = holdfast(up.dir.path())
        .args(["device", "--count", "1000000", "--rate", "200"])
        .args(["--event", r#"Demo.Slow {"delay_ms":20}"#])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sends = wait_until(|| {
        let status = up.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        status["backends"][0]["replies"].as_u64() > Some(20)
    });
    assert!(sends, "it has sent nothing");
    signal(device.id().try_into().unwrap(), Signal::SIGINT);
    let status = device.wait().unwrap();
    let output = device.wait_with_output().unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((status.code(), line.lines().count()), (Some(1), 1), "{output:?}");
    assert!(line.starts_with("sent ") && line.contains("replies "), "{line}");
}

/// Its file stays, and says what was true once.
#[test]
fn a_supervisor_that_was_killed_is_told_from_one_that_runs() {
    let mut up = Up::start();
    let pid = up.process.id();
    signal(pid.try_into().unwrap(), Signal::SIGKILL);
    up.process.wait().unwrap();
    assert!(up.dir.path().join("up.json").exists());
    for args in [
        &["status"][..],
        &["share", "backend-1", "5%"],
        &["upgrade", "backend"],
        &["device", "--count", "1"],
        &["push", "tv-1", "{}"],
    ] {
        let output = up.run(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), error.lines().count()),
            (Some(1), 1),
            "{args:?}: {error}"
        );
        let words = format!("that is not running any more (pid {pid})");
        assert!(
            error.contains(&words) && error.contains(" up`"),
            "{args:?}: {error}"
        );
    }
}

#[test]
fn a_status_without_a_backend_that_serves_is_a_failure() {
    let up = Up::start();
    assert_success(&up.run(&["status"]));
    assert_success(&up.run(&["share", "backend-1", "0%"]));
    assert!(wait_until(|| up.run(&["status"]).status.code() == Some(1)));
    let status = up.run(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["backends"][0]["state"], "standby", "{status}");
    assert_success(&up.run(&["share", "backend-1", "100%"]));
    assert!(wait_until(|| up.run(&["status"]).status.success()));
}
