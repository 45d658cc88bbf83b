//! What lies between devices on `udp` and a frontend: a relay on the loopback that loses, doubles, delays and reorders datagrams as it
//! is told, shows the frontend another address in mid-flight, or swallows everything.
//!
//! Each device has a socket of its own towards the frontend, at the device's own IP address: the frontend sees as many addresses as
//! there are devices.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Longer than any datagram on the loopback.
const MAX_DATAGRAM: usize = 65_536;

/// Sets the seed of what happens to datagrams; a test that fails says its own.
pub const SEED: &str = "HOLDFAST_TEST_SEED";

/// That of the environment, else a new one.
pub fn seed() -> u64 {
    match std::env::var(SEED) {
        Ok(seed) => seed
            .parse()
            .unwrap_or_else(|_| panic!("{SEED}={seed} is not a number")),
        Err(_) => rand::random::<u32>().into(),
    }
}

/// Which way something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    ToServer,
    ToDevice,
}

impl Way {
    pub const BOTH: [Self; 2] = [Self::ToServer, Self::ToDevice];
}

/// What may happen to a datagram, each by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    pub lost_per_mille: u32,
    pub doubled_per_mille: u32,
    /// These are held back for up to [`HELD_BACK`], so that later ones overtake them.
    pub held_back_per_mille: u32,
    /// Every datagram takes so long.
    pub delay: Duration,
}

/// Long enough that several others overtake.
pub const HELD_BACK: Duration = Duration::from_millis(20);

impl Weather {
    pub const CLEAR: Self = Self {
        lost_per_mille: 0,
        doubled_per_mille: 0,
        held_back_per_mille: 0,
        delay: Duration::ZERO,
    };
    /// Nothing gets through.
    pub const BLACK_HOLE: Self = Self {
        lost_per_mille: 1000,
        ..Self::CLEAR
    };
    /// Each twentieth datagram is lost.
    pub const LOSSY: Self = Self {
        lost_per_mille: 50,
        ..Self::CLEAR
    };
    /// A bad radio link: some of everything.
    pub const STORMY: Self = Self {
        lost_per_mille: 30,
        doubled_per_mille: 20,
        held_back_per_mille: 30,
        delay: Duration::ZERO,
    };

    /// After how long a datagram arrives, for each time that it does.
    fn arrivals(&self, chance: &mut StdRng) -> Vec<Duration> {
        if chance.random_ratio(self.lost_per_mille, 1000) {
            return Vec::new();
        }
        let doubled = chance.random_ratio(self.doubled_per_mille, 1000);
        let arrival = |chance: &mut StdRng| match chance.random_ratio(self.held_back_per_mille, 1000) {
            true => self.delay + HELD_BACK.mul_f64(chance.random()),
            false => self.delay,
        };
        (0..=usize::from(doubled)).map(|_| arrival(chance)).collect()
    }
}

/// What goes on in the place of a datagram, before the weather has its way with it.
pub type Tamper = Box<dyn FnMut(Way, Vec<u8>) -> Vec<Vec<u8>> + Send>;

/// Everything that came by, before anything was done to it.
pub type Recording = Arc<Mutex<Vec<(Way, Vec<u8>)>>>;

/// A running relay. It ends when dropped.
pub struct Relay {
    /// Where devices send to.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    server: SocketAddr,
    socket: UdpSocket,
    tamper: Mutex<Tamper>,
    weather: Mutex<([Weather; 2], StdRng)>,
    /// By the device's address.
    links: Mutex<HashMap<SocketAddr, Arc<Link>>>,
    came: [AtomicU64; 2],
    came_bytes: [AtomicU64; 2],
}

/// One device's way.
struct Link {
    device: SocketAddr,
    upstream: Mutex<Upstream>,
}

struct Upstream {
    socket: Arc<UdpSocket>,
    reader: JoinHandle<()>,
}

impl Relay {
    /// Stands before `server`, in the same weather both ways.
    pub fn before(server: SocketAddr, weather: Weather, seed: u64) -> Self {
        let relay = Self::tampering(server, Box::new(|_, datagram| vec![datagram]));
        *lock(&relay.shared.weather) = ([weather; 2], StdRng::seed_from_u64(seed));
        relay
    }

    /// Stands before `server` and does as it is told; the weather is fine.
    pub fn tampering(server: SocketAddr, tamper: Tamper) -> Self {
        let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            server,
            socket,
            tamper: Mutex::new(tamper),
            weather: Mutex::new(([Weather::CLEAR; 2], StdRng::seed_from_u64(0))),
            links: Mutex::default(),
            came: Default::default(),
            came_bytes: Default::default(),
        });
        let task = tokio::spawn(run(shared.clone()));
        Self {
            address,
            shared,
            task,
        }
    }

    /// Stands before `server` and notes everything.
    pub fn recording(server: SocketAddr) -> (Self, Recording) {
        let recording = Recording::default();
        let notes = recording.clone();
        let tamper = move |way, datagram: Vec<u8>| {
            lock(&notes).push((way, datagram.clone()));
            vec![datagram]
        };
        (Self::tampering(server, Box::new(tamper)), recording)
    }

    pub fn set(&self, way: Way, weather: Weather) {
        lock(&self.shared.weather).0[way as usize] = weather;
    }

    /// Changes what goes on in the place of datagrams.
    pub fn tamper(&self, tamper: Tamper) {
        *lock(&self.shared.tamper) = tamper;
    }

    /// Nothing gets through any more, either way.
    pub fn black_hole(&self) {
        for way in Way::BOTH {
            self.set(way, Weather::BLACK_HOLE);
        }
    }

    /// From now on the frontend sees each device at another port. What it sends to the old one is lost, as when a router forgets.
    pub fn move_devices(&self) {
        let links: Vec<Arc<Link>> = lock(&self.shared.links).values().cloned().collect();
        for link in links {
            let upstream = upstream(&self.shared, link.device);
            let old = std::mem::replace(&mut *lock(&link.upstream), upstream);
            old.reader.abort();
        }
    }

    /// Where the frontend sees the one device that there is.
    pub fn seen_address(&self) -> SocketAddr {
        let address = self.only().socket().local_addr();
        address.expect("a bound socket has an address")
    }

    /// Sends something of its own to the one device that there is, or to the frontend in its name.
    pub async fn inject(&self, way: Way, datagram: &[u8]) {
        self.shared.send(way, &self.only(), datagram).await;
    }

    /// How many datagrams came, before anything was done to them.
    pub fn came(&self, way: Way) -> u64 {
        self.shared.came[way as usize].load(Ordering::Relaxed)
    }

    /// The same in bytes.
    pub fn came_bytes(&self, way: Way) -> u64 {
        self.shared.came_bytes[way as usize].load(Ordering::Relaxed)
    }

    fn only(&self) -> Arc<Link> {
        let links = lock(&self.shared.links);
        let mut links = links.values();
        match (links.next(), links.next()) {
            (Some(link), None) => link.clone(),
            _ => panic!("not one device"),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        for link in lock(&self.shared.links).drain().map(|(_, link)| link) {
            lock(&link.upstream).reader.abort();
        }
    }
}

impl Link {
    fn socket(&self) -> Arc<UdpSocket> {
        lock(&self.upstream).socket.clone()
    }
}

impl Shared {
    async fn pass(self: &Arc<Self>, way: Way, link: &Arc<Link>, datagram: &[u8]) {
        self.came[way as usize].fetch_add(1, Ordering::Relaxed);
        self.came_bytes[way as usize].fetch_add(datagram.len() as u64, Ordering::Relaxed);
        for datagram in lock_and(&self.tamper, |tamper| tamper(way, datagram.to_vec())) {
            let arrivals = lock_and(&self.weather, |(weather, chance)| {
                weather[way as usize].arrivals(chance)
            });
            for delay in arrivals {
                if delay.is_zero() {
                    self.send(way, link, &datagram).await;
                } else {
                    let (shared, link, datagram) = (self.clone(), link.clone(), datagram.clone());
                    tokio::spawn(async move {
                        sleep(delay).await;
                        shared.send(way, &link, &datagram).await;
                    });
                }
            }
        }
    }

    /// What cannot be sent is lost, as datagrams may be: there may be no frontend at the moment.
    async fn send(&self, way: Way, link: &Link, datagram: &[u8]) {
        match way {
            Way::ToServer => link.socket().send_to(datagram, self.server).await.ok(),
            Way::ToDevice => self.socket.send_to(datagram, link.device).await.ok(),
        };
    }

    fn link(self: &Arc<Self>, device: SocketAddr) -> Arc<Link> {
        let mut links = lock(&self.links);
        let link = links.entry(device).or_insert_with(|| {
            let upstream = Mutex::new(upstream(self, device));
            Arc::new(Link { device, upstream })
        });
        link.clone()
    }
}

async fn run(shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error tells of a datagram that was sent before, to somebody who is gone.
        if let Ok((length, device)) = shared.socket.recv_from(&mut buffer).await {
            let link = shared.link(device);
            shared.pass(Way::ToServer, &link, &buffer[..length]).await;
        }
    }
}

/// A socket towards the frontend, and who reads from it.
fn upstream(shared: &Arc<Shared>, device: SocketAddr) -> Upstream {
    let socket = Arc::new(bind(SocketAddr::new(device.ip(), 0)).expect("a free port"));
    // The link may not be there yet; it is before anything is answered.
    let (shared, reading) = (Arc::downgrade(shared), socket.clone());
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let received = reading.recv_from(&mut buffer).await;
            let Some(shared) = shared.upgrade() else { return };
            match received {
                Ok((length, from)) if from == shared.server => {
                    let link = shared.link(device);
                    shared.pass(Way::ToDevice, &link, &buffer[..length]).await;
                }
                _ => {}
            }
        }
    });
    Upstream { socket, reader }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For where the guard would otherwise live on into what is awaited.
fn lock_and<T, R>(mutex: &Mutex<T>, act: impl FnOnce(&mut T) -> R) -> R {
    act(&mut lock(mutex))
}

#[cfg(test)]
mod tests;
