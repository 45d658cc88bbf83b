//! The program as it is started, asked, connected to and stopped.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

/// Longest wait for anything that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer abc\r\n\r\n";

/// A directory with a certificate and a configuration.
struct Place {
    directory: TempDir,
    certificate: CertificateDer<'static>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(directory.path().join("cert.pem"), made.cert.pem()).unwrap();
        let key = directory.path().join("key.pem");
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let certificate = made.cert.der().clone();
        Self {
            directory,
            certificate,
        }
    }

    /// Writes a configuration; `{dir}` is this place.
    fn config(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        let directory = self.directory.path().to_str().unwrap();
        fs::write(&path, text.replace("{dir}", directory)).unwrap();
        path
    }

    fn valid(&self, name: &str, listen: &str, rest: &str) -> PathBuf {
        let text = format!(
            "frontend_id = 3\ndata_dir = \"{{dir}}/{name}\"\nlink = \"ipc://{{dir}}/{name}-link/frontend.sock\"\n\
             admin = \"127.0.0.1:0\"\nshards = 1\n{rest}\n[wss]\nlisten = \"{listen}\"\n\
             certificate = \"{{dir}}/cert.pem\"\nkey = \"{{dir}}/key.pem\"\n"
        );
        self.config(&format!("{name}.toml"), &text)
    }

    fn start(&self, config: &PathBuf) -> Frontend {
        Self::start_program(program(), config)
    }

    fn start_program(mut program: Command, config: &PathBuf) -> Frontend {
        let mut child = program
            .args(["--log-format", "json", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("\"wss\"") {
            line.clear();
            assert!(
                log.read_line(&mut line).unwrap() > 0,
                "it ended before it was ready"
            );
        }
        Frontend {
            wss: field(&line, "wss"),
            admin: field(&line, "admin"),
            child,
            _log: log,
        }
    }

    /// A device's TLS connection.
    fn connect(&self, frontend: &Frontend) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let socket = TcpStream::connect(frontend.wss).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
    }
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_holdfast-frontend"));
    program.env_remove("NOTIFY_SOCKET");
    program
}

fn field(line: &str, name: &str) -> SocketAddr {
    let from = line.split(&format!("\"{name}\":\"")).nth(1).unwrap();
    from.split('"').next().unwrap().parse().unwrap()
}

struct Frontend {
    wss: SocketAddr,
    admin: SocketAddr,
    child: Child,
    /// Kept open: a log that nobody reads must not end the process.
    _log: BufReader<std::process::ChildStderr>,
}

impl Frontend {
    fn get(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// What was wrong, in the one line that there may be.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

/// Reads an HTTP answer to its end: status, head and body.
fn answer(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    // A connection that ends without `close_notify` has said all the same what it had to say.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn help_says_what_it_takes() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["--config", "--check", "--log-format", "SIGTERM", "HOLDFAST_LOG"] {
        assert!(text.contains(word), "{word}");
    }
}

#[test]
fn a_bad_configuration_is_one_line_that_names_the_key() {
    let place = Place::new();
    let missing = complaint(&run(&["--config", "/nowhere/frontend.toml"]));
    assert!(missing.contains("/nowhere/frontend.toml"));
    let cases = [
        ("colour = 1", "colour"),
        ("[limits]\nwindow_requests = 0", "limits.window_requests"),
        ("[times]\nwait = \"soon\"", "soon"),
        ("[times]\nping_after = \"90s\"", "times.close_after"),
        ("[backends]\ntimeout = \"1ms\"", "backends.timeout"),
    ];
    for (index, (text, key)) in cases.into_iter().enumerate() {
        let path = place.valid(&format!("bad{index}"), "127.0.0.1:0", text);
        let line = complaint(&run(&["--config", path.to_str().unwrap()]));
        assert!(line.contains(key), "{line}");
    }
    let path = place.valid("good", "127.0.0.1:0", "");
    let output = run(&["--check", "--config", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    fs::remove_file(place.directory.path().join("key.pem")).unwrap();
    assert!(complaint(&run(&["--config", path.to_str().unwrap()])).contains("wss"));
}

#[test]
fn it_starts_answers_and_stops() {
    let place = Place::new();
    let config = place.valid(
        "one",
        "127.0.0.1:0",
        // Nobody is there to wait for when it stops; else it would for ten minutes.
        "[times]\nwait = \"150ms\"\nretry_hint = \"2s\"\nstop_grace = \"10m\"",
    );
    let mut frontend = place.start(&config);
    assert!(frontend.get("/live").starts_with("HTTP/1.1 200"));
    assert!(frontend.get("/ready").starts_with("HTTP/1.1 200"));

    let mut device = place.connect(&frontend);
    let asked = Instant::now();
    device.write_all(UPGRADE).unwrap();
    let refusal = answer(&mut device);
    assert!(
        asked.elapsed() >= Duration::from_millis(150),
        "it waits for a backend first"
    );
    assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
    let head = refusal.to_lowercase();
    let seconds = head
        .split("retry-after: ")
        .nth(1)
        .unwrap()
        .split("\r\n")
        .next()
        .unwrap();
    assert!((2..=4).contains(&seconds.parse::<u32>().unwrap()));
    assert!(head.contains("content-type: application/problem+json"));
    assert!(refusal.contains("\"code\":\"unavailable\"") && refusal.contains("\"retryable\":true"));

    let metrics = frontend.get("/metrics");
    assert!(
        metrics.contains("holdfast_frontend_accepted_total{shard=\"0\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("reason=\"unavailable\"") && metrics.contains("holdfast_link_backends 0"));

    frontend.terminate();
    assert_eq!(frontend.exit_code(), Some(0));
}

#[test]
fn the_service_manager_is_told() {
    let place = Place::new();
    let path = place.directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim_end().to_owned()
    };
    let mut program = program();
    program.env("NOTIFY_SOCKET", &path);
    let mut frontend = Place::start_program(program, &place.valid("one", "127.0.0.1:0", ""));
    assert_eq!(told(), "READY=1");
    assert!(frontend.get("/ready").starts_with("HTTP/1.1 200"));
    frontend.terminate();
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(frontend.exit_code(), Some(0));
}

#[test]
fn a_port_in_use_and_a_place_in_use_are_one_line() {
    let place = Place::new();
    let config = place.valid("one", "127.0.0.1:0", "");
    let frontend = place.start(&config);
    let line = complaint(&run(&["--config", config.to_str().unwrap()]));
    assert!(line.contains("data_dir"), "{line}");
    let other = place.valid("two", &frontend.wss.to_string(), "");
    let line = complaint(&run(&["--config", other.to_str().unwrap()]));
    assert!(
        line.contains("wss.listen") && line.contains(&frontend.wss.to_string()),
        "{line}"
    );
}

/// Whoever opens more connections than there are descriptors keeps neither backends nor operators out.
#[test]
fn connections_leave_descriptors_to_the_link_and_to_the_admin_listener() {
    const FILES: usize = 200;
    const OVER: usize = 30;
    let place = Place::new();
    let config = place.valid(
        "one",
        "127.0.0.1:0",
        "[limits]\nopening_per_source = 0\n[times]\naccept = \"3m\"",
    );
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {FILES} && exec \"$0\" \"$@\"")]);
    limited.arg(program().get_program()).env_remove("NOTIFY_SOCKET");
    let frontend = Place::start_program(limited, &config);
    let strangers: Vec<_> = (0..FILES / 2 + OVER)
        .map(|_| TcpStream::connect(frontend.wss).unwrap())
        .collect();
    let closed = format!("holdfast_frontend_refused_total{{shard=\"0\",reason=\"descriptors_full\"}} {OVER}");
    let deadline = Instant::now() + PATIENCE;
    let metrics = loop {
        let metrics = frontend.get("/metrics");
        if metrics.contains(&closed) {
            break metrics;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    };
    for line in [
        "holdfast_frontend_tcp_accept_pauses_total{shard=\"0\"} 0",
        "holdfast_frontend_tcp_aborted_total{shard=\"0\"} 0",
        "holdfast_frontend_input_bytes{shard=\"0\"} 0",
        "holdfast_frontend_stranger_bytes 0",
        "holdfast_frontend_stranger_bytes_refused_total 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let link = place.directory.path().join("one-link/frontend.sock");
    let mut backend = std::os::unix::net::UnixStream::connect(link).unwrap();
    backend.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 10];
    backend.read_exact(&mut greeting).unwrap();
    assert_eq!((greeting[0], greeting[9]), (0xff, 0x7f), "ZMTP's signature");
    // Those who go make room.
    drop(strangers);
    let deadline = Instant::now() + PATIENCE;
    let mut device = place.connect(&frontend);
    while device.write_all(b"POST / HTTP/1.1\r\n\r\n").is_err() {
        assert!(Instant::now() < deadline);
        device = place.connect(&frontend);
    }
    assert!(answer(&mut device).starts_with("HTTP/1.1 405"));
}

#[test]
fn who_waits_to_be_admitted_is_told_when_it_stops() {
    let place = Place::new();
    let config = place.valid("one", "127.0.0.1:0", "[times]\nwait = \"60s\"");
    let mut frontend = place.start(&config);
    let mut device = place.connect(&frontend);
    device.write_all(UPGRADE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !frontend
        .get("/metrics")
        .contains("holdfast_frontend_sessions{shard=\"0\"} 1")
    {
        assert!(Instant::now() < deadline);
    }
    // The session is there with the connection; its request is read by the time that a second one was refused.
    let mut garbled = place.connect(&frontend);
    garbled.write_all(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    let refusal = answer(&mut garbled);
    assert!(refusal.starts_with("HTTP/1.1 405"), "{refusal}");
    frontend.terminate();
    let refusal = answer(&mut device);
    assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
    assert_eq!(frontend.exit_code(), Some(0));
}
