//! Devices that are not let in yet.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail};
use holdfast_proto::secure::MasterKey;
use holdfast_proto::udp::dial::DIAL_TIMEOUT;
use holdfast_proto::udp::{Config, Connection, Datagram, Dial, Dialed, Dialing, Parameters, parse};

use super::lines::{Socket, send_to};
use crate::protocol::Flow;
use crate::role::dial::identity;

/// Attempts under way, by their numbers.
pub(super) struct Openings {
    server: SocketAddr,
    master: MasterKey,
    attempts: HashMap<u64, Attempt>,
    /// Attempts in vain.
    repeated: u64,
    out: Vec<u8>,
}

struct Attempt {
    index: u32,
    number: u32,
    dial: Dial,
    socket: Rc<Socket>,
}

/// A device that was let in.
pub(super) struct Opened {
    pub(super) index: u32,
    pub(super) connection: Box<Connection>,
    pub(super) socket: Rc<Socket>,
}

impl Openings {
    pub(super) fn new(server: SocketAddr, master: MasterKey) -> Self {
        Self {
            server,
            master,
            attempts: HashMap::new(),
            repeated: 0,
            out: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Begins with the device `number`, which is at `index` here.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        (index, number): (u32, u32),
        (config, socket): (&Config, Rc<Socket>),
        sent: &mut Flow,
    ) -> Result<()> {
        let identity = identity(number)?;
        let attempt = rand::random();
        let dialing = Dialing {
            identity: &identity,
            key: &self.master.device_key(&identity),
            parameters: Parameters {
                attempt,
                max_datagram: config.max_datagram,
                receive_bytes: config.receive_bytes,
                receive_messages: config.receive_messages,
            },
            now_ms: None,
            timeout: DIAL_TIMEOUT,
        };
        let dial = Dial::new(now, &dialing)?;
        let mut begun = Attempt {
            index,
            number,
            dial,
            socket,
        };
        begun.transmit(now, self.server, (&mut self.out, sent));
        self.attempts.insert(attempt, begun);
        Ok(())
    }

    /// Takes whatever is not DATA.
    pub(super) fn on_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
        sent: &mut Flow,
    ) -> Result<Option<Opened>> {
        let number = match parse(datagram) {
            Ok(Datagram::Retry { attempt, .. } | Datagram::Challenge { attempt, .. }) => attempt,
            Ok(Datagram::Refused(refused)) => {
                bail!("a device was refused: {} {}", refused.status, refused.code)
            }
            other => bail!("unexpected {other:?}"),
        };
        // The answer to a HELLO that was sent again may come again.
        let Some(attempt) = self.attempts.get_mut(&number) else {
            return Ok(None);
        };
        match attempt.dial.handle_datagram(now, self.server, datagram) {
            Dialed::Open(connection) => {
                let Some(Attempt { index, socket, .. }) = self.attempts.remove(&number) else {
                    return Ok(None);
                };
                let opened = Opened {
                    index,
                    connection,
                    socket,
                };
                return Ok(Some(opened));
            }
            Dialed::Pending => attempt.transmit(now, self.server, (&mut self.out, sent)),
            other => bail!("a device did not get in: {other:?}"),
        }
        Ok(None)
    }

    /// Repeats what was not answered. A device that got no answer at all tries anew, as devices do.
    pub(super) fn on_tick(&mut self, now: Instant, config: &Config, sent: &mut Flow) -> Result<()> {
        let mut in_vain = Vec::new();
        for (key, attempt) in &mut self.attempts {
            if attempt.dial.poll_timeout() > now {
                continue;
            }
            match attempt.dial.handle_timeout(now) {
                Dialed::Pending => attempt.transmit(now, self.server, (&mut self.out, sent)),
                Dialed::TimedOut => in_vain.push(*key),
                other => bail!("a device did not get in: {other:?}"),
            }
        }
        for key in in_vain {
            let Some(attempt) = self.attempts.remove(&key) else {
                continue;
            };
            self.repeated += 1;
            let who = (attempt.index, attempt.number);
            self.begin(now, who, (config, attempt.socket), sent)?;
        }
        Ok(())
    }

    /// Attempts that were in vain, each followed by another one.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated
    }
}

impl Attempt {
    fn transmit(&mut self, now: Instant, server: SocketAddr, (out, sent): (&mut Vec<u8>, &mut Flow)) {
        while self.dial.poll_transmit(now, out) {
            if send_to(&self.socket, out, server) {
                sent.datagram(out.len());
            }
            out.clear();
        }
    }
}
