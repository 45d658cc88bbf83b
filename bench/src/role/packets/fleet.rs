//! What the devices of one process do.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use holdfast_proto::secure::MasterKey;

use holdfast_proto::udp::{Config, DATA, Datagram, Event, HEADER_BYTES, parse};
use rustc_hash::FxHashMap;

use super::lines::{self, Lines, Socket};
use super::openings::{Opened, Openings};
use crate::protocol::{Devices, Speak, Traffic};
use crate::role::devices::CONNECTING_AT_ONCE;
use crate::role::dial::source;
use crate::role::exchange::{Exchange, Heard};
use crate::role::load::Load;

/// Devices, their connections and their sockets.
pub(super) struct Fleet {
    server: SocketAddr,
    /// Number of the first device.
    first: u32,
    /// Those that devices are put on in turns; without a number of them each has its own.
    sockets: Vec<Rc<Socket>>,
    most_sockets: u32,
    /// Whether replies are events of the gateway, or what was sent.
    gateway: bool,
    openings: Openings,
    lines: Lines,
    /// By connection id.
    index: FxHashMap<u64, u32>,
    devices: Vec<Device>,
    /// Let in, and not welcomed yet.
    unwelcome: usize,
    load: Rc<Load>,
    due: Vec<u32>,
}

#[derive(Default)]
struct Device {
    online: bool,
    exchange: Exchange,
}

impl Fleet {
    pub(super) fn new(role: Devices) -> Result<Self> {
        let (Speak::Packets { master_key, sockets } | Speak::PacketEcho { master_key, sockets }) =
            role.endpoint.speak
        else {
            bail!("these devices speak udp only");
        };
        let gateway = matches!(role.endpoint.speak, Speak::Packets { .. });
        let master = MasterKey::from_bytes(&master_key).context("a master key has 32 bytes")?;
        Ok(Self {
            server: role.endpoint.address,
            first: role.first,
            sockets: Vec::new(),
            most_sockets: sockets,
            gateway,
            openings: Openings::new(role.endpoint.address, master),
            lines: Lines::new(device_config(), Instant::now()),
            index: FxHashMap::default(),
            devices: Vec::new(),
            unwelcome: 0,
            load: Rc::default(),
            due: Vec::new(),
        })
    }

    pub(super) fn load(&self) -> Rc<Load> {
        self.load.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    /// Devices that are on their way in.
    pub(super) fn unfinished(&self) -> usize {
        self.openings.len() + self.unwelcome
    }

    pub(super) fn has_room(&self) -> bool {
        self.unfinished() < CONNECTING_AT_ONCE
    }

    /// Begins with the next device. If it got a new socket, somebody must read that.
    pub(super) fn open(&mut self, now: Instant) -> Result<Option<Rc<Socket>>> {
        let index = self.devices.len() as u32;
        let number = self.first + index;
        let (socket, made) = self.socket_of(index)?;
        self.devices.push(Device::default());
        let (config, sent) = (&self.lines.config, &mut self.lines.traffic.sent);
        self.openings
            .begin(now, (index, number), (config, socket.clone()), sent)?;
        Ok(made.then_some(socket))
    }

    /// A device's socket, and whether it is new.
    fn socket_of(&mut self, index: u32) -> Result<(Rc<Socket>, bool)> {
        if self.most_sockets == 0 {
            return Ok((self.bind(self.first + index)?, true));
        }
        let at = index % self.most_sockets;
        if let Some(socket) = self.sockets.get(at as usize) {
            return Ok((socket.clone(), false));
        }
        let socket = self.bind(self.first + at * APART)?;
        self.sockets.push(socket.clone());
        Ok((socket, true))
    }

    fn bind(&self, number: u32) -> Result<Rc<Socket>> {
        let socket = lines::bind(source(number), false)?;
        // Datagrams go to the server and come from there alone.
        socket2::SockRef::from(&socket).connect(&self.server.into())?;
        Ok(Rc::new(socket))
    }

    pub(super) fn on_datagram(&mut self, now: Instant, datagram: &mut [u8]) {
        self.lines.traffic.received.datagram(datagram.len());
        let data = datagram.len() > HEADER_BYTES && datagram[0] == DATA;
        let taken = match data {
            true => self.on_data(now, datagram),
            false => self.on_answer(now, datagram),
        };
        if let Err(error) = taken {
            self.load.fail(format!("{error:#}"));
        }
    }

    fn on_data(&mut self, now: Instant, datagram: &mut [u8]) -> Result<()> {
        let Ok(Datagram::Data { cid, .. }) = parse(datagram) else {
            bail!("a datagram that cannot be read");
        };
        // A packet can overtake the CHALLENGE, and come again.
        let Some(&index) = self.index.get(&cid.0) else {
            return Ok(());
        };
        self.lines.on_data(now, self.server, (index, datagram));
        self.on_events(index)
    }

    fn on_answer(&mut self, now: Instant, datagram: &[u8]) -> Result<()> {
        let sent = &mut self.lines.traffic.sent;
        let Some(opened) = self.openings.on_datagram(now, datagram, sent)? else {
            return Ok(());
        };
        let Opened {
            index,
            connection,
            socket,
        } = opened;
        self.index.insert(connection.cid().0, index);
        self.lines.insert(index, *connection, socket);
        self.unwelcome += 1;
        self.lines.send(index, Bytes::from_static(HELLO))
    }

    fn on_events(&mut self, index: u32) -> Result<()> {
        while let Some(event) = self.lines.poll_event(index) {
            match event {
                Event::Message(_, text) => self.on_text(index, &text)?,
                Event::Delivered(_) | Event::PeerMoved(_) => {}
                other => bail!("device {}: {other:?}", self.first + index),
            }
        }
        Ok(())
    }

    fn on_text(&mut self, index: u32, text: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(text)?;
        let device = &mut self.devices[index as usize];
        if !device.online {
            if !text.starts_with(WELCOME) {
                bail!("device {} was not welcomed: {text}", self.first + index);
            }
            device.online = true;
            self.unwelcome -= 1;
            self.load.wake();
            return Ok(());
        }
        let heard = device.exchange.on_text(text, self.gateway, &self.load);
        let heard = heard.with_context(|| format!("device {}", self.first + index))?;
        if heard == Heard::Answer && self.load.take_next() {
            self.ask(index)?;
        }
        Ok(())
    }

    /// Has a device make requests.
    pub(super) fn request(&mut self, index: u32, count: u32) {
        for _ in 0..count {
            if let Err(error) = self.ask(index) {
                self.load
                    .fail(format!("device {}: {error:#}", self.first + index));
            }
        }
    }

    fn ask(&mut self, index: u32) -> Result<()> {
        let text = self.devices[index as usize].exchange.request(&self.load);
        self.lines.send(index, text.into())
    }

    pub(super) fn in_flight(&self, device: usize) -> u32 {
        self.devices[device].exchange.in_flight()
    }

    pub(super) fn flush(&mut self, now: Instant) {
        self.lines.flush(now);
    }

    pub(super) fn on_tick(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        self.lines.on_tick(now, &mut due);
        for index in due.drain(..) {
            if let Err(error) = self.on_events(index) {
                self.load.fail(format!("{error:#}"));
            }
        }
        self.due = due;
        let (config, sent) = (&self.lines.config, &mut self.lines.traffic.sent);
        if let Err(error) = self.openings.on_tick(now, config, sent) {
            self.load.fail(format!("{error:#}"));
        }
        self.flush(now);
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            lost: self.lines.lost(),
            in_vain: self.openings.repeated(),
            ..self.lines.traffic
        }
    }
}

/// Of a device that gets pushes now and then and has little memory.
fn device_config() -> Config {
    Config {
        keep_alive: Some(KEEP_ALIVE),
        ..Config::default()
    }
}

const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(25);
/// Sockets that are shared have source addresses as if so many devices were between two of them.
const APART: u32 = 256;
const HELLO: &[u8] = b"@hello {}";
const WELCOME: &str = "@welcome ";
