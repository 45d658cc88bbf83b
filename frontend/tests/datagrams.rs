//! The program as devices over datagrams find it, before any backend is there.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use holdfast_proto::udp::datagram::{Hello, data_header, encode_hello};
use holdfast_proto::udp::{ConnectionId, Datagram, Parameters, parse};

/// Longest wait for anything that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

struct Frontend {
    udp: SocketAddr,
    child: Child,
    /// Kept open: a log that nobody reads must not end the process.
    _log: BufReader<ChildStderr>,
}

impl Frontend {
    fn start(directory: &Path) -> Self {
        let mut child = command(&config(directory, "one", "127.0.0.1:0"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("is ready") {
            line.clear();
            assert!(
                log.read_line(&mut line).unwrap() > 0,
                "it ended before it was ready"
            );
        }
        let udp = line.split("\"udp\":\"").nth(1).unwrap();
        Self {
            udp: udp.split('"').next().unwrap().parse().unwrap(),
            child,
            _log: log,
        }
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(directory: &Path, name: &str, listen: &str) -> std::path::PathBuf {
    let path = directory.join(format!("{name}.toml"));
    let dir = directory.display();
    let text = format!(
        "frontend_id = 3\ndata_dir = \"{dir}/{name}\"\nlink = \"ipc://{dir}/{name}-link/frontend.sock\"\n\
         admin = \"127.0.0.1:0\"\nshards = 2\n[times]\nwait = \"150ms\"\nretry_hint = \"2s\"\n\
         [udp]\nlisten = \"{listen}\"\n"
    );
    fs::write(&path, text).unwrap();
    path
}

fn command(config: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_holdfast-frontend"));
    program
        .env_remove("NOTIFY_SOCKET")
        .args(["--log-format", "json", "--config"])
        .arg(config);
    program
}

fn device() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let n = socket.recv(&mut buffer).unwrap();
    buffer[..n].to_vec()
}

/// What a connection is answered that the frontend does not know.
fn reset_token(frontend: &Frontend, cid: ConnectionId) -> [u8; 16] {
    let device = device();
    let datagram = [&data_header(cid, 0)[..], &[0; 16]].concat();
    device.send_to(&datagram, frontend.udp).unwrap();
    match parse(&receive(&device)).unwrap() {
        Datagram::Reset { cid: of, token } => {
            assert_eq!(of, cid);
            *token
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_hears_that_nobody_can_admit_it() {
    let directory = tempfile::tempdir().unwrap();
    let frontend = Frontend::start(directory.path());
    let device = device();
    let mut hello = Vec::new();
    let parameters = Parameters {
        attempt: 77,
        max_datagram: 1200,
        receive_bytes: 65_536,
        receive_messages: 32,
    };
    let asked = Hello {
        parameters,
        cookie: b"",
        credential: b"who",
    };
    encode_hello(&asked, &mut hello);
    device.send_to(&hello, frontend.udp).unwrap();
    let answer = receive(&device);
    match parse(&answer).unwrap() {
        Datagram::Refused(refused) => {
            assert_eq!((refused.attempt, refused.status), (77, 503));
            assert_eq!((refused.code, refused.retryable), ("unavailable", true));
            assert!((2_000..=4_000).contains(&refused.retry_after_ms));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reset_is_the_same_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let frontend = Frontend::start(directory.path());
    let cids = [0, 1].map(|shard| ConnectionId::new(shard, 5, 6));
    let before = cids.map(|cid| reset_token(&frontend, cid));
    assert_ne!(before[0], before[1]);
    let key = directory.path().join("one/reset.key");
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    drop(frontend);
    let frontend = Frontend::start(directory.path());
    assert_eq!(cids.map(|cid| reset_token(&frontend, cid)), before);
}

#[test]
fn a_port_in_use_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let frontend = Frontend::start(directory.path());
    let config = config(directory.path(), "two", &frontend.udp.to_string());
    let output = command(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let last = text.trim_end().lines().last().unwrap();
    assert!(
        last.contains("udp.listen") && last.contains(&frontend.udp.to_string()),
        "{text}"
    );
}
