//! RFC 6455 as Autobahn's test suite sees it: its fuzzing client against an echo on this module's WebSocket, over TCP and TLS.
//!
//! The suite needs a Python 2.7; `.ci/autobahn` installs it and runs the ignored test here. Autobahn cannot speak records,
//! so over TCP the echo has a layer without any ([`clear`]), which exists in tests alone. The credential that an upgrade
//! must bring is in Autobahn's list of sub-protocols.

mod clear;
mod echo;
mod report;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustls::version::TLS13;
use serde_json::{Value, json};

use super::test_client::configs;
use super::{Scratch, WssChannel};
use report::Report;

/// The suite's program, `wstest`.
const WSTEST: &str = "HOLDFAST_WSTEST";
/// Where the suite's own pages go, if set.
const REPORTS: &str = "HOLDFAST_AUTOBAHN_REPORTS";
/// All but compression, which is not offered.
const EXCLUDED: [&str; 2] = ["12.*", "13.*"];
/// Cases that a full run has for each server; fewer would mean that it broke off.
const CASES: usize = 301;

#[test]
#[ignore = "needs Autobahn's test suite: run .ci/autobahn"]
fn the_test_suite_of_autobahn_finds_no_fault() {
    let wstest = std::env::var_os(WSTEST).expect(".ci/autobahn says where wstest is");
    let (tls, _) = configs(&TLS13);
    let servers = [
        ("tcp", "ws", echo::start(clear::channel)),
        (
            "tls",
            "wss",
            echo::start(move |_: &mut Scratch| WssChannel::new(&tls).unwrap()),
        ),
    ];
    let own = tempfile::tempdir().unwrap();
    let reports = std::env::var_os(REPORTS).map_or_else(|| own.path().join("reports"), PathBuf::from);
    let servers = servers.map(|(agent, scheme, port)| {
        json!({
            "agent": agent,
            "url": format!("{scheme}://127.0.0.1:{port}"),
            "protocols": ["holdfast.v1", "bearer.x"],
        })
    });
    run(&wstest, own.path(), &reports, &servers);
    let report = Report::read(&reports.join("index.json"));
    println!("{report}");
    for agent in ["tcp", "tls"] {
        assert_eq!(report.cases(agent), CASES, "cases over {agent}");
    }
    let faults = report.faults();
    assert!(faults.is_empty(), "{faults:#?}");
}

fn run(wstest: &OsStr, directory: &Path, reports: &Path, servers: &[Value]) {
    let spec = json!({
        "outdir": reports,
        "servers": servers,
        "cases": ["*"],
        "exclude-cases": EXCLUDED,
        "exclude-agent-cases": {},
    });
    let file = directory.join("fuzzingclient.json");
    std::fs::write(&file, spec.to_string()).unwrap();
    let status = Command::new(wstest)
        .args(["-m", "fuzzingclient", "-s"])
        .arg(&file)
        .current_dir(directory)
        .stdout(Stdio::null())
        .status()
        .expect("wstest starts");
    assert!(status.success(), "wstest: {status}");
}
