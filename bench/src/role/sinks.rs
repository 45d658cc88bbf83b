//! Sockets that read and count, for what a bare loop writes.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Result, bail};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::dial::source;
use super::packets::lines;
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Outcome};

pub(super) async fn serve(
    address: SocketAddr,
    datagrams: bool,
    first: u32,
    mut commands: Commands,
) -> Result<()> {
    answer(&Answer::Ready(None, None))?;
    let bytes = Rc::new(Cell::new(0));
    let mut next = first;
    while let Some(command) = commands.next().await? {
        let done = match command {
            Command::Connect(count) => {
                for _ in 0..count {
                    connect(address, datagrams, source(next), bytes.clone()).await?;
                    next += 1;
                }
                Answer::Done(Outcome::default())
            }
            Command::Pushes => Answer::Pushes(bytes.get()),
            _ => bail!("a sink only counts"),
        };
        answer(&done)?;
    }
    Ok(())
}

type Bytes = Rc<Cell<u64>>;

async fn connect(address: SocketAddr, datagrams: bool, source: SocketAddr, bytes: Bytes) -> Result<()> {
    if datagrams {
        let socket = lines::bind(source, false)?;
        socket.connect(address).await?;
        socket.send(b"here").await?;
        tokio::task::spawn_local(drain_datagrams(socket, bytes));
    } else {
        let socket = TcpSocket::new_v4()?;
        socket.bind(source)?;
        let stream = socket.connect(address).await?;
        tokio::task::spawn_local(drain(stream, bytes));
    }
    Ok(())
}

async fn drain(stream: TcpStream, bytes: Bytes) {
    let mut buffer = [0; BUFFER_BYTES];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => bytes.set(bytes.get() + count as u64),
            Err(_) => {}
        }
    }
}

async fn drain_datagrams(socket: UdpSocket, bytes: Bytes) {
    let mut buffer = [0; BUFFER_BYTES];
    while socket.readable().await.is_ok() {
        while let Ok(count) = socket.try_recv(&mut buffer) {
            bytes.set(bytes.get() + count as u64);
        }
    }
}

const BUFFER_BYTES: usize = 2048;
