//! Connections on sockets: datagrams in and out, and their time.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail};
use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::udp::{Config, Connection, Event};
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::UdpSocket;

pub(in super::super) use super::wheel::TICK;
use super::wheel::Wheel;
use crate::protocol::Traffic;

pub(in super::super) type Socket = UdpSocket;

/// Longest datagram that can come.
pub(in super::super) const MAX_DATAGRAM: usize = 1472;

/// Asked of the kernel for each socket; it may give less. Each small datagram counts for 768 bytes of it.
const BUFFER_BYTES: usize = 4 << 20;

/// A socket with large buffers. `shared`: others may bind the same address.
pub(in super::super) fn bind(address: SocketAddr, shared: bool) -> Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    enlarge(&SockRef::from(&socket))?;
    Ok(UdpSocket::from_std(socket.into())?)
}

fn enlarge(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)
}

/// Sends at once: tokio lets a new socket send only when its driver has had a turn.
pub(in super::super) fn send_to(socket: &Socket, datagram: &[u8], to: SocketAddr) -> bool {
    SockRef::from(socket).send_to(datagram, &to.into()).is_ok()
}

/// All connections of a thread.
pub(in super::super) struct Lines {
    pub(in super::super) config: Config,
    lines: Vec<Option<Line>>,
    wheel: Wheel,
    /// Those that something happened to since the last flush.
    touched: Vec<u32>,
    out: Vec<u8>,
    pub(in super::super) traffic: Traffic,
}

struct Line {
    connection: Connection,
    socket: Rc<Socket>,
    /// The tick at which its entry in the wheel counts; others are passed over.
    armed: Option<u32>,
    touched: bool,
}

impl Lines {
    pub(in super::super) fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            lines: Vec::new(),
            wheel: Wheel::new(now),
            touched: Vec::new(),
            out: Vec::with_capacity(MAX_DATAGRAM),
            traffic: Traffic::default(),
        }
    }

    /// Puts a connection at `index`.
    pub(in super::super) fn insert(&mut self, index: u32, connection: Connection, socket: Rc<Socket>) {
        let at = index as usize;
        if self.lines.len() <= at {
            self.lines.resize_with(at + 1, || None);
        }
        self.lines[at] = Some(Line {
            connection,
            socket,
            armed: None,
            touched: false,
        });
    }

    pub(in super::super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(in super::super) fn connection(&mut self, index: u32) -> Option<&mut Connection> {
        let line = self.lines.get_mut(index as usize)?.as_mut()?;
        Some(&mut line.connection)
    }

    /// Takes a DATA datagram; events follow.
    pub(in super::super) fn on_data(
        &mut self,
        now: Instant,
        from: SocketAddr,
        (index, datagram): (u32, &mut [u8]),
    ) {
        let Some(Some(line)) = self.lines.get_mut(index as usize) else {
            return;
        };
        let entropy = rand::random();
        line.connection
            .handle_datagram(&self.config, now, from, datagram, entropy);
        line.touch(index, &mut self.touched);
    }

    pub(in super::super) fn poll_event(&mut self, index: u32) -> Option<Event> {
        let line = self.lines.get_mut(index as usize)?.as_mut()?;
        line.connection.poll_event(&self.config)
    }

    /// Queues a text.
    pub(in super::super) fn send(&mut self, index: u32, text: Bytes) -> Result<()> {
        let Some(Some(line)) = self.lines.get_mut(index as usize) else {
            bail!("it is not connected");
        };
        line.connection.send(&self.config, MessageKind::Text, text)?;
        line.touch(index, &mut self.touched);
        Ok(())
    }

    /// Sends what there is to send.
    pub(in super::super) fn flush(&mut self, now: Instant) {
        let mut touched = std::mem::take(&mut self.touched);
        for index in touched.drain(..) {
            self.transmit(now, index);
        }
        self.touched = touched;
    }

    fn transmit(&mut self, now: Instant, index: u32) {
        let Some(Some(line)) = self.lines.get_mut(index as usize) else {
            return;
        };
        line.touched = false;
        let mut run = line.connection.transmit_run(&self.config, now);
        while let Some(to) = run.poll(&mut self.out) {
            // What the kernel has no room for is lost, as on any other way.
            if send_to(&line.socket, &self.out, to) {
                self.traffic.sent.datagram(self.out.len());
            }
            self.out.clear();
        }
        let Some(at) = line.connection.poll_timeout() else {
            line.armed = None;
            return;
        };
        let tick = self.wheel.tick_of(at);
        if line.armed.is_none_or(|armed| tick < armed) {
            line.armed = Some(tick);
            self.wheel.arm(index, tick);
        }
    }

    /// Lets connections do what is due, and says which: events and a flush follow.
    pub(in super::super) fn on_tick(&mut self, now: Instant, due: &mut Vec<u32>) {
        while let Some((tick, entries)) = self.wheel.pop(now) {
            for index in entries {
                let Some(Some(line)) = self.lines.get_mut(index as usize) else {
                    continue;
                };
                if line.armed == Some(tick) {
                    line.armed = None;
                    if line.connection.poll_timeout().is_some_and(|at| at <= now) {
                        line.connection.handle_timeout(&self.config, now);
                        due.push(index);
                    }
                    line.touch(index, &mut self.touched);
                }
            }
        }
    }

    /// Datagrams that all connections took for lost.
    pub(in super::super) fn lost(&self) -> u64 {
        let lines = self.lines.iter().flatten();
        lines.map(|line| u64::from(line.connection.stats().lost)).sum()
    }
}

impl Line {
    fn touch(&mut self, index: u32, touched: &mut Vec<u32>) {
        if !std::mem::replace(&mut self.touched, true) {
            touched.push(index);
        }
    }
}
