//! A device with a good key that says whatever a test wants it to say.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aes_gcm::aead::{AeadInPlace as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use holdfast_proto::secure::{DeviceKey, Identity};
use prost::Message as _;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Acknowledgement, DATA_HEADER_BYTES, Hello, Packet, Piece, Said, data_header};

/// A server answers within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// An eliciting datagram of a device's is at least so long.
const MIN_ELICITING_BYTES: usize = 48;
const TAG_BYTES: usize = 16;

/// A connection of which every packet is made by hand.
pub struct Liar {
    pub socket: UdpSocket,
    pub cid: u64,
    to_server: Aes256Gcm,
    to_device: Aes256Gcm,
    /// The next packet's number.
    pub next_number: u64,
    /// The next message's number.
    pub next_message: u64,
    /// Packets of the server's that are to be acknowledged, in the order they came.
    came: Vec<u64>,
}

impl Liar {
    /// Does the handshake as it should be, from `source`.
    pub async fn connect(server: SocketAddr, source: IpAddr, identity: &Identity, key: &DeviceKey) -> Self {
        let socket = UdpSocket::bind((source, 0)).await.expect("a free port");
        socket.connect(server).await.expect("UDP connects at once");
        let (hello, mut initiator) = Hello::of(identity, key);
        let mut cookie = Vec::new();
        loop {
            socket.send(&hello.encode(&cookie)).await.expect("it is sent");
            match timeout(PATIENCE, said(&socket)).await.expect("an answer") {
                Said::Retry { cookie: given, .. } => cookie = given,
                Said::Challenge { cid, message2, .. } => {
                    let keys = initiator.try_finish(&message2).expect("our own key");
                    let cipher = |key: &[u8; 32]| Aes256Gcm::new(key.into());
                    return Self {
                        socket,
                        cid,
                        to_server: cipher(keys.to_server.as_bytes()),
                        to_device: cipher(keys.to_device.as_bytes()),
                        next_number: 0,
                        next_message: 0,
                        came: Vec::new(),
                    };
                }
                other => panic!("expected a CHALLENGE, not {other:?}"),
            }
        }
    }

    /// Says `@hello`, and waits for `@welcome`.
    pub async fn hello(&mut self) {
        self.say("@hello {}").await;
        self.until("@welcome", |packet| {
            packet
                .pieces
                .iter()
                .any(|piece| piece.data.starts_with(b"@welcome"))
        })
        .await;
    }

    /// Sends a text message as it should be, in one piece, and gives its number.
    pub async fn say(&mut self, text: &str) -> u64 {
        let message = self.next_message;
        self.next_message += 1;
        self.send(Packet::of_pieces(vec![Piece::text(message, text)]))
            .await;
        message
    }

    /// Sends a packet, with an acknowledgement of all that came if it has none, and gives its number.
    pub async fn send(&mut self, mut packet: Packet) -> u64 {
        if packet.ack.is_none() {
            packet.ack = self.acknowledgement();
        }
        self.send_bytes(packet.encode_to_vec()).await
    }

    /// Sends a packet as it is.
    pub async fn send_bare(&mut self, packet: Packet) -> u64 {
        self.send_bytes(packet.encode_to_vec()).await
    }

    /// Sends anything as a packet's plaintext.
    pub async fn send_bytes(&mut self, plaintext: Vec<u8>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let datagram = self.seal(number, plaintext);
        self.socket.send(&datagram).await.expect("it is sent");
        number
    }

    /// The datagram of a packet.
    pub fn seal(&self, number: u64, mut plaintext: Vec<u8>) -> Vec<u8> {
        let room = MIN_ELICITING_BYTES - DATA_HEADER_BYTES - TAG_BYTES;
        if let Some(missing @ 2..) = room.checked_sub(plaintext.len()) {
            // Field 9, of bytes.
            plaintext.extend_from_slice(&[9 << 3 | 2, missing as u8 - 2]);
            plaintext.resize(room, 0);
        }
        let header = data_header(self.cid, number);
        let tag = self
            .to_server
            .encrypt_in_place_detached(&nonce(number), &header, &mut plaintext)
            .expect("a packet is short");
        [&header[..], &plaintext, &tag].concat()
    }

    /// The next packet; panics when none comes or something else does.
    pub async fn receive(&mut self) -> Packet {
        self.receive_within(PATIENCE).await.expect("a packet comes")
    }

    /// The next packet; `None` when none comes within `wait`.
    pub async fn receive_within(&mut self, wait: Duration) -> Option<Packet> {
        let deadline = Instant::now() + wait;
        loop {
            match timeout_at(deadline, said(&self.socket)).await.ok()? {
                // Of another connection that was spoken for from here.
                Said::Data { cid, .. } if cid != self.cid => {}
                Said::Data {
                    number_low, sealed, ..
                } => return Some(self.open(number_low.into(), sealed)),
                other => panic!("expected a packet, not {other:?}"),
            }
        }
    }

    /// Reads and acknowledges on until a packet satisfies `wanted`, and gives that.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Packet {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let packet = timeout_at(deadline, self.receive()).await;
            let packet = packet.unwrap_or_else(|_| panic!("{what} does not come"));
            let found = wanted(&packet);
            if let Some(ack) = self.acknowledgement() {
                self.send_bare(Packet {
                    ack: Some(ack),
                    ..Packet::default()
                })
                .await;
            }
            if found {
                return packet;
            }
        }
    }

    /// Reads on until the server closes, and gives the code.
    pub async fn close_code(&mut self) -> u32 {
        let packet = self.until("a close", |packet| packet.close.is_some()).await;
        packet.close.map_or(0, |close| close.code)
    }

    /// Of the packets that came and must be acknowledged; they are forgotten.
    fn acknowledgement(&mut self) -> Option<Acknowledgement> {
        let mut came = std::mem::take(&mut self.came);
        came.sort_unstable();
        came.dedup();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for number in came {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => runs.push((number, number)),
            }
        }
        let (first, largest) = *runs.last()?;
        let mut ranges = vec![(largest - first) as u32];
        for pair in runs.windows(2).rev() {
            let ((first, last), (above, _)) = (pair[0], pair[1]);
            ranges.extend([(above - last - 2) as u32, (last - first) as u32]);
        }
        Some(Acknowledgement {
            largest,
            ranges,
            delay_us: 0,
        })
    }

    fn open(&mut self, number: u64, mut sealed: Vec<u8>) -> Packet {
        let tag = sealed.split_off(sealed.len() - TAG_BYTES);
        let tag: [u8; TAG_BYTES] = tag.try_into().expect("of that length");
        let header = data_header(self.cid, number);
        self.to_device
            .decrypt_in_place_detached(&nonce(number), &header, &mut sealed, &Tag::from(tag))
            .expect("the server's packets authenticate");
        let packet = Packet::decode(&sealed[..]).expect("the server's packets are protobuf");
        let silent = Packet {
            ack: packet.ack.clone(),
            path_response: packet.path_response,
            padding: packet.padding.clone(),
            ..Packet::default()
        };
        if packet != silent {
            self.came.push(number);
        }
        packet
    }
}

fn nonce(number: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

/// What comes next.
async fn said(socket: &UdpSocket) -> Said {
    let mut datagram = [0; 2048];
    loop {
        // An error tells of an earlier datagram that nobody took.
        if let Ok(length) = socket.recv(&mut datagram).await {
            return Said::parse(&datagram[..length]);
        }
    }
}
