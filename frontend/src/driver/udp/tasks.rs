//! The two tasks that a shard has for datagrams: one receives, one sends what the others could not.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_local};

use super::super::shard::{Shard, Wakes};
use super::socket::{Buffers, DatagramSocket};

/// System calls that receive before other tasks have their turn.
const RECEIVES_PER_TURN: usize = 4;
/// How long timers wait for what is in the socket: longer than it takes to read what the kernel's buffer holds.
const MAX_WAIT: Duration = Duration::from_millis(50);
/// System calls that receive before late timers have their turn: more than the kernel's buffer holds.
const MAX_CATCH_UP: usize = 1_024;
/// What to wait when the socket gives errors and no datagrams, so that it does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// Starts the two, where devices come over datagrams at all.
pub(in super::super) fn spawn(shard: &Rc<RefCell<Shard>>, wakes: &Rc<Wakes>) -> Vec<JoinHandle<()>> {
    let socket = shard.borrow().udp.as_ref().map(|udp| udp.socket.clone());
    let Some(socket) = socket else {
        return Vec::new();
    };
    vec![
        spawn_local(receive_datagrams(shard.clone(), socket.clone())),
        spawn_local(send_datagrams(shard.clone(), wakes.clone(), socket)),
    ]
}

async fn receive_datagrams(shard: Rc<RefCell<Shard>>, socket: Rc<DatagramSocket>) {
    let mut buffers = Buffers::new();
    loop {
        socket.readable().await;
        for _ in 0..RECEIVES_PER_TURN {
            match socket.receive(&mut buffers) {
                Ok(filled) => shard.borrow_mut().on_received(&mut buffers, filled),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    shard.borrow_mut().set_udp_behind(false);
                    break;
                }
                // Somebody's ICMP, or a shortage: no datagram is worth ending for.
                Err(error) => {
                    tracing::debug!(%error, "receiving failed");
                    shard.borrow_mut().count_receive_failure();
                    tokio::time::sleep(AFTER_ERROR).await;
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Before timers have their turn: what devices have said is heard before their silence is judged. While more comes than is read, for a
/// while; where timers are late, because this thread was held up, until the socket is empty.
pub(in super::super) async fn catch_up(shard: &Rc<RefCell<Shard>>) {
    let began = Instant::now();
    while shard.borrow().is_udp_behind() && began.elapsed() < MAX_WAIT {
        tokio::task::yield_now().await;
    }
    let socket = {
        let shard = shard.borrow();
        let late = shard.is_udp_late(Instant::now());
        shard.udp.as_ref().filter(|_| late).map(|udp| udp.socket.clone())
    };
    let Some(socket) = socket else { return };
    let mut buffers = Buffers::new();
    for _ in 0..MAX_CATCH_UP {
        match socket.receive(&mut buffers) {
            Ok(filled) => shard.borrow_mut().on_received(&mut buffers, filled),
            Err(_) => return shard.borrow_mut().set_udp_behind(false),
        }
        tokio::task::yield_now().await;
    }
}

/// Goes on with what a turn had to leave, because it would have taken too long or because the socket took no more.
async fn send_datagrams(shard: Rc<RefCell<Shard>>, wakes: Rc<Wakes>, socket: Rc<DatagramSocket>) {
    loop {
        wakes.datagrams.notified().await;
        let blocked = shard.borrow().is_udp_blocked();
        if blocked {
            socket.writable().await;
        } else {
            tokio::task::yield_now().await;
        }
        let mut shard = shard.borrow_mut();
        shard.unblock_udp();
        shard.end_turn();
    }
}

impl Shard {
    fn count_receive_failure(&mut self) {
        if let Some(udp) = &mut self.udp {
            udp.metrics.receive_failures.inc();
            udp.is_behind = false;
        }
    }

    fn on_received(&mut self, buffers: &mut Buffers, filled: usize) {
        self.set_udp_behind(filled == buffers.len());
        self.on_datagrams(buffers.arrived(filled));
    }

    fn set_udp_behind(&mut self, is_behind: bool) {
        if let Some(udp) = &mut self.udp {
            udp.is_behind = is_behind;
        }
    }

    pub(super) fn is_udp_behind(&self) -> bool {
        self.udp.as_ref().is_some_and(|udp| udp.is_behind)
    }

    fn is_udp_blocked(&self) -> bool {
        self.udp.as_ref().is_some_and(|udp| udp.queue.is_blocked())
    }

    fn unblock_udp(&mut self) {
        if let Some(udp) = &mut self.udp {
            udp.queue.unblock();
        }
    }

    /// Whether something is to be sent.
    pub(in super::super) fn has_datagrams(&self) -> bool {
        self.udp.as_ref().is_some_and(|udp| udp.queue.has_more())
    }

    /// Sends what the turn has made due. True when some is left.
    pub(in super::super) fn transmit_datagrams(&mut self) -> bool {
        let Some(udp) = &mut self.udp else { return false };
        if udp.queue.has_more() && !udp.queue.is_blocked() {
            udp.transmit(Instant::now());
        }
        udp.queue.has_more()
    }
}
