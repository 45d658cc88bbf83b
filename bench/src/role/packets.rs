//! Many devices on udp in one process: many on each socket, with one thread, one timing wheel, and no task per device.
//!
//! [`lines`] moves datagrams between connections and sockets and keeps their time; [`fleet`] is what the devices do; a task per
//! socket and one for the wheel drive them.

mod fleet;
pub(super) mod lines;
mod openings;
mod wheel;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use self::fleet::Fleet;
use self::lines::{MAX_DATAGRAM, Socket};
use super::crew::{self, Crew};
use super::devices::taking_part;
use super::{Commands, answer};
use crate::protocol::{Answer, Command, Devices, Outcome, Run};

type Shared = Rc<RefCell<Fleet>>;

pub(super) async fn serve(role: Devices, mut commands: Commands) -> Result<()> {
    let fleet = Rc::new(RefCell::new(Fleet::new(role)?));
    let load = fleet.borrow().load();
    tokio::task::spawn_local(keep_time(fleet.clone()));
    answer(&Answer::Ready(None, None))?;
    let mut turn = 0;
    while let Some(command) = commands.next().await? {
        let done = match command {
            Command::Connect(count) => {
                connect(&fleet, count).await?;
                Answer::Done(Outcome::default())
            }
            Command::Run(run) => Answer::Done(self::run(&fleet, &run, &mut turn).await?),
            Command::Pushes => Answer::Pushes(load.pushes()),
            Command::Traffic => Answer::Traffic(fleet.borrow_mut().traffic()),
        };
        load.check()?;
        answer(&done)?;
    }
    Ok(())
}

/// Gets so many more devices online, a few at a time.
async fn connect(fleet: &Shared, count: u32) -> Result<()> {
    let load = fleet.borrow().load();
    let mut left = count;
    while left > 0 || fleet.borrow().unfinished() > 0 {
        while left > 0 && fleet.borrow().has_room() {
            let opened = fleet.borrow_mut().open(Instant::now())?;
            if let Some(socket) = opened {
                tokio::task::spawn_local(read(fleet.clone(), socket));
            }
            left -= 1;
        }
        fleet.borrow_mut().flush(Instant::now());
        load.changed().await;
        load.check()?;
    }
    Ok(())
}

async fn run(fleet: &Shared, run: &Run, turn: &mut usize) -> Result<Outcome> {
    let devices = taking_part(run, fleet.borrow().len())?;
    let load = fleet.borrow().load();
    crew::run(&mut Orders(fleet.clone()), devices, run, (&load, turn)).await
}

struct Orders(Shared);

impl Crew for Orders {
    fn in_flight(&self, device: usize) -> u32 {
        self.0.borrow().in_flight(device)
    }

    fn order(&mut self, device: usize, count: u32) {
        self.0.borrow_mut().request(device as u32, count);
    }

    fn flush(&mut self) {
        self.0.borrow_mut().flush(Instant::now());
    }
}

/// Takes what comes to one socket, as long as it lives.
async fn read(fleet: Shared, socket: Rc<Socket>) {
    let mut buffer = [0; MAX_DATAGRAM];
    while socket.readable().await.is_ok() {
        let now = Instant::now();
        let mut fleet = fleet.borrow_mut();
        // What has come together is answered together.
        for _ in 0..READS_AT_ONCE {
            match socket.try_recv(&mut buffer) {
                Ok(length) => fleet.on_datagram(now, &mut buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return fleet.load().fail(format!("a udp socket: {error}")),
            }
        }
        fleet.flush(now);
    }
}

/// Then other sockets, and the clock, have their turn.
const READS_AT_ONCE: usize = 64;

async fn keep_time(fleet: Shared) {
    let mut ticks = interval(lines::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let mut fleet = fleet.borrow_mut();
        fleet.on_tick(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::{Endpoint, Pace, Speak};
    use crate::role::packet_echo;
    use tokio::task::LocalSet;

    const KEY: [u8; 32] = [7; 32];
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn fleet(sockets: u32) -> Shared {
        let endpoint = Endpoint {
            address: packet_echo::start(&KEY).unwrap(),
            ca: None,
            speak: Speak::PacketEcho {
                master_key: KEY,
                sockets,
            },
        };
        let fleet = Rc::new(RefCell::new(Fleet::new(Devices { endpoint, first: 40 }).unwrap()));
        // Each HELLO must be answered the first time: while nobody keeps time none is repeated.
        let connected = tokio::time::timeout(PATIENCE, connect(&fleet, 30)).await;
        connected.expect("each HELLO is answered").unwrap();
        tokio::task::spawn_local(keep_time(fleet.clone()));
        fleet
    }

    async fn exchange(fleet: &Shared, pace: Pace, payload: usize) -> Outcome {
        let run = Run {
            requests: 300,
            pace,
            depth: 4,
            payload,
            devices: (0, 0),
        };
        self::run(fleet, &run, &mut 0).await.unwrap()
    }

    #[tokio::test]
    async fn devices_on_shared_and_on_own_sockets_get_online_and_every_request_is_answered() {
        let all = async {
            for sockets in [0, 4] {
                let fleet = fleet(sockets).await;
                assert_eq!((fleet.borrow().len(), fleet.borrow().unfinished()), (30, 0));
                for payload in [64, 5000] {
                    for pace in [Pace::Saturated, Pace::PerSecond(2000)] {
                        assert_eq!(exchange(&fleet, pace, payload).await.requests, 300);
                    }
                }
                let traffic = fleet.borrow().traffic();
                assert!(traffic.sent.payload > 2 * 300 * 5064 && traffic.received.packets > 4 * 300);
            }
        };
        LocalSet::new().run_until(all).await;
    }
}
