//! `holdfast bench upgrade` as someone would run it: each kind of event once and nothing noticed, a service broken on purpose
//! and that noticed, an interruption that leaves nothing behind, and a page that a browser draws.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use holdfast_tests::gateway::locate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn bench(args: &[&str]) -> Command {
    // The other two must be there before this one looks for them beside itself.
    locate("holdfast-frontend");
    locate("holdfast-backend");
    let mut command = Command::new(locate("holdfast"));
    command.args(["bench", "upgrade"]).args(args).stdin(Stdio::null());
    for (option, value) in DEFAULTS {
        if !args.contains(&option) {
            command.args([option, value]);
        }
    }
    command
}

/// Small and quick, where a test does not say otherwise.
const DEFAULTS: [(&str, &str); 13] = [
    ("--devices", "20"),
    ("--rate", "100"),
    ("--seed", "7"),
    ("--quiet", "1s"),
    ("--spacing", "1s"),
    ("--watch", "2s"),
    // This machine may be busy with other tests.
    ("--max-wait", "30s"),
    ("--canary-share", "50%"),
    ("--upgrades", "0"),
    ("--canaries", "0"),
    ("--rollbacks", "0"),
    ("--kills", "0"),
    ("--hangs", "0"),
];

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .join("\n")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(report: &Value, path: &str) -> u64 {
    let value = path
        .split('.')
        .fold(report, |value, key| match key.parse::<usize>() {
            Ok(place) => &value[place],
            Err(_) => &value[key],
        });
    value.as_u64().unwrap_or_else(|| panic!("{path} is {value}"))
}

/// A count that is split by names.
fn total(report: &Value, path: &str) -> u64 {
    let value = path.split('.').fold(report, |value, key| &value[key]);
    let counts = value.as_object().unwrap_or_else(|| panic!("{path} is {value}"));
    counts.values().filter_map(Value::as_u64).sum()
}

#[test]
fn one_of_each_event_is_not_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (report_path, page) = (dir.path().join("report.json"), dir.path().join("report.html"));
    let output = bench(&[
        "--upgrades",
        "1",
        "--canaries",
        "1",
        "--rollbacks",
        "1",
        "--kills",
        "1",
        "--hangs",
        "1",
        // A canary may take twice as long as the old one: next to this a short stall of one of the two is little.
        "--service-delay",
        "0ms..300ms",
    ])
    .arg("--json")
    .arg(&report_path)
    .arg("--html")
    .arg(&page)
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains("NOTHING WAS NOTICED in 5 events."),
        "{}",
        text(&output)
    );
    let report = json(&report_path);
    for path in [
        "requests.doubled",
        "requests.misordered",
        "requests.wrong_body",
        "requests.crossed",
        "requests.unasked",
        "requests.pushed",
        "requests.overlong",
        "service.again.not_in_flight",
        "service.again.in_graceful",
        "service.again.in_quiet",
        "service.bad_keys",
    ] {
        assert_eq!(number(&report, path), 0, "{path}");
    }
    for path in ["connections.dropped", "requests.lost", "requests.error_replies"] {
        assert_eq!(total(&report, path), 0, "{path}");
    }
    let sent = number(&report, "requests.sent");
    assert!(sent > 500, "{sent}");
    assert_eq!(number(&report, "requests.answered"), sent);
    assert_eq!(number(&report, "service.side_effects"), sent);
    let kinds: Vec<_> = report["kinds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["upgrade", "canary", "rollback", "kill", "hang"]);
    let stages: u64 = report["latency"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| number(row, "requests"))
        .sum();
    assert!(stages > sent / 2 && stages <= sent, "{stages} of {sent}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("Nothing was noticed in 5 events."));
    draw(&page);
}

/// In a browser where there is one: the script runs to its end, and all curves are there.
fn draw(page: &Path) {
    let profile = tempfile::tempdir().unwrap();
    let browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output();
    let Ok(browser) = browser else {
        eprintln!("no chromium here: the page was not drawn");
        return;
    };
    let dom = String::from_utf8_lossy(&browser.stdout);
    assert!(dom.contains("data-drawn=\"yes\""), "the page's script failed");
    assert_eq!(dom.matches("<path d=\"M").count(), 10, "a curve is missing");
    assert_eq!(
        dom.matches("<title>").count(),
        6,
        "one for the page, one for each event"
    );
}

#[test]
fn a_service_that_answers_with_another_body_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (report, kept) = (dir.path().join("report.json"), dir.path().join("run"));
    let output = bench(&["--upgrades", "1"])
        .args(["--service-fault", "other-body", "--json"])
        .arg(&report)
        .arg("--keep")
        .arg(&kept)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report = json(&report);
    let wrong = number(&report, "requests.crossed") + number(&report, "requests.wrong_body");
    assert!(wrong > 0, "{report}");
    assert_eq!(
        number(&report, "requests.answered") + wrong,
        number(&report, "requests.sent")
    );
    assert_eq!(report["verdict"]["clean"], false);
    assert!(kept.join("logs/frontend.log").exists(), "logs are kept");
}

#[test]
fn a_service_that_fails_is_noticed_by_code() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let output = bench(&["--kills", "1"])
        .args(["--service-fault", "fail", "--json"])
        .arg(&report)
        .arg("--keep")
        .arg(dir.path().join("run"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(number(&json(&report), "requests.error_replies.upstream_error") > 0);
}

/// Runs what must not pass, and gives its report.
fn noticed(args: &[&str]) -> (Value, Output) {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let output = bench(args)
        .arg("--json")
        .arg(&report)
        .arg("--keep")
        .arg(dir.path().join("run"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    (json(&report), output)
}

#[test]
fn a_wait_that_is_too_long_is_noticed() {
    let (report, output) = noticed(&["--upgrades", "1", "--max-wait", "1s", "--service-fault", "stall"]);
    assert!(number(&report, "requests.overlong") > 0, "{report}");
    assert!(number(&report, "requests.longest_wait_ms") >= 1_500, "{report}");
    assert_eq!(total(&report, "requests.lost"), 0, "{report}");
    assert!(
        text(&output).contains("requests that waited longer than 1s"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_hang_that_is_too_short_to_be_noticed_is_none() {
    let (report, output) = noticed(&["--hangs", "1", "--hang-for", "200ms"]);
    assert_eq!(number(&report, "kinds.0.not_as_planned"), 1, "{}", text(&output));
    assert!(
        text(&output).contains("--hang-for is too short"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_run_without_load_is_no_pass() {
    let (report, output) = noticed(&["--rate", "0.01", "--kills", "1"]);
    // The first request is due at once.
    assert!(number(&report, "requests.sent") <= 1, "{report}");
    assert!(
        text(&output).contains("events that no request met"),
        "{}",
        text(&output)
    );
}

#[test]
fn an_interruption_tells_what_was_seen_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("run");
    let mut run = bench(&["--kills", "100", "--spacing", "5s"])
        .arg("--keep")
        .arg(&kept)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(run.stderr.take().unwrap()).lines();
    assert!(
        said.any(|line| line.unwrap().contains(" in flight ")),
        "it never sent"
    );
    let up: Value = json(&kept.join("up.json"));
    kill(Pid::from_raw(run.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    said.for_each(drop);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("interrupted after"), "{}", text(&output));
    for name in ["up_pid", "frontend_pid", "backend_pid"] {
        let pid = Pid::from_raw(number(&up, name).try_into().unwrap());
        assert!(kill(pid, None).is_err(), "{name} {pid} was left behind");
    }
}

#[test]
fn what_cannot_be_run_is_said_in_one_line() {
    for (args, words) in [
        (&["--devices", "1000000"][..], "file descriptors"),
        (&["--service-delay", "5s", "--kills", "1"], "--spacing"),
        (&["--keep", "/proc"], "not empty"),
        (&["--max-wait", "1s", "--hangs", "1"], "--max-wait"),
        (
            &["--json", "/nowhere/report.json"],
            "cannot write /nowhere/report.json",
        ),
        (&["--html", "/proc/report.html"], "cannot write /proc/report.html"),
    ] {
        let output = bench(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(line.contains(words) && line.trim().lines().count() == 1, "{line}");
    }
}
