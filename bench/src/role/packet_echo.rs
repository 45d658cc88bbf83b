//! The baseline of udp: the transport's own core, on one socket and one thread per core, and nothing behind it. It lets in who
//! holds a device key, and sends each message back.
//!
//! Deliberately absent: cookies, resets, changes of address, admission by anybody else, any bound. A measurement is its only peer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use holdfast_proto::secure::{Credential, MESSAGE_2_BYTES, MasterKey, SecureChannel, Verified};
use holdfast_proto::udp::datagram::{Hello, encode_challenge};
use holdfast_proto::udp::{
    Config, Connection, ConnectionId, Datagram, Event, INITIAL_SERVER_CREDIT, Opening, PeerCredit, Side,
    parse,
};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};

use super::packets::lines::{self, Lines, MAX_DATAGRAM, Socket};
use super::{Commands, answer};
use crate::protocol::Answer;

pub(super) async fn serve(master_key: &[u8; 32], commands: Commands) -> Result<()> {
    let address = start(master_key)?;
    answer(&Answer::Ready(Some(address), None))?;
    commands.until_end().await
}

/// Starts the threads, which end with the process. Needs a runtime.
pub(super) fn start(master_key: &[u8; 32]) -> Result<SocketAddr> {
    // Held until all are bound to its port.
    let first = lines::bind(SocketAddr::from(([127, 0, 0, 1], 0)), true)?;
    let address = first.local_addr()?;
    let mut sockets = vec![first.into_std()?];
    for _ in 1..std::thread::available_parallelism()?.get() {
        sockets.push(lines::bind(address, true)?.into_std()?);
    }
    for (number, socket) in sockets.into_iter().enumerate() {
        let master = MasterKey::from_bytes(master_key).context("a master key has 32 bytes")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = move || LocalSet::new().block_on(&runtime, echo(number as u8, socket, master));
        std::thread::Builder::new()
            .name(format!("echo-{number}"))
            .spawn(serve)?;
    }
    Ok(address)
}

async fn echo(shard: u8, socket: std::net::UdpSocket, master: MasterKey) -> Result<()> {
    let socket = Rc::new(Socket::from_std(socket)?);
    let server = Rc::new(RefCell::new(Server {
        shard,
        socket: socket.clone(),
        master,
        lines: Lines::new(Config::default(), Instant::now()),
        answered: HashMap::new(),
        due: Vec::new(),
    }));
    tokio::task::spawn_local(keep_time(server.clone()));
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        socket.readable().await?;
        let now = Instant::now();
        let mut server = server.borrow_mut();
        for _ in 0..READS_AT_ONCE {
            let Ok((length, from)) = socket.try_recv_from(&mut buffer) else {
                break;
            };
            server.on_datagram(now, from, &mut buffer[..length]);
        }
        server.lines.flush(now);
    }
}

const READS_AT_ONCE: usize = 64;

async fn keep_time(server: Rc<RefCell<Server>>) {
    let mut ticks = interval(lines::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let mut server = server.borrow_mut();
        let mut due = std::mem::take(&mut server.due);
        server.lines.on_tick(now, &mut due);
        due.drain(..).for_each(|index| server.on_events(index));
        server.due = due;
        server.lines.flush(now);
    }
}

struct Server {
    shard: u8,
    socket: Rc<Socket>,
    master: MasterKey,
    lines: Lines,
    /// By attempt: what it was answered.
    answered: HashMap<u64, Vec<u8>>,
    due: Vec<u32>,
}

impl Server {
    fn on_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        match parse(datagram) {
            Ok(Datagram::Data { cid, .. }) => {
                let index = cid.slot();
                if self.lines.connection(index).is_some_and(|c| c.cid() == cid) {
                    self.lines.on_data(now, from, (index, datagram));
                    self.on_events(index);
                }
            }
            Ok(Datagram::Hello(hello)) => self.on_hello(now, from, &hello),
            _ => {}
        }
    }

    fn on_hello(&mut self, now: Instant, from: SocketAddr, hello: &Hello<'_>) {
        let attempt = hello.parameters.attempt;
        if !self.answered.contains_key(&attempt) {
            let Some(challenge) = self.admit(now, from, hello) else {
                return;
            };
            self.answered.insert(attempt, challenge);
        }
        lines::send_to(&self.socket, &self.answered[&attempt], from);
    }

    fn admit(&mut self, now: Instant, from: SocketAddr, hello: &Hello<'_>) -> Option<Vec<u8>> {
        let parameters = hello.parameters;
        let credential = Credential::parse_datagram(&parameters.encode(), hello.credential).ok()?;
        let key = self.master.device_key(&credential.identity);
        let verified = Verified::verify(SecureChannel::Udp, &credential, &key).ok()?;
        let (message2, keys) = verified.answer().ok()?;
        let index = self.lines.len() as u32;
        let cid = ConnectionId::new(self.shard, index, rand::random());
        let opening = Opening {
            cid,
            keys,
            peer: from,
            peer_max_datagram: parameters.max_datagram,
            peer_credit: PeerCredit {
                messages: parameters.receive_messages.into(),
                bytes: parameters.receive_bytes.into(),
            },
            own_credit: INITIAL_SERVER_CREDIT,
            reset_token: None,
        };
        let connection = Connection::new(Side::Server, opening, now);
        self.lines.insert(index, connection, self.socket.clone());
        let message2: [u8; MESSAGE_2_BYTES] = message2.try_into().ok()?;
        let mut challenge = Vec::new();
        encode_challenge(parameters.attempt, cid, &message2, &mut challenge);
        Some(challenge)
    }

    fn on_events(&mut self, index: u32) {
        while let Some(event) = self.lines.poll_event(index) {
            if let Event::Message(_, text) = event {
                let hello = text.starts_with(b"@hello");
                let reply = if hello {
                    Bytes::from_static(b"@welcome {}")
                } else {
                    text
                };
                // A full queue is the peer's fault, which will miss the reply.
                let _ = self.lines.send(index, reply);
            }
        }
    }
}
