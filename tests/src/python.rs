//! Python for the tests that need it: an interpreter with the libraries, and devices on `ws` that share no code with us.
//!
//! The libraries are what `python/requirements.txt` pins, in a virtual environment under `target/` that is made once; a system whose
//! Python has them already needs no network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

/// A process of Python devices, which ends with this.
pub struct Devices {
    socket: Arc<Path>,
    _process: Child,
}

impl Devices {
    /// Starts the process, which listens on `socket`.
    pub async fn start(socket: PathBuf) -> Self {
        let python = tokio::task::spawn_blocking(interpreter)
            .await
            .expect("it does not panic");
        let mut process = tokio::process::Command::new(python)
            .arg(manifest("python/driven.py"))
            .arg(&socket)
            // Open for as long as this process lives: its end is the other one's too.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python starts");
        let mut said = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let ready = said.next_line().await.expect("Python writes text");
        assert_eq!(ready.as_deref(), Some("listening"), "of {socket:?}");
        Self {
            socket: socket.into(),
            _process: process,
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> Arc<Path> {
        self.socket.clone()
    }
}

/// A Python that has the libraries.
pub fn interpreter() -> PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(find).clone()
}

fn find() -> PathBuf {
    let system = PathBuf::from("python3");
    if has_libraries(&system) {
        return system;
    }
    let environment = target().join("python-device");
    let python = environment.join("bin/python");
    // Other processes may be about to make it too.
    let lock = File::create(target().join("python-device.lock")).expect("a file under target");
    lock.lock().expect("a lock on our own file");
    if !has_libraries(&python) {
        run(Command::new(&system)
            .args(["-m", "venv", "--clear"])
            .arg(&environment));
        run(Command::new(&python)
            // Registries are out of reach at times: it comes again after ever longer, for some minutes.
            .args(["-m", "pip", "install", "--quiet", "--retries", "10", "-r"])
            .arg(manifest("python/requirements.txt")));
    }
    python
}

fn has_libraries(python: &Path) -> bool {
    let probe = "import websockets.asyncio.client, noise.connection, cryptography";
    Command::new(python)
        .args(["-c", probe])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs it to its end, which must be a good one.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A file beside this crate's manifest.
pub fn manifest(name: &str) -> PathBuf {
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
