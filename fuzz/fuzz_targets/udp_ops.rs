//! Two ends of a udp connection, and what the input has them, the network and a peer that lies do.
//!
//! Until the peer lies: messages arrive whole, once and in order, and no more are reported delivered than arrived. Always: nothing
//! panics, nothing grows beyond its bounds, timers come to rest.
#![no_main]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;
use holdfast_proto::MessageKind;
use holdfast_proto::secure::{TrafficKey, TrafficKeys};
use holdfast_proto::udp::{
    Config, Connection, ConnectionId, DATA, Event, INITIAL_SERVER_CREDIT, Opening, PeerCredit, ResetToken,
    SendError, Side,
};
use libfuzzer_sys::fuzz_target;

const CID: ConnectionId = ConnectionId(7);
const TO_SERVER: [u8; 32] = [1; 32];
const TO_DEVICE: [u8; 32] = [2; 32];
const MAX_STEPS: usize = 400;

/// Time is virtual: where it begins does not matter.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

struct End {
    connection: Connection,
    config: Config,
    /// How many messages its application took, and how many of its own were taken for sending and delivered.
    taken: usize,
    sent: usize,
    delivered: usize,
    ended: bool,
    /// What is on the way from here.
    out: VecDeque<(SocketAddr, Vec<u8>)>,
}

struct World {
    now: Instant,
    ends: [End; 2],
    device_port: u16,
    lied: bool,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn end(side: Side) -> End {
    let key = |bytes: &[u8; 32]| TrafficKey::from_bytes(bytes).expect("32 bytes");
    let config = Config {
        max_message_bytes: 20_000,
        receive_bytes: 8_192,
        receive_messages: 8,
        max_datagram: 512,
        keep_alive: Some(Duration::from_secs(25)),
        send_bytes: 30_000,
        send_messages: 16,
        ..Config::default()
    };
    let hello = PeerCredit {
        messages: 8,
        bytes: 8_192,
    };
    let is_server = side == Side::Server;
    let opening = Opening {
        cid: CID,
        keys: TrafficKeys {
            to_server: key(&TO_SERVER),
            to_device: key(&TO_DEVICE),
        },
        peer: address(if is_server { 1 } else { 443 }),
        peer_max_datagram: 1_200,
        peer_credit: if is_server { hello } else { INITIAL_SERVER_CREDIT },
        own_credit: if is_server { INITIAL_SERVER_CREDIT } else { hello },
        reset_token: is_server.then_some(ResetToken([3; 16])),
    };
    End {
        connection: Connection::new(side, opening, *BEGAN),
        config,
        taken: 0,
        sent: 0,
        delivered: 0,
        ended: false,
        out: VecDeque::new(),
    }
}

/// The bytes of a message follow from who sent it and when.
fn payload(side: usize, number: usize, length: usize) -> Bytes {
    (0..length)
        .map(|at| (at * 7 + number * 31 + side * 101) as u8)
        .collect()
}

impl World {
    fn pump(&mut self, side: usize, takes: bool) {
        let (now, lied) = (self.now, self.lied);
        let end = &mut self.ends[side];
        loop {
            let event = match takes {
                true => end.connection.poll_event(&end.config),
                false => end.connection.poll_notice(),
            };
            match event {
                None => break,
                Some(event) => {
                    assert!(!end.ended, "{event:?} after the end");
                    end.note(1 - side, event, lied);
                }
            }
        }
        let mut bytes = Vec::new();
        let mut count = 0;
        while let Some(to) = end.connection.poll_transmit(&end.config, now, &mut bytes) {
            assert!(bytes.len() <= 512, "{}", bytes.len());
            end.out.push_back((to, std::mem::take(&mut bytes)));
            count += 1;
            assert!(count < 3_000, "it never stops");
        }
        assert!(bytes.is_empty());
        assert!(end.connection.held_bytes() <= 30_000 + 20_000 + 20_000 + 3 * 16_384);
        let (us, them) = (&self.ends[side], &self.ends[1 - side]);
        assert!(lied || us.delivered <= us.sent);
        // What is acknowledged is at the other end, though its application may not have taken it yet.
        assert!(lied || them.ended || us.delivered <= them.taken + 16);
    }

    fn arrive(&mut self, from: usize, index: usize, keep: bool, flip: Option<usize>) {
        let out = &mut self.ends[from].out;
        if out.is_empty() {
            return;
        }
        let index = index % out.len();
        let taken = if keep {
            out.get(index).cloned()
        } else {
            out.remove(index)
        };
        let Some((to, mut bytes)) = taken else { return };
        if let Some(bit) = flip {
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        // What goes to where the device no longer is is lost.
        let source = if from == 0 { self.device_port } else { 443 };
        if from == 1 && to != address(self.device_port) {
            return;
        }
        self.hand_over(1 - from, address(source), &mut bytes);
    }

    fn hand_over(&mut self, side: usize, from: SocketAddr, bytes: &mut [u8]) {
        let end = &mut self.ends[side];
        end.connection
            .handle_datagram(&end.config, self.now, from, bytes, 0x1234_5678_9abc_def1);
    }

    /// A packet that authenticates, with this plaintext.
    fn lie(&mut self, side: usize, number: u64, plain: &[u8]) {
        self.lied = true;
        let key = if side == 0 { TO_DEVICE } else { TO_SERVER };
        let mut bytes = vec![DATA];
        bytes.extend_from_slice(&CID.0.to_be_bytes());
        bytes.extend_from_slice(&(number as u32).to_be_bytes());
        let mut nonce = Nonce::default();
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        let mut sealed = plain.to_vec();
        let tag = Aes256Gcm::new(&key.into())
            .encrypt_in_place_detached(&nonce, &bytes, &mut sealed)
            .expect("short enough");
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(&tag);
        let port = if side == 0 { 443 } else { self.device_port };
        self.hand_over(side, address(port), &mut bytes);
    }

    fn wait(&mut self, longest: Duration) {
        let next = self
            .ends
            .iter()
            .filter_map(|end| end.connection.poll_timeout())
            .min();
        let limit = self.now + longest;
        self.now = next.map_or(limit, |next| next.clamp(self.now, limit));
        for end in &mut self.ends {
            end.connection.handle_timeout(&end.config, self.now);
        }
    }
}

impl End {
    fn note(&mut self, sender: usize, event: Event, lied: bool) {
        match event {
            Event::Message(_, data) => {
                assert!(
                    lied || data == payload(sender, self.taken, data.len()),
                    "message {}",
                    self.taken
                );
                self.taken += 1;
            }
            Event::Delivered(count) => self.delivered += count,
            Event::Ended(_) => self.ended = true,
            Event::PeerMoved(_) | Event::Closed { .. } => {}
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut world = World {
        now: *BEGAN,
        ends: [end(Side::Device), end(Side::Server)],
        device_port: 1,
        lied: false,
    };
    let mut input = data;
    for _ in 0..MAX_STEPS {
        let [operation, argument, rest @ ..] = input else {
            break;
        };
        input = rest;
        let (side, argument) = (usize::from(operation & 1), usize::from(*argument));
        let now = world.now;
        let mut takes = true;
        match operation >> 1 & 15 {
            0..3 => {
                let end = &mut world.ends[side];
                let length = if argument > 200 {
                    (argument - 200) * 400
                } else {
                    argument
                };
                let message = payload(side, end.sent, length);
                match end
                    .connection
                    .send(&end.config, MessageKind::Binary, message)
                {
                    Ok(()) => end.sent += 1,
                    Err(SendError::Full(message)) => assert_eq!(message.len(), length),
                    Err(SendError::Closed | SendError::TooBig) => {}
                }
            }
            3..6 => world.arrive(side, 0, false, None),
            6 => world.arrive(side, argument, false, None),
            7 => world.arrive(side, argument, true, None),
            8 => world.arrive(side, 0, true, Some(argument * 13)),
            9 => drop(world.ends[side].out.pop_front()),
            10 => world.wait(Duration::from_millis(argument as u64 * argument as u64)),
            11 => world.device_port = 1 + argument as u16 % 4,
            12 => takes = false,
            13 => match argument {
                0 => world.ends[side].connection.close(now, 1000, "bye"),
                1 => world.ends[side].connection.abort(),
                2 => drop(world.ends[side].connection.handle_reset(&[3; 16])),
                _ => world.ends[side].connection.ping(),
            },
            _ => {
                let (plain, rest) = input.split_at(input.len().min(argument));
                input = rest;
                let (number, plain) = plain.split_first().map_or((0, plain), |(n, plain)| (*n, plain));
                world.lie(side, number.into(), plain);
            }
        }
        world.pump(side, takes);
        world.pump(1 - side, true);
    }
    // Left alone with nothing arriving, both come to rest: idle, or given up.
    for end in &mut world.ends {
        end.config.keep_alive = None;
    }
    let mut waits = 0;
    while world.now < *BEGAN + Duration::from_secs(3_600) {
        world.wait(Duration::from_secs(20));
        (0..2).for_each(|side| world.pump(side, true));
        world.ends.iter_mut().for_each(|end| end.out.clear());
        waits += 1;
        assert!(waits < 3_000, "timers do not come to rest");
    }
});
