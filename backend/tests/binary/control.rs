//! The control socket of the real binary.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_proto::Share;
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::DrainMark;
use serde_json::{Value, json};

use super::frontend::Frontend;
use super::{Fixture, PATIENCE, path, run};

/// Status and JSON of one call.
fn call(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

async fn share(socket: &Path, percent: f64) -> (u16, Value) {
    let (socket, body) = (socket.to_owned(), json!({"percent": percent}).to_string());
    let called = tokio::task::spawn_blocking(move || call(&socket, "PUT", "/share", &body));
    called.await.unwrap()
}

/// Waits until `GET path` is answered with this status.
async fn wait_for(socket: &Path, path: &'static str, status: u16) {
    let until = Instant::now() + PATIENCE;
    while call(socket, "GET", path, "").0 != status {
        assert!(Instant::now() < until, "{path} does not become {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The next share that the backend names, in hundredths of a percent.
async fn said(frontend: &mut Frontend) -> u16 {
    let mut share = None;
    let named = |command: &Command| {
        if let Command::Ready(ready) = command {
            share = Some(Share::from(*ready).hundredths());
        }
        share.is_some()
    };
    frontend.until(named).await;
    share.unwrap()
}

fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

#[tokio::test]
async fn a_standby_becomes_a_canary_and_a_member_and_leaves() {
    let fixture = Fixture::new("");
    let socket = socket(&fixture.control(), "b-2");
    let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
    frontend.name = "b-2";
    let mut backend = fixture.start_as(&["--name", "b-2", "--share", "0%"]);
    frontend.until(|c| matches!(c, Command::Sync(_))).await;
    wait_for(&socket, "/ready", 200).await;
    let (_, status) = call(&socket, "GET", "/status", "");
    assert_eq!(
        (&status["name"], &status["share_percent"], &status["draining"]),
        (&json!("b-2"), &json!(0.0), &json!(false))
    );
    assert_eq!(status["pid"], backend.child.id());
    let link = &status["frontends"][0];
    assert_eq!(
        (&link["state"], &link["frontend_id"]),
        (&json!("standby"), &json!(1))
    );
    assert_eq!(
        link["address"],
        format!("ipc://{}", fixture.path("frontend.sock").display())
    );

    for (percent, hundredths) in [(5.0, 500), (0.0, 0), (100.0, 10_000)] {
        let (status, body) = share(&socket, percent).await;
        assert_eq!((status, body["share_percent"].as_f64()), (200, Some(percent)));
        assert_eq!(said(&mut frontend).await, hundredths);
    }
    // Promoted, it serves its API.
    assert_eq!(backend.get("/ready"), 200);

    backend.signal("-TERM");
    frontend.until(|c| matches!(c, Command::Draining(_))).await;
    wait_for(&socket, "/ready", 503).await;
    let (status, problem) = share(&socket, 5.0).await;
    assert_eq!((status, &problem["code"]), (409, &json!("draining")));
    assert_eq!(call(&socket, "GET", "/status", "").1["draining"], true);
    let last_frame = frontend.lane.as_ref().unwrap().last_frame();
    frontend.send(Command::DrainMark(DrainMark { last_frame })).await;
    frontend.until(|c| matches!(c, Command::Done(_))).await;
    let ended = tokio::task::spawn_blocking(move || backend.wait());
    assert_eq!(ended.await.unwrap().code(), Some(0));
    assert!(!socket.exists(), "it leaves no socket behind");
}

#[tokio::test]
async fn a_frontend_that_comes_back_hears_the_share_again() {
    let fixture = Fixture::new("");
    let socket = socket(&fixture.control(), "backend");
    let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
    let _backend = fixture.start_as(&["--share", "0.5%"]);
    assert_eq!(said(&mut frontend).await, 50);
    assert_eq!(share(&socket, 7.0).await.0, 200);
    assert_eq!(said(&mut frontend).await, 700);
    drop(frontend);
    wait_for(&socket, "/ready", 503).await;
    let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
    assert_eq!(said(&mut frontend).await, 700);
}

#[tokio::test]
async fn a_frontend_that_knows_no_shares_gets_full_members_only() {
    let fixture = Fixture::new("");
    let socket = socket(&fixture.control(), "backend");
    let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
    frontend.features.clear();
    let _backend = fixture.start_as(&["--share", "5%"]);
    frontend
        .until(|command| {
            assert!(!matches!(command, Command::Ready(_)), "it would take all");
            matches!(command, Command::Sync(_))
        })
        .await;
    wait_for(&socket, "/ready", 200).await;
    assert_eq!(
        call(&socket, "GET", "/status", "").1["frontends"][0]["state"],
        "standby"
    );
    assert_eq!(share(&socket, 100.0).await.0, 200);
    assert_eq!(said(&mut frontend).await, 10_000);
    let (status, problem) = share(&socket, 5.0).await;
    assert_eq!((status, &problem["code"]), (409, &json!("unsupported")));
    assert_eq!(call(&socket, "GET", "/status", "").1["share_percent"], 100.0);
}

#[test]
fn what_cannot_be_a_name_a_share_or_a_socket_is_said_in_one_line() {
    let fixture = Fixture::new("");
    let control = fixture.control();
    let config = fixture.path("backend.toml");
    let refused = |arguments: &[&str], wanted: &str| {
        let output = run(&[&["--config", path(&config)], arguments].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(wanted), "{text}");
    };
    refused(&["--name", "a/b"], "allowed is 1 to 64 bytes of letters");
    refused(&["--share", "101%"], "allowed is 0% to 100%");
    let _backend = fixture.start_as(&["--name", "b"]);
    refused(&["--name", "b"], "b.sock: each needs a name of its own");
    let name = "x".repeat(64);
    let long = fixture.path(&"d".repeat(107 - 64 - ".sock".len() - path(&fixture.path("")).len()));
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(path(&control), path(&long));
    std::fs::write(&config, text).unwrap();
    refused(
        &["--name", &name],
        "108 bytes long: a socket's path may have 107 at most",
    );
    refused(&["--name", &name, "--check"], "107 at most");
    let _fits = fixture.start_as(&["--name", &name[1..]]);
}

#[test]
fn a_killed_one_s_place_is_taken_by_the_next() {
    let fixture = Fixture::new("");
    let socket = socket(&fixture.control(), "backend");
    for _ in 0..2 {
        let mut backend = fixture.start();
        assert_eq!(call(&socket, "GET", "/live", "").0, 200);
        backend.signal("-KILL");
        backend.wait();
        assert!(socket.exists());
    }
    let mut backend = fixture.start();
    backend.signal("-TERM");
    assert_eq!(backend.wait().code(), Some(0));
    assert!(!socket.exists());
}
