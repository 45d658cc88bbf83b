//! The real binary: its command line, its health, its link over ZeroMQ, its end.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod control;
mod device_keys;
mod frontend;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command as Process, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePublicKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use frontend::Frontend;
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{DrainMark, Request, Session};
use holdfast_proto::{FrontendEpoch, FrontendId, Generation, SessionId, SessionParts, ShardId, Slot};

const BINARY: &str = env!("CARGO_BIN_EXE_holdfast-backend");
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with everything that a backend needs, and no frontend.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(routes: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[7; 32])
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("token_keys.pem", &key);
        write("signing.key", &"ab".repeat(32));
        write("routes.toml", routes);
        let secret = format!("hf_{}", "s".repeat(40));
        write(
            "api_keys.toml",
            &format!("[[key]]\nid = \"ops\"\nsecret = \"{secret}\"\nscopes = [\"push\", \"read\"]\n"),
        );
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "frontends = [\"ipc://{}\"]\napi = \"127.0.0.1:0\"\nworkers = 1\napi_keys = \"{}\"\ntoken_keys = \"{}\"\n\
             routes = \"{}\"\n[signing]\nkey = \"{}\"\n",
            at("frontend.sock"),
            at("api_keys.toml"),
            at("token_keys.pem"),
            at("routes.toml"),
            at("signing.key"),
        );
        write("backend.toml", &config);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds the control socket's directory to the configuration and returns it.
    fn control(&self) -> PathBuf {
        let (config, directory) = (self.path("backend.toml"), self.path("control"));
        let text = std::fs::read_to_string(&config).unwrap();
        let line = format!("control_dir = {:?}\n", directory.display().to_string());
        std::fs::write(config, line + &text).unwrap();
        directory
    }

    fn start(&self) -> Backend {
        self.start_as(&[])
    }

    fn start_as(&self, arguments: &[&str]) -> Backend {
        let mut child = Process::new(BINARY)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .args(["--log-format", "json", "--config"])
            .arg(self.path("backend.toml"))
            .args(arguments)
            .env_remove("HOLDFAST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let api = loop {
            line.clear();
            assert!(
                log.read_line(&mut line).unwrap() > 0,
                "it ended before it was running"
            );
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(api) = value["fields"]["api"].as_str() {
                break api.to_owned();
            }
        };
        Backend { child, api, log }
    }
}

/// A running backend; killed when the test fails.
struct Backend {
    child: Child,
    api: String,
    /// Held open: a closed pipe would fail its log.
    log: BufReader<ChildStderr>,
}

impl Backend {
    /// The status of a GET.
    fn get(&self, path: &str) -> u16 {
        let answer = self.text(path);
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The answer to a GET, with its head.
    fn text(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.api).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let done = Process::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(done.success());
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    Process::new(BINARY).args(arguments).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_command_line_explains_itself() {
    let help = run(&["--help"]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.status.success() && text.contains("--config") && text.contains("--check"),
        "{text}"
    );
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn a_bad_configuration_is_one_line_and_exit_code_2() {
    let fixture = Fixture::new("");
    let config = fixture.path("backend.toml");
    assert!(run(&["--check", "--config", path(&config)]).status.success());
    let expect = |arguments: &[&str], wanted: &str| {
        let output = run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains(wanted) && text.trim().lines().count() == 1,
            "{text}"
        );
    };
    expect(&["--config", "/nowhere.toml"], "/nowhere.toml");
    std::fs::write(fixture.path("routes.toml"), "[[route]]\nnamespace = 1\n").unwrap();
    expect(&["--check", "--config", path(&config)], "routes.toml");
    expect(&["--config", path(&config)], "routes.toml");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace("workers = 1", "workers = 0");
    std::fs::write(&config, text).unwrap();
    expect(&["--config", path(&config)], "workers = 0");
}

#[test]
fn without_a_frontend_it_lives_but_is_not_ready_and_stops_at_once() {
    let fixture = Fixture::new("");
    for signal in ["-TERM", "-INT"] {
        let mut backend = fixture.start();
        assert_eq!(
            (
                backend.get("/live"),
                backend.get("/ready"),
                backend.get("/metrics")
            ),
            (200, 503, 200)
        );
        backend.signal(signal);
        assert_eq!(backend.wait().code(), Some(0));
    }
}

fn request(sequence: u64) -> Command {
    let id = SessionId::mint(SessionParts {
        frontend: FrontendId(1),
        epoch: FrontendEpoch(1),
        shard: ShardId(0),
        slot: Slot(1),
        generation: Generation(1),
    });
    Command::TextMessage(Request {
        session: Some(Session {
            id: Some(id.unwrap().into()),
            device: "lamp".into(),
            ..Default::default()
        }),
        sequence,
        floor: 1,
        deadline_ms: 10_000,
        payload: Bytes::from_static(br#"{"header":{"namespace":"N","name":"n"},"payload":{}}"#),
        ..Default::default()
    })
}

#[tokio::test]
async fn it_attaches_works_and_drains_without_losing_a_reply() {
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", service.local_addr().unwrap());
    let app = axum::Router::new().route("/", axum::routing::post(|| async { "{\"done\":true}" }));
    tokio::spawn(async move { axum_serve(service, app).await });
    let fixture = Fixture::new(&format!(
        "[[route]]\nnamespace = \"N\"\nname = \"*\"\nurl = \"{url}\"\n"
    ));
    let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
    let mut backend = fixture.start();
    frontend.until(|c| matches!(c, Command::Ready(_))).await;
    assert_eq!(backend.get("/ready"), 200);

    for n in 1..=200 {
        frontend.send(request(n)).await;
    }
    let mut replies = Vec::new();
    let mut draining = false;
    backend.signal("-TERM");
    frontend
        .until(|command| {
            match command {
                Command::Reply(reply) => {
                    assert!(
                        std::str::from_utf8(&reply.payload)
                            .unwrap()
                            .contains(r#""payload":{"done":true}"#)
                    );
                    replies.push(reply.sequence);
                }
                Command::Draining(_) => draining = true,
                _ => {}
            }
            draining
        })
        .await;
    // The last of the requests may still wait for credit: the mark follows them.
    while !frontend.lane.as_ref().unwrap().is_flushed() {
        frontend
            .until(|c| {
                if let Command::Reply(r) = c {
                    replies.push(r.sequence);
                    true
                } else {
                    false
                }
            })
            .await;
    }
    let last_frame = frontend.lane.as_ref().unwrap().last_frame();
    frontend.send(Command::DrainMark(DrainMark { last_frame })).await;
    frontend
        .until(|command| {
            if let Command::Reply(reply) = command {
                replies.push(reply.sequence);
            }
            matches!(command, Command::Done(_))
        })
        .await;
    assert_eq!(replies, (1..=200).collect::<Vec<_>>());
    let ended = tokio::task::spawn_blocking(move || backend.wait());
    assert_eq!(ended.await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_service_manager_is_told_when_a_frontend_is_attached_and_when_it_stops() {
    let fixture = Fixture::new("");
    let manager = tokio::net::UnixDatagram::bind(fixture.path("notify")).unwrap();
    let mut message = [0; 64];
    let mut backend = fixture.start_as(&["--share", "0%"]);
    let nothing = tokio::time::timeout(Duration::from_millis(200), manager.recv(&mut message)).await;
    assert!(nothing.is_err(), "no frontend is attached");
    let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
    frontend.until(|c| matches!(c, Command::Sync(_))).await;
    for said in ["READY=1", "STOPPING=1"] {
        let length = tokio::time::timeout(PATIENCE, manager.recv(&mut message))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&message[..length]).trim_end(), said);
        backend.signal("-TERM");
    }
    let _ = tokio::task::spawn_blocking(move || backend.wait()).await;
}

#[tokio::test]
async fn it_attaches_anew_when_the_frontend_comes_back() {
    let fixture = Fixture::new("");
    let mut backend = fixture.start();
    for _ in 0..3 {
        let mut frontend = Frontend::bind(&fixture.path("frontend.sock")).await;
        frontend.until(|c| matches!(c, Command::Ready(_))).await;
        assert_eq!(backend.get("/ready"), 200);
        drop(frontend);
        let until = Instant::now() + PATIENCE;
        while backend.get("/ready") != 503 {
            assert!(Instant::now() < until, "the loss is not noticed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    backend.signal("-TERM");
    assert_eq!(backend.wait().code(), Some(0));
}

/// `axum::serve` needs a feature that the project does without.
async fn axum_serve(listener: tokio::net::TcpListener, app: axum::Router) {
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
