//! A device that shares no code with us: `device.py`, on a plain WebSocket library.
//!
//! The library is what `requirements.txt` pins, in a virtual environment under `target/` that is made once; a system whose
//! Python has it already needs no network.

use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::gateway::{API_KEY, Gateway};
use holdfast_tests::keys::TokenKey;
use holdfast_tests::service::Service;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_device_gets_all_that_the_protocol_promises() {
    let service = Service::start().await;
    let gateway = Gateway::start(&service).await;
    let arguments = json!({
        "wss": format!("wss://{}", gateway.wss()),
        "ca": gateway.path("ca.pem"),
        "token": gateway.tokens.token("python"),
        "bad_token": TokenKey::generate().token("python"),
        "device": "python",
        "api": gateway.api_url(""),
        "api_key": API_KEY,
    });
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let mut device = tokio::process::Command::new(python);
    device
        .arg(manifest("device.py"))
        .arg(arguments.to_string())
        .kill_on_drop(true);
    let output = device.output().await.expect("Python starts");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{report}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let good = report.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(
        report.lines().next(),
        Some(format!("1..{good}").as_str()),
        "{report}"
    );
    assert!(good >= 10, "{report}");
    service.assert_contract();
}

/// A Python that has the library.
fn python() -> PathBuf {
    let system = PathBuf::from("python3");
    if has_library(&system) {
        return system;
    }
    let environment = target().join("python-device");
    let python = environment.join("bin/python");
    if !has_library(&python) {
        run(Command::new(&system)
            .args(["-m", "venv", "--clear"])
            .arg(&environment));
        let requirements = manifest("requirements.txt");
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "-r"])
            .arg(requirements));
    }
    python
}

fn has_library(python: &Path) -> bool {
    let probe = "from websockets.asyncio.client import connect";
    Command::new(python)
        .args(["-c", probe])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// `target`, above `target/<profile>/deps/<test>`.
fn target() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    test.ancestors()
        .nth(3)
        .expect("a test lives in target/<profile>/deps")
        .to_owned()
}
