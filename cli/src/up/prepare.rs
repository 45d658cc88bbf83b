//! Everything that can fail before a process is started: the lock, the binaries, the ports, the files.

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::binary::Program;
use super::{Ports, child, config, control, keys};
use crate::args::UpArgs;
use crate::files;
use crate::layout::Layout;

/// What `up` needs to start.
pub(super) struct Prepared {
    pub(super) lock: File,
    pub(super) ports: Ports,
    pub(super) api_key: String,
    /// The API's listening socket: it outlives each backend, so that no caller is refused during a restart.
    pub(super) api: Arc<std::net::TcpListener>,
    pub(super) demo: TcpListener,
    /// Where upgrades are asked for.
    pub(super) control: UnixListener,
    pub(super) frontend_bin: PathBuf,
    pub(super) backend_bin: PathBuf,
}

pub(super) async fn prepare(layout: &Layout, args: &UpArgs) -> Result<Prepared> {
    let frontend_bin = binary(
        args.frontend_bin.as_deref(),
        "holdfast-frontend",
        "--frontend-bin",
    )?;
    let backend_bin = binary(args.backend_bin.as_deref(), "holdfast-backend", "--backend-bin")?;
    files::private_dir(layout.root())?;
    let lock = lock(layout)?;
    // What an `up` that was killed left behind says nothing true any more.
    let _ = std::fs::remove_file(layout.up_json());

    let ports = Ports::from_base(args.port_base);
    for port in [ports.wss, ports.ws, ports.admin] {
        drop(listen(port)?);
    }
    check_datagrams(ports.udp)?;
    let api = listen(ports.api)?.into_std().context("the API's socket")?;
    let demo = listen(ports.demo)?;

    for dir in [
        layout.link_dir(),
        layout.frontend_data(),
        layout.control_dir(),
        layout.logs(),
    ] {
        files::private_dir(&dir)?;
    }
    child::rotate_log(&layout.log(super::FRONTEND))?;
    Program::unpin_all(layout)?;
    let control = control::listen(&layout.up_socket())?;
    let api_key = keys::ensure(layout)?;
    config::ensure(layout, &ports)?;
    Ok(Prepared {
        lock,
        ports,
        api_key,
        api: Arc::new(api),
        demo,
        control,
        frontend_bin,
        backend_bin,
    })
}

/// The binary that was named, or the one beside this program.
fn binary(named: Option<&Path>, name: &str, option: &str) -> Result<PathBuf> {
    let path = match named {
        Some(path) => std::path::absolute(path).with_context(|| format!("{}", path.display()))?,
        None => std::env::current_exe()
            .context("cannot find this program")?
            .with_file_name(name),
    };
    if !path.is_file() {
        bail!(
            "there is no {} (build it, or name another with {option})",
            path.display()
        );
    }
    Ok(path)
}

/// One `up` per DIR: the lock goes with the process, however that ends.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(anyhow!(
            "`holdfast up` already runs on {}",
            layout.root().display()
        )),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let attempt = || -> std::io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        socket.listen(BACKLOG)
    };
    attempt().with_context(|| format!("port {port} cannot be used (choose others with --port-base)"))
}

/// Whether the port is free for the frontend.
fn check_datagrams(port: u16) -> Result<()> {
    std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port))
        .map(drop)
        .with_context(|| format!("port {port} cannot be used for udp (choose others with --port-base)"))
}

/// Callers that may wait while the backend restarts.
const BACKLOG: u32 = 1024;
