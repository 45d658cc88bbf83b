//! The baseline of the frontend: tokio-tungstenite as it comes, with read buffers of 4 KiB, on tokio-rustls as it comes.
//!
//! One current-thread runtime per core, each with its own listener, like the frontend's shards: cheaper than tokio's
//! multi-thread runtime, so the harder baseline.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{Commands, answer, tls};
use crate::protocol::{Answer, ServerTls};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
const READ_BUFFER_BYTES: usize = 4096;

pub(super) async fn serve(files: Option<ServerTls>, commands: Commands) -> Result<()> {
    let acceptor = files.as_ref().map(tls::acceptor).transpose()?;
    let first = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..std::thread::available_parallelism()?.get() {
        listeners.push(listen(address)?);
    }
    for (number, listener) in listeners.into_iter().enumerate() {
        let (listener, acceptor) = (listener.into_std()?, acceptor.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name(format!("echo-{number}"))
            .spawn(move || LocalSet::new().block_on(&runtime, accept(listener, acceptor)))?;
    }
    answer(&Answer::Ready(Some(address), None))?;
    commands.until_end().await
}

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG).context("a listener")
}

/// What a bare server sets: everything else is the crate's default.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES)
}

async fn accept(listener: std::net::TcpListener, acceptor: Option<TlsAcceptor>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        // Boxed: the size of a TLS accept must not stay with the idle connection. Ends are no event.
        tokio::task::spawn_local(async move {
            match acceptor {
                Some(acceptor) => {
                    if let Ok(stream) = Box::pin(acceptor.accept(stream)).await {
                        drop(echo(stream).await);
                    }
                }
                None => drop(echo(stream).await),
            }
        });
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let mut socket = Box::pin(accept_async_with_config(stream, Some(config()))).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
