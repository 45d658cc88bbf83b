//! Where the binaries under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Set to take the binaries from elsewhere, for example a release build.
const DIRECTORY: &str = "HOLDFAST_BIN_DIR";
const PACKAGES: [&str; 3] = ["holdfast-frontend", "holdfast-backend", "holdfast-cli"];

/// Serialises the build within this process; cargo's own lock does so between processes.
static BUILDING: Mutex<()> = Mutex::new(());

/// The path of a binary: in `HOLDFAST_BIN_DIR`, else beside the test executable, where it is built if it is missing.
/// One that is there is taken as it is, so build first what should be tested.
pub fn locate(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return Path::new(&directory).join(name);
    }
    let directory = beside_the_tests();
    let path = directory.join(name);
    let _building = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !path.exists() {
        build(&directory);
    }
    assert!(path.exists(), "cargo built no {}", path.display());
    path
}

/// `target/<profile>`, two levels above `target/<profile>/deps/<test>`.
fn beside_the_tests() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    test.ancestors()
        .nth(2)
        .expect("a test lives in target/<profile>/deps")
        .to_owned()
}

fn build(directory: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("build").current_dir(env!("CARGO_MANIFEST_DIR"));
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    for package in PACKAGES {
        cargo.args(["-p", package]);
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "the binaries under test do not build");
}
