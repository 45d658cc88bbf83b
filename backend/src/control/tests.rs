//! The control socket over real HTTP, with a member that the test scripts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use holdfast_proto::{FrontendEpoch, FrontendId};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::dispatch::RequestMetrics;
use crate::metrics::new_registry;

const PATIENCE: Duration = Duration::from_secs(20);

struct FakeMember {
    share: Mutex<Share>,
    refuses: Mutex<Option<ShareRefused>>,
    missing: Mutex<Option<String>>,
}

#[async_trait]
impl Member for FakeMember {
    fn status(&self) -> Status {
        let frontend = FrontendStatus {
            address: "ipc:///f".to_owned(),
            state: "active",
            frontend_id: Some(FrontendId(1)),
            frontend_epoch: Some(FrontendEpoch(9)),
        };
        Status {
            name: "b".to_owned(),
            version: "1".to_owned(),
            epoch: "e".to_owned(),
            pid: 7,
            share: *self.share.lock().unwrap(),
            draining: false,
            in_flight: 3,
            frontends: vec![frontend],
            requests: RequestCounts::read(&RequestMetrics::default()),
        }
    }

    fn attached(&self) -> Result<(), String> {
        self.missing.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn set_share(&self, share: Share) -> Result<(), ShareRefused> {
        if let Some(refused) = *self.refuses.lock().unwrap() {
            return Err(refused);
        }
        *self.share.lock().unwrap() = share;
        Ok(())
    }
}

struct Socket {
    member: Arc<FakeMember>,
    directory: tempfile::TempDir,
    end: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Socket {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(directory.path(), "b").unwrap();
        let member = Arc::new(FakeMember {
            share: Mutex::new(Share::NONE),
            refuses: Mutex::default(),
            missing: Mutex::default(),
        });
        let (end, ended) = oneshot::channel();
        let shutdown = async { drop(ended.await) };
        let registry = Arc::new(new_registry());
        let serving = tokio::spawn(serve(socket, member.clone(), registry, shutdown));
        Self {
            member,
            directory,
            end,
            serving,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("b.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Status and body of what the server says to these bytes.
    async fn say(&self, request: String) -> (u16, String) {
        let mut stream = self.connect();
        let exchange = move || {
            // What is too long is answered before it is read to its end.
            let _ = stream.write_all(request.as_bytes());
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        let answer = tokio::task::spawn_blocking(exchange).await.unwrap();
        let status = answer
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .parse()
            .unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        let (status, body) = self.say(head + body).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }
}

#[tokio::test]
async fn the_status_is_told() {
    let socket = Socket::start();
    let (status, body) = socket.call("GET", "/status", "").await;
    assert_eq!(status, 200);
    let bounds = body["requests"]["duration_us"]["bounds"]
        .as_array()
        .unwrap()
        .len();
    let counts = body["requests"]["duration_us"]["counts"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(counts, bounds + 1);
    let mut rest = body;
    rest["requests"]["duration_us"] = Value::Null;
    let expected = json!({
        "name": "b", "version": "1", "epoch": "e", "pid": 7, "share_percent": 0.0, "draining": false, "in_flight": 3,
        "frontends": [{"address": "ipc:///f", "state": "active", "frontend_id": 1, "frontend_epoch": 9}],
        "requests": {"answered": 0, "errors": {}, "duration_us": null},
    });
    assert_eq!(rest, expected);
}

#[tokio::test]
async fn health_and_metrics_are_there() {
    let socket = Socket::start();
    assert_eq!(socket.call("GET", "/live", "").await.0, 200);
    assert_eq!(socket.call("GET", "/ready", "").await.0, 200);
    *socket.member.missing.lock().unwrap() = Some("0 of 1 frontends are attached".to_owned());
    let (status, body) = socket.call("GET", "/ready", "").await;
    assert_eq!(
        (status, &body["code"], &body["detail"]),
        (503, &json!("not_ready"), &json!("0 of 1 frontends are attached"))
    );
    let (status, text) = socket.call("GET", "/metrics", "").await;
    assert!(status == 200 && text.as_str().unwrap().contains("holdfast_backend_build"));
}

#[tokio::test]
async fn a_share_is_set_and_the_answer_shows_it() {
    let socket = Socket::start();
    for (body, percent) in [
        (r#"{"percent": 5}"#, 5.0),
        (r#"{"percent":0.25}"#, 0.25),
        (r#"{"percent":100}"#, 100.0),
    ] {
        let (status, answer) = socket.call("PUT", "/share", body).await;
        assert_eq!((status, answer["share_percent"].as_f64()), (200, Some(percent)));
        assert_eq!(socket.member.share.lock().unwrap().percent(), percent);
    }
}

#[tokio::test]
async fn what_is_no_share_is_refused_with_a_problem() {
    let socket = Socket::start();
    for (body, status, code) in [
        ("", 400, "bad_request"),
        ("{}", 400, "bad_request"),
        (r#"{"percent":"5"}"#, 400, "bad_request"),
        (r#"{"percent":5,"x":1}"#, 400, "bad_request"),
        (r#"{"percent":-1}"#, 422, "invalid_field"),
        (r#"{"percent":100.5}"#, 422, "invalid_field"),
        (r#"{"percent":0.001}"#, 422, "invalid_field"),
    ] {
        let (got, problem) = socket.call("PUT", "/share", body).await;
        assert_eq!(
            (got, &problem["code"]),
            (status, &json!(code)),
            "{body}: {problem}"
        );
        assert_eq!(problem["status"], status);
    }
    assert!(socket.member.share.lock().unwrap().is_none());
    for (refused, code) in [
        (ShareRefused::Draining, "draining"),
        (ShareRefused::Unsupported, "unsupported"),
    ] {
        *socket.member.refuses.lock().unwrap() = Some(refused);
        let (status, problem) = socket.call("PUT", "/share", r#"{"percent":5}"#).await;
        assert_eq!((status, &problem["code"]), (409, &json!(code)));
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() {
    let socket = Socket::start();
    assert_eq!(
        socket.call("GET", "/v1/messages", "").await.1["code"],
        "not_found"
    );
    assert_eq!(
        socket.call("POST", "/share", "").await.1["code"],
        "method_not_allowed"
    );
}

#[tokio::test]
async fn bodies_are_bounded_in_size() {
    let socket = Socket::start();
    let fits = format!("{{\"percent\": 5{}}}", " ".repeat(MAX_BODY_BYTES - 14));
    assert_eq!(fits.len(), MAX_BODY_BYTES);
    assert_eq!(socket.call("PUT", "/share", &fits).await.0, 200);
    let (status, problem) = socket.call("PUT", "/share", &format!("{fits} ")).await;
    assert_eq!((status, &problem["code"]), (413, &json!("payload_too_large")));
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let socket = Socket::start();
    let head = "PUT /share HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 9\r\n\r\n";
    let (status, body) = socket.say(head.to_owned()).await;
    assert_eq!(status, 408);
    assert!(body.contains("body_timeout"), "{body}");
}

#[tokio::test]
async fn connections_are_bounded_and_who_leaves_makes_room() {
    let socket = Socket::start();
    let idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| socket.connect()).collect();
    // Each has been accepted when it has been answered once.
    for mut stream in &idle {
        stream
            .write_all(b"GET /live HTTP/1.1\r\nhost: h\r\n\r\n")
            .unwrap();
        let stream = stream.try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            let mut stream = stream;
            stream.read_exact(&mut [0; 15])
        })
        .await
        .unwrap()
        .unwrap();
    }
    let one_more = socket.call("GET", "/live", "");
    let mut one_more = std::pin::pin!(one_more);
    let waiting = tokio::time::timeout(Duration::from_millis(100), &mut one_more).await;
    assert!(waiting.is_err(), "there is no place for it");
    drop(idle);
    assert_eq!(one_more.await.0, 200);
}

#[tokio::test]
async fn the_end_removes_the_socket() {
    let socket = Socket::start();
    assert_eq!(socket.call("GET", "/live", "").await.0, 200);
    socket.end.send(()).unwrap();
    tokio::time::timeout(PATIENCE, socket.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(std::fs::read_dir(socket.directory.path()).unwrap().count(), 0);
}
