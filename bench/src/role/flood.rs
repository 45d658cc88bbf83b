//! Strangers who try to get in, at a rate, from many addresses: none of them holds a key, so none of them goes further than the
//! handshake's first answer.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use holdfast_proto::secure::{Initiator, MasterKey, SecureChannel};
use holdfast_proto::udp::{Config, Dial, Dialing, Parameters};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::dial::identity;
use super::pace::{Pacer, TICK};
use super::packets::lines;
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Flood, Flooded, Pace, Run};

/// Addresses that they come from in turns.
const SOURCES: u32 = 200;
/// Devices in whose names they come: so many that none is tried too often. Handshakes are made before the first run, since to make one
/// costs more than to refuse it.
const NAMES: u32 = 4096;
/// The number of the first: nobody who is connected.
const FIRST: u32 = 900_000;
/// Attempts over ws at a time.
const MOST_AT_ONCE: u32 = 512;
/// How long an attempt over ws may take, and what is waited for at a run's end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn serve(flood: &Flood, mut commands: Commands) -> Result<()> {
    let master = MasterKey::from_bytes(&flood.master_key).context("a master key has 32 bytes")?;
    let mut strangers = match flood.datagrams {
        true => Strangers::Udp(Hellos::make(flood.address, &master)?),
        false => Strangers::Ws(Upgrades::make(flood.address, &master)?),
    };
    answer(&Answer::Ready(None, None))?;
    while let Some(command) = commands.next().await? {
        let Command::Run(run) = command else {
            bail!("strangers only try");
        };
        answer(&Answer::Flooded(strangers.run(&run).await?))?;
    }
    Ok(())
}

enum Strangers {
    Ws(Upgrades),
    Udp(Hellos),
}

impl Strangers {
    /// Tries for as long as the run's requests take at its pace.
    async fn run(&mut self, run: &Run) -> Result<Flooded> {
        let Pace::PerSecond(rate) = run.pace else {
            bail!("strangers come at a rate");
        };
        let length = Duration::from_secs_f64(run.requests as f64 / f64::from(rate));
        let started = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut pacer = Pacer::new(rate, started);
        while started.elapsed() < length {
            ticks.tick().await;
            for _ in 0..pacer.due(Instant::now()) {
                self.one();
            }
            self.hear();
        }
        let seconds = started.elapsed().as_secs_f64();
        self.settle().await?;
        let counts = match self {
            Self::Ws(upgrades) => upgrades.counts.take(),
            Self::Udp(hellos) => std::mem::take(&mut hellos.counts),
        };
        Ok(Flooded { seconds, ..counts })
    }

    fn one(&mut self) {
        match self {
            Self::Ws(upgrades) => upgrades.one(),
            Self::Udp(hellos) => hellos.one(),
        }
    }

    fn hear(&mut self) {
        if let Self::Udp(hellos) = self {
            hellos.hear();
        }
    }

    /// Waits for what is under way.
    async fn settle(&mut self) -> Result<()> {
        match self {
            Self::Ws(upgrades) => {
                let since = Instant::now();
                while upgrades.open.get() > 0 {
                    if since.elapsed() > PATIENCE * 2 {
                        bail!("attempts do not end");
                    }
                    sleep(TICK).await;
                }
            }
            Self::Udp(hellos) => {
                sleep(LAST_ANSWERS).await;
                hellos.hear();
            }
        }
        Ok(())
    }
}

const LAST_ANSWERS: Duration = Duration::from_millis(50);

fn source(n: u32) -> SocketAddr {
    let [high, low] = [n / 250 % 250, n % 250].map(|byte| byte as u8 + 1);
    SocketAddr::from((Ipv4Addr::new(127, 2, high, low), 0))
}

/// Connections that ask for an upgrade, read the first of the answer and hang up.
struct Upgrades {
    address: SocketAddr,
    requests: Vec<Rc<str>>,
    counts: Rc<Cell<Flooded>>,
    open: Rc<Cell<u32>>,
    next: u32,
}

impl Upgrades {
    fn make(address: SocketAddr, master: &MasterKey) -> Result<Self> {
        let mut requests = Vec::new();
        for n in 0..NAMES {
            let identity = identity(FIRST + n)?;
            let key = master.device_key(&identity);
            let (_, credential) = Initiator::new(SecureChannel::Ws, &identity, &key, None)?;
            let request = format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Authorization: Holdfast {credential}\r\n\r\n"
            );
            requests.push(request.into());
        }
        Ok(Self {
            address,
            requests,
            counts: Rc::default(),
            open: Rc::default(),
            next: 0,
        })
    }

    fn one(&mut self) {
        if self.open.get() >= MOST_AT_ONCE {
            return;
        }
        let n = self.next;
        self.next = n.wrapping_add(1);
        self.open.set(self.open.get() + 1);
        let request = self.requests[n as usize % self.requests.len()].clone();
        let (counts, open) = (self.counts.clone(), self.open.clone());
        let (source, address) = (source(n % SOURCES), self.address);
        tokio::task::spawn_local(async move {
            let status = timeout(PATIENCE, try_upgrade(source, address, &request)).await;
            let mut now = counts.get();
            now.attempts += 1;
            match status {
                Ok(Ok(101)) => now.challenged += 1,
                Ok(Ok(400..=405)) => now.refused += 1,
                Ok(Ok(_)) => now.put_off += 1,
                // Hung up on, which counts as an attempt alone.
                Ok(Err(_)) | Err(_) => {}
            }
            counts.set(now);
            open.set(open.get() - 1);
        });
    }
}

/// The status of the answer.
async fn try_upgrade(source: SocketAddr, address: SocketAddr, request: &str) -> Result<u16> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(source)?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut line = [0; "HTTP/1.1 101".len()];
    stream.read_exact(&mut line).await?;
    let status = std::str::from_utf8(&line)?.rsplit(' ').next();
    Ok(status.context("no status")?.parse()?)
}

/// HELLOs, each of an attempt of its own, which its message 1 was not made for.
struct Hellos {
    address: SocketAddr,
    hellos: Vec<Vec<u8>>,
    sockets: Vec<UdpSocket>,
    counts: Flooded,
    next: u64,
}

/// Where a HELLO has its attempt.
const ATTEMPT: std::ops::Range<usize> = 2..10;

impl Hellos {
    fn make(address: SocketAddr, master: &MasterKey) -> Result<Self> {
        let mut hellos = Vec::new();
        let config = Config::default();
        for n in 0..NAMES {
            let identity = identity(FIRST + n)?;
            let dialing = Dialing {
                identity: &identity,
                key: &master.device_key(&identity),
                parameters: Parameters {
                    attempt: 0,
                    max_datagram: config.max_datagram,
                    receive_bytes: config.receive_bytes,
                    receive_messages: config.receive_messages,
                },
                now_ms: None,
                timeout: PATIENCE,
            };
            let (now, mut hello) = (Instant::now(), Vec::new());
            Dial::new(now, &dialing)?.poll_transmit(now, &mut hello);
            hellos.push(hello);
        }
        let sockets = (0..SOURCES).map(|n| lines::bind(source(n), false));
        Ok(Self {
            address,
            hellos,
            sockets: sockets.collect::<Result<_, _>>()?,
            counts: Flooded::default(),
            next: 0,
        })
    }

    fn one(&mut self) {
        let n = self.next;
        self.next += 1;
        let (hellos, sockets) = (self.hellos.len() as u64, self.sockets.len() as u64);
        let hello = &mut self.hellos[(n % hellos) as usize];
        hello[ATTEMPT].copy_from_slice(&n.to_be_bytes());
        let socket = &self.sockets[(n % sockets) as usize];
        if socket.try_send_to(hello, self.address).is_ok() {
            self.counts.attempts += 1;
        }
    }

    fn hear(&mut self) {
        let mut datagram = [0; 256];
        for socket in &self.sockets {
            while let Ok((_, _)) = socket.try_recv_from(&mut datagram) {
                match datagram[0] {
                    RETRY => self.counts.put_off += 1,
                    CHALLENGE => self.counts.challenged += 1,
                    REFUSED => self.counts.refused += 1,
                    _ => {}
                }
            }
        }
    }
}

const RETRY: u8 = 0x02;
const CHALLENGE: u8 = 0x03;
const REFUSED: u8 = 0x04;
