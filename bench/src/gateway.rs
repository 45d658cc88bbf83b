//! The real binaries on generated keys and free loopback ports, with the service behind them.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_proto::ChannelKind;
use holdfast_proto::secure::MasterKey;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::conductor::Worker;
use crate::keys::{Certificates, MASTER_KEY_ID, TokenKey, random_hex};
use crate::process::Cpu;
use crate::protocol::{Endpoint, Role, ServerTls, Speak};

/// What a scenario needs of the gateway.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    /// Every freed page is given back at once, so that memory is what is held.
    pub(crate) thrifty: bool,
    /// How many sessions there will be, for limits that stand in their way.
    pub(crate) sessions: u32,
}

/// One frontend and one backend. Dropping it kills both and removes their directory.
pub(crate) struct Gateway {
    pub(crate) frontend_pid: u32,
    pub(crate) backend_pid: u32,
    pub(crate) service: Worker,
    pub(crate) api: SocketAddr,
    pub(crate) api_key: String,
    wss: SocketAddr,
    ws: SocketAddr,
    udp: SocketAddr,
    token_seed: [u8; 32],
    master_key: [u8; 32],
    _frontend: Child,
    _backend: Child,
    // After the processes: it must outlive them.
    dir: TempDir,
}

impl Gateway {
    /// Starts everything; on return a backend is attached.
    pub(crate) async fn start(bin_dir: Option<&Path>) -> Result<Self> {
        Self::start_for(bin_dir, &Setup::default()).await
    }

    pub(crate) async fn start_for(bin_dir: Option<&Path>, setup: &Setup) -> Result<Self> {
        let environment: &[_] = if setup.thrifty {
            &[("MIMALLOC_PURGE_DELAY", "0")]
        } else {
            &[]
        };
        let binaries = ["holdfast-frontend", "holdfast-backend"].map(|name| binary(bin_dir, name));
        let [frontend_binary, backend_binary] = binaries;
        let (frontend_binary, backend_binary) = (frontend_binary?, backend_binary?);
        let service = Worker::start("service", &Role::Service).await?;
        let dir = tempfile::Builder::new().prefix("holdfast-bench-").tempdir()?;
        let (token_seed, master_key) = (rand::random(), rand::random());
        let api_key = format!("hf_{}", random_hex());
        let [wss, ws, udp, admin, api] = free_ports()?;
        write_shared(dir.path(), token_seed, &api_key, service.address)?;
        write(dir.path(), "master_keys.toml", &master_toml(&master_key)?)?;
        write(
            dir.path(),
            "frontend.toml",
            &frontend_toml(dir.path(), [wss, ws, udp], admin, setup.sessions),
        )?;
        write(dir.path(), "backend.toml", &backend_toml(dir.path(), api))?;
        let mut frontend = start(dir.path(), &frontend_binary, "frontend", environment)?;
        let mut backend = start(dir.path(), &backend_binary, "backend", environment)?;
        wait_ready(&mut frontend, admin, &dir.path().join("frontend.log")).await?;
        wait_ready(&mut backend, api, &dir.path().join("backend.log")).await?;
        Ok(Self {
            frontend_pid: frontend.id().unwrap_or_default(),
            backend_pid: backend.id().unwrap_or_default(),
            service,
            api,
            api_key,
            wss,
            ws,
            udp,
            token_seed,
            master_key,
            _frontend: frontend,
            _backend: backend,
            dir,
        })
    }

    /// Where devices of this gateway connect.
    pub(crate) fn endpoint(&self, kind: ChannelKind) -> Endpoint {
        match kind {
            ChannelKind::Udp => Endpoint {
                address: self.udp,
                ca: None,
                speak: Speak::Packets {
                    master_key: self.master_key,
                    sockets: 0,
                },
            },
            ChannelKind::Wss => Endpoint {
                address: self.wss,
                ca: Some(self.ca()),
                speak: Speak::Holdfast {
                    token_seed: self.token_seed,
                },
            },
            ChannelKind::Ws => Endpoint {
                address: self.ws,
                ca: None,
                speak: Speak::Records {
                    master_key: self.master_key,
                },
            },
        }
    }

    /// The same on udp, on so many sockets per process.
    pub(crate) fn shared_endpoint(&self, sockets: u32) -> Endpoint {
        let master_key = self.master_key;
        Endpoint {
            speak: Speak::Packets { master_key, sockets },
            ..self.endpoint(ChannelKind::Udp)
        }
    }

    /// What device keys are made from.
    pub(crate) fn master_key(&self) -> [u8; 32] {
        self.master_key
    }

    /// The CA, for baselines that use the same certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn tls(&self) -> ServerTls {
        ServerTls {
            certificate: self.dir.path().join("cert.pem"),
            key: self.dir.path().join("key.pem"),
        }
    }

    /// CPU of frontend, backend and service.
    pub(crate) fn cpu(&self) -> Result<[Cpu; 3]> {
        Ok([
            Cpu::read(self.frontend_pid)?,
            Cpu::read(self.backend_pid)?,
            self.service.cpu()?,
        ])
    }
}

/// The binary in `dir`, or beside this program.
fn binary(dir: Option<&Path>, name: &str) -> Result<PathBuf> {
    let path = match dir {
        Some(dir) => dir.join(name),
        None => std::env::current_exe()
            .context("cannot find this program")?
            .with_file_name(name),
    };
    if path.is_file() {
        return Ok(path);
    }
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    bail!(
        "there is no {}: run `cargo build{profile} -p holdfast-frontend -p holdfast-backend`, or say where it is with --bin-dir",
        path.display()
    )
}

/// Ports that were free a moment ago: wss, ws, udp, admin, API.
fn free_ports() -> Result<[SocketAddr; 5]> {
    let listen = || TcpListener::bind("127.0.0.1:0").context("no free port");
    let datagrams = UdpSocket::bind("127.0.0.1:0").context("no free port")?;
    let listeners = [listen()?, listen()?, listen()?, listen()?];
    let [wss, ws, admin, api] = listeners.each_ref().map(TcpListener::local_addr);
    Ok([wss?, ws?, datagrams.local_addr()?, admin?, api?])
}

fn write_shared(dir: &Path, token_seed: [u8; 32], api_key: &str, service: SocketAddr) -> Result<()> {
    let certificates = Certificates::generate().context("cannot make a certificate")?;
    write(dir, "ca.pem", &certificates.ca)?;
    write(dir, "cert.pem", &certificates.certificate)?;
    write(dir, "key.pem", &certificates.key)?;
    write(
        dir,
        "token_keys.pem",
        &TokenKey::from_seed(token_seed).public_pem()?,
    )?;
    write(dir, "signing.key", &random_hex())?;
    let keys = format!("[[key]]\nid = \"bench\"\nsecret = \"{api_key}\"\nscopes = [\"push\", \"read\"]\n");
    write(dir, "api_keys.toml", &keys)?;
    let routes = format!(
        "[[route]]\nnamespace = \"Bench\"\nname = \"*\"\nurl = \"http://{service}/\"\nqueue = {ROUTE_QUEUE}\n"
    );
    write(dir, "routes.toml", &routes)
}

/// Waiting calls: more than the saturated run has in flight, so that nothing is refused.
const ROUTE_QUEUE: u32 = 8192;

fn master_toml(key: &[u8; 32]) -> Result<String> {
    let key = MasterKey::from_bytes(key).context("a master key has 32 bytes")?;
    Ok(format!("[keys]\n{MASTER_KEY_ID} = \"{}\"\n", key.to_text()))
}

/// Handshakes are not throttled by address: all devices come from this machine.
fn frontend_toml(dir: &Path, [wss, ws, udp]: [SocketAddr; 3], admin: SocketAddr, sessions: u32) -> String {
    let dir = dir.display();
    // Shards have equal parts of what is allowed, and not of the sessions.
    let max_sessions = LEAST_SESSIONS.max(2 * sessions);
    let output = LEAST_OUTPUT_BYTES.max(u64::from(sessions) * OUTPUT_BYTES_EACH);
    format!(
        "frontend_id = 1\ndata_dir = \"{dir}/frontend\"\nlink = \"ipc://{dir}/link/frontend.sock\"\n\
         admin = \"{admin}\"\n[wss]\nlisten = \"{wss}\"\ncertificate = \"{dir}/cert.pem\"\nkey = \"{dir}/key.pem\"\n\
         [ws]\nlisten = \"{ws}\"\nsource_attempts_per_minute = 0\n\
         [udp]\nlisten = \"{udp}\"\nsource_attempts_per_minute = 0\n\
         [limits]\nmax_sessions = {max_sessions}\nopening_per_source = 0\noutput_total_bytes = {output}\n"
    )
}

/// The frontend's defaults.
const LEAST_SESSIONS: u32 = 1_000_000;
const LEAST_OUTPUT_BYTES: u64 = 256 << 20;
/// Room for one push to every session, twice over.
const OUTPUT_BYTES_EACH: u64 = 1024;

fn backend_toml(dir: &Path, api: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "name = \"backend\"\nfrontends = [\"ipc://{dir}/link/frontend.sock\"]\napi = \"{api}\"\n\
         api_keys = \"{dir}/api_keys.toml\"\ntoken_keys = \"{dir}/token_keys.pem\"\nroutes = \"{dir}/routes.toml\"\n\
         push_timeout = \"60s\"\n\
         [signing]\nkey = \"{dir}/signing.key\"\n[device_keys]\nmaster = \"{dir}/master_keys.toml\"\n"
    )
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn start(dir: &Path, binary: &Path, name: &str, environment: &[(&str, &str)]) -> Result<Child> {
    let log = File::create(dir.join(format!("{name}.log")))?;
    Command::new(binary)
        .arg("--config")
        .arg(dir.join(format!("{name}.toml")))
        .env("HOLDFAST_LOG", "warn")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

/// How long a process may take to get ready.
const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

async fn wait_ready(child: &mut Child, admin: SocketAddr, log: &Path) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Ok(Ok(true)) = timeout(POLL * 10, is_ready(admin)).await {
            return Ok(());
        }
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            let what = ended.map_or_else(|| "is not ready".to_owned(), |status| format!("ended ({status})"));
            bail!("{} {what}:\n{said}", log.display());
        }
        sleep(POLL).await;
    }
}

async fn is_ready(admin: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
